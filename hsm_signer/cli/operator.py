"""The person at the terminal, who types the PIN, touches the key and plugs in the device.

The PIN prompt uses the terminal even if stdin and stdout are pipes. Cues such as "Touch the key" go to stderr, and are
removed again.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

from hsm_signer.cli.output import print_note, sentences
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
    """Show on a terminal that a call into the device takes long, until it returns. Without a terminal, log it."""
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
    """Waits for a device: says so once, and pauses between looks."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, reason: HsmSignerError) -> None:
        """Wait before the next look."""
        if not self._said:
            print_note("\n".join(sentences(f"Waiting for the device. {reason.message}")))
            self._said = True
        time.sleep(_LOOK_AGAIN)


class TerminalPrompt:
    """The PIN source `prompt`: asks a person on the terminal."""

    description = "the terminal"
    identity = "the terminal"
    attended = True

    def __call__(self, request: PinRequest) -> Login:
        """Ask once, without echo.

        Raises:
            PinUnavailable: there is no terminal, or nothing was entered.
        """
        name = _name(request)
        warning = f"{displayable(request.warning)}\n" if request.warning else ""
        if request.pad:
            print_note(f"{warning}Enter the PIN of {name} on its PIN pad.")
            return PinPad.PROTECTED
        if not has_terminal():
            raise PinUnavailable(
                f"{request.device} requires a PIN, and there is no terminal to ask on.",
                hint="Give a --pin-source: file:PATH, env:NAME, fd:N, command:ARGV or credential:NAME.",
            )
        text = ask_secret(f"{warning}PIN for {name}: ")
        if not text:
            raise PinUnavailable("No PIN was entered.", hint="Nothing was sent to the device. Run the command again.")
        return Pin(text)


def confirm_last_try(request: PinRequest) -> None:
    """Ask whether to log in although a wrong PIN would lock the device. Without a terminal, nobody is asked.

    Raises:
        PinLastTry: the answer is not "yes".
    """
    if not has_terminal():
        logger.warning("%s: %s", request.device, request.warning)
        return
    question = f"{_name(request)} has one PIN try left. A wrong PIN locks it. Type yes to continue: "
    if ask(question) != "yes":
        raise PinLastTry("No PIN was sent.", hint="Reset the PIN tries with the device's own tool first.")


def _name(request: PinRequest) -> str:
    """Return what to call the device: its short name, with -v the full one."""
    return displayable(request.device if logger.isEnabledFor(logging.DEBUG) or not request.name else request.name)
