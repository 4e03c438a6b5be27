"""Which devices are there, and the one that a URI means."""

import contextlib
import time
from dataclasses import dataclass

import pkcs11
from pkcs11 import TokenFlag
from pkcs11.types import Slot, Token

from hsm_signer.device.access import Wait
from hsm_signer.device.failures import explain_failure
from hsm_signer.device.lane import Slow, log_slow
from hsm_signer.device.match import DeviceInfo, select_device
from hsm_signer.device.module import Module
from hsm_signer.device.module_search import is_served_by_p11_kit
from hsm_signer.device.p11_kit import devices_of_module
from hsm_signer.device.pcscd import blame_pcscd
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceGone, DeviceNotFound

_PAUSE = 0.25


@dataclass(frozen=True)
class PresentDevice:
    """A device that is there: its slot, what it says of itself, and its flags as they were then."""

    slot: Slot
    info: DeviceInfo
    flags: TokenFlag


@dataclass(frozen=True)
class LibraryFacts:
    """What a module says of itself (PKCS#11 v3.1 section 3.1, CK_INFO)."""

    manufacturer: str
    description: str
    version: str


def find_device(
    module: Module, uri: Pkcs11Uri, timeout: float, slow: Slow = log_slow, wait: Wait | None = None
) -> PresentDevice:
    """Find the one device `uri` means.

    Args:
        slow: shows a person that it takes longer than a moment.
        wait: called between two looks, until the device is there. None: look once.

    Raises:
        DeviceNotFound, DeviceAmbiguous: none, or several, match.
        DeviceGone, DeviceError: the module failed.
        DeviceTimeout: it did not come back within `timeout` seconds.
    """

    def look() -> PresentDevice:
        module.require_initialized()
        present = present_devices(module, uri)
        try:
            return present[select_device(uri, [found.info for found in present], str(module.path))]
        except DeviceNotFound as error:
            raise (error if present else blame_pcscd(error)) from None

    while True:
        try:
            return module.call("looking for the device", look, timeout, slow)
        except (DeviceNotFound, DeviceGone) as error:
            if wait is None:
                raise
            wait(error)
            # Some modules see only the devices that were there when they were initialised.
            module.refresh(timeout, slow)


def present_devices(module: Module, origin: Pkcs11Uri) -> list[PresentDevice]:
    """Return the devices that are there and set up. Runs on the lane.

    Args:
        origin: by what the module was found.

    Raises:
        DeviceError: the module failed.
    """
    try:
        return [describe(module, token) for token in present_tokens(module, origin)]
    except pkcs11.PKCS11Error as error:
        failure = explain_failure(error, "looking for devices", f"The module {module.path}")
        raise blame_pcscd(failure) from error


def present_tokens(module: Module, origin: Pkcs11Uri) -> list[Token]:
    """Return what PKCS#11 calls tokens: the devices that are there and set up. Runs on the lane.

    Args:
        origin: by what the module was found. Of the devices of p11-kit's proxy, those of the module it names are meant.
    """
    tokens = []
    for slot in module.library.get_slots(token_present=True):
        with contextlib.suppress(pkcs11.TokenNotPresent, pkcs11.TokenNotRecognised):
            tokens.append(read_token(slot))
    # SoftHSM always shows one more slot, empty and waiting to be initialised.
    tokens = [token for token in tokens if token.flags & TokenFlag.TOKEN_INITIALIZED]
    if origin.module_name is None or not is_served_by_p11_kit(module.path, origin):
        return tokens
    theirs = devices_of_module(module.path, origin.module_name)
    return [token for token in tokens if _identity(token) in theirs]


def read_token(slot: Slot) -> Token:
    """Return the device in a slot as it describes itself now. Runs on the lane.

    It is asked once more, after a pause, where the answer is CKR_GENERAL_ERROR: while another process logs in, SoftHSM
    rewrites the device's file, and cannot read it for some milliseconds (measured: 3 to 80, rarely 200).
    """
    try:
        return slot.get_token()
    except pkcs11.GeneralError:
        time.sleep(_PAUSE)
        return slot.get_token()


def _identity(token: Token) -> tuple[str, ...]:
    serial = token.serial.decode(errors="replace")
    return tuple(text.strip("\0 ") for text in (token.label, token.manufacturer_id, token.model, serial))


def flags_after(token: Token) -> TokenFlag:
    """Return the flags of a device after a call that failed, afresh if it still gives them. Runs on the lane."""
    try:
        return token.slot.get_token().flags
    except pkcs11.PKCS11Error:
        return token.flags


def describe_library(module: Module) -> LibraryFacts:
    """Return what a module says of itself. Runs on the lane."""
    library = module.library
    version = ".".join(map(str, library.library_version))
    return LibraryFacts(library.manufacturer_id, library.library_description, version)


def describe(module: Module, token: Token) -> PresentDevice:
    """Return what a device says of itself. Runs on the lane."""
    slot = token.slot
    info = DeviceInfo(
        label=token.label,
        manufacturer=token.manufacturer_id,
        model=token.model,
        serial=token.serial.decode("utf-8", errors="replace").strip("\0 "),
        slot_id=slot.slot_id,
        slot_description=slot.slot_description,
        slot_manufacturer=slot.manufacturer_id,
        library_manufacturer=module.library.manufacturer_id,
        library_description=module.library.library_description,
        library_version=module.library.library_version,
    )
    return PresentDevice(slot, info, token.flags)
