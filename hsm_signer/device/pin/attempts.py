"""Whether a PIN may be sent again after the logins with it that were not accepted; pure."""

from dataclasses import dataclass
from enum import StrEnum

_TRIES = 2
_LONGEST_PAUSE = 300.0


class Outcome(StrEnum):
    """What became of the last login with a source's PIN, where it was not accepted."""

    BEGUN = "begun"
    """Its end was not seen, or says nothing about the PIN: power cut, kill, a device that failed."""
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
        """Seconds to let pass before an accepted PIN is presented again."""
        return min(_LONGEST_PAUSE, 2.0 ** (min(self.times, 20) - _TRIES))


def next_attempt(last: Attempt, *, accepted: bool, now: float) -> Attempt | None:
    """Decide whether a source's PIN may be presented, from what became of it the last time.

    A PIN of which nothing is known gets one more try when the first had no known outcome, and no third: both may have
    been wrong ones, which the device has counted. One that was accepted before is not in doubt, and a device that fails
    now and then must not end a program for good. It gets more tries, at growing intervals: somebody may have changed
    the PIN on the device, and the module may report the refusal as a failure.

    Args:
        accepted: whether the device has accepted the PIN before, and counts no wrong one since.
        now: epoch seconds.

    Returns:
        What to write down before it is presented, or None when it may not be, or not yet.
    """
    waits = accepted and 0 <= now - last.at < last.pause
    if last.outcome is Outcome.REFUSED or (last.times >= _TRIES and (waits or not accepted)):
        return None
    return Attempt(Outcome.BEGUN, last.times + 1, now)
