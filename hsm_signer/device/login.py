"""Log in to a device: ask for the PIN once, check that the flags and the record allow it, and send it once."""

import logging
from dataclasses import replace

import pkcs11
from pkcs11 import PROTECTED_AUTH, TokenFlag
from pkcs11.types import Session, Slot

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.failures import explain_failure, explain_login_failure
from hsm_signer.device.locate import PresentDevice, find_again, flags_after, read_token
from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.module import Module
from hsm_signer.device.pin.login_lock import count_logins, login_lock
from hsm_signer.device.pin.pin import Login, Pin, PinPad, PinRequest, ask
from hsm_signer.device.pin.refusals import PinRecord
from hsm_signer.device.pin.state import require_pin_tries
from hsm_signer.errors import PinError, PinUnavailable

logger = logging.getLogger(__name__)


def ask_for_login(found: PresentDevice, access: KeyAccess) -> Login:
    """Ask the PIN source what to log in with. Return None if the device requires no login.

    Raises:
        PinLocked, PinLastTry: a wrong PIN would lock the device, or it is locked already.
        PinUnavailable: the source cannot give a PIN.
    """
    if not found.flags & TokenFlag.LOGIN_REQUIRED:
        return None
    warning = found.require_pin_tries(allow_last_try=access.allow_last_try)
    last_try = bool(found.flags & TokenFlag.USER_PIN_FINAL_TRY)
    request = PinRequest(str(found.info), found.name, warning=warning, last_try=last_try, pad=found.has_pin_pad)
    confirmed = access.operator.confirm_last_try(request)
    if confirmed.warning is not None and not access.pin.attended:  # the prompt shows it
        logger.warning("%s: %s", found.info, confirmed.warning)
    return ask(access.pin, confirmed)


def count_logins_so_far(access: KeyAccess) -> int:
    """Return how many logins, of all processes, the record has counted; 0 if no record is kept."""
    return 0 if access.pin_record is None else count_logins(access.pin_record)


def record_of(login: Login, module: Module, device: DeviceInfo, access: KeyAccess) -> PinRecord | None:
    """Return the record of refused PINs that a login belongs in, or None.

    A login is recorded if it sends a PIN that nobody has just typed.
    """
    if access.pin_record is None or access.pin.attended or not isinstance(login, Pin):
        return None
    return PinRecord(access.pin_record, module.path, device)


def log_in(
    module: Module, found: PresentDevice, login: Login, access: KeyAccess, logins: int, *, ours: int = 0
) -> Session:
    """Open a session and log in. Sends the PIN once, and only if the device's current flags allow it.

    Args:
        logins: what `count_logins_so_far` returned before the device was found.
        ours: as for `Module.refresh`.

    Raises:
        PinError: the login was not tried, or did not succeed.
        DeviceGone, DeviceError: the device failed.
        DeviceTimeout: it did not return in time.
    """

    def look_again(before: int) -> PresentDevice:
        if before == logins:
            return found
        # ykcs11 reads the state of the PIN only when it is initialised.
        module.refresh(access.timeout, access.operator.slow, ours=ours)
        return find_again(module, found.info, access)

    record = record_of(login, module, found.info, access)
    if login is None:
        return _open(module, found, login, access)
    if record is None or not isinstance(login, Pin):
        found = look_again(count_logins_so_far(access))
        _check(module, found, access)
        return _open(module, found, login, access)
    module.announce("waiting for the login of another process", access.timeout)
    with login_lock(record.directory, access.timeout) as before:
        found = look_again(before)
        warning = _check(module, found, access)
        record = replace(record, device=found.info)
        with record.login(access.pin, login.identity, accepted=login.accepted and warning is None):
            return _open(module, found, login, access)


def check_pin_state(slot: Slot, device: DeviceInfo, access: KeyAccess) -> str | None:
    """Read the flags of the device in a slot again, and check that the PIN may be sent. Runs on the lane.

    Returns:
        A warning about the next login, or None.

    Raises:
        PinLocked, PinLastTry: the PIN may not be sent.
        DeviceGone, DeviceError: the device failed.
    """
    try:
        flags = read_token(slot).flags
    except pkcs11.PKCS11Error as error:
        raise explain_failure(error, "reading the PIN state", str(device)) from error
    return require_pin_tries(device, flags, allow_last_try=access.allow_last_try)


def _check(module: Module, found: PresentDevice, access: KeyAccess) -> str | None:
    return module.call(
        "reading the PIN state",
        lambda: check_pin_state(found.slot, found.info, access),
        access.timeout,
        access.operator.slow,
    )


def _open(module: Module, found: PresentDevice, login: Login, access: KeyAccess) -> Session:
    try:
        return module.call(
            "logging in", lambda: _open_session(found, login, access), access.timeout, access.operator.slow
        )
    except PinError as error:
        error.source_state = login.identity if isinstance(login, Pin) else ""
        raise


def _open_session(found: PresentDevice, login: Login, access: KeyAccess) -> Session:
    device = str(found.info)
    try:
        token = read_token(found.slot)
        if login is None:
            return token.open(rw=access.writable)
    except pkcs11.PKCS11Error as error:
        raise explain_failure(error, "opening a session", device) from error
    if isinstance(login, PinPad) and not token.flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH:
        # python-pkcs11 would raise ArgumentsBad, which a login with a PIN that is too short raises as well.
        raise PinUnavailable(
            f"{device} has no PIN pad.", hint="Use another --pin-source, for example file:PATH or prompt."
        )
    try:
        # The PIN is in no variable: a debugger or a traceback could show this frame.
        return token.open(rw=access.writable, user_pin=PROTECTED_AUTH if isinstance(login, PinPad) else login.reveal())
    except pkcs11.UserAlreadyLoggedIn:
        pass
    except pkcs11.PKCS11Error as error:
        raise explain_login_failure(error, found.info, flags_after(token), token.flags) from error
    try:
        # Another device object of ours has logged in the whole process, and this session may use that login.
        return token.open(rw=access.writable)
    except pkcs11.PKCS11Error as error:
        raise explain_failure(error, "opening a session", device) from error
