"""Asking a person for the PIN, on the terminal even when stdin and stdout are pipes."""

import getpass
import sys

from hsm_signer.device.pin import Login, Pin, PinPad, PinRequest
from hsm_signer.errors import PinLastTry, PinUnavailable

_TERMINAL = "/dev/tty"


class TerminalPrompt:
    """The PIN source a person is."""

    description = "the terminal"
    identity = "the terminal"
    attended = True

    def __call__(self, request: PinRequest) -> Login:
        """Ask once, without echo.

        Raises:
            PinUnavailable: there is no terminal, or nothing was entered.
            PinLastTry: the person thought better of it.
        """
        if request.pad:
            sys.stderr.write(f"Enter the PIN of {request.device} on its own pad.\n")
            return PinPad.PROTECTED
        if not _has_terminal():
            raise PinUnavailable(
                f"{request.device} wants a PIN, and there is no terminal to ask on.",
                hint="Give a --pin-source: file:PATH, env:NAME, fd:N, command:ARGV or credential:NAME.",
            )
        if request.last_try and not _confirms(request):
            raise PinLastTry("The last try was not taken.", hint="Unblock the PIN with the device's own tool first.")
        warning = f"{request.warning}\n" if request.warning else ""
        try:
            text = getpass.getpass(f"{warning}PIN for {request.device}: ")
        except EOFError:
            text = ""
        if not text:
            raise PinUnavailable("No PIN was entered.", hint="Nothing was sent to the device; repeat the command.")
        return Pin(text)


def _confirms(request: PinRequest) -> bool:
    with open(_TERMINAL, "r+", buffering=1, encoding="utf-8") as terminal:
        terminal.write(f"{request.device} has one PIN try left. A wrong PIN locks it. Type yes to go on: ")
        return terminal.readline().strip() == "yes"


def _has_terminal() -> bool:
    try:
        with open(_TERMINAL, "rb"):
            return True
    except OSError:
        return False
