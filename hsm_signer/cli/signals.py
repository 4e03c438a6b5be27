"""Signals that end the program raise an exception, so that `finally` blocks run and clean up."""

import signal
from types import FrameType
from typing import NoReturn


class Terminated(BaseException):
    """A signal ends the program.

    Attributes:
        status: the exit status, as a shell counts it.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End the program: a handler for a signal."""
    # Once: a terminal that closes and a service manager send several, and the next one would interrupt the cleanup.
    for each in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise Terminated(number)


def handle_termination() -> None:
    """Raise `Terminated` on SIGTERM and SIGHUP. If SIGHUP is ignored, as under nohup(1), it stays ignored."""
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, terminate)
