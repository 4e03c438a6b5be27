"""Turn what a module returned (CK_RV, PKCS#11 v3.1 section 5.1) into an error that says what to do; pure."""

from pathlib import Path

import pkcs11
from pkcs11 import TokenFlag

from hsm_signer.crypto import Algorithm, PublicKey
from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.pin.state import locked
from hsm_signer.device.pin.unblock import pin_tool
from hsm_signer.device.piv import is_piv
from hsm_signer.errors import (
    DeviceError,
    DeviceGone,
    DeviceReadOnly,
    HsmSignerError,
    KeyNotFound,
    LoginInterrupted,
    MechanismUnsupported,
    PinError,
    PinIncorrect,
    SignatureInvalid,
)

GONE = (
    pkcs11.DeviceError,
    pkcs11.DeviceRemoved,
    # tpm2-pkcs11 returns only this after its TPM or broker was restarted.
    pkcs11.GeneralError,
    pkcs11.ObjectHandleInvalid,
    pkcs11.SessionClosed,
    pkcs11.SessionHandleInvalid,
    pkcs11.TokenNotPresent,
    pkcs11.TokenNotRecognised,
    pkcs11.UserNotLoggedIn,
)
"""What modules return when the device, or its session, was lost."""
# ykcs11 answers CKR_ARGUMENTS_BAD to a PIN that is too short, OpenSC CKR_PIN_LEN_RANGE.
PIN_REFUSED = (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange, pkcs11.PinLocked, pkcs11.ArgumentsBad)
"""What modules return when a login fails because of the PIN."""
_PIN_NOT_CHECKED = (
    # Only C_OpenSession returns these (PKCS#11 v3.1 section 5.6.1), and then C_Login is not called.
    pkcs11.SessionCount,
    pkcs11.SessionReadWriteSOExists,
    pkcs11.SlotIDInvalid,
    pkcs11.TokenNotRecognised,
    pkcs11.TokenWriteProtected,
    # Of the session and the device "at the time that the function was invoked" (sections 5.1.2 and 5.1.3).
    # CKR_DEVICE_REMOVED and CKR_SESSION_CLOSED are about "during"; CKR_DEVICE_ERROR and CKR_GENERAL_ERROR do not say.
    pkcs11.SessionHandleInvalid,
    pkcs11.TokenNotPresent,
    # Of C_Login (section 5.6.8): who is logged in, and whether a PIN is set.
    pkcs11.AnotherUserAlreadyLoggedIn,
    pkcs11.FunctionNotSupported,
    pkcs11.SessionReadOnlyExists,
    pkcs11.UserTooManyTypes,
)
"""Errors of a login that prove that the device has not checked the PIN."""
_WRONG_PIN_COUNTED = TokenFlag.USER_PIN_COUNT_LOW | TokenFlag.USER_PIN_FINAL_TRY
_MECHANISM = (pkcs11.MechanismInvalid, pkcs11.MechanismParamInvalid)
_READ_ONLY = (pkcs11.SessionReadOnly, pkcs11.TokenWriteProtected)
_NOT_LIKE_THIS = (
    pkcs11.AttributeReadOnly,
    pkcs11.AttributeTypeInvalid,
    pkcs11.AttributeValueInvalid,
    pkcs11.KeySizeRange,
    pkcs11.TemplateIncomplete,
    pkcs11.TemplateInconsistent,
)
_NOT_AT_ALL = (pkcs11.FunctionNotSupported, pkcs11.FunctionRejected, *_MECHANISM)
_WRONG_ROLE = "User type invalid"


def explain_failure(error: pkcs11.PKCS11Error, doing: str, device: str) -> HsmSignerError:
    """Return our error for a call that failed.

    Args:
        doing: what failed, as in "signing".
        device: what to call the device.
    """
    if isinstance(error, GONE):
        return DeviceGone(
            f"{device} was lost while {doing} ({_name(error)}).",
            hint="Plug the device in, and check that its daemon (pcscd, tpm2-abrmd) is running. Another program may "
            "have reset the device.",
        )
    if isinstance(error, _MECHANISM):
        return MechanismUnsupported(
            f"{device} refused the mechanism while {doing} ({_name(error)}).",
            hint="Use --algorithm RS256: some devices offer PSS and then refuse its parameters.",
        )
    return DeviceError(
        f"{device} failed while {doing} ({_name(error)}).",
        hint="Close other programs that use the device, plug it in again, and look at the module's own log.",
    )


def explain_module_failure(error: pkcs11.PKCS11Error, doing: str, module: str | Path) -> DeviceError:
    """Return our error for a call to a module, before it was about one of its devices.

    Args:
        doing: what failed, as in "looking for devices".
        module: its file.
    """
    kind = DeviceGone if isinstance(error, GONE) else DeviceError
    return kind(
        f"{module} failed while {doing} ({_name(error)}).",
        hint="Check that what the module needs below it is running. With -v, the module's own messages are shown.",
    )


