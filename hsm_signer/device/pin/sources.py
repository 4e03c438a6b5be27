"""PIN sources: a file, a variable, a descriptor, a command, a systemd credential, the device's own PIN pad.

The prompt, the only source that asks a person, is part of the command line.

A source that cannot be read raises PinUnavailable. It never gives an empty PIN, which would cost a try.
"""

import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from hsm_signer.device.pin.pin import Login, Pin, PinPad, PinRequest
from hsm_signer.errors import ConfigError, PinUnavailable
from hsm_signer.system.environment import withhold
from hsm_signer.system.file_state import credential_identity, file_identity
from hsm_signer.system.secret import hidden_locals
from hsm_signer.system.secret_input import (
    LIMIT,
    Unreadable,
    read_descriptor,
    read_file_state,
    run_command,
)

SECONDS = 10.0
"""How long a descriptor or a command may take to give the PIN."""


CHOICES = (
    "Use file:PATH, env:NAME, fd:NUMBER, command:ARGV, credential:NAME, protected (the device's PIN pad), none, "
    "or prompt on a terminal."
)


@dataclass(frozen=True)
class FixedLogin:
    """A login that needs no reading: the device's own PIN pad, no login, or the PIN in a URI."""

    login: Login
    description: str
    attended: ClassVar[bool] = False

    @property
    def identity(self) -> str:
        return self.description

    def __call__(self, request: PinRequest) -> Login:
        """Return the login."""
        return self.login


PROTECTED = FixedLogin(PinPad.PROTECTED, "the device's own PIN pad")


NO_LOGIN = FixedLogin(None, "no PIN (none)")


class NoPinSource:
    """Used if no source is set and there is no prompt: the device's own PIN pad, or an error."""

    description: ClassVar[str] = "nobody"
    identity: ClassVar[str] = "nobody"
    attended: ClassVar[bool] = False

    def __call__(self, request: PinRequest) -> Login:
        """Return the PIN pad if the device has one, or raise PinUnavailable."""
        if request.pad:
            return PinPad.PROTECTED
        raise PinUnavailable(f"{request.device} requires a PIN, and no PIN source is set.", hint=CHOICES)


class _Unattended(ABC):
    """A source that reads bytes; this class decides whether they are a PIN."""

    attended: ClassVar[bool] = False

    @property
    @abstractmethod
    def description(self) -> str:
        """What to call the source in a sentence."""

    @property
    def identity(self) -> str:
        """Unchanged for as long as the source may hold the same PIN."""
        return self.description

    @abstractmethod
    def _read(self) -> bytes:
        """Return the PIN in UTF-8, or more than LIMIT bytes if the source is longer. Raise Unreadable on failure."""

    def _read_state(self) -> tuple[bytes, str]:
        """Return the same as `_read`, and the identity of the source when it was read."""
        return self._read(), self.identity

    @hidden_locals()
    def __call__(self, request: PinRequest) -> Pin:
        """Return the PIN, or raise PinUnavailable with the reason."""
        try:
            raw, identity = self._read_state()
        except Unreadable as error:
            raise PinUnavailable(f"Cannot get the PIN from {self.description}: {error}.", hint=error.hint) from error
        problem = "it is empty"
        if len(raw) > LIMIT:
            problem = f"it is longer than {LIMIT} bytes"
        elif raw:
            # These exceptions contain the PIN. They are caught here, and nothing is raised while they are handled.
            with suppress(UnicodeDecodeError, PinUnavailable):
                return Pin(raw.decode(), identity)
            problem = "it is not UTF-8 text, or contains a NUL"
        raise PinUnavailable(
            f"Cannot get the PIN from {self.description}: {problem}.", hint="Put the PIN there, and nothing else."
        )


@dataclass(frozen=True)
class FilePin(_Unattended):
    """The content of a file that only we and root can read, without one trailing newline."""

    path: Path

    @property
    def description(self) -> str:
        return f"the file {self.path}"

    @property
    def identity(self) -> str:
        return _identity_of(self.path) or self.description

    def _read(self) -> bytes:
        return self._read_state()[0]

    def _read_state(self) -> tuple[bytes, str]:
        raw, identity = read_file_state(self.path, private=True)
        return _without_newline(raw), identity


