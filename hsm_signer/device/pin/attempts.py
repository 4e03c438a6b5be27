"""Decide whether a PIN may be sent again after logins with it that were not accepted; pure."""

from dataclasses import dataclass
from enum import StrEnum

_TRIES = 2
_LONGEST_PAUSE = 300.0


class Outcome(StrEnum):
    """How the last login with a source's PIN ended, if the PIN was not accepted."""

    BEGUN = "begun"
    """It has no known result: the power failed, the process was killed, or the device failed."""
    REFUSED = "refused"


@dataclass(frozen=True)
class Attempt:
    """A login with a source's PIN that was not accepted.

    Attributes:
        times: how many were begun in a row.
        at: when the last one was begun, epoch seconds.
    """

    outcome: Outcome
    times: int
    at: float

    @property
    def pause(self) -> float:
        """Seconds to wait before an accepted PIN is sent again."""
        return min(_LONGEST_PAUSE, 2.0 ** (min(self.times, 20) - _TRIES))


def next_attempt(last: Attempt, *, accepted: bool, now: float) -> Attempt | None:
    """Decide from the last attempt whether a source's PIN may be sent.

    A PIN that was never accepted gets a second try if the first had no known outcome, but no third: the device may have
    counted both as wrong. A PIN that was accepted before is probably correct, and a device that fails now and then must
    not stop a program for good, so it gets more tries. They are at growing intervals: somebody may have changed the PIN
    on the device, and the module may report the refusal as a failure.

    Args:
        accepted: whether the device has accepted the PIN before, and has counted no wrong PIN since.
        now: epoch seconds.

    Returns:
        What to record before the PIN is sent, or None if it may not be sent, or not yet.
    """
    waits = accepted and 0 <= now - last.at < last.pause
    if last.outcome is Outcome.REFUSED or (last.times >= _TRIES and (waits or not accepted)):
        return None
    return Attempt(Outcome.BEGUN, last.times + 1, now)
