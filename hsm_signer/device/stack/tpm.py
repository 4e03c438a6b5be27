"""Why tpm2-pkcs11 does not work. The module itself returns CKR_GENERAL_ERROR, whatever the reason.

It needs a store, a directory in which it may write, and a TPM, which it reaches through a TCTI of tpm2-tss.
"""

import glob
import os
import shlex
from pathlib import Path

from hsm_signer.device.stack.problem import problem
from hsm_signer.errors import DeviceError
from hsm_signer.system.operating_system import user_name

_SYSTEM_STORE = Path("/etc/tpm2_pkcs11")
_DATABASE = "tpm2_pkcs11.sqlite3"
_DEVICE = Path("/dev/tpmrm0")
_LIBRARIES = ("/usr/lib/*-linux-*", "/usr/lib64", "/usr/lib", "/usr/local/lib")


def is_tpm(module: Path) -> bool:
    """Return whether a module is tpm2-pkcs11."""
    return module.name.startswith("libtpm2_pkcs11")


def missing_store() -> DeviceError | None:
    """Return why there is no store to look into, or None. Without one, the module makes ~/.tpm2_pkcs11 when it loads.

    The order is the module's: TPM2_PKCS11_STORE, /etc/tpm2_pkcs11, ~/.tpm2_pkcs11.
    """
    if os.environ.get("TPM2_PKCS11_BACKEND", "esysdb") != "esysdb":
        return None  # FAPI has its own store
    store = _store()
    if store is None:
        unreachable = _unreachable_tpm()
        if unreachable is not None:
            return unreachable
        return problem(
            "tpm2-pkcs11 has no store, so the TPM holds no device yet: TPM2_PKCS11_STORE is not set, and neither "
            f"{_SYSTEM_STORE} nor ~/.tpm2_pkcs11 exists.",
            "Make a store with a device in it. You choose its PINs:",
            *_creation(None),
        )
    if not store.is_dir():
        what = "is not a directory" if store.exists() else "does not exist"
        return problem(
            f"The store of tpm2-pkcs11, {store} (TPM2_PKCS11_STORE), {what}.",
            "Set TPM2_PKCS11_STORE to the store, or make one there. You choose its PINs:",
            *_creation(store),
        )
    return None


def tpm_failure() -> DeviceError:
    """Return why the module, which has failed to initialise, could not: its store or its TPM."""
    return missing_store() or _unusable_store() or _unreachable_tpm() or _silent_tpm()


def no_tpm_device() -> DeviceError:
    """Return why the module, which works, shows no device."""
    store = _store()
    return problem(
        f"The store of tpm2-pkcs11, {store}, has no device yet.", "Make one. You choose its PINs:", *_creation(store)
    )


def _store() -> Path | None:
    if chosen := os.environ.get("TPM2_PKCS11_STORE"):
        return Path(chosen)
    own = Path(os.path.expanduser("~/.tpm2_pkcs11"))
    return next((store for store in (_SYSTEM_STORE, own) if store.is_dir()), None)


def _creation(store: Path | None) -> tuple[str, ...]:
    where = "" if store is None else f" --path {shlex.quote(str(store))}"
    make = () if store is None or store.is_dir() else (f"mkdir -p {shlex.quote(str(store))}",)
    return (
        *make,
        f"tpm2_ptool init{where}",
        f"tpm2_ptool addtoken --pid 1 --label NAME --userpin PIN --sopin SOPIN{where}",
    )


def _unusable_store() -> DeviceError | None:
    store = _store()
    if store is None:
        return None
    files = (store, store / _DATABASE, store / f"{_DATABASE}.lock")
    closed = next((file for file in files if file.exists() and not os.access(file, os.R_OK | os.W_OK)), None)
    if closed is None:
        return None
    if os.access(closed, os.R_OK) and os.statvfs(closed).f_flag & os.ST_RDONLY:
        return problem(
            f"The store of tpm2-pkcs11, {store}, is on a file system that is mounted read-only.",
            "tpm2-pkcs11 writes to its store even to read it. In a systemd unit, add ReadWritePaths=, or copy the "
            "store to a directory that this user can write, and set TPM2_PKCS11_STORE to that.",
        )
    return problem(
        f"User {user_name()} may not write to the store of tpm2-pkcs11, {store}.",
        "tpm2-pkcs11 writes to its store even to read it. Run this as the store's owner, or give it to this user:",
        f"sudo chown -R {user_name()} {shlex.quote(str(store))}",
    )


def _unreachable_tpm() -> DeviceError | None:
    """Return why there is no TPM to talk to, as far as files tell."""
    tcti = os.environ.get("TPM2_PKCS11_TCTI") or os.environ.get("TCTI") or ""
    name, _, configuration = tcti.partition(":")
    if not tcti:
        if not _DEVICE.exists():
            return problem(
                f"This machine has no TPM that Linux can use: {_DEVICE} does not exist.",
                "Switch the TPM on in the firmware's settings (fTPM, PTT), or give the virtual machine one. See what "
                "the kernel found:",
                "journalctl -k --grep tpm",
            )
        return _closed_device(_DEVICE)
    if name == "device":
        device = Path(configuration or _DEVICE)
        if device.exists():
            return _closed_device(device)
        return problem(
            f"TPM2_PKCS11_TCTI is {tcti}, and {device} does not exist.", f"Set it to device:{_DEVICE}, or unset it."
        )
    if not any(glob.glob(f"{directory}/libtss2-tcti-{glob.escape(name)}.so*") for directory in _LIBRARIES):
        return problem(
            f"TPM2_PKCS11_TCTI is {tcti}, and there is no TCTI of this name: libtss2-tcti-{name}.so is not installed.",
            f"Unset it to use the TPM of this machine, or set it to device:{_DEVICE}.",
        )
    return None


def _closed_device(device: Path) -> DeviceError | None:
    if os.access(device, os.R_OK | os.W_OK):
        return None
    return problem(
        f"User {user_name()} may not use the TPM: {device} is for the group {_group(device)}.",
        "Add the user to the group, and log in again. In a systemd unit, add SupplementaryGroups=.",
        f"sudo usermod -aG {_group(device)} {user_name()}",
    )


def _group(file: Path) -> str:
    try:
        return file.group()
    except (KeyError, OSError):
        return "tss"


def _silent_tpm() -> DeviceError:
    tcti = os.environ.get("TPM2_PKCS11_TCTI")
    if not tcti:
        return problem(
            f"The TPM at {_DEVICE} does not answer tpm2-pkcs11.",
            "See whether it answers at all, and what the kernel says of it:",
            f"tpm2_getcap --tcti device:{_DEVICE} properties-fixed",
            "journalctl -k --grep tpm",
        )
    if tcti.startswith("tabrmd"):
        return problem(
            f"TPM2_PKCS11_TCTI is {tcti}, and tpm2-abrmd does not answer.",
            f"Start it, or set the variable to device:{_DEVICE}, which needs no daemon.",
            "sudo systemctl enable --now tpm2-abrmd",
        )
    return problem(
        f"No TPM answers at TPM2_PKCS11_TCTI, which is {tcti}.",
        f"Correct it, start what listens there, or set it to device:{_DEVICE}.",
    )
