"""The one thread through which this process talks to one module.

python-pkcs11 initialises a module without locking and releases the GIL inside it, so two threads would enter it
together: SoftHSM crashes, and some modules return invalid signatures without an error. Every call therefore runs on
one daemon thread while its caller waits. That gives order, a deadline, and a Ctrl-C that works while C code runs.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Generic, TypeAlias, TypeVar

from hsm_signer.errors import DeviceError, DeviceTimeout
from hsm_signer.system.threads import NO_THREAD_HINT

T = TypeVar("T")

logger = logging.getLogger(__name__)

MOMENT = 1.0
"""Seconds after which a person is shown what takes so long."""

Slow: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Called with what is being done, such as "signing". Shows it to a person inside the `with`."""

NO_ANSWER_HINT = (
    "Check that the device is plugged in, and touch it if it blinks. For a slow device, set a longer --device-timeout."
)


def cue(what: str) -> str:
    """Return what to show a person while something takes longer than a moment, without punctuation at the end."""
    return "Touch the device if it blinks" if what == "signing" else f"Still {what}"


@contextmanager
def log_slow(what: str) -> Iterator[None]:
    """Log that something takes longer than a moment: the `Slow` for use without a terminal."""
    # A signature without a touch fails. Everything else is only slow.
    logger.log(logging.WARNING if what == "signing" else logging.INFO, "%s.", cue(what))
    yield


class _Job(Generic[T]):
    """A call that waits for its turn or, since `started` on the monotonic clock, runs inside the module.

    Attributes:
        abandoned: whether its caller was interrupted, for example by Ctrl-C, so that nobody waits for it any more.
    """

    def __init__(self, what: str, function: Callable[[], T], timeout: float) -> None:
        self.what = what
        self.timeout = timeout
        self.started: float | None = None
        self.abandoned = False
        self.outcome: Future[T] = Future()
        self._function = function

    def run(self) -> None:
        self.started = time.monotonic()
        try:
            result = self._function()
        except BaseException as error:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(result)

    def wait(self, seconds: float) -> bool:
        """Return whether there is an outcome within that time."""
        with suppress(TimeoutError):
            self.outcome.exception(max(seconds, 0))  # returns what the function raised, also a TimeoutError
            return True
        return False

    def left(self) -> float:
        """Return the seconds until it must return: the whole timeout if it has not started."""
        return self.timeout if self.started is None else self.started + self.timeout - time.monotonic()


class Lane:
    """Runs calls into one module, one at a time, in the order they come.

    A call that overruns its deadline closes the lane: nobody knows what the module is doing, so every later call fails
    at once without reaching the module.

    Args:
        module: the module's name in messages.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        # None ends the thread.
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._current: _Job[Any] | None = None
        self._overrun: str | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def call(self, what: str, function: Callable[[], T], timeout: float, slow: Slow = log_slow) -> T:
        """Run `function` on the lane, and return its result.

        Args:
            what: what the call does, for messages: "signing".
            function: makes the calls into the module.
            timeout: seconds the call may take, counted from its start. The wait for its turn is extra.
            slow: entered in the caller's thread when the call has taken `MOMENT`, and left when it ends.

        Raises:
            DeviceTimeout: this call, or one before it, did not return in time.
            DeviceError: the system could not start the lane's thread.
        """
        job = _Job(what, function, timeout)
        self._submit(job)
        try:
            if timeout <= MOMENT or job.wait(MOMENT):
                return self._result(job)
            with slow(what):
                return self._result(job)
        except BaseException:
            # A call that has started continues: the module is busy until the call returns.
            job.abandoned = True
            raise

    def announce(self, what: str, seconds: float) -> None:
        """Announce a wait that is not a call, and how long it may take. Only a worker's lane reports it."""

    @property
    def is_busy(self) -> bool:
        """Whether a call is still inside the module: one that overran, or whose caller was interrupted."""
        current = self._current
        return current is not None and not current.outcome.done()

    def end(self) -> None:
        """End the thread once it has returned from the module. Make no call after this."""
        with self._lock:
            if self._thread is not None:
                self._jobs.put(None)

    def _submit(self, job: _Job[Any]) -> None:
        with self._lock:
            if self._overrun is not None:
                raise self._closed_by(self._overrun)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=f"lane {self._module}", daemon=True)
                with explain_thread_failure():
                    thread.start()
                self._thread = thread
            self._jobs.put(job)

    def _result(self, job: _Job[T]) -> T:
        asked = time.monotonic()
        while True:
            # Before its turn, a call waits for another, which has its own deadline unless its caller was interrupted.
            current = job if job.started is not None else self._current or job
            orphan = current is not job and current.abandoned
            left = asked + job.timeout - time.monotonic() if orphan else current.left()
            if job.wait(left):
                return job.outcome.result()
            if current.started is None or current is not self._current:
                continue
            if orphan:
                raise self._timed_out("An interrupted call into the module has not returned")
            if current.left() <= 0:
                self._close(current)
                raise self._timed_out(f"The module did not return from {current.what} within {current.timeout:g} s")

    def _close(self, overrun: _Job[Any]) -> None:
        """Fail the calls that wait for their turn, and all later ones."""
        with self._lock:
            self._overrun = overrun.what
            with suppress(queue.Empty):
                while True:
                    if job := self._jobs.get_nowait():
                        job.outcome.set_exception(self._closed_by(overrun.what))

    def _closed_by(self, overrun: str) -> DeviceTimeout:
        return self._timed_out(f"An earlier call into the module ({overrun}) did not return in time")

    def _timed_out(self, what: str) -> DeviceTimeout:
        return DeviceTimeout(
            f"{what}: {self._module}.",
            hint=NO_ANSWER_HINT,
        )

    def _run(self) -> None:
        while job := self._jobs.get():
            if self._overrun is not None:  # since this thread took the call from the queue
                job.outcome.set_exception(self._closed_by(self._overrun))
            elif not job.abandoned:
                self._current = job
                job.run()
                self._current = None


@contextmanager
def explain_thread_failure() -> Iterator[None]:
    """Explain why a thread that talks to a device could not be started inside the `with`.

    Raises:
        DeviceError: the system allows no other thread.
    """
    try:
        yield
    except RuntimeError as error:
        raise DeviceError(
            f"No thread could be started to talk to the device: {error}.",
            hint=NO_THREAD_HINT,
        ) from None
