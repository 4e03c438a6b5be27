"""Open a device: log in once, keep the session, and open a new one when it is lost.

A PKCS#11 login is for the whole process, not for one caller (PKCS#11 v3.1 section 5.6.8).
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Self, TypeVar

import pkcs11
from pkcs11.types import Session

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.failures import GONE, explain_failure, explain_refusal, require_changeable
from hsm_signer.device.lane import Lane
from hsm_signer.device.locate import find_again, find_device, load
from hsm_signer.device.login import ask_for_login, check_pin_state, count_logins_so_far, log_in, record_of
from hsm_signer.device.match import DeviceInfo, matches_device
from hsm_signer.device.module import AFTER_FORK_HINT, Module
from hsm_signer.device.pin.login_lock import login_lock
from hsm_signer.device.pin.pin import Login, Pin, is_up_to_date, mark_accepted
from hsm_signer.device.pin.refusals import PinRecord
from hsm_signer.device.search import find_way
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceError, DeviceGone, HsmSignerError, PinError, PinIncorrect, PinLocked
from hsm_signer.system.fork import OwnerProcess
from hsm_signer.system.secret import hidden_locals

T = TypeVar("T")

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT = 2.0


@hidden_locals()
def open_device(access: KeyAccess, *, recover: bool = True, lane: Lane | None = None) -> "Device":
    """Find the one device that `access` names, and log in to it.

    Asks for the PIN once, in the caller's thread, after the device was found and its flags show that a try is safe.

    Args:
        recover: open a lost session again, which takes one more login. If false, there is one login at most.
        lane: as for `load_module`.

    Raises:
        ModuleLoadError, DeviceNotFound, DeviceAmbiguous, DeviceError: the device cannot be reached.
        DeviceReadOnly: `access` requires a writable device, and this one is not. No PIN was asked for.
        PinError: the login did not succeed. It is not tried again.
        DeviceTimeout: a call into the module did not return in time.
    """
    asked, access = access, find_way(access, lane)
    module = load(access, lane)
    logins = count_logins_so_far(access)
    module.refresh(access.timeout, access.operator.slow)
    found = find_device(module, access)
    if access.writable:
        require_changeable(found.info, found.flags)
    login = ask_for_login(found, access)
    session = log_in(module, found, login, access, logins)
    logger.debug("opened %s through %s", found.info, module.path)
    return Device(access, module, found.info, login, session, recover=recover, asked=asked)


class Device:
    """An open device with a login. Made by `open_device`; safe to use from several threads.

    A session can be lost: the device was pulled out, another program reset it, or the module was initialised again.
    The next call then opens another session with the accepted login, unless `recover` is false.

    A context manager: `close` ends the session and with it the login.

    Attributes:
        info: what the device reports about itself.
        module: the module through which we reach it.
    """

    def __init__(
        self,
        access: KeyAccess,
        module: Module,
        info: DeviceInfo,
        login: Login,
        session: Session,
        *,
        recover: bool,
        asked: KeyAccess,
    ) -> None:
        self.info = info
        self._asked = asked
        self._access = access
        self.module = module
        # Kept while the device is open: for recovery, and for keys that require the PIN for each signature.
        self._login = mark_accepted(login)
        self._session: Session | None = session
        self._generation = module.generation
        self._recover = recover
        self._lock = threading.RLock()
        self._closed = False
        self._owner = OwnerProcess()
        module.acquire()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def uri(self) -> Pkcs11Uri:
        """The URI that the device was opened with."""
        return self._access.uri

    def serves(self, access: KeyAccess) -> bool:
        """Return whether this device is open in this process, and `access` names it through the same module."""
        ours, theirs = self._asked.uri, access.uri
        return (
            not self._closed
            and not self._owner.is_parent
            and matches_device(theirs, self.info)
            and (self._asked.module, ours.module_path, ours.module_name)
            == (access.module, theirs.module_path, theirs.module_name)
        )

    @hidden_locals()
    def call(self, doing: str, function: Callable[[Session], T], *, repeat: bool = True, at_least: float = 0.0) -> T:
        """Run `function` with the session, on the lane. If the session is lost, run it once more with a new one.

        Args:
            doing: what is done, for messages: "signing".
            function: makes the calls. Handles of objects belong to the session it is given.
            repeat: False for what must not happen twice, such as making a key.
            at_least: seconds the call may take, even if the device's timeout is shorter.

        Raises:
            DeviceGone: the session is lost, and the device cannot be found.
            DeviceError: the module failed, the device was closed, or another process opened it.
            PinError: the login of the new session was refused. It is not tried again.
            DeviceTimeout: the call did not return in time.
        """
        session = self._require_session()
        try:
            return self._run(doing, function, session, at_least)
        except DeviceGone as error:
            if not self._recover:
                raise
            self._discard(session)
            if not repeat:
                raise
            logger.warning("%s Opening it again.", error)
        return self._run(doing, function, self._require_session(), at_least)

    def change(self, doing: str, function: Callable[[Session], None]) -> None:
        """Change something on the device. `function` runs once, as in `call` with `repeat=False`.

        Raises:
            DeviceReadOnly, DeviceError: the device refused, or failed.
            DeviceGone, PinError, DeviceTimeout: as `call`.
        """

        def change(session: Session) -> None:
            try:
                function(session)
            except GONE:
                raise
            except pkcs11.PKCS11Error as error:
                raise explain_refusal(error, doing, str(self.info)) from error

        self.call(doing, change, repeat=False)

    def login_pin(self) -> Pin | None:
        """Return the PIN that the device accepted, for a context-specific login, or None if it took no PIN.

        Call `require_pin_tries` first.
        """
        return self._login if isinstance(self._login, Pin) else None

    def require_pin_tries(self) -> None:
        """Check that the PIN may be sent for a signature: by the device's flags, read again, and by the record.

        If the PIN source has changed since the login, the next call logs in with the new PIN.

        Raises:
            PinLocked, PinLastTry: the flags do not allow it.
            PinRefusedBefore: the device has refused this PIN in another process.
            DeviceError, DeviceTimeout: as `call`.
        """

        with self._lock:
            if self._recover and not is_up_to_date(self._login, self._access.pin):
                self._session = None
        self.call(
            "reading the PIN state",
            lambda session: check_pin_state(session.token.slot, self.info, self._access),
        )
        login, record = self._login, self._record()
        if record is not None and isinstance(login, Pin):
            record.require_not_refused(self._access.pin, login.identity, accepted=True)

    def close(self) -> None:
        """End the session and forget the PIN. Never raises, and waits two seconds at most.

        If the module does not answer, the session ends with the process.
        """
        if self._owner.is_parent:
            return
        with self._lock:
            if self._closed:
                return
            self._closed, self._login = True, None
            session, self._session = self._session, None
        self.module.release()
        if session is not None and self._generation == self.module.generation and not self.module.is_busy:
            with contextlib.suppress(HsmSignerError, pkcs11.PKCS11Error):
                self.module.call("closing the session", session.close, _CLOSE_TIMEOUT)

    def close_after_refusal(self, refusal: PinError) -> None:
        """Close the device after it has refused the PIN for a signature, and record the refusal."""
        login, record = self._login, self._record()
        self.close()
        if isinstance(login, Pin):
            refusal.source_state = login.identity
            if record is not None:
                with contextlib.suppress(HsmSignerError), login_lock(record.directory, _CLOSE_TIMEOUT):
                    record.add_refusal(login.identity)
        if not (self.module.in_use or self.module.is_busy):
            # ykcs11 2.7 would keep the card from every other program: it leaves its PC/SC transaction open.
            with contextlib.suppress(HsmSignerError):
                self.module.reinitialize(self._access.timeout)

    def _record(self) -> PinRecord | None:
        return record_of(self._login, self.module, self.info, self._access)

    def _run(self, doing: str, function: Callable[[Session], T], session: Session, at_least: float) -> T:
        timeout = max(self._access.timeout, at_least)
        try:
            return self.module.call(doing, lambda: function(session), timeout, self._access.operator.slow)
        except pkcs11.PKCS11Error as error:
            raise explain_failure(error, doing, str(self.info)) from error

    def _require_session(self) -> Session:
        # Before any lock: in a forked child, a lock that another thread of the parent held is never released.
        if self._owner.is_parent:
            raise DeviceError(
                f"{self.info} was opened by the parent of this process.",
                hint=AFTER_FORK_HINT,
            )
        with self._lock:
            if self._closed:
                raise DeviceError(f"{self.info} was closed.", hint="Open the device again.")
            if self._session is None or self._generation != self.module.generation:
                self._session = self._reopen()
            return self._session

    def _discard(self, session: Session) -> None:
        """Mark a session as lost, unless another thread has replaced it already."""
        with self._lock:
            if self._session is session:
                self._session = None

    def _reopen(self) -> Session:
        if not self._recover:
            raise DeviceGone(
                f"The session with {self.info} was lost when this process initialised the module again.",
                hint="Run the command again.",
            )
        # In this order: some modules answer "wrong PIN" to a correct PIN until they are initialised again and have
        # found the device again. If another device of this module has just initialised it, once is enough.
        logins = count_logins_so_far(self._access)
        if self._generation == self.module.generation:
            self.module.reinitialize(self._access.timeout, self._access.operator.slow)
        self._generation = self.module.generation
        found = find_again(self.module, self.info, self._access)
        login = self._login
        if not is_up_to_date(login, self._access.pin):
            # Most likely the PIN was changed, and the old one is wrong.
            login = ask_for_login(found, self._access)
        try:
            session = log_in(self.module, found, login, self._access, logins, ours=1)
        except (PinIncorrect, PinLocked):
            self.close()
            raise
        self._login, self._generation = mark_accepted(login), self.module.generation
        logger.info("opened %s again", self.info)
        return session
