"""The clock of a rotation; tests replace it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Clock:
    """The current time, and a way to wait.

    Attributes:
        now: epoch seconds.
        monotonic: seconds on a clock that is never set.
        sleep: waits for that many seconds.
    """

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def utc_now(self) -> datetime:
        """Return the current time, timezone-aware."""
        return datetime.fromtimestamp(self.now(), UTC)
