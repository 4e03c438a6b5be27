"""Asking a person on the terminal, whatever stdin and stdout are. Whatever signal comes, the terminal echoes again."""

import contextlib
import locale
import os
import signal
import termios
import threading
from collections.abc import Iterator
from types import FrameType

from hsm_signer.cli.signals import terminate
from hsm_signer.system.display import displayable_lines

_TERMINAL = "/dev/tty"


def has_terminal() -> bool:
    """Whether there is a person to ask."""
    try:
        with open(_TERMINAL, "rb"):
            return True
    except OSError:
        return False


def ask(question: str) -> str:
    """Ask on the terminal; return what was typed, without blanks around it. Needs `has_terminal`."""
    with open(_TERMINAL, "r+b", buffering=0) as terminal:
        terminal.write(displayable_lines(question).encode())
        return terminal.readline().decode(errors="replace").strip()


def ask_secret(question: str) -> str:
    """Ask on the terminal without echo; return the line that was typed, if any. Needs `has_terminal`.

    Bytes that are not text in the locale's encoding become surrogates, which no PIN has.
    """
    with open(_TERMINAL, "r+b", buffering=0) as terminal:
        line = b""
        # A terminal that was closed gives nothing.
        with contextlib.suppress(OSError):
            with _silent(terminal.fileno(), displayable_lines(question).encode()):
                line = terminal.readline()
            terminal.write(b"\n")
        return line.rstrip(b"\r\n").decode(locale.getpreferredencoding(False), errors="surrogateescape")


@contextlib.contextmanager
def _silent(terminal: int, question: bytes) -> Iterator[None]:
    """Turn echo off and ask; again after the program was stopped and continued."""
    before = termios.tcgetattr(terminal)
    silent = [*before]
    silent[3] &= ~termios.ECHO

    def begin() -> None:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
        os.write(terminal, question)

    def end() -> None:
        # A closed one has nothing to restore. In the background it is another program's, and setting it would stop us.
        with contextlib.suppress(OSError, termios.error):
            if os.tcgetpgrp(terminal) == os.getpgrp():
                termios.tcsetattr(terminal, termios.TCSAFLUSH, before)

    def stop(number: int, frame: FrameType | None) -> None:
        end()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # Continued. In the background, setting the terminal stops the program once more (SIGTTOU).
        signal.signal(signal.SIGTSTP, stop)
        begin()

    # These would stop and end the program at once. The others unwind it anyway, or are ignored.
    handlers = {signal.SIGTSTP: stop, signal.SIGQUIT: terminate}
    in_force = [each for each in handlers if _is_in_force(each)]
    try:
        for each in in_force:
            signal.signal(each, handlers[each])
        begin()
        yield
    finally:
        end()
        for each in in_force:
            signal.signal(each, signal.SIG_DFL)


def _is_in_force(number: signal.Signals) -> bool:
    """Whether a signal has its default effect, and a handler can be set for it here."""
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and signal.getsignal(number) == signal.SIG_DFL
