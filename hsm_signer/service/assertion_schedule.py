"""Decide when to replace the assertion in a file; pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class FileContent:
    """The assertion in the file. Times are in epoch seconds.

    Attributes:
        issued: when it becomes valid.
        due: when it should be replaced.
        expires: when it stops being valid.
        header: its header.
        written: when the file was written.
    """

    issued: float
    due: float
    expires: float
    header: Mapping[str, Any] = field(default_factory=dict, compare=False)
    written: float = field(default=0, compare=False)


@dataclass(frozen=True)
class Failure:
    """Why the last try to replace the assertion failed.

    Attributes:
        at: when, in epoch seconds.
        count: the number of failures in a row, from 1.
        reason: the message.
    """

    at: float
    count: int
    reason: str

    @property
    def pause(self) -> float:
        """Seconds to wait before the next try."""
        return min(60.0, 5.0 * 2.0 ** min(self.count - 1, 4))


@dataclass(frozen=True)
class Write:
    """Replace the assertion now."""


@dataclass(frozen=True)
class Wait:
    """Do nothing for this many seconds."""

    seconds: float


def next_step(now: float, content: FileContent | None, failure: Failure | None) -> Write | Wait:
    """Decide what to do with the file.

    Args:
        now: epoch seconds.
        content: the assertion in it, or None if there is none of ours.
        failure: the last failure, if nothing was written since.
    """
    # Issued in the future: the clock was set back. Nobody accepts the assertion before then.
    due = now if content is None or now < content.issued else content.due
    if failure is not None and failure.at <= now:
        due = max(due, failure.at + failure.pause)
    if due <= now:
        return Write()
    return Wait((min(due, content.expires) if content is not None and now < content.expires else due) - now)
