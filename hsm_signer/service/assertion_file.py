"""The file that holds an assertion, for programs that read AZURE_FEDERATED_TOKEN_FILE."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hsm_signer.errors import ConfigError, JwtError
from hsm_signer.jwt.assertion import FILE_LIFETIME, KEPT_BY_READERS, check_lifetime
from hsm_signer.jwt.compact import Jwt, parse_jwt
from hsm_signer.service.assertion_schedule import FileContent
from hsm_signer.system.private_file import write_private
from hsm_signer.system.secret import hidden_locals

INTERVAL = 1200
"""Seconds after which the next assertion is written."""

_MODES = (0o600, 0o640, 0o400, 0o440)
_LIMIT = 65536


@dataclass(frozen=True)
class AssertionFile:
    """The file: which assertions it holds, and who may read it.

    Args:
        path: the file. Only root and we may be able to write in its directory.
        client_id: issuer of the assertions.
        audience: audience of the assertions.
        lifetime: lifetime of the assertions, in seconds.
        interval: seconds after which an assertion is replaced.
        mode: 0600, 0640, 0400 or 0440.
        group: numeric ID of the file's group. None: the system chooses.

    Raises:
        ConfigError: readers could be left with an expired assertion, or the mode would let others read the file.
    """

    path: Path
    client_id: str
    audience: str
    lifetime: int = FILE_LIFETIME
    interval: int = INTERVAL
    mode: int = 0o600
    group: int | None = None

    def __post_init__(self) -> None:
        left = self.lifetime - self.interval
        if left <= KEPT_BY_READERS:
            raise ConfigError(
                f"An assertion with a lifetime of {self.lifetime} s that is replaced after {self.interval} s is valid "
                f"for only {self.lifetime} - {self.interval} = {left} s more when it is replaced. SDKs keep using an "
                f"assertion for up to {KEPT_BY_READERS} s after they read it.",
                hint=f"Lifetime minus interval must be more than {KEPT_BY_READERS} s. The defaults are "
                f"{FILE_LIFETIME} s and {INTERVAL} s.",
            )
        check_lifetime(self.lifetime)
        if self.mode not in _MODES:
            raise ConfigError(
                f"The mode {self.mode:04o} is not allowed: anyone who can read an assertion can act as the client.",
                hint=f"Use one of {', '.join(f'{mode:04o}' for mode in _MODES)}.",
            )

    def read(self) -> FileContent | None:
        """Return the content of the file, or None if it is not an assertion of this client for this audience."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, encoding="ascii") as file:
                status, text = os.fstat(descriptor), file.read(_LIMIT)
        except (OSError, UnicodeDecodeError):
            return None
        jwt = self._parse_ours(text)
        if jwt is None:
            return None
        issued, expires = _times(jwt)
        matches = (
            status.st_uid == os.geteuid()
            and stat.S_IMODE(status.st_mode) == self.mode
            and self.group in (None, status.st_gid)
            and expires - issued == self.lifetime
            and text == text.strip()
        )
        due = issued + self.interval if matches else issued
        return FileContent(issued, due, expires, jwt.header, status.st_mtime)

    @hidden_locals()
    def replace(self, sign: Callable[[], str]) -> FileContent:
        """Replace the assertion with a new one, and return what the file holds then.

        Args:
            sign: returns the new assertion, such as `Tokens.assertion`.

        Raises:
            ConfigError: the assertion has another client ID, audience or lifetime; or others can write in the
                directory; or the file system does not keep the mode or the group.
            OutputError: the file cannot be written. The old assertion is unchanged.
            HsmSignerError: `sign` failed.
        """

        def make() -> str:
            text = sign()
            jwt = self._parse_ours(text)
            issued, expires = (0, 0) if jwt is None else _times(jwt)
            if expires - issued != self.lifetime:
                # We would replace it at once, again and again.
                raise ConfigError(
                    f"{self.path} should hold an assertion of {self.client_id} for {self.audience} with a lifetime of "
                    f"{self.lifetime} s, but the credential made a different one.",
                    hint="Create the AssertionFile with the client ID, audience and lifetime of the credential.",
                )
            return text

        write_private(self.path, make, mode=self.mode, group=self.group, exact=True)
        written = self.read()
        if written is None or written.due <= written.issued:
            # We would replace it at once, again and again. Some file systems report success but do not set the mode.
            raise ConfigError(
                f"{self.path} has other content than was just written, or not the mode {self.mode:04o} or the group "
                "that was set.",
                hint="Use a file system that keeps modes and groups, such as /run, and make sure that no other program "
                "writes this file.",
            )
        return written

    def _parse_ours(self, text: str) -> Jwt | None:
        """Return the assertion in `text`, or None if it is not one of this client for this audience, with times."""
        try:
            jwt = parse_jwt(text)
        except JwtError:
            return None
        ours = (jwt.claims.get("iss"), jwt.claims.get("aud")) == (self.client_id, self.audience)
        return jwt if ours and all(isinstance(jwt.claims.get(name), int) for name in ("nbf", "exp")) else None


def _times(jwt: Jwt) -> tuple[int, int]:
    """Return when an assertion was issued and when it expires, in epoch seconds."""
    return jwt.claims["nbf"], jwt.claims["exp"]
