"""The state of a device's user PIN, as its flags report it, and whether a login may be tried; pure."""

from enum import StrEnum

from pkcs11 import TokenFlag

from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.pin.unblock import pin_tool
from hsm_signer.errors import PinLastTry, PinLocked


class PinState(StrEnum):
    """What the flags of a device say about its user PIN (PKCS#11 v3.1 section 3.2, CK_TOKEN_INFO)."""

    NOT_NEEDED = "not needed"
    FINE = "fine"
    COUNT_LOW = "count low"
    LAST_TRY = "last try"
    LOCKED = "locked"
    NOT_SET = "not set"


def pin_state(flags: TokenFlag) -> PinState:
    """Return what `flags`, just read, say about the user PIN. If several states apply, return the most serious one."""
    if not flags & TokenFlag.LOGIN_REQUIRED:
        return PinState.NOT_NEEDED
    if flags & TokenFlag.USER_PIN_LOCKED:
        return PinState.LOCKED
    if flags & TokenFlag.USER_PIN_FINAL_TRY:
        return PinState.LAST_TRY
    if flags & TokenFlag.USER_PIN_COUNT_LOW:
        return PinState.COUNT_LOW
    return PinState.FINE if flags & TokenFlag.USER_PIN_INITIALIZED else PinState.NOT_SET


def require_pin_tries(device: DeviceInfo, flags: TokenFlag, *, allow_last_try: bool) -> str | None:
    """Decide whether a login may be attempted.

    Args:
        flags: the device's flags, just read.
        allow_last_try: whether somebody has allowed the try that may lock it.

    Returns:
        A warning to show before the PIN is asked for, or None.

    Raises:
        PinLocked: no PIN is accepted any more.
        PinLastTry: a wrong PIN now would lock the device.
    """
    if flags & TokenFlag.USER_PIN_LOCKED:
        raise locked(device)
    if flags & TokenFlag.USER_PIN_FINAL_TRY:
        if not allow_last_try:
            raise PinLastTry(
                f"{device} has one PIN try left. A wrong PIN would lock it, so no PIN was sent.",
                hint="If you are sure of the PIN, run the command again with --allow-last-try: a correct PIN resets "
                "the counter. If not, use the device's own tool.",
                commands=pin_tool(device).commands,
            )
        return "This is the last try: a wrong PIN locks the device."
    if flags & TokenFlag.USER_PIN_COUNT_LOW:
        return "A wrong PIN was entered since the last login."
    return None


def locked(device: DeviceInfo) -> PinLocked:
    """Return the error for a device whose PIN is locked."""
    tool = pin_tool(device)
    return PinLocked(
        f"The PIN of {device} is locked after too many wrong PINs.",
        hint="Unblock it with the device's own tool."
        if tool.unblock
        else "Unblock it with the vendor's own tool and the device's PUK or SO PIN.",
        commands=() if tool.unblock is None else (f"{tool.unblock}  # {tool.unblock_needs}",),
    )
