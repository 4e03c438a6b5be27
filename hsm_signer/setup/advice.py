"""The commands that somebody must run where the PIN alone cannot make a device, a key or a certificate; pure."""

import shlex
from dataclasses import dataclass

from hsm_signer.device.inventory.facts import ModuleFacts
from hsm_signer.device.match import DeviceInfo

PIV_SLOT = "9a"
"""The slot for authentication (NIST SP 800-73-4 part 1 section 3.1). Its key requires one PIN for many signatures."""

ATTESTATION_KEY = b"\x19"
"""CKA_ID of the certificate that every YubiKey has: its attestation key's, slot f9."""


@dataclass(frozen=True)
class Advice:
    """What to do elsewhere.

    Attributes:
        instruction: one sentence, without the commands.
        commands: in the order in which they are run.
    """

    instruction: str
    commands: tuple[str, ...]


def piv_key(device: DeviceInfo, subject: str) -> Advice:
    """Return how to make a key and its certificate on a PIV card, which requires the management key."""
    ykman = _ykman(device)
    public = "public.pem"
    # OpenSC makes its list of keys from the certificates.
    warning = (
        ""
        if device.manufacturer.startswith("Yubico")
        else f" (A key without a certificate is not seen: if slot {PIV_SLOT} has one, do not run the first, which "
        "replaces it.)"
    )
    return Advice(
        f"{device.label} has no key that Entra can use. A key in slot {PIV_SLOT} is made with the card's management "
        f"key, which hsm-signer never asks for. Run these in another terminal:{warning}",
        (
            shlex.join([*ykman, "piv", "keys", "generate", "--algorithm", "RSA2048", PIV_SLOT, public]),
            shlex.join([*ykman, "piv", "certificates", "generate", "--subject", subject, PIV_SLOT, public]),
        ),
    )


def piv_import(device: DeviceInfo, slot: str, file: str) -> str:
    """Return the command that stores a certificate on a PIV card."""
    return shlex.join([*_ykman(device), "piv", "certificates", "import", slot, file])


def tpm_key(device: DeviceInfo, label: str) -> Advice:
    """Return how to make a key in a TPM, where the module does not."""
    command = ["tpm2_ptool", "addkey", "--algorithm=rsa2048", f"--label={device.label}", f"--key-label={label}"]
    return Advice(
        f"The module does not make the key itself. Run this in another terminal, with the PIN of {device.label}:",
        (f"{shlex.join(command)} --userpin=PIN",),
    )


def no_device(module: ModuleFacts, label: str) -> Advice | None:
    """Return how to make a device for a module that works and has none; None where no command makes one."""
    file = module.path.rpartition("/")[2]
    if module.problem is not None or module.devices:
        return None
    if "tpm2_pkcs11" in file:
        return Advice(
            "The TPM's store has no device yet. Choose a PIN, and run these in another terminal:",
            (
                "tpm2_ptool init",
                f"tpm2_ptool addtoken --pid=1 --label={shlex.quote(label)} --userpin=PIN --sopin=SOPIN",
            ),
        )
    if "softhsm" in file:
        return Advice(
            "SoftHSM has no device yet. Run this in another terminal. It asks for the PINs:",
            (f"softhsm2-util --init-token --free --label {shlex.quote(label)}",),
        )
    return None


def is_tpm(device: DeviceInfo, module: str) -> bool:
    """Return whether a device is a TPM, as tpm2-pkcs11 describes one."""
    return "tpm2" in module.lower() or "TPM2" in device.library_description


def _ykman(device: DeviceInfo) -> list[str]:
    # By ykcs11, the serial is the number that ykman takes. By OpenSC, it is another one.
    serial = device.serial if device.manufacturer.startswith("Yubico") and device.serial.isdigit() else None
    return ["ykman", *(["--device", serial] if serial else [])]
