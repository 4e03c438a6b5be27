"""What to do about the PIN of a device, with the tool that belongs to this device; pure."""

import shlex
from dataclasses import dataclass

from hsm_signer.device.match import DeviceInfo


@dataclass(frozen=True)
class PinTool:
    """How a kind of device counts wrong PINs, and the commands of its own tool.

    Attributes:
        tries: what wrong PINs do to it, in a sentence.
        show_tries: the command that shows how many tries are left, or None if none does.
        unblock: the command that sets a new PIN or gives back the tries, or None if we do not know the tool.
        unblock_needs: what `unblock` asks for, or what else a person must know before using it.
    """

    tries: str
    show_tries: str | None
    unblock: str | None
    unblock_needs: str

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands, each with a comment that says what it does."""
        told = [(self.show_tries, "how many tries are left"), (self.unblock, self.unblock_needs)]
        known = [(command, purpose) for command, purpose in told if command is not None]
        width = max((len(command) for command, _ in known), default=0)
        return tuple(f"{command:<{width}}  # {purpose}" for command, purpose in known)


def pin_tool(device: DeviceInfo) -> PinTool:
    """Return how to look after the PIN of a device.

    Through p11-kit's proxy, the library's own name is hidden, so that the device's must do.
    """
    if device.manufacturer.startswith("Yubico"):
        # ykcs11 reports the number that is printed on the key and that ykman takes.
        ykman = ["ykman", *(["--device", device.serial] if device.serial.isdecimal() else []), "piv"]
        return PinTool(
            "A YubiKey locks after 3 wrong PINs, unless another number was set.",
            shlex.join([*ykman, "info"]),
            shlex.join([*ykman, "access", "unblock-pin"]),
            "a new PIN, with the PUK",
        )
    if device.library_manufacturer == "OpenSC Project" or device.manufacturer == "piv_II":
        reader = ["--reader", device.slot_description] if device.slot_description else []
        return PinTool(
            "A smart card locks after a few wrong PINs, often 3.",
            None,
            shlex.join(["pkcs15-tool", *reader, "--unblock-pin"]),
            "a new PIN, with the PUK",
        )
    if device.library_manufacturer == "tpm2-software.github.io" or device.model.endswith("TPM"):
        return PinTool(
            "A TPM counts wrong PINs for all its keys together, and then locks for a while.",
            "tpm2_getcap properties-variable | grep LOCKOUT",
            "tpm2_dictionarylockout --clear-lockout",
            "the tries back, with the lockout password",
        )
    if device.manufacturer == "SoftHSM project":
        # Its tool cannot set a new PIN: it can only initialise the device again, which deletes the keys.
        return PinTool("SoftHSM never locks.", None, None, "")
    return PinTool("A device locks after a few wrong PINs.", None, None, "")