def explain_refusal(error: pkcs11.PKCS11Error, doing: str, device: str) -> HsmSignerError:
    """Return our error for a change that a device refused, although it is plugged in.

    Args:
        doing: what was refused, as in "generating a key".
        device: what to call the device.
    """
    message = f"{device} refused {doing} ({_name(error)})."
    if isinstance(error, _READ_ONLY):
        return DeviceReadOnly(message, hint="The device is write-protected. Change it with the vendor's own tool.")
    if is_wrong_role(error) or isinstance(error, pkcs11.UserNotLoggedIn):
        return DeviceReadOnly(
            message,
            hint="The user PIN does not allow this. Use the vendor's own tool with the security officer's PIN (SO "
            "PIN).",
        )
    if isinstance(error, pkcs11.DeviceMemory):
        return DeviceError(
            message,
            hint="The device is full. List its keys with `hsm-signer key list`, and delete one that is no longer used "
            "with `hsm-signer key delete`.",
        )
    if isinstance(error, _NOT_LIKE_THIS):
        return DeviceError(
            message,
            hint="The device does not support these attributes. Try --bits 2048 without --always-authenticate, or use "
            "the vendor's own tool.",
        )
    if isinstance(error, _NOT_AT_ALL):
        return DeviceError(message, hint="The device does not offer this through PKCS#11. Use the vendor's own tool.")
    return DeviceError(message, hint="See the module's own log (-v shows what it writes to stderr).")


def is_wrong_role(error: pkcs11.PKCS11Error) -> bool:
    """Return whether a call failed with CKR_USER_TYPE_INVALID, for which python-pkcs11 has no class."""
    return str(error).startswith(_WRONG_ROLE)


def require_changeable(device: DeviceInfo, flags: TokenFlag) -> None:
    """Check that a device can be changed with the user's PIN, before the PIN is asked for.

    Args:
        flags: the device's flags.

    Raises:
        DeviceReadOnly: the user's PIN cannot change it.
    """
    if is_piv(device):
        # NIST SP 800-73-4 part 2 section 3.3: generating keys and storing certificates requires the management key.
        raise DeviceReadOnly(
            f"{device} is a PIV card. Its keys are in fixed slots. Generating and deleting them requires its "
            "management key, not the PIN.",
            hint="Use the card's own tool: `ykman piv keys generate --algorithm RSA2048 9a public.pem` and `ykman piv "
            "certificates generate --subject CN=name 9a public.pem`, or `yubico-piv-tool -s 9a -A RSA2048 -a generate "
            "-o public.pem`. Slot 9a has the id %01. Slot 9c has the id %02 and requires the PIN for each signature.",
        )
    if flags & TokenFlag.WRITE_PROTECTED:
        raise DeviceReadOnly(f"{device} is write-protected.", hint="Change it with the vendor's own tool.")


def require_valid_signature(
    public_key: PublicKey, algorithm: Algorithm, message: bytes, signature: bytes, key: str
) -> None:
    """Verify a signature that a device returned.

    Args:
        key: what to call the key, at the start of a sentence.

    Raises:
        SignatureInvalid: the signature is not from this key.
    """
    if not public_key.verify(algorithm, message, signature):
        raise SignatureInvalid(
            f"{key} returned a signature that does not verify with its public key.",
            hint="Nothing was sent. Some devices use a different salt length for PSS: use --algorithm RS256."
            if algorithm is Algorithm.PS256
            else "Nothing was sent. Run the command again. If it fails again, the module or device is faulty.",
        )


def key_replaced(key: str) -> KeyNotFound:
    """Return the error for a URI that means another key than before, after the device was opened again.

    Args:
        key: what to call the key, at the start of a sentence.
    """
    return KeyNotFound(
        f"{key} was replaced by another key.",
        hint="Check that the right device is plugged in. If you replaced the key, run the command again with the "
        "certificate of the new key.",
    )


def explain_login_failure(
    error: pkcs11.PKCS11Error, device: DeviceInfo, flags: TokenFlag, before: TokenFlag | None = None
) -> HsmSignerError:
    """Return our error for a login, ordinary or context-specific, that failed.

    Args:
        flags: the device's flags, read after the failure.
        before: the flags read before the login, or None. If the device has counted a wrong PIN since, it was this one.
    """
    if isinstance(error, pkcs11.PinLocked) or flags & TokenFlag.USER_PIN_LOCKED:
        return locked(device)
    if isinstance(error, PIN_REFUSED) or (before is not None and flags & ~before & _WRONG_PIN_COUNTED):
        return _wrong_pin(error, device, last_try=bool(flags & TokenFlag.USER_PIN_FINAL_TRY))
    if isinstance(error, pkcs11.UserPinNotInitialized):
        return PinError(f"No user PIN is set on {device}.", hint="First set the user PIN with the device's own tool.")
    if isinstance(error, pkcs11.PinExpired):
        return PinError(f"The PIN of {device} has expired.", hint="Change the PIN with the device's own tool.")
    if isinstance(error, _PIN_NOT_CHECKED):
        return explain_failure(error, "logging in", str(device))
    return LoginInterrupted(
        f"{device} failed while logging in ({_name(error)}). It is unknown whether it checked the PIN.",
        hint="Check that the device is plugged in and works, then run the command again.",
    )


def _wrong_pin(error: pkcs11.PKCS11Error, device: DeviceInfo, *, last_try: bool) -> PinIncorrect:
    tool = pin_tool(device)
    # The others say more: for example, that it is too short.
    detail = "" if type(error) is pkcs11.PinIncorrect and not str(error) else f" ({_name(error)})"
    return PinIncorrect(
        f"Wrong PIN for {device.short_name}{detail}. It was sent once and will not be sent again."
        + (" One more wrong PIN locks the device." if last_try else ""),
        hint=f"{tool.tries} Check the PIN, and where it comes from, before the next try.",
        commands=tool.commands,
    )


def _name(error: pkcs11.PKCS11Error) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
