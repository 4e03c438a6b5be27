"""What can be asked on the way to a signature, one thing at a time: for whoever wants to know where it breaks off."""

from dataclasses import dataclass

import pkcs11
from pkcs11 import TokenFlag

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.failures import explain_failure
from hsm_signer.device.locate import LibraryFacts, describe_library, find_device
from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.module import Module, load_module
from hsm_signer.device.module_search import find_module
from hsm_signer.device.pin.state import PinState, pin_state, require_pin_tries


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


def load(access: KeyAccess) -> tuple[Module, LibraryFacts]:
    """Load the module that `access` means, and ask what it is.

    Raises:
        ModuleLoadError: there is none, or it cannot be loaded.
        DeviceTimeout: it did not come back.
    """
    path = find_module(access.module, access.uri)
    module = load_module(path, access.module_environment, access.timeout, access.slow)

    try:
        return module, module.call("asking for its name", lambda: describe_library(module), access.timeout, access.slow)
    except pkcs11.PKCS11Error as error:
        raise explain_failure(error, "asking for its name", f"The module {path}") from error


def look(module: Module, access: KeyAccess) -> Condition:
    """Find the one device that `access` means. Opens no session.

    Raises:
        DeviceNotFound, DeviceAmbiguous, DeviceError: there is no such device.
        DeviceTimeout: the module did not come back.
    """
    found = find_device(module, access.uri, access.timeout, access.slow, access.wait)
    pad = bool(found.flags & TokenFlag.PROTECTED_AUTHENTICATION_PATH)
    return Condition(found.info, pin_state(found.flags), pad, found.flags)
