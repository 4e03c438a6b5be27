"""Shows a person for which server a request waits, and at which try, once that takes longer than two seconds."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Self, TypeAlias

logger = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds from the start of a request until it is shown."""

Slow: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Takes what is being done, and shows it to a person for as long as that takes. `Operator.slow` is one."""


@contextmanager
def log_waiting(what: str) -> Iterator[None]:
    """Log that something takes long: the `Slow` for use without a terminal."""
    logger.info("Still %s.", what)
    yield


class Waiting:
    """What is shown while one request waits. A context manager: what is shown disappears when the request ends.

    Args:
        slow: shows it.
        host: the server.
        tries: how often the request is sent at most.
        monotonic: seconds on a clock that is never set.
    """

    def __init__(self, slow: Slow, host: str, tries: int, monotonic: Callable[[], float]) -> None:
        self._slow, self._host, self._tries, self._monotonic = slow, host, tries, monotonic
        self._began = monotonic()
        self._number = 1
        self._shown: ExitStack | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hide()

    @property
    def patience(self) -> float:
        """Seconds until `show` should be called."""
        return max(self._began + PATIENCE - self._monotonic(), 0)

    def show(self) -> None:
        """Show it, unless it is shown."""
        if self._shown is None:
            self._shown = ExitStack()
            again = f", try {self._number} of {self._tries}" if self._number > 1 else ""
            self._shown.enter_context(self._slow(f"waiting for {self._host}{again}"))

    def try_again(self, pause: float) -> None:
        """Show the next try, which begins after a pause, if it or the pause takes long."""
        self._hide()
        self._number += 1
        if pause > self.patience:
            self.show()

    def _hide(self) -> None:
        shown, self._shown = self._shown, None
        if shown is not None:
            shown.close()
