"""Sign in worker processes: one can be killed when its module hangs, and can crash without ending this process.

A worker gets a socket pair and a `KeyAccess` without its PIN source, and serves one request at a time. It asks its
parent for the PIN, and announces each call into the module, so that the parent knows how long to wait. A worker that
overruns is killed. If a worker dies, the request that it was serving fails, and the next request starts another worker.
A worker logs in once. After the device has refused a worker's PIN, no worker is started until the PIN source changes.
"""

import copy
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from hsm_signer.crypto import Algorithm
from hsm_signer.device.failures import key_replaced, require_valid_signature
from hsm_signer.device.lane import explain_thread_failure
from hsm_signer.device.pin.pin import Login, Pin, PinRefusal, PinRequest, ask, is_up_to_date, mark_accepted
from hsm_signer.device.worker.messages import ReadCertificate, Request, Sign
from hsm_signer.device.worker.process import WorkerGone, WorkerProcess
from hsm_signer.errors import (
    DeviceError,
    DeviceGone,
    DeviceTimeout,
    HsmSignerError,
    PinError,
    PinIncorrect,
    PinLocked,
)
from hsm_signer.system.fork import OwnerProcess
from hsm_signer.system.secret import hidden_locals

if TYPE_CHECKING:
    from hsm_signer.device.access import KeyAccess

logger = logging.getLogger(__name__)


def open_worker(access: "KeyAccess", *, workers: int = 1, before: "WorkerSigner | None" = None) -> "WorkerSigner":
    """Open a device in another process, and return a signer that works through it.

    Args:
        access: as for `open_device`. The PIN source runs in this process, in the thread of the caller.
        workers: how many processes may sign at the same time. A second one starts when it is needed, and only after
            the first has logged in.
        before: the signer of another key. If that key is on the same device, its accepted PIN is used for this key too.

    Raises:
        HsmSignerError: as `open_device` and `open_signer`.
    """
    return WorkerSigner(access, workers, before)


