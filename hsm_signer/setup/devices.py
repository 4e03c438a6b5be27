"""Which devices of this machine can be set up, what to call them, and what their modules need; pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hsm_signer.device.inventory.facts import DeviceFacts, ModuleFacts
from hsm_signer.device.match import matches_device
from hsm_signer.device.pin.state import PinState
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceError, DeviceNotFound

# Variables that lead modules to their devices, by a part of the module's file name. A variable that changes with each
# session, such as DBUS_SESSION_BUS_ADDRESS, would be wrong in a file.
_VARIABLES = {
    "softhsm": ("SOFTHSM2_CONF",),
    "tpm2_pkcs11": ("TPM2_PKCS11_STORE", "TPM2_PKCS11_TCTI"),
    "opensc": ("OPENSC_CONF", "PCSCLITE_CSOCK_NAME"),
    "ykcs11": ("PCSCLITE_CSOCK_NAME",),
    "yubihsm": ("YUBIHSM_PKCS11_CONF",),
    "cryptoki": ("ChrystokiConfigurationPath",),
    "cs_pkcs11": ("CS_PKCS11_R3_CFG", "CS_PKCS11_R2_CFG"),
}

_STATES = {
    PinState.COUNT_LOW: "a wrong PIN was entered",
    PinState.LAST_TRY: "one PIN try left",
    PinState.LOCKED: "PIN locked",
    PinState.NOT_SET: "no PIN set",
}


@dataclass(frozen=True)
class Candidate:
    """A device that can be set up.

    Attributes:
        uri: means this device, and says which module leads to it.
        module: name of the module, short.
        path: of the module.
    """

    uri: Pkcs11Uri
    device: DeviceFacts
    module: str
    path: Path

    @property
    def name(self) -> str:
        """What people call the device: "YubiKey PIV #12345678"."""
        info = self.device.info
        return info.label or info.model or info.slot_description

    @property
    def serial(self) -> str:
        """What stays the same, whatever the device is called."""
        return self.device.info.serial


def candidates(modules: Iterable[ModuleFacts]) -> list[Candidate]:
    """Return the devices that can sign what Entra accepts."""
    return [
        Candidate(_uri(module, device), device, _short_name(module), Path(module.path))
        for module in modules
        for device in module.devices
        if device.mechanisms
    ]


def matching(found: Sequence[Candidate], wanted: Pkcs11Uri | None) -> list[Candidate]:
    """Return the devices that a URI means; all of them without a URI."""
    return [each for each in found if wanted is None or matches_device(wanted, each.device.info)]


def choices(found: Sequence[Candidate]) -> list[str]:
    """Return a line for each device: its name, and what else tells it from the others."""
    names = Counter(each.name for each in found)
    width = max((len(each.name) for each in found), default=0)
    lines = []
    for each in found:
        serial = f"serial {each.device.info.serial}" if names[each.name] > 1 and each.device.info.serial else ""
        state = _STATES.get(each.device.pin, "")
        details = ", ".join(part for part in (each.module, serial, state) if part)
        lines.append(f"{each.name:{width}}  ({details})" if len(found) > 1 else f"{each.name} ({details})")
    return lines


def variables_of(path: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that led a module to its devices, which it needs later, too."""
    names = {name for part, names in _VARIABLES.items() if part in path.name.lower() for name in names}
    return {name: environ[name] for name in sorted(names) if environ.get(name)}


def none_found(modules: Sequence[ModuleFacts], wanted: Pkcs11Uri | None) -> DeviceError:
    """Return the error for a search that found no device."""
    looked = ", ".join(module.name or module.path for module in modules) or "no module"
    if wanted is not None:
        seen = ", ".join(str(each.uri) for each in candidates(modules)) or "none"
        return DeviceNotFound(
            f"No device matches --key {wanted.redacted}. Devices found: {seen}.",
            hint="Plug the device in, or correct --key.",
        )
    known = [reason for module in modules for reason in (module.problem, module.absence) if reason is not None]
    reasons = {reason.message: reason for reason in known}
    message = f"No device was found (looked through {looked})."
    if len(reasons) == 1:
        (reason,) = reasons.values()
        return DeviceNotFound(f"{message} {reason.message}", hint=reason.hint, commands=reason.commands)
    return DeviceNotFound(
        message,
        hint="Plug the device in and run the command again, or name the vendor's library with --module. If it is "
        "plugged in, see what is missing:",
        commands=("hsm-signer doctor",),
    )


def _short_name(module: ModuleFacts) -> str:
    return module.name or Path(module.path).name.partition(".")[0].removeprefix("lib")


def _uri(module: ModuleFacts, device: DeviceFacts) -> Pkcs11Uri:
    uri = Pkcs11Uri.parse(device.uri)
    if uri.module_name is None and uri.module_path is None:
        return replace(uri, module_path=module.path)
    return uri
