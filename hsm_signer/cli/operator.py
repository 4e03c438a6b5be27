"""The person at the terminal: asked for the PIN, told to touch, told what is waited for.

The PIN is asked for on the terminal even when stdin and stdout are pipes. Cues go to stderr, and are taken away again.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

from hsm_signer.cli.output import print_note
from hsm_signer.cli.terminal import ask, ask_secret, has_terminal
from hsm_signer.device.access import Operator
from hsm_signer.device.lane import cue
from hsm_signer.device.pin.pin import Login, Pin, PinPad, PinRequest
from hsm_signer.errors import HsmSignerError, PinLastTry, PinUnavailable
from hsm_signer.system.display import displayable

logger = logging.getLogger(__name__)

_CLEAR_LINE = "\r\x1b[K"
_LOOK_AGAIN = 1.0


def terminal_operator(*, wait: bool = False) -> Operator:
    """Return the operator of a one-shot command.

    Args:
        wait: whether to wait for a device to be plugged in.
    """
    return Operator(
        prompt=TerminalPrompt(), confirm=confirm_last_try, slow=show_slow, wait=DeviceAwaited() if wait else None
    )


@contextlib.contextmanager
def show_slow(what: str) -> Iterator[None]:
    """Show on a terminal that the device is taking its time, for as long as it does; else put it into the log."""
    if not sys.stderr.isatty():
        logger.info("%s.", cue(what))
        yield
        return
    sys.stderr.write(f"{cue(what)}…")
    sys.stderr.flush()
    try:
        yield
    finally:
        # The terminal may have been closed.
        with contextlib.suppress(OSError):
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()


class DeviceAwaited:
    """Says once what is waited for, and lets a moment pass."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, reason: HsmSignerError) -> None:
        """Wait before the next look."""
        if not self._said:
            print_note(f"Waiting for the device. {displayable(reason.message)}")
            self._said = True
        time.sleep(_LOOK_AGAIN)


class TerminalPrompt:
    """The PIN source a person is."""

    description = "the terminal"
    identity = "the terminal"
    attended = True

    def __call__(self, request: PinRequest) -> Login:
        """Ask once, without echo.

        Raises:
            PinUnavailable: there is no terminal, or nothing was entered.
        """
        if request.pad:
            print_note(f"Enter the PIN of {displayable(request.device)} on its PIN pad.")
            return PinPad.PROTECTED
        if not has_terminal():
            raise PinUnavailable(
                f"{request.device} wants a PIN, and there is no terminal to ask on.",
                hint="Give a --pin-source: file:PATH, env:NAME, fd:N, command:ARGV or credential:NAME.",
            )
        warning = f"{displayable(request.warning)}\n" if request.warning else ""
        text = ask_secret(f"{warning}PIN for {displayable(request.device)}: ")
        if not text:
            raise PinUnavailable("No PIN was entered.", hint="Nothing was sent to the device; repeat the command.")
        return Pin(text)


def confirm_last_try(request: PinRequest) -> None:
    """Ask, where there is a terminal, whether the try that may lock the device is to be taken.

    Raises:
        PinLastTry: it is not.
    """
    if not has_terminal():
        return
    question = f"{displayable(request.device)} has one PIN try left. A wrong PIN locks it. Type yes to continue: "
    if ask(question) != "yes":
        raise PinLastTry("The last try was not taken.", hint="Unblock the PIN with the device's own tool first.")
