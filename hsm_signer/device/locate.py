"""Find the one device that a URI names, and read from it without a login."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import pkcs11
from pkcs11 import TokenFlag
from pkcs11.types import Session, Slot, Token

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.failures import explain_failure, explain_module_failure
from hsm_signer.device.lane import Lane
from hsm_signer.device.match import DeviceInfo, select_device, short_names
from hsm_signer.device.module import Module, load_module
from hsm_signer.device.module_search import find_module, is_served_by_p11_kit
from hsm_signer.device.p11_kit import devices_of_module
from hsm_signer.device.pin.state import PinState, pin_state, require_pin_tries
from hsm_signer.device.stack.stack import explained, reason_of_absence, reason_of_failure, with_reason
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceGone, DeviceNotFound

T = TypeVar("T")

_PAUSE = 0.25


@dataclass(frozen=True)
class LibraryFacts:
    """What a module reports about itself (PKCS#11 v3.1 section 3.1, CK_INFO)."""

    manufacturer: str
    description: str
    version: str


@dataclass(frozen=True)
class PresentDevice:
    """A device that is plugged in.

    Attributes:
        slot: the slot that it is in.
        info: what it reports about itself.
        flags: its flags when it was found.
        name: its short name, which no other device that is plugged in has.
    """

    slot: Slot
    info: DeviceInfo
    flags: TokenFlag
    name: str

    @property
    def pin(self) -> PinState:
        """The state of its user PIN."""
        return pin_state(self.flags)

    @property
    def has_pin_pad(self) -> bool:
        """Whether the PIN is entered on the device itself."""
        return bool(self.flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH)

    def require_pin_tries(self, *, allow_last_try: bool) -> str | None:
        """Return a warning about the next login, or None. Raise PinLocked or PinLastTry if no login may be tried."""
        return require_pin_tries(self.info, self.flags, allow_last_try=allow_last_try)


def load(access: KeyAccess, lane: Lane | None = None) -> Module:
    """Load the module that leads to a key, as `find_way` named it, or return it if this process already has.

    Args:
        lane: as for `load_module`.

    Raises:
        ModuleLoadError: there is none, or it cannot be loaded.
        DeviceTimeout: it did not return in time.
    """
    path = find_module(access.module, access.uri)
    return load_module(path, access.module_environment, access.timeout, access.operator.slow, lane)


def read_library(module: Module, access: KeyAccess) -> LibraryFacts:
    """Ask a module for its name and version.

    Raises:
        DeviceGone, DeviceError: it failed.
        DeviceTimeout: it did not return in time.
    """
    doing = "reading the module's name"
    try:
        return module.call(doing, lambda: describe_library(module), access.timeout, access.operator.slow)
    except pkcs11.PKCS11Error as error:
        raise explain_module_failure(error, doing, module.path) from error


def find_device(module: Module, access: KeyAccess) -> PresentDevice:
    """Find the one device that a URI names. Wait for it if `access` says so. Opens no session.

    Raises:
        DeviceNotFound, DeviceAmbiguous: no device matches, or several do.
        DeviceGone, DeviceError: the module failed.
        DeviceTimeout: it did not return in time.
    """
    while True:
        try:
            return _find_once(module, access)
        except (DeviceNotFound, DeviceGone) as error:
            if access.operator.wait is None:
                raise
            access.operator.wait(error)
            # Some modules see only the devices that were plugged in when they were initialised.
            module.refresh(access.timeout, access.operator.slow)


def find_again(module: Module, info: DeviceInfo, access: KeyAccess) -> PresentDevice:
    """Find a device that was found before, without waiting for it.

    Raises:
        DeviceGone: it is not plugged in, or another device was found instead.
    """
    try:
        found = _find_once(module, access)
    except DeviceNotFound as error:
        raise DeviceGone(f"{info} was not found.", hint=f"Plug {info} in again.") from error
    if found.info.identity != info.identity:
        raise DeviceGone(f"{info} was not found. Found {found.info} instead.", hint=f"Plug {info} in again.")
    return found


def browse(access: KeyAccess, doing: str, function: Callable[[Module, Session], T]) -> T:
    """Open a session without a login on the one device that a URI names, and run `function` with it.

    Args:
        doing: what is done, for messages: "reading its objects".
        function: makes the calls, on the lane. It sees public objects only.

    Raises:
        ModuleLoadError, DeviceNotFound, DeviceAmbiguous, DeviceGone, DeviceError: the device cannot be read.
        DeviceTimeout: a call into the module did not return in time.
    """
    module = load(access)
    found = find_device(module, access)

    def run() -> T:
        session = read_token(found.slot).open()
        try:
            return function(module, session)
        finally:
            with contextlib.suppress(pkcs11.PKCS11Error):
                session.close()

    try:
        return module.call(doing, run, access.timeout, access.operator.slow)
    except pkcs11.PKCS11Error as error:
        raise explain_failure(error, doing, str(found.info)) from error


def _find_once(module: Module, access: KeyAccess) -> PresentDevice:
    def look() -> PresentDevice:
        module.require_initialized()
        present = present_devices(module, access.uri)
        try:
            return present[select_device(access.uri, [found.info for found in present], str(module.path))]
        except DeviceNotFound as error:
            raise (error if present else with_reason(error, reason_of_absence(module.path))) from None

    return module.call("looking for the device", look, access.timeout, access.operator.slow)


def present_devices(module: Module, origin: Pkcs11Uri) -> list[PresentDevice]:
    """Return the devices that are plugged in and initialised. Runs on the lane.

    Args:
        origin: the URI by which the module was found.

    Raises:
        DeviceError: the module failed.
    """
    try:
        found = [describe(module, token) for token in present_tokens(module, origin)]
    except pkcs11.PKCS11Error as error:
        failure = explain_module_failure(error, "looking for devices", module.path)
        raise explained(failure, reason_of_failure(module.path)) from error
    names = short_names([each.info for each in found])
    return [replace(each, name=name) for each, name in zip(found, names, strict=True)]


def present_tokens(module: Module, origin: Pkcs11Uri) -> list[Token]:
    """Return what PKCS#11 calls tokens: the devices that are plugged in and initialised. Runs on the lane.

    Args:
        origin: the URI by which the module was found. If it names one of p11-kit's modules, p11-kit's proxy shows the
            devices of all of them, and only the named module's are returned.
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
    """Return the device in a slot with its current flags. Runs on the lane.

    After CKR_GENERAL_ERROR this asks once more: while another process logs in, SoftHSM rewrites the device's file, and
    cannot read it for some milliseconds (measured: 3 to 80, rarely 200).
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
    """Return the flags of a device after a failed call: the current ones, or else the last known. Runs on the lane."""
    try:
        return token.slot.get_token().flags
    except pkcs11.PKCS11Error:
        return token.flags


def describe_library(module: Module) -> LibraryFacts:
    """Return what a module reports about itself. Runs on the lane."""
    library = module.library
    version = ".".join(map(str, library.library_version))
    return LibraryFacts(library.manufacturer_id, library.library_description, version)


def describe(module: Module, token: Token) -> PresentDevice:
    """Return what a device reports about itself. Runs on the lane."""
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
    return PresentDevice(slot, info, token.flags, info.short_name)
