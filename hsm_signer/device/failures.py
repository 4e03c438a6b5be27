"""From what a module returned (CK_RV, PKCS#11 v3.1 section 5.1) to an error that says what to do; pure."""

import pkcs11
from pkcs11 import TokenFlag

from hsm_signer.errors import (
    DeviceError,
    DeviceGone,
    HsmSignerError,
    MechanismUnsupported,
    PinError,
    PinIncorrect,
    PinLastTry,
    PinLocked,
)

_GONE = (
    pkcs11.DeviceError,
    pkcs11.DeviceRemoved,
    # All that tpm2-pkcs11 says for ever after its TPM or broker was restarted.
    pkcs11.GeneralError,
    pkcs11.ObjectHandleInvalid,
    pkcs11.SessionClosed,
    pkcs11.SessionHandleInvalid,
    pkcs11.TokenNotPresent,
    pkcs11.TokenNotRecognised,
    pkcs11.UserNotLoggedIn,
)
# ykcs11 answers CKR_ARGUMENTS_BAD to a PIN that is too short, OpenSC CKR_PIN_LEN_RANGE.
PIN_REFUSED = (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange, pkcs11.PinLocked, pkcs11.ArgumentsBad)
"""What modules return when a login's PIN was not accepted."""
_MECHANISM = (pkcs11.MechanismInvalid, pkcs11.MechanismParamInvalid)


def explain_failure(error: pkcs11.PKCS11Error, doing: str, device: str) -> HsmSignerError:
    """Return our error for a call that failed.

    Args:
        doing: what failed, as in "signing".
        device: what to call the device.
    """
    if isinstance(error, _GONE):
        return DeviceGone(
            f"{device} was lost while {doing} ({_name(error)}).",
            hint=f"Plug {device} in, or see that its daemon runs; another program may have reset it.",
        )
    if isinstance(error, _MECHANISM):
        return MechanismUnsupported(
            f"{device} refused the mechanism while {doing} ({_name(error)}).",
            hint="Use --algorithm RS256: some devices offer PSS and then refuse its parameters.",
        )
    return DeviceError(
        f"{device} failed while {doing} ({_name(error)}).",
        hint="Check that no other program holds the device, plug it in again, and look at the module's own log.",
    )


def explain_login_failure(error: pkcs11.PKCS11Error, device: str, flags: TokenFlag) -> HsmSignerError:
    """Return our error for a login, ordinary or context-specific, that failed.

    Args:
        flags: the device's, read after the failure.
    """
    if isinstance(error, pkcs11.PinLocked) or flags & TokenFlag.USER_PIN_LOCKED:
        return _locked(device)
    if isinstance(error, PIN_REFUSED):
        return PinIncorrect(
            f"{device} refused the PIN ({_name(error)}). It was presented once and is not tried again."
            + (" One more wrong PIN locks the device." if flags & TokenFlag.USER_PIN_FINAL_TRY else ""),
            hint="Check the PIN and its source before the next try: devices lock after a few.",
        )
    if isinstance(error, pkcs11.UserPinNotInitialized):
        return PinError(f"No PIN is set on {device}.", hint="Set the user PIN with the device's own tool first.")
    if isinstance(error, pkcs11.PinExpired):
        return PinError(f"The PIN of {device} has expired.", hint="Change it with the device's own tool.")
    return explain_failure(error, "logging in", device)


def require_pin_tries(device: str, flags: TokenFlag, *, allow_last_try: bool) -> str | None:
    """Decide whether a login may be attempted.

    Args:
        flags: the device's, freshly read.
        allow_last_try: whether somebody has allowed the try that may lock it.

    Returns:
        A warning to show before the PIN is asked for, or None.

    Raises:
        PinLocked: no PIN is accepted any more.
        PinLastTry: a wrong PIN now would lock the device.
    """
    if flags & TokenFlag.USER_PIN_LOCKED:
        raise _locked(device)
    if flags & TokenFlag.USER_PIN_FINAL_TRY:
        if not allow_last_try:
            raise PinLastTry(
                f"{device} has one PIN try left; a wrong PIN would lock it. No login was attempted.",
                hint="If you are sure of the PIN, repeat with --allow-last-try; a right PIN resets the counter.",
            )
        return "This is the last try: a wrong PIN locks the device."
    if flags & TokenFlag.USER_PIN_COUNT_LOW:
        return "A wrong PIN was entered since the last login."
    return None


def _locked(device: str) -> PinLocked:
    return PinLocked(
        f"The PIN of {device} is locked after too many wrong tries.",
        hint="Unblock it with the device's own tool and its PUK or SO PIN (ykman piv access unblock-pin, "
        "pkcs15-tool --unblock-pin, tpm2_dictionarylockout --clear-lockout).",
    )


def _name(error: pkcs11.PKCS11Error) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
