"""When the assertion in a file is replaced; pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
