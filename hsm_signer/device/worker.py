"""The same lane in another process: one that can be killed when a module hangs, and that may crash alone.

The parent starts a worker with a socket pair, hands it a `KeyReference` without its PIN source, and sends one request
at a time. The worker asks back for the PIN, and announces calls into the module before they begin, so that the parent
knows by when to expect a sign of life. A worker that overruns is killed; one that dies costs the request in
flight; the next request starts another. A worker whose PIN was refused is not started again.
"""

import contextlib
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self

from hsm_signer.crypto import Algorithm, PublicKey
from hsm_signer.device.pin import Login, PinRequest, PinSource
from hsm_signer.errors import (
    DeviceError,
    DeviceGone,
    DeviceTimeout,
    HsmSignerError,
    PinError,
    PinUnavailable,
)

if TYPE_CHECKING:
    from hsm_signer.device.device import Device, KeyReference
    from hsm_signer.device.signer import DeviceSigner

logger = logging.getLogger(__name__)

_GRACE = 0.25
"""Seconds beyond a call's own deadline before the worker is killed: it would rather say itself that it overran."""

_START = 30.0
"""Seconds between two signs of life outside calls into the module: starting Python, importing, verifying."""

_ROOT = str(Path(__file__).resolve().parents[2])

_LENGTH = struct.Struct("!I")
_CHUNK = 65536


@dataclass(frozen=True)
class _Open:
    """Parent to worker, first of all."""

    reference: "KeyReference"
    source: str
    attended: bool
    log_level: int


class _Request(Protocol):
    """Parent to worker: something to do with the open device."""

    def perform(self, device: "Device", signer: "DeviceSigner") -> bytes: ...


@dataclass(frozen=True)
class _Sign:
    algorithm: Algorithm
    message: bytes

    def perform(self, device: "Device", signer: "DeviceSigner") -> bytes:
        return signer.sign(self.algorithm, self.message)


@dataclass(frozen=True)
class _ReadCertificate:
    def perform(self, device: "Device", signer: "DeviceSigner") -> bytes:
        return device.certificate(signer)


@dataclass(frozen=True)
class _Calling:
    """Worker to parent: a call into the module begins, and may take that many seconds."""

    seconds: float


@dataclass(frozen=True)
class _Logged:
    """Worker to parent: what it would have logged."""

    logger: str
    level: int
    message: str


@dataclass(frozen=True)
class _PinWanted:
    request: PinRequest


@dataclass(frozen=True)
class _PinGiven:
    """The parent's answer: what to log in with, or why there is nothing; and which state of the source that was."""

    login: Login
    error: HsmSignerError | None
    identity: str


@dataclass(frozen=True)
class _Opened:
    public_key: PublicKey
    algorithms: frozenset[Algorithm]
    device: str


@dataclass(frozen=True)
class _Failed:
    error: HsmSignerError