@dataclass(frozen=True)
class SystemdCredentialPin(_Unattended):
    """A credential that systemd provides to this service (systemd.exec(5), LoadCredential=)."""

    name: str
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or "/" in self.name:
            raise ConfigError(
                "The PIN source credential: needs the name of a credential, without a slash.",
                hint="Write credential:NAME, with the NAME of LoadCredential=NAME:PATH in the unit.",
            )

    @property
    def description(self) -> str:
        return f"the systemd credential {self.name}"

    @property
    def identity(self) -> str:
        directory = self.environ.get("CREDENTIALS_DIRECTORY")
        file = _identity_of(Path(directory) / self.name) if directory else None
        return self.description if file is None else self._identity_with(file)

    def _identity_with(self, file: str) -> str:
        start = self.environ.get("INVOCATION_ID", "")
        # In systemd's own directory, a copy for an unknown start can be compared with no other.
        if not start and self.environ.get("CREDENTIALS_DIRECTORY", "").startswith("/run/"):
            return self.description
        return credential_identity(self.description, start, file)

    def _read(self) -> bytes:
        return self._read_state()[0]

    def _read_state(self) -> tuple[bytes, str]:
        hint = f"Put LoadCredential={self.name}:PATH or LoadCredentialEncrypted={self.name}:PATH into the unit."
        directory = self.environ.get("CREDENTIALS_DIRECTORY")
        if not directory:
            raise Unreadable("CREDENTIALS_DIRECTORY is not set", hint=hint)
        try:
            # systemd controls who may read it: it gives a service access by an ACL, which looks like group access.
            raw, file = read_file_state(Path(directory) / self.name, private=False)
            return _without_newline(raw), self._identity_with(file)
        except Unreadable as error:
            raise Unreadable(str(error), hint=hint) from error


@dataclass(frozen=True)
class EnvironmentPin(_Unattended):
    """The value of an environment variable, unchanged.

    The variable stays in our environment, but programs that we start do not get it.
    """

    name: str
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.name):
            raise ConfigError(
                "The PIN source env: needs the name of an environment variable.",
                hint="Write env:NAME: letters, digits and _, as in env:HSM_PIN. The PIN itself does not belong there.",
            )
        withhold(self.name)

    @property
    def description(self) -> str:
        return f"the environment variable {self.name}"

    def _read(self) -> bytes:
        value = self.environ.get(self.name)
        if value is None:
            raise Unreadable("it is not set", hint="Set it, or choose another PIN source.")
        return value.encode(errors="surrogatepass")  # undecodable bytes become surrogates, which are not valid UTF-8


@dataclass(frozen=True)
class DescriptorPin(_Unattended):
    """The content of a descriptor that our parent opened for us. It is read once, to its end, and closed."""

    descriptor: int
    seconds: float = SECONDS
    # Acquired by the first read and never released: by then the number may belong to another file.
    _unread: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @property
    def description(self) -> str:
        return f"file descriptor {self.descriptor}"

    def _read(self) -> bytes:
        if not self._unread.acquire(blocking=False):
            raise Unreadable(
                "it has been read before", hint="A descriptor can be read only once. Choose another PIN source."
            )
        return _without_newline(read_descriptor(self.descriptor, self.seconds))


@dataclass(frozen=True)
class CommandPin(_Unattended):
    """What a program prints, without one trailing newline.

    Args:
        argv: the absolute path of the program, then its arguments. No message shows the arguments: they may be secret.
        seconds: how long it may run before it is killed.
    """

    argv: tuple[str, ...] = field(repr=False)
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0].startswith("/") or any("\0" in word for word in self.argv):
            raise ConfigError(
                "The PIN source command: needs the absolute path of a program.",
                hint='Write command:/usr/bin/pass show card, or in a profile ["/usr/bin/pass", "show", "card"].',
            )

    @property
    def description(self) -> str:
        return f"the command {self.argv[0]}"

    def _read(self) -> bytes:
        return _without_newline(run_command(self.argv, self.seconds))


def _identity_of(path: Path) -> str | None:
    """Return the `file_identity` of a file, which we need not be able to read; None if it cannot be opened."""
    try:
        descriptor = os.open(path, getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        return None
    try:
        return file_identity(descriptor)
    finally:
        os.close(descriptor)


def _without_newline(raw: bytes) -> bytes:
    return raw.removesuffix(b"\r\n") if raw.endswith(b"\r\n") else raw.removesuffix(b"\n")