class WorkerSigner:
    """Signs with one key in one or several worker processes. Implements the `Signer` protocol; safe in several threads.

    A context manager: `close` ends the workers.

    Attributes:
        public_key: the public half of the key.
        algorithms: the algorithms that it can sign with.
        device: the device as it describes itself, in one line.
    """

    @hidden_locals()
    def __init__(self, access: "KeyAccess", workers: int, before: "WorkerSigner | None" = None) -> None:
        self._access = access
        self._owner = OwnerProcess()
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._idle: list[WorkerProcess] = []
        self._places = threading.BoundedSemaphore(workers)
        self._login: Login = None
        self._accepted = False
        self._accepted_by = ""
        if before is not None:
            self._login, self._accepted, self._accepted_by = before._login, before._accepted, before._accepted_by
        self._refusal: PinRefusal | None = None
        self._closed = False
        # The kernel kills a worker when the thread that started it ends (PR_SET_PDEATHSIG). This thread outlives them.
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def certificate(self) -> bytes:
        """Return the certificate on the device with the key's CKA_ID, as DER.

        Raises:
            CertificateNotFound, KeyAmbiguous: there is none, or there are several.
            HsmSignerError: as `sign`.
        """
        return self._request(ReadCertificate())

    def sign(self, algorithm: Algorithm, message: bytes) -> bytes:
        """Return the device's signature over `message`, verified with `public_key`.

        Raises:
            SignatureInvalid: what the worker returned is not this key's signature.
            DeviceTimeout: the device did not answer in time; the worker was killed.
            DeviceError: the worker died, or the device failed.
            PinError: a login was refused. No worker is started until the PIN source changes.
        """
        signature = self._request(Sign(algorithm, message))
        # Not in the worker, which a module may have taken over.
        require_valid_signature(self.public_key, algorithm, message, signature, f"The key on {self.device}")
        return signature

    @hidden_locals()
    def _request(self, request: Request) -> bytes:
        with self._places:
            try:
                return self._attempt(request)
            except _DeviceLost as lost:
                # Some modules never recover in a process that lost the device. A new process looks it up again.
                logger.warning("%s Starting another worker.", lost.error)
            try:
                return self._attempt(request)
            except _DeviceLost as lost:
                raise lost.error from None

    def _attempt(self, request: Request) -> bytes:
        idle = self._take_idle()
        if idle is not None and idle.opened.always_authenticate and not is_up_to_date(idle.login, self._access.pin):
            # It would send the PIN that it logged in with, but the source now holds another one.
            idle.kill()
            idle = None
        worker = idle or self._start_another()
        try:
            result = worker.perform(request)
        except WorkerGone:
            if worker is not idle:
                raise worker.died() from None
            # It ended while it was idle. The request was not sent, so another worker can serve it.
            worker.kill()
            return self._attempt(request)
        except DeviceGone as error:
            answered = worker.is_alive
            worker.kill()
            if answered:
                raise _DeviceLost(error) from None
            raise
        except (PinIncorrect, PinLocked) as error:
            self._refuse(error, worker.login)
            worker.kill()
            raise
        except DeviceTimeout:
            worker.kill()
            raise
        except HsmSignerError:
            self._give_back(worker)
            raise
        except BaseException:
            # Interrupted during the request: the next request would get this request's answer.
            worker.kill()
            raise
        self._give_back(worker)
        return result

    def close(self) -> None:
        """End the idle workers at once and the others after their requests. Does nothing in a forked child."""
        # Before the lock: if another thread of the parent held the lock at the fork, it is never released here.
        if self._owner.is_parent:
            return
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()
        self._starter.shutdown(wait=False)

    def _take_idle(self) -> "WorkerProcess | None":
        if self._owner.is_parent:
            raise DeviceError(
                "The parent of this process started the workers.", hint="Open the signer again after the fork."
            )
        with self._lock:
            if self._closed:
                raise DeviceError("The workers were closed.", hint="Open the signer again.")
            return self._idle.pop() if self._idle else None

    def _give_back(self, worker: "WorkerProcess") -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(worker)
                return
        worker.kill()

    def _start_another(self) -> "WorkerProcess":
        """Start a worker, and make sure that it serves the same key: the device may have been replaced."""
        worker = self._start()
        if worker.opened.public_key != self.public_key:
            worker.kill()
            raise key_replaced(f"The key on {worker.opened.device}")
        return worker

    def _start(self) -> "WorkerProcess":
        """Start a worker and log it in. One at a time: two workers must not both send a PIN that may be wrong."""
        with self._starting:
            if self._refusal is not None and self._refusal.still_applies(self._access.pin):
                raise copy.copy(self._refusal.error)
            with explain_thread_failure():
                starting = self._starter.submit(WorkerProcess, self._access)
            worker = starting.result()
            try:
                worker.open(self._access, self._log_in)
            except (PinIncorrect, PinLocked) as error:
                self._refuse(error, worker.login)
                raise
            self._accepted, self._login = True, mark_accepted(self._login)
            self._accepted_by = worker.opened.device
            return worker

    def _refuse(self, error: PinError, login: Login) -> None:
        """Start no other worker until the source has changed."""
        error.source_state = login.identity if isinstance(login, Pin) else ""
        self._accepted, self._refusal = False, PinRefusal(error)

    def _log_in(self, request: PinRequest) -> Login:
        """Return the PIN for a worker: the accepted one if it is still current, else a new one from the source."""
        request = self._access.operator.confirm_last_try(request)
        same = self._accepted and self._accepted_by == request.device
        if not same or not is_up_to_date(self._login, self._access.pin):
            self._accepted = False
            self._login = ask(self._access.pin, request)
        return self._login


class _DeviceLost(Exception):
    """A live worker reports that its device is gone."""

    def __init__(self, error: DeviceGone) -> None:
        super().__init__()
        self.error = error
