"""A worker as its parent sees it: started, watched, and killed when it overruns."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hsm_signer.device.channel import Calling, Channel, Failed, Logged, Open, Opened, PinGiven, PinWanted, Request
from hsm_signer.device.child import child_command, child_environment
from hsm_signer.device.pin import Login, PinRequest, PinSource
from hsm_signer.errors import DeviceGone, DeviceTimeout, HsmSignerError

if TYPE_CHECKING:
    from hsm_signer.device.device import KeyReference

logger = logging.getLogger(__name__)

_GRACE = 0.25
"""Seconds beyond a call's own deadline before the worker is killed: it would rather say itself that it overran."""

_START = 30.0
"""Seconds between two signs of life outside calls into the module: starting Python, importing, verifying."""


class Unsent(Exception):
    """A worker was dead before it was asked for anything."""


class WorkerProcess:
    """One worker process.

    Args:
        reference: to the key. It is for `open` to say who gives the PIN.

    Attributes:
        opened: what it said of the device, once that was opened.
    """

    opened: Opened

    def __init__(self, reference: "KeyReference") -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # this Python
                child_command("hsm_signer.device.worker_main", str(theirs.fileno()), str(os.getpid())),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=child_environment(reference.module_environment),
            )
        self._channel = Channel(ours)
        self._timeout = reference.timeout

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def open(self, reference: "KeyReference", log_in: Callable[[PinRequest], Login]) -> None:
        """Have it open the device.

        Args:
            log_in: what to log in with, or an error why not to.

        Raises:
            HsmSignerError: as `open_device` and `Device.signer`. The process has ended.
        """
        source: PinSource = reference.pin
        without = replace(reference, pin=None, confirm=None, slow=None)  # type: ignore[arg-type]  # callables do not travel
        self._send(Open(without, source.description, source.attended, logger.getEffectiveLevel()))
        answer: Opened | Failed = self._receive(_START, lambda wanted: _answer(source, log_in, wanted))
        if isinstance(answer, Failed):
            self.kill()
            raise answer.error
        self.opened = answer

    def perform(self, request: Request) -> bytes:
        """Have it do something, and return its answer.

        Raises:
            Unsent: it is dead, and was before.
            DeviceTimeout, DeviceGone: it gave no sign of life, or died on the way.
            HsmSignerError: what it says itself.
        """
        try:
            self._channel.send(request)
        except OSError:
            raise Unsent from None
        answer: bytes | Failed = self._receive(self._timeout + _GRACE)
        if isinstance(answer, Failed):
            raise answer.error
        return answer

    def kill(self) -> None:
        """End it at once."""
        self._channel.close()
        self._process.kill()
        # A process in an uninterruptible call into a driver dies when that ends.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)

    def _send(self, message: object) -> None:
        try:
            self._channel.send(message)
        except OSError:
            raise self._died() from None

    def _receive(self, seconds: float, answer_pin: "Callable[[PinRequest], PinGiven] | None" = None) -> Any:
        """Return the next answer; `seconds` is how long until the first sign of life."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                message = self._channel.receive(deadline)
            except TimeoutError:
                self.kill()
                raise DeviceTimeout(
                    f"The worker that serves the device gave no sign of life for {self._timeout:g} s. It was killed.",
                    hint="Check that the device is plugged in and answers, touch it if it blinks; "
                    "a slow device may need a longer --device-timeout.",
                ) from None
            except EOFError:
                raise self._died() from None
            match message:
                case Calling(seconds):
                    deadline = time.monotonic() + seconds + _GRACE
                case Logged(name, level, text):
                    logging.getLogger(name).log(level, "%s", text)
                case PinWanted(request) if answer_pin is not None:
                    self._send(answer_pin(request))
                    deadline = time.monotonic() + _START
                case _:
                    return message

    def _died(self) -> DeviceGone:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        status = self._process.returncode
        how = f"by signal {signal.Signals(-status).name}" if status is not None and status < 0 else f"(status {status})"
        self.kill()
        return DeviceGone(
            f"The worker that serves the device died {how}.",
            hint="The next request starts another. If it dies again, the module is at fault.",
        )


def _answer(source: PinSource, log_in: Callable[[PinRequest], Login], request: PinRequest) -> PinGiven:
    try:
        return PinGiven(log_in(request), None, source.identity)
    except HsmSignerError as error:
        return PinGiven(None, error, source.identity)
