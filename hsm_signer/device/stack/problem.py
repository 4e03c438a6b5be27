"""The error of everything below a module."""

from hsm_signer.errors import DeviceError


def problem(message: str, hint: str, *commands: str) -> DeviceError:
    """Return an error that says what is wrong below a module, and with which commands to fix it."""
    return DeviceError(message, hint=hint, commands=commands)
