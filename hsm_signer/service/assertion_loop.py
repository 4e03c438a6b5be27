"""Keeps a fresh assertion in a file.

    file = AssertionFile(Path("/run/app/assertion"), client_id, tokens.client.endpoint.audience)
    keep(file, tokens.assertion, source=tokens.keys)

The loop looks at the file, decides what to do next, does it, and looks again. It remembers the last failure, and for
which key the assertion is known to be, so that a restart goes on with the file it finds, and one that somebody removed
is written anew.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

from hsm_signer.errors import DeviceError, DeviceTimeout, OutputError
from hsm_signer.service.assertion_file import AssertionFile
from hsm_signer.service.assertion_schedule import Failure, Held, Wait, Write, next_step
from hsm_signer.system.systemd import ServiceManager

logger = logging.getLogger(__name__)

LOOK_AGAIN = 30.0
"""Seconds from one look at the file to the next, at most: the clock may be set, and a machine may sleep."""

GLANCE = 1.0
"""Seconds from one look to the next at whether another key is in use."""

# What passes without anybody's doing: the device is plugged in again, the disk has room again.
_PASSING = (DeviceError, DeviceTimeout, OutputError)
_NOBODY = ServiceManager()


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
