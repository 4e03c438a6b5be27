"""The one thread through which this process talks to one module.

python-pkcs11 initialises a module without locking and releases the GIL inside it, so two threads would enter it
together: SoftHSM crashes, and some modules return invalid signatures without an error. Every call therefore runs on
one daemon thread while its caller waits on a Future. That gives order, a deadline, and Ctrl-C that works while C code
runs.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from typing import Any, ClassVar, TypeAlias, TypeVar

from hsm_signer.errors import DeviceTimeout

T = TypeVar("T")

MOMENT = 1.0
"""Seconds a person waits without wondering."""

Slow: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Given what is done, shows it to a person for as long as it takes."""


class Lane:
    """Runs calls into one module, one at a time, in the order they come.

    A call that overruns its deadline closes the lane: what the module is doing is unknown, so nothing further is
    sent, and every later call fails at once.

    Attributes:
        watchman: of all lanes of the process: told before each call how many seconds it may take. He ends the process
            when it takes longer, so that calls need no thread and are made where they are asked for. Usually None.
    """

    watchman: ClassVar[Callable[[float], None] | None] = None

    def __init__(self, module: str) -> None:
        self._module = module
        self._turn = threading.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._in_flight: Future[Any] | None = None
        self._overrun: str | None = None
        self._thread: threading.Thread | None = None

    def call(self, what: str, function: Callable[[], T], timeout: float, slow: Slow | None = None) -> T:
        """Run `function` on the lane and return what it returns.

        Args:
            what: what the call does, for messages: "signing".
            function: makes the calls into the module.
            timeout: seconds the call may take, counted from its turn, not from the wait for it.
            slow: entered in the caller's thread when the call takes longer than a moment, and left when it is over.

        Raises:
            DeviceTimeout: this call, or one before it, did not come back in time.
        """
        with self._turn:
            self._require_idle(timeout)
            if Lane.watchman is not None:
                Lane.watchman(timeout)
                return function()
            future: Future[T] = Future()
            self._submit(future, function)
            if slow is None or timeout <= MOMENT:
                return self._result(future, what, timeout, timeout)
            if not wait([future], MOMENT).done:
                with slow(what):
                    return self._result(future, what, timeout, timeout - MOMENT)
            return future.result()

    @property
    def is_busy(self) -> bool:
        """Whether a call is still inside the module: one that overran, or whose caller was interrupted."""
        return self._in_flight is not None and not self._in_flight.done()

    def _result(self, future: "Future[T]", what: str, timeout: float, left: float) -> T:
        try:
            return future.result(left)
        except TimeoutError:
            if future.done():
                # It came back in that instant, or failed with a TimeoutError of its own.
                return future.result()
            self._overrun = what
            raise self._timed_out(f"The module did not come back from {what} within {timeout:g} s") from None

    def _require_idle(self, timeout: float) -> None:
        if self._overrun is not None:
            raise self._timed_out(f"An earlier call into the module, {self._overrun}, did not come back in time")
        # A caller interrupted by Ctrl-C leaves its call running. Only its end frees the module.
        if self._in_flight is not None and not wait([self._in_flight], timeout).done:
            raise self._timed_out("A call into the module that was interrupted has not come back")

    def _timed_out(self, what: str) -> DeviceTimeout:
        return DeviceTimeout(
            f"{what}: {self._module}.",
            hint="Check that the device is plugged in and answers, touch it if it blinks; "
            "a slow device may need a longer --device-timeout.",
        )

    def _submit(self, future: "Future[T]", function: Callable[[], T]) -> None:
        def job() -> None:
            try:
                result = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        # Also the first call of a forked child: threads do not survive a fork.
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name=f"lane {self._module}", daemon=True)
            self._thread.start()
        self._in_flight = future
        self._jobs.put(job)

    def _run(self) -> None:
        while True:
            self._jobs.get()()
