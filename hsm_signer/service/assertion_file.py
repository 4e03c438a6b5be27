"""A fresh assertion in a file, for the programs that AZURE_FEDERATED_TOKEN_FILE points there.

    file = AssertionFile(Path("/run/app/assertion"), client_id, tokens.endpoint.audience)
    keep(file, tokens.assertion, source=tokens.keys)

The loop looks at the file, decides what to do next, does it, and looks again. It remembers the last failure, and for
which key the assertion is known to be, so that a restart goes on with the file it finds, and one that somebody removed
is written anew.
"""

import logging
import math
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from hsm_signer.errors import ConfigError, DeviceError, DeviceTimeout, JwtError, OutputError
from hsm_signer.jwt.assertion import FILE_LIFETIME, KEPT_BY_READERS, MAXIMUM_LIFETIME, Jwt, parse_jwt
from hsm_signer.system.private_file import write_private
from hsm_signer.system.secret import hidden_locals
from hsm_signer.system.systemd import ServiceManager

logger = logging.getLogger(__name__)

INTERVAL = 1200
"""Seconds after which the next assertion is written."""

LOOK_AGAIN = 30.0
"""Seconds from one look at the file to the next, at most: the clock may be set, and a machine may sleep."""

GLANCE = 1.0
"""Seconds from one look to the next at whether another key is in use."""

_MODES = (0o600, 0o640, 0o400, 0o440)
# What passes without anybody's doing: the device is plugged in again, the disk has room again.
_PASSING = (DeviceError, DeviceTimeout, OutputError)
_LIMIT = 65536
_NOBODY = ServiceManager()


@dataclass(frozen=True)
class Held:
    """What the file holds.

    Attributes:
        issued: epoch seconds; the assertion is not valid earlier.
        due: when it is to be replaced.
        expires: from when on nobody accepts it.
        header: of the assertion.
        written: when the file was.
    """

    issued: float
    due: float
    expires: float
    header: Mapping[str, Any] = field(default_factory=dict, compare=False)
    written: float = field(default=0, compare=False)


class Source(Protocol):
    """What the assertions come from, as far as it can be seen without the device: `Keys`."""

    def state(self) -> tuple[object, ...]:
        """Return what changes when another key or certificate may be in use; empty where nothing can change."""
        ...

    def is_current(self, header: Mapping[str, Any], written: float) -> bool:
        """Return whether an assertion with this header, written to a file then, is by the key in use."""
        ...


class _Unchanging:
    def state(self) -> tuple[object, ...]:
        return ()

    def is_current(self, header: Mapping[str, Any], written: float) -> bool:
        return True


@dataclass(frozen=True)
class Failure:
    """Why the file was last not replaced.

    Attributes:
        at: epoch seconds.
        count: how many there were in a row, from 1.
        reason: the message.
    """

    at: float
    count: int
    reason: str

    @property
    def pause(self) -> float:
        """Seconds to let pass before the next try."""
        return min(60.0, 5.0 * 2.0 ** min(self.count - 1, 4))


@dataclass(frozen=True)
class Write:
    """Replace the assertion now."""


@dataclass(frozen=True)
class Wait:
    """Do nothing for so many seconds."""

    seconds: float


def next_step(now: float, held: Held | None, failure: Failure | None) -> Write | Wait:
    """Decide what to do with the file.

    Args:
        now: epoch seconds.
        held: what it holds; None for nothing of ours.
        failure: the last one, if nothing was written since.
    """
    # Issued in the future: the clock has been set back, and nobody accepts the assertion until then.
    due = now if held is None or now < held.issued else held.due
    if failure is not None and failure.at <= now:
        due = max(due, failure.at + failure.pause)
    if due <= now:
        return Write()
    return Wait((min(due, held.expires) if held is not None and now < held.expires else due) - now)


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
        if self.lifetime > MAXIMUM_LIFETIME:
            raise ConfigError(
                f"An assertion cannot live for {self.lifetime} s.", hint=f"{MAXIMUM_LIFETIME} s are accepted at most."
            )
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


def keep(
    file: AssertionFile,
    sign: Callable[[], str],
    *,
    source: Source = _Unchanging(),  # noqa: B008  # it has no state
    once: bool = False,
    patient: bool = False,
    manager: ServiceManager = _NOBODY,
    now: Callable[[], float] = time.time,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Keep a fresh assertion in the file until something ends it, such as an interrupt. The file then stays.

    While the device is away, the last assertion stays, also when it has expired: SDKs for JavaScript read the file even
    while their token is good, and fail without one.

    Args:
        sign: returns an assertion as `file` describes it: `Tokens.assertion`.
        source: tells that another key or certificate is in use, and the assertion is then replaced at once.
        once: return as soon as there is a fresh one; whatever fails is raised.
        patient: wait for the device although there was no assertion of ours yet.
        manager: is told of the first good assertion, and that all is well. Its watchdog must have the patience for
            what `sign` may take.
        now: the clock, epoch seconds.
        wait: lets that many seconds pass.

    Raises:
        PinError, KeyLookupError, ConfigError: what does not pass by itself. A refused PIN is not presented again.
        DeviceError, DeviceTimeout, OutputError: with `once`, or where there was no assertion yet and nobody is
            `patient`.
    """
    failure: Failure | None = None
    # For which state of the source the assertion in the file is known to be by the key in use.
    known: tuple[object, ...] | None = None
    # When the assertion expired of which the log said so.
    reported = math.inf
    while True:
        state = source.state()
        held = file.held()
        patient = patient or held is not None
        if held is not None and state != known:
            if source.is_current(held.header, held.written):
                known = state
            else:
                held = replace(held, due=held.issued)
        if failure is not None and held is not None and now() >= held.expires != reported:
            reported = held.expires
            logger.warning("The assertion in %s expired at %s. It was not removed.", file.path, _utc(held.expires))
        match next_step(now(), held, failure):
            case Write():
                try:
                    file.replace(sign)
                    # Whatever the source says of it: it was signed after that.
                    failure, known = None, state
                except _PASSING as error:
                    if once or not patient:
                        raise
                    failure = Failure(now(), failure.count + 1 if failure else 1, error.message)
                    logger.warning("%s Trying again in %d s.", error.message, failure.pause)
            case Wait(seconds):
                manager.tell(**_state(held, failure, now()))
                if once:
                    return
                _let_pass(min(seconds, LOOK_AGAIN, (manager.watchdog or math.inf) / 2), source, state, wait)


def _let_pass(seconds: float, source: Source, state: tuple[object, ...], wait: Callable[[float], None]) -> None:
    """Wait, but not longer than until the source changes."""
    if not state:
        wait(seconds)
    while state and seconds > 0 and source.state() == state:
        wait(min(seconds, GLANCE))
        seconds -= GLANCE


def _times(jwt: Jwt) -> tuple[int, int]:
    """Return when an assertion was issued and expires."""
    return jwt.claims["nbf"], jwt.claims["exp"]


def _state(held: Held | None, failure: Failure | None, now: float) -> dict[str, str | int]:
    """Return what a service manager is told (sd_notify(3))."""
    trouble = f" {failure.reason}" if failure else ""
    if held is None:
        return {"WATCHDOG": 1, "STATUS": f"There is no assertion.{trouble}"}
    if now >= held.expires:
        return {"WATCHDOG": 1, "STATUS": f"The assertion expired at {_utc(held.expires)}.{trouble}"}
    return {"READY": 1, "WATCHDOG": 1, "STATUS": f"The assertion is good until {_utc(held.expires)}.{trouble}"}


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
