"""Keep a valid assertion in a file.

    file = AssertionFile(Path("/run/app/assertion"), client_id, tokens.client.endpoint.audience)
    keep(file, tokens.assertion, source=tokens.keys)

The loop reads the file, decides what to do next, does it, and reads the file again. It remembers only the last failure,
and which key signed the assertion. So a restart continues with the existing file, and a removed file is written again.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from hsm_signer.errors import DeviceError, DeviceTimeout, OutputError
from hsm_signer.service.assertion_file import AssertionFile
from hsm_signer.service.assertion_schedule import Failure, FileContent, Wait, Write, next_step
from hsm_signer.system.systemd import ServiceManager

logger = logging.getLogger(__name__)

LOOK_INTERVAL = 30.0
"""Maximum seconds between two reads of the file: somebody may set the clock, and the machine may sleep."""

SOURCE_INTERVAL = 1.0
"""Seconds between two checks for another key."""

# Failures that may end while we wait: somebody plugs the device in again, or the disk has space again.
_TEMPORARY = (DeviceError, DeviceTimeout, OutputError)
_NO_MANAGER = ServiceManager()


class Source(Protocol):
    """What is known about the signing key without the device. `Keys` implements it."""

    def state(self) -> tuple[object, ...]:
        """Return a value that changes when another key or certificate may be in use. Empty: it never changes."""
        ...

    def is_current(self, header: Mapping[str, Any], written: float) -> bool:
        """Return whether the current key signed an assertion.

        Args:
            header: the header of the assertion.
            written: when it was written to a file, epoch seconds.
        """
        ...


class _FixedSource:
    def state(self) -> tuple[object, ...]:
        return ()

    def is_current(self, header: Mapping[str, Any], written: float) -> bool:
        return True


def keep(
    file: AssertionFile,
    sign: Callable[[], str],
    *,
    source: Source = _FixedSource(),  # noqa: B008  # it has no state
    once: bool = False,
    wait_for_device: bool = False,
    manager: ServiceManager = _NO_MANAGER,
    report: Callable[[str], None] = logger.info,
    now: Callable[[], float] = time.time,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Keep a valid assertion in the file until an error or an interrupt ends this. The file stays.

    While the device is unavailable, the last assertion stays, even if it has expired: SDKs for JavaScript read the file
    even while their token is valid, and fail if it does not exist.

    Args:
        sign: returns an assertion as `file` describes it, such as `Tokens.assertion`.
        source: reports that another key or certificate is in use. The assertion is then replaced at once.
        once: return as soon as the file holds an assertion that is not due for replacement, and raise every error.
        wait_for_device: wait for the device even if the file holds no assertion of ours yet.
        manager: notified when the first assertion is valid, and while the loop runs. Its watchdog must allow for the
            time that `sign` may take.
        report: called with a sentence that says what was written and until when it is valid: the first assertion, each
            renewal, and the end of a failure.
        now: the clock, epoch seconds.
        wait: waits for this many seconds.

    Raises:
        PinError, KeyLookupError, ConfigError: somebody has to fix this. A refused PIN is not sent again.
        DeviceError, DeviceTimeout, OutputError: with `once`; or if there was no assertion yet and `wait_for_device` is
            false.
    """
    failure: Failure | None = None
    # The state of the source for which we know that the current key signed the assertion in the file.
    known: tuple[object, ...] | None = None
    # The expiry that was already logged.
    reported = math.inf
    wrote = False
    while True:
        state = source.state()
        content = file.read()
        wait_for_device = wait_for_device or content is not None
        if content is not None and state != known:
            if source.is_current(content.header, content.written):
                known = state
            else:
                content = replace(content, due=content.issued)
        if failure is not None and content is not None and now() >= content.expires != reported:
            reported = content.expires
            logger.warning("The assertion in %s expired at %s. It was not removed.", file.path, _utc(content.expires))
        match next_step(now(), content, failure):
            case Write():
                try:
                    written = file.replace(sign)
                    report(_what_was_written(file.path, content, failure, written.expires))
                    wrote = True
                    # No need to ask the source: the assertion was signed after we read this state.
                    failure, known = None, state
                except _TEMPORARY as error:
                    if once or not wait_for_device:
                        raise
                    failure = Failure(now(), failure.count + 1 if failure else 1, error.message)
                    logger.warning("%s Trying again in %d s.", error.message, failure.pause)
            case Wait(seconds):
                manager.notify(**_status(content, failure, now()))
                if once:
                    if content is not None and not wrote:
                        report(f"The assertion in {file.path} is fresh: it is valid until {_utc(content.expires)}.")
                    return
                _wait_for_change(min(seconds, LOOK_INTERVAL, (manager.watchdog or math.inf) / 2), source, state, wait)


def _wait_for_change(seconds: float, source: Source, state: tuple[object, ...], wait: Callable[[float], None]) -> None:
    """Wait, but return as soon as the source changes."""
    if not state:
        wait(seconds)
    while state and seconds > 0 and source.state() == state:
        wait(min(seconds, SOURCE_INTERVAL))
        seconds -= SOURCE_INTERVAL


def _status(content: FileContent | None, failure: Failure | None, now: float) -> dict[str, str | int]:
    """Return the notification for the service manager (sd_notify(3))."""
    trouble = f" {failure.reason}" if failure else ""
    if content is None:
        return {"WATCHDOG": 1, "STATUS": f"The file holds no assertion.{trouble}"}
    if now >= content.expires:
        return {"WATCHDOG": 1, "STATUS": f"The assertion expired at {_utc(content.expires)}.{trouble}"}
    return {"READY": 1, "WATCHDOG": 1, "STATUS": f"The assertion is valid until {_utc(content.expires)}.{trouble}"}


def _what_was_written(path: Path, before: FileContent | None, failure: Failure | None, expires: float) -> str:
    valid = f"It is valid until {_utc(expires)}."
    if failure is not None:
        failures = "1 failure" if failure.count == 1 else f"{failure.count} failures"
        return f"Wrote a new assertion to {path} after {failures}. {valid}"
    return f"Wrote an assertion to {path}. {valid}" if before is None else f"Renewed the assertion in {path}. {valid}"


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
