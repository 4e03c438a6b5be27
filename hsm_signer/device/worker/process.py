"""Start a worker process, talk to it, and kill it when it overruns its deadline."""

import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from hsm_signer.device.child import ChildProcess
from hsm_signer.device.lane import NO_ANSWER_HINT
from hsm_signer.device.pin.pin import Login, PinRequest, PinSource
from hsm_signer.device.wire import Malformed
from hsm_signer.device.worker.messages import AskForPin, Calling, Done, Failed, Logged, Open, Opened, PinAnswer, Request
from hsm_signer.errors import DeviceGone, DeviceTimeout

if TYPE_CHECKING:
    from hsm_signer.device.access import KeyAccess

A = TypeVar("A", Opened, Done)

logger = logging.getLogger(__name__)

_GRACE = 0.25
"""Seconds beyond a call's own deadline before the worker is killed."""

_START = 30.0
"""Seconds between two messages outside calls into the module: starting Python, importing, verifying."""

_MOST_MESSAGES = 1000
"""Messages before an answer. Our worker sends about ten, or some tens with -v."""


class WorkerGone(Exception):
    """A worker had ended before it got the request."""


class WorkerProcess:
    """One worker process. Once it has loaded a module, nothing that it sends is trusted.

    Args:
        access: the key, and how to open its device. The PIN comes from the `log_in` of `open`.

    Attributes:
        opened: what the worker reported about the device after opening it.
        login: what the worker was given to log in with; None if it did not ask.
    """

    opened: Opened
    login: Login

    def __init__(self, access: "KeyAccess") -> None:
        messages = Calling, Logged, AskForPin, Opened, Done, Failed
        self._child = ChildProcess("hsm_signer.device.worker.main", access.module_environment, *messages)
        self._timeout = access.timeout
        self._slow = access.operator.slow
        self.login = None

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._child.is_alive

    def open(self, access: "KeyAccess", log_in: Callable[[PinRequest], Login]) -> None:
        """Have the worker open the device. If that fails, the worker is killed.

        Args:
            log_in: returns what to log in with, or raises an error to send no PIN.

        Raises:
            HsmSignerError: as `open_device` and `open_signer`, or of `log_in`.
        """
        source: PinSource = access.pin
        message = Open(
            uri=access.uri.redacted,
            module=access.module,
            module_environment=access.module_environment,
            timeout=access.timeout,
            allow_last_try=access.allow_last_try,
            writable=access.writable,
            pin_record=access.pin_record,
            source=source.description,
            attended=source.attended,
            log_level=logger.getEffectiveLevel(),
        )

        def give_pin(request: PinRequest) -> PinAnswer:
            self.login = log_in(request)
            return PinAnswer(self.login)

        try:
            self._send(message)
            self.opened = self._receive(Opened, "starting the worker", _START, give_pin)
        except BaseException:
            self.kill()
            raise

    def perform(self, request: Request) -> bytes:
        """Send a request to the worker, and return its answer.

        Raises:
            WorkerGone: it had ended before it got the request.
            DeviceTimeout: it did not answer in time.
            DeviceGone: it ended before its answer, or the answer is invalid.
            HsmSignerError: the worker answered with this error.
        """
        try:
            self._child.channel.send(request, self._timeout)
        except OSError:
            raise WorkerGone from None
        return self._receive(Done, request.doing, self._timeout + _GRACE).result

    def kill(self) -> None:
        """End the worker at once."""
        self._child.kill()

    def _send(self, message: object) -> None:
        try:
            self._child.channel.send(message, self._timeout)
        except OSError:
            raise self.died() from None

    def _receive(
        self,
        kind: type[A],
        doing: str,
        seconds: float,
        give_pin: Callable[[PinRequest], PinAnswer] | None = None,
    ) -> A:
        """Return the answer of this kind. If the worker asks for the PIN, give it once.

        Args:
            doing: what the worker does first, for messages.
            seconds: until the first message.
        """
        deadline = time.monotonic() + seconds
        for _ in range(_MOST_MESSAGES):
            try:
                message = self._child.channel.receive_with_cue(deadline, doing, self._slow)
            except TimeoutError:
                self.kill()
                raise DeviceTimeout(
                    f"The worker that serves the device did not respond for {self._timeout:g} s. It was killed.",
                    hint=NO_ANSWER_HINT,
                ) from None
            except EOFError:
                raise self.died() from None
            except Malformed:
                break
            match message:
                case kind():
                    return message
                case Failed(error):
                    raise error
                case Calling(doing, seconds) if doing.isprintable():
                    deadline = time.monotonic() + min(seconds, self._timeout) + _GRACE
                case Logged(name, level, text):
                    logging.getLogger(name if name in sys.modules else __name__).log(level, "%s", text)
                case AskForPin(request) if give_pin is not None:
                    self._send(give_pin(request))
                    give_pin = None
                    deadline = time.monotonic() + _START
                case _:
                    break
        self.kill()
        raise DeviceGone(
            "The worker process that serves the device sent an invalid answer. It was killed.",
            hint="The next request starts another worker. If this happens again, the module is faulty or hostile.",
        )

    def died(self) -> DeviceGone:
        """Return the error for a worker that died, with how it died."""
        how = self._child.describe_exit()
        self.kill()
        return DeviceGone(
            f"The worker that serves the device died {how}.",
            hint="The next request starts another worker. If that dies too, the module is faulty.",
        )
