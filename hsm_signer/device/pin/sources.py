"""Where a PIN can come from: a file, a variable, a descriptor, a command, a credential, the device's own pad.

`parse_pin_source` reads the texts of the command line, the profile and the URI. The one source that asks a person, the
prompt, is handed in by the command line.

A source that cannot be read raises PinUnavailable. It never becomes an empty PIN: an empty PIN costs a try.
"""

import functools
import os
import re
import shlex
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote_to_bytes

from hsm_signer.device.pin.pin import Login, Pin, PinPad, PinRequest, PinSource
from hsm_signer.errors import ConfigError, PinUnavailable
from hsm_signer.system.environment import withhold
from hsm_signer.system.file_state import file_identity
from hsm_signer.system.secret import hidden_locals
from hsm_signer.system.secret_input import (
    LIMIT,
    Unreadable,
    read_descriptor,
    read_file,
    read_file_state,
    run_command,
)

SECONDS = 10.0
"""How long a descriptor or a command may take to give the PIN."""


def parse_pin_source(
    text: str | Sequence[str],
    *,
    prompt: PinSource | None,
    environ: Mapping[str, str] = os.environ,
) -> PinSource:
    """Read a setting, or the `pin-source` of a URI, as a source. Nothing is opened yet.

    Args:
        text: one of
            `prompt`, `protected`, `none`;
            `file:PATH`, as it stands, or a bare absolute path;
            `file:///PATH`, percent-encoded (RFC 7512 section 2.4, RFC 8089);
            `env:NAME`; `fd:NUMBER`; `credential:NAME`;
            `command:ARGV`, split as a POSIX shell would, but run without one.
            A list (in a profile) is always a command: the absolute program, then its arguments.
        prompt: what `prompt` means here, or None where nobody can be asked.
        environ: the environment that `env:` and `credential:` read.

    Raises:
        ConfigError: not a source. The text is not quoted: it may be a PIN given by mistake.
        PinUnavailable: `prompt`, where nobody can be asked.
    """
    if not isinstance(text, str):
        return CommandPin(tuple(text))
    kind, colon, value = text.partition(":")
    if "\0" in text:
        raise ConfigError("The PIN source holds a NUL character.", hint=_CHOICE)
    match kind, colon:
        case "prompt", "":
            if prompt is None:
                raise PinUnavailable("The PIN should be prompted for, but nobody can be asked here.", hint=_CHOICE)
            return prompt
        case "protected", "":
            return PROTECTED
        case "none", "":
            return NO_LOGIN
        case "file", ":":
            return FilePin(_path(value))
        case "env", ":":
            return EnvironmentPin(value, environ)
        case "fd", ":" if re.fullmatch("[0-9]{1,6}", value):
            return _descriptor(int(value))
        case "command", ":":
            return CommandPin(_split(value))
        case "credential", ":":
            return SystemdCredentialPin(value, environ)
    if text.startswith("/"):
        return FilePin(Path(text))
    raise ConfigError("There is no such PIN source.", hint=_CHOICE)


@functools.cache
def _descriptor(number: int) -> "DescriptorPin":
    """Return the same source for the same number: once it was read, the number may be any other file's."""
    return DescriptorPin(number)


_CHOICE = (
    "Use file:PATH, env:NAME, fd:NUMBER, command:ARGV, credential:NAME, protected (the device's PIN pad), none, "
    "or prompt on a terminal."
)


def _path(value: str) -> Path:
    with suppress(UnicodeEncodeError):  # of half a character: no file is called that
        name = os.fsencode(value)
        if name.startswith(b"//"):
            host, slash, path = name[2:].partition(b"/")
            if host not in (b"", b"localhost"):
                raise ConfigError("The PIN file is on another host.", hint="Write file:///PATH, with three slashes.")
            name = unquote_to_bytes(slash + path)
        if name and b"\0" not in name:
            return Path(os.fsdecode(name))
    raise ConfigError("The PIN source file: does not name a file.", hint="Write file:PATH.")


def _split(command: str) -> tuple[str, ...]:
    with suppress(ValueError):
        return tuple(shlex.split(command))
    raise ConfigError(
        "The quotes in the PIN source command: are not balanced.",
        hint='Write each argument as in a shell, or in a profile as a list: ["/usr/bin/pass", "show", "card"].',
    )


@dataclass(frozen=True)
class FixedLogin:
    """A log-in known beforehand: the device's own pad, none at all, or the PIN in a URI."""

    login: Login
    description: str
    attended: ClassVar[bool] = False

    @property
    def identity(self) -> str:
        return self.description

    def __call__(self, request: PinRequest) -> Login:
        """Return what was fixed."""
        return self.login


PROTECTED = FixedLogin(PinPad.PROTECTED, "the device's own PIN pad")


NO_LOGIN = FixedLogin(None, "no PIN (none)")


