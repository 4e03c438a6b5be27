"""What can be asked on the way to a signature, one thing at a time: for whoever wants to know where it breaks off."""

from dataclasses import dataclass

import pkcs11
from pkcs11 import Attribute, TokenFlag
from pkcs11.types import Session

from hsm_signer.device.device import Device, KeyReference
from hsm_signer.device.facts import LibraryFacts, PinState, pin_state
from hsm_signer.device.failures import explain_failure, require_pin_tries
from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.module import Module, find_module, load_module
from hsm_signer.device.presence import find_device
from hsm_signer.device.signer import DeviceSigner, read_attribute


@dataclass(frozen=True)
class Condition:
    """A device before anybody has logged in to it.

    Attributes:
        info: what it says of itself.
        pin: the state of its user PIN.
        pad: whether it has a PIN pad of its own.
        flags: those that `pin` was read from.
    """

    info: DeviceInfo
    pin: PinState
    pad: bool
    flags: TokenFlag

    def require_pin_tries(self, *, allow_last_try: bool) -> str | None:
        """Return a warning about the next login, or None; raise PinLocked or PinLastTry where there must be none."""
        return require_pin_tries(str(self.info), self.flags, allow_last_try=allow_last_try)


@dataclass(frozen=True)
class Protection:
    """How a private key is guarded (PKCS#11 v3.1 section 4.9). None stands for what the device does not tell.

    Attributes:
        sensitive: CKA_SENSITIVE: it is never shown in clear.
        extractable: CKA_EXTRACTABLE: it can leave the device.
        never_extractable: CKA_NEVER_EXTRACTABLE: it never could.
        local: CKA_LOCAL: it was made on the device.
        always_authenticate: CKA_ALWAYS_AUTHENTICATE: it wants the PIN with each signature.
    """

    sensitive: bool | None
    extractable: bool | None
    never_extractable: bool | None
    local: bool | None
    always_authenticate: bool | None


def load(reference: KeyReference) -> tuple[Module, LibraryFacts]:
    """Load the module that `reference` means, and ask what it is.

    Raises:
        ModuleLoadError: there is none, or it cannot be loaded.
        DeviceTimeout: it did not come back.
    """
    path = find_module(reference.module, reference.uri)
    module = load_module(path, reference.module_environment, reference.timeout)

    def ask() -> LibraryFacts:
        library = module.library
        version = ".".join(map(str, library.library_version))
        return LibraryFacts(library.manufacturer_id, library.library_description, version)

    try:
        return module, module.call("asking for its name", ask, reference.timeout)
    except pkcs11.PKCS11Error as error:
        raise explain_failure(error, "asking for its name", f"The module {path}") from error


def look(module: Module, reference: KeyReference) -> Condition:
    """Find the one device that `reference` means. Opens no session.

    Raises:
        DeviceNotFound, DeviceAmbiguous, DeviceError: there is no such device.
        DeviceTimeout: the module did not come back.
    """
    found = find_device(module, reference.uri, reference.timeout)
    pad = bool(found.flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH)
    return Condition(found.info, pin_state(found.flags), pad, found.flags)


def protection(device: Device, signer: DeviceSigner) -> Protection:
    """Ask the device how the key of `signer` is guarded.

    Raises:
        DeviceError, DeviceTimeout: as `Device.call`.
    """

    def ask(session: Session) -> Protection:
        key = signer.key.handle
        return Protection(
            sensitive=read_attribute(key, Attribute.SENSITIVE),
            extractable=read_attribute(key, Attribute.EXTRACTABLE),
            never_extractable=read_attribute(key, Attribute.NEVER_EXTRACTABLE),
            local=read_attribute(key, Attribute.LOCAL),
            always_authenticate=read_attribute(key, Attribute.ALWAYS_AUTHENTICATE),
        )

    return device.call("reading how the key is guarded", ask)