class _Channel:
    """Pickled messages over one end of a socket pair. Both ends are this package, of one user."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._unread = bytearray()

    def send(self, message: object) -> None:
        data = pickle.dumps(message)
        self._end.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self, deadline: float | None = None) -> Any:
        """Return the next message.

        Raises:
            TimeoutError: `deadline`, on the monotonic clock, has passed.
            EOFError: the other end is gone.
        """
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
        return pickle.loads(self._read(length, deadline))  # noqa: S301  # from ourselves

    def close(self) -> None:
        self._end.close()

    def _read(self, size: int, deadline: float | None) -> bytes:
        while len(self._unread) < size:
            # A timeout of zero would make the socket non-blocking.
            self._end.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
            try:
                # Whatever is there: most messages come whole, and each look costs.
                chunk = self._end.recv(_CHUNK)
            except ConnectionError:
                chunk = b""
            if not chunk:
                raise EOFError
            self._unread += chunk
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data


def open_worker(reference: "KeyReference", *, workers: int = 1) -> "WorkerSigner":
    """Open a device in a process of its own, and return a signer that works through it.

    Args:
        reference: as for `open_device`. The PIN source runs in this process, in the thread of the caller.
        workers: how many processes may sign side by side. A second one starts when it is needed, and only after the
            first has logged in.

    Raises:
        HsmSignerError: as `open_device` and `Device.signer`.
    """
    return WorkerSigner(reference, workers)


class WorkerSigner:
    """Signs with one key in one or several worker processes. Fills the `Signer` seam; safe in several threads.

    A context manager: `close` ends the workers.

    Attributes:
        public_key: of the key.
        algorithms: what it can sign.
        device: what the device says of itself, in a line.
    """

    def __init__(self, reference: "KeyReference", workers: int) -> None:
        self._reference = reference
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._idle: list[_Worker] = []
        self._places = threading.BoundedSemaphore(workers)
        self._login: Login = None
        self._accepted = False
        self._refusal: PinError | None = None
        self._closed = False
        # The kernel kills a worker when the thread that started it ends (PR_SET_PDEATHSIG); this one outlives them.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="hsm-signer-workers")
        try:
            worker = self._start()
        except BaseException:
            self.close()
            raise
        self._idle.append(worker)
        self.public_key = worker.opened.public_key
        self.algorithms = worker.opened.algorithms
        self.device = worker.opened.device

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def certificate(self) -> bytes:
        """Return the certificate stored beside the key, as DER.

        Raises:
            CertificateNotFound, KeyAmbiguous: there is none, or there are several.
            HsmSignerError: as `sign`.
        """
        return self._request(_ReadCertificate())

    def sign(self, algorithm: Algorithm, message: bytes) -> bytes:
        """Return the device's signature over `message`, verified by the worker.

        Raises:
            DeviceTimeout: the device did not answer in time; the worker was killed.
            DeviceError: the worker died, or what the device answered.
            PinError: a login was refused. No worker is started again.
        """
        return self._request(_Sign(algorithm, message))

    def _request(self, request: _Request) -> bytes:
        with self._places:
            try:
                return self._attempt(request)
            except _Stale as stale:
                # Some modules never recover in a process that saw the device go. A new one is a fresh look-up.
                logger.warning("%s Starting another worker.", stale.error)
            try:
                return self._attempt(request)
            except _Stale as stale:
                raise stale.error from None

    def _attempt(self, request: _Request) -> bytes:
        worker = self._take()
        try:
            result = worker.perform(request)
        except _Unsent:
            # It died while it was idle, and nothing was asked of it.
            worker.kill()
            return self._attempt(request)
        except DeviceGone as error:
            answered = worker.is_alive
            worker.kill()
            if answered:
                raise _Stale(error) from None
            raise
        except PinError as error:
            self._refusal = error
            worker.kill()
            raise
        except DeviceTimeout:
            worker.kill()
            raise
        except HsmSignerError:
            self._give_back(worker)
            raise
        except BaseException:
            # Interrupted in the middle of an exchange: its answer would be taken for the next request's.
            worker.kill()
            raise
        self._give_back(worker)
        return result

    def close(self) -> None:
        """End all workers that are idle now; one that signs ends with its request. A forked child leaves them be."""
        # Before the lock: one that another thread of the parent held would never be released.
        if self._process != os.getpid():
            return
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()
        self._starter.shutdown(wait=False)

    def _take(self) -> "_Worker":
        if self._process != os.getpid():
            raise DeviceError(
                "The workers belong to the parent of this process.", hint="Open them anew after the fork."
            )
        with self._lock:
            if self._closed:
                raise DeviceError("The workers were closed.", hint="Open them again.")
            if self._idle:
                return self._idle.pop()
        return self._start()

    def _give_back(self, worker: "_Worker") -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(worker)
                return
        worker.kill()

    def _start(self) -> "_Worker":
        """Start a worker and log it in; one at a time, so that no two present a PIN whose worth is unknown."""
        with self._starting:
            if self._refusal is not None:
                raise type(self._refusal)(self._refusal.message, hint=self._refusal.hint)
            try:
                worker = self._starter.submit(_Worker, self._reference).result()
                worker.open(self._reference, self._log_in)
            except PinError as error:
                if not isinstance(error, PinUnavailable):
                    self._refusal = error
                raise
            self._accepted = True
            return worker

    def _log_in(self, request: PinRequest) -> Login:
        """Answer a worker that wants a PIN: with the accepted one, else with what the source gives."""
        if request.last_try and self._reference.confirm is not None:
            self._reference.confirm(request)
        if not self._accepted:
            self._login = self._reference.pin(request)
        return self._login


class _Stale(Exception):
    """A live worker says that its device is gone."""

    def __init__(self, error: DeviceGone) -> None:
        super().__init__()
        self.error = error


class _Unsent(Exception):
    """A worker was dead before it was asked for anything."""


class _Worker:
    """One worker process, seen from the parent."""

    opened: _Opened

    def __init__(self, reference: "KeyReference") -> None:
        ours, theirs = socket.socketpair()
        # Not the caller's main module again, and no arguments that somebody could read.
        program = "from hsm_signer.device.worker import main; main()"
        # This very package first, wherever it was found; then what else the caller can import.
        path = os.pathsep.join([_ROOT, *filter(None, sys.path)])
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # this Python
                # -P: the current directory is not where modules come from, or whoever owns it would choose them.
                [sys.executable, "-P", "-c", program, str(theirs.fileno()), str(os.getpid())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **reference.module_environment, "PYTHONPATH": path},
            )
        self._channel = _Channel(ours)
        self._timeout = reference.timeout

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def open(self, reference: "KeyReference", log_in: Callable[[PinRequest], Login]) -> None:
        """Have it open the device."""
        source: PinSource = reference.pin
        without = replace(reference, pin=None, confirm=None, slow=None)  # type: ignore[arg-type]  # callables do not travel
        self._send(_Open(without, source.description, source.attended, logger.getEffectiveLevel()))
        answer: _Opened | _Failed = self._receive(_START, lambda wanted: _answer(source, log_in, wanted))
        if isinstance(answer, _Failed):
            self.kill()
            raise answer.error
        self.opened = answer

    def perform(self, request: _Request) -> bytes:
        """Have it do something.

        Raises:
            _Unsent: it is dead, and was before.
        """
        try:
            self._channel.send(request)
        except OSError:
            raise _Unsent from None
        answer: bytes | _Failed = self._receive(self._timeout + _GRACE)
        if isinstance(answer, _Failed):
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

    def _receive(self, seconds: float, answer_pin: "Callable[[PinRequest], _PinGiven] | None" = None) -> Any:
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
                case _Calling(seconds):
                    deadline = time.monotonic() + seconds + _GRACE
                case _Logged(name, level, text):
                    logging.getLogger(name).log(level, "%s", text)
                case _PinWanted(request) if answer_pin is not None:
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


def _answer(source: PinSource, log_in: Callable[[PinRequest], Login], request: PinRequest) -> _PinGiven:
    try:
        return _PinGiven(log_in(request), None, source.identity)
    except HsmSignerError as error:
        return _PinGiven(None, error, source.identity)


class _Calls:
    """In the worker: announces each call into the module but the one that a request begins with."""

    def __init__(self, channel: _Channel) -> None:
        self.expected = False
        self._channel = channel

    def __call__(self, seconds: float) -> None:
        if self.expected:
            self.expected = False
        else:
            self._channel.send(_Calling(seconds))


class _ParentLog(logging.Handler):
    """In the worker: what is logged is the parent's to show, or not."""

    def __init__(self, channel: _Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send(_Logged(record.name, record.levelno, record.getMessage()))


class _ParentPin:
    """In the worker: the PIN source is the parent."""

    def __init__(self, channel: _Channel, description: str, attended: bool) -> None:
        self._channel = channel
        self.description = description
        self.identity = description
        self.attended = attended

    def __call__(self, request: PinRequest) -> Login:
        self._channel.send(_PinWanted(request))
        given: _PinGiven = self._channel.receive()
        self.identity = given.identity
        if given.error is not None:
            raise given.error
        return given.login


def main() -> NoReturn:
    """Serve one parent until it is gone."""
    _die_with_parent(int(sys.argv[2]))
    # Ctrl-C goes to the whole foreground group; the parent decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = _Channel(socket.socket(fileno=int(sys.argv[1])))
    with contextlib.suppress(EOFError, OSError):
        _serve(channel)
    # Finalizers call C_Finalize, which can hang.
    os._exit(0)


def _serve(channel: _Channel) -> None:
    from hsm_signer.device.device import open_device
    from hsm_signer.device.lane import Lane

    calls = _Calls(channel)
    Lane.watchman = calls
    request: _Open = channel.receive()
    logging.basicConfig(level=request.log_level, handlers=[_ParentLog(channel)])
    pin = _ParentPin(channel, request.source, request.attended)
    try:
        device = open_device(replace(request.reference, pin=pin))
        signer = device.signer()
        channel.send(_Opened(signer.public_key, signer.algorithms, str(device.info)))
    except Exception as error:
        channel.send(_Failed(_ours(error)))
        return
    while True:
        wanted: _Request = channel.receive()
        calls.expected = True
        try:
            channel.send(wanted.perform(device, signer))
        except EOFError:
            raise
        except Exception as error:
            channel.send(_Failed(_ours(error)))


def _ours(error: Exception) -> HsmSignerError:
    # Without its cause and traceback, which may hold what does not travel.
    if isinstance(error, HsmSignerError):
        return error.with_traceback(None)
    return DeviceError(f"The worker that serves the device failed ({type(error).__name__}).", hint="This is a bug.")


def _die_with_parent(parent: int) -> None:
    """Ask the kernel to kill us when the parent ends: a module that hangs would keep us from noticing."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