class NobodyToAsk:
    """Where no source was named and there is no prompt: the device's own pad, or an error."""

    description: ClassVar[str] = "nobody"
    identity: ClassVar[str] = "nobody"
    attended: ClassVar[bool] = False

    def __call__(self, request: PinRequest) -> Login:
        """Name the pad of a device that has one, or raise PinUnavailable."""
        if request.pad:
            return PinPad.PROTECTED
        raise PinUnavailable(f"{request.device} wants a PIN, and no PIN source was named.", hint=_CHOICE)


class _Unattended(ABC):
    """A source that reads bytes from somewhere. Here is decided whether they are a PIN."""

    attended: ClassVar[bool] = False

    @property
    @abstractmethod
    def description(self) -> str:
        """What to call the source in a sentence."""

    @property
    def identity(self) -> str:
        """The same for as long as the source may hold the same PIN."""
        return self.description

    @abstractmethod
    def _read(self) -> bytes:
        """Return the PIN in UTF-8, or more than LIMIT bytes when there are; raise Unreadable."""

    def _read_state(self) -> tuple[bytes, str]:
        """Return what `_read` does, and the identity of the state it was read in."""
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
            # The exceptions met here hold the PIN: they end here, and nothing is raised while they live.
            with suppress(UnicodeDecodeError, PinUnavailable):
                return Pin(raw.decode(), identity)
            problem = "it is not UTF-8 text, or holds a NUL"
        raise PinUnavailable(
            f"Cannot get the PIN from {self.description}: {problem}.", hint="Put the PIN there, and nothing else."
        )


@dataclass(frozen=True)
class FilePin(_Unattended):
    """The text of a file that only we and root can read. One trailing newline is not part of it."""

    path: Path

    @property
    def description(self) -> str:
        return f"the file {self.path}"

    @property
    def identity(self) -> str:
        try:
            descriptor = os.open(self.path, getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK))
        except OSError:
            return self.description
        try:
            return file_identity(descriptor)
        finally:
            os.close(descriptor)

    def _read(self) -> bytes:
        return self._read_state()[0]

    def _read_state(self) -> tuple[bytes, str]:
        raw, identity = read_file_state(self.path, private=True)
        return _without_newline(raw), identity


@dataclass(frozen=True)
class SystemdCredentialPin(_Unattended):
    """A credential that systemd has laid out for this service (systemd.exec(5), LoadCredential=)."""

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

    def _read(self) -> bytes:
        hint = f"Put LoadCredential={self.name}:PATH or LoadCredentialEncrypted={self.name}:PATH into the unit."
        directory = self.environ.get("CREDENTIALS_DIRECTORY")
        if not directory:
            raise Unreadable("CREDENTIALS_DIRECTORY is not set", hint=hint)
        try:
            # Who may read it is systemd's care: it lets a service in by an ACL, which looks like an open group.
            return _without_newline(read_file(Path(directory) / self.name, private=False))
        except Unreadable as error:
            raise Unreadable(str(error), hint=hint) from error


@dataclass(frozen=True)
class EnvironmentPin(_Unattended):
    """An environment variable, exactly as it stands.

    It stays in the environment of this process, and is kept from the programs that this one starts.
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
        return value.encode(errors="surrogatepass")  # undecodable bytes become surrogates, which are no UTF-8


@dataclass(frozen=True)
class DescriptorPin(_Unattended):
    """What can be read from a descriptor that our parent has opened for us: once, to its end; then it is closed."""

    descriptor: int
    seconds: float = SECONDS
    # Taken by the first reading and never given back: at a second one the number may be another file's.
    _unread: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @property
    def description(self) -> str:
        return f"file descriptor {self.descriptor}"

    def _read(self) -> bytes:
        if not self._unread.acquire(blocking=False):
            raise Unreadable("it has been read before", hint="It gives the PIN once. Choose another PIN source.")
        return _without_newline(read_descriptor(self.descriptor, self.seconds))


@dataclass(frozen=True)
class CommandPin(_Unattended):
    """What a program prints, without one trailing newline.

    Args:
        argv: the absolute path of the program, then its arguments. These appear in no message: they may be secret.
        seconds: how long it may run before it is killed.
    """

    argv: tuple[str, ...] = field(repr=False)
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0].startswith("/") or any("\0" in word for word in self.argv):
            raise ConfigError(
                "The PIN source command: needs a program by its absolute path.",
                hint='Write command:/usr/bin/pass show card, or in a profile ["/usr/bin/pass", "show", "card"].',
            )

    @property
    def description(self) -> str:
        return f"the command {self.argv[0]}"

    def _read(self) -> bytes:
        return _without_newline(run_command(self.argv, self.seconds))


def _without_newline(raw: bytes) -> bytes:
    return raw.removesuffix(b"\r\n") if raw.endswith(b"\r\n") else raw.removesuffix(b"\n")
