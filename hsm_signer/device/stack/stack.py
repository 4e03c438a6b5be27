"""What a module needs below it, by its file: the reason why it fails, or shows no device, and the command that helps.

The functions look at this process, in which the module was loaded: its environment and its libraries.
"""

import logging
from pathlib import Path
from typing import TypeVar

from hsm_signer.device.stack.pcscd import pcscd_problem, reader_library
from hsm_signer.device.stack.problem import problem
from hsm_signer.device.stack.softhsm import is_softhsm, no_softhsm_device, softhsm_failure
from hsm_signer.device.stack.tpm import is_tpm, missing_store, no_tpm_device, tpm_failure
from hsm_signer.errors import DeviceError, HsmSignerError

logger = logging.getLogger(__name__)

E = TypeVar("E", bound=HsmSignerError)


def refusal_to_load(module: Path) -> DeviceError | None:
    """Return why a module must not even be loaded: it would leave something behind. None: it may be."""
    return missing_store() if is_tpm(module) else None


def reason_of_failure(module: Path) -> DeviceError | None:
    """Return why a module failed to initialise, or while it looked for devices. None: unknown. Runs on the lane."""
    if is_tpm(module):
        return tpm_failure()
    if is_softhsm(module):
        return softhsm_failure()
    if "opencryptoki" in module.name.lower():
        return problem(
            "openCryptoki's daemon does not run, or does not serve this user: it serves root and the group pkcs11.",
            "Start it:",
            "sudo systemctl enable --now pkcsslotd",
        )
    return pcscd_problem()


def reason_of_absence(module: Path) -> DeviceError | None:
    """Return why a module that works shows no device. None: unknown. Runs on the lane."""
    if is_tpm(module):
        return no_tpm_device()
    if is_softhsm(module):
        return no_softhsm_device()
    if reader_library() is None:
        return None
    return pcscd_problem() or problem(
        "No YubiKey or smart card is plugged in, or this module does not support it.",
        "Plug it in. If it is plugged in, see which readers and cards pcscd sees:",
        "opensc-tool --list-readers",
    )


def explained(error: E, reason: DeviceError | None) -> E:
    """Return the error for a failure of a module: the reason instead of what the module returned, if it is known."""
    if reason is None:
        return error
    logger.debug("%s", error.message)
    return _as(error, reason.message, reason)


def with_reason(error: E, reason: DeviceError | None) -> E:
    """Return an error with the reason why it happened. The reason's hint takes the place of its own."""
    return error if reason is None else _as(error, f"{error.message} {reason.message}", reason)


def _as(error: E, message: str, reason: DeviceError) -> E:
    return type(error)(message, hint=reason.hint, commands=reason.commands)
