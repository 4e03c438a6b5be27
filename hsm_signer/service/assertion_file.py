"""The file that holds an assertion, for the programs that AZURE_FEDERATED_TOKEN_FILE points there."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hsm_signer.errors import ConfigError, JwtError
from hsm_signer.jwt.assertion import FILE_LIFETIME, KEPT_BY_READERS, check_lifetime
from hsm_signer.jwt.compact import Jwt, parse_jwt
from hsm_signer.service.assertion_schedule import Held
from hsm_signer.system.private_file import write_private
from hsm_signer.system.secret import hidden_locals

INTERVAL = 1200
"""Seconds after which the next assertion is written."""

_MODES = (0o600, 0o640, 0o400, 0o440)
_LIMIT = 65536


@dataclass(frozen=True)
class AssertionFile:
    """The file: what it is to hold, and who may read it.

    Args:
        path: its directory must be writable by nobody but root and us.
        client_id: issuer of the assertions in it.
        audience: theirs.
        lifetime: theirs, seconds.
        interval: seconds after which one is replaced.
        mode: 0600, 0640, 0400 or 0440.
        group: id of the group it is to belong to; None leaves that to the directory.

    Raises:
        ConfigError: readers would be left with an expired assertion, or the mode lets others in.
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
                f"An assertion that lives for {self.lifetime} s and is replaced after {self.interval} s has "
                f"{self.lifetime} - {self.interval} = {left} s left by then, and SDKs go on with what they have read "
                f"for up to {KEPT_BY_READERS} s.",
                hint=f"Lifetime minus interval must be more than {KEPT_BY_READERS} s: {FILE_LIFETIME} and {INTERVAL} "
                "are the defaults.",
            )
        check_lifetime(self.lifetime)
        if self.mode not in _MODES:
            raise ConfigError(
                f"The mode {self.mode:04o} does not suit an assertion, with which anybody could act as the client.",
                hint=f"Choose one of {', '.join(f'{mode:04o}' for mode in _MODES)}.",
            )

    def held(self) -> Held | None:
        """Return what the file holds, or None where that is no assertion of this client for this audience."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, encoding="ascii") as file:
                status, text = os.fstat(descriptor), file.read(_LIMIT)
        except (OSError, UnicodeDecodeError):
            return None
        jwt = self._ours(text)
        if jwt is None:
            return None
        issued, expires = _times(jwt)
        as_asked = (
            status.st_uid == os.geteuid()
            and stat.S_IMODE(status.st_mode) == self.mode
            and self.group in (None, status.st_gid)
            and expires - issued == self.lifetime
            and text == text.strip()
        )
        due = issued + self.interval if as_asked else issued
        return Held(issued, due, expires, jwt.header, status.st_mtime)

    @hidden_locals()
    def replace(self, sign: Callable[[], str]) -> None:
        """Replace the assertion by a new one.

        Args:
            sign: returns it: `Tokens.assertion`.

        Raises:
            ConfigError: it is none that this file is for, or others can write in the directory, or the file system does
                not keep the mode or the group.
            OutputError: the file cannot be written. What was there before is unchanged.
            HsmSignerError: whatever `sign` raises.
        """

        def make() -> str:
            text = sign()
            jwt = self._ours(text)
            issued, expires = (0, 0) if jwt is None else _times(jwt)
            if expires - issued != self.lifetime:
                # It would be replaced at once, again and again.
                raise ConfigError(
                    f"{self.path} is for assertions by {self.client_id} for {self.audience} that live for "
                    f"{self.lifetime} s, and another was made.",
                    hint="Give the file the credential's client id, audience and lifetime.",
                )
            return text

        write_private(self.path, make, mode=self.mode, group=self.group, exact=True)
        written = self.held()
        if written is None or written.due <= written.issued:
            # It would be replaced at once, again and again. A file system may tell what it has not done.
            raise ConfigError(
                f"{self.path} does not hold what was just written, or does not have the mode {self.mode:04o} "
                "and the group that it was given.",
                hint="Put it on a file system that keeps modes and groups, such as /run. Let nothing else write it.",
            )

    def _ours(self, text: str) -> Jwt | None:
        """Return an assertion of this client for this audience, with times; None where it is none."""
        try:
            jwt = parse_jwt(text)
        except JwtError:
            return None
        ours = (jwt.claims.get("iss"), jwt.claims.get("aud")) == (self.client_id, self.audience)
        return jwt if ours and all(isinstance(jwt.claims.get(name), int) for name in ("nbf", "exp")) else None


def _times(jwt: Jwt) -> tuple[int, int]:
    """Return when an assertion was issued and expires."""
    return jwt.claims["nbf"], jwt.claims["exp"]
