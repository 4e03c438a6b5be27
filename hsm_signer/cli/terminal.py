"""Ask a person on the terminal, even if stdin and stdout are pipes. After any signal, the terminal echoes again."""

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
    """Return whether there is a terminal to ask on."""
    try:
        with open(_TERMINAL, "rb"):
            return True
    except OSError:
        return False


def ask(question: str) -> str:
    """Ask on the terminal; return what was typed, without blanks around it. Needs `has_terminal`."""
    return ask_line(question) or ""


def ask_line(question: str) -> str | None:
    """Ask as `ask` does; return None if the person ended the input (Ctrl-D) instead of a line."""
    with open(_TERMINAL, "r+b", buffering=0) as terminal:
        line = b""
        try:
            terminal.write(displayable_lines(question).encode())
            line = terminal.readline()
        finally:
            # After Ctrl-C and Ctrl-D, what comes next begins a line of its own.
            if not line.endswith(b"\n"):
                with contextlib.suppress(OSError):
                    terminal.write(b"\n")
        return line.decode(errors="replace").strip() if line else None


def ask_secret(question: str) -> str:
    """Ask on the terminal without echo; return the line that was typed, if any. Call `has_terminal` first.

    Bytes that are not text in the locale's encoding become surrogates, which no PIN has.
    """
    with open(_TERMINAL, "r+b", buffering=0) as terminal:
        line = b""
        # The terminal may have been closed: then there is no answer.
        try:
            with contextlib.suppress(OSError), _silent(terminal.fileno(), displayable_lines(question).encode()):
                line = terminal.readline()
        finally:
            with contextlib.suppress(OSError):
                terminal.write(b"\n")
        return line.rstrip(b"\r\n").decode(locale.getpreferredencoding(False), errors="surrogateescape")


@contextlib.contextmanager
def _silent(terminal: int, question: bytes) -> Iterator[None]:
    """Turn echo off and ask. Do so again after the program was stopped (Ctrl-Z) and continued."""
    before = termios.tcgetattr(terminal)
    silent = [*before]
    silent[3] &= ~termios.ECHO

    def begin() -> None:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
        os.write(terminal, question)

    def end() -> None:
        # A closed terminal cannot be restored. In the background, it is another program's: changing it would stop us.
        with contextlib.suppress(OSError, termios.error):
            if os.tcgetpgrp(terminal) == os.getpgrp():
                termios.tcsetattr(terminal, termios.TCSAFLUSH, before)

    def stop(number: int, frame: FrameType | None) -> None:
        end()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        # Continued. In the background, changing the terminal stops the program once more (SIGTTOU).
        signal.signal(signal.SIGTSTP, stop)
        begin()

    # By default, these stop or end the program at once. The other signals raise an exception, or are ignored.
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
    """Return whether a signal has its default effect, and this thread can set a handler for it."""
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and signal.getsignal(number) == signal.SIG_DFL
