"""Signals that end the program: they unwind it, so that what was begun is taken back."""

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
    # Once. A terminal that closes and a service manager send several, and the next would cut short the unwinding.
    for each in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise Terminated(number)


def handle_termination() -> None:
    """Have SIGTERM and SIGHUP unwind the program. SIGHUP is left alone where it is ignored, as nohup(1) has it."""
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, terminate)
