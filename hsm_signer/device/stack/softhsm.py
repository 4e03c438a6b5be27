"""Why SoftHSM does not work, or shows no device. The module itself returns CKR_GENERAL_ERROR, whatever the reason."""

import os
import re
import shlex
from pathlib import Path

from hsm_signer.device.stack.problem import problem
from hsm_signer.errors import DeviceError
from hsm_signer.system.operating_system import user_name

# Debian; Fedora and Arch; Homebrew.
_SYSTEM = tuple(
    map(Path, ("/etc/softhsm/softhsm2.conf", "/etc/softhsm2.conf", "/opt/homebrew/etc/softhsm/softhsm2.conf"))
)


def is_softhsm(module: Path) -> bool:
    """Return whether a module is SoftHSM's."""
    return "softhsm" in module.name


def softhsm_failure() -> DeviceError | None:
    """Return why the module could not be initialised: its configuration or its directory of tokens. None: unknown."""
    file, source = _configuration()
    if not _exists(file):
        return problem(
            f"SoftHSM has no configuration: {file}{source} does not exist.",
            "Set SOFTHSM2_CONF to its configuration, or make one of your own:",
            *_own_configuration(),
        )
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return problem(
            f"User {user_name()} may not read SoftHSM's configuration, {file}{source}.",
            "Make a configuration of your own. Only members of the group softhsm may use the one of the machine.",
            *_own_configuration(),
        )
    directory = _directory(text)
    if directory is None or os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return None
    if not _exists(directory):
        return problem(
            f"SoftHSM's configuration, {file}{source}, names {directory} for its devices, which does not exist.",
            "Make the directory, or correct directories.tokendir:",
            f"mkdir -p {shlex.quote(str(directory))}",
        )
    return problem(
        f"User {user_name()} may not use the directory of SoftHSM's devices, {directory}.",
        f"It is directories.tokendir of {file}. Make a configuration of your own:",
        *_own_configuration(),
    )


def no_softhsm_device() -> DeviceError:
    """Return why the module, which works, shows no device."""
    file, source = _configuration()
    return problem(
        f"SoftHSM has no device yet, by its configuration {file}{source}.",
        "Make one, and choose its PINs. Or set SOFTHSM2_CONF to another configuration.",
        "softhsm2-util --init-token --free --label NAME",
    )


def _configuration() -> tuple[Path, str]:
    """Return the file that SoftHSM reads, and in words why that one."""
    if chosen := os.environ.get("SOFTHSM2_CONF"):
        return Path(chosen), " (SOFTHSM2_CONF)"
    own = Path(os.path.expanduser("~/.config/softhsm2/softhsm2.conf"))
    return next((file for file in (own, *_SYSTEM) if _exists(file)), _SYSTEM[0]), ""


def _exists(file: Path) -> bool:
    """Return whether a file exists; where we may not look, that it does."""
    try:
        file.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _directory(text: str) -> Path | None:
    found = re.search(r"^\s*directories\.tokendir\s*=\s*(\S.*?)\s*$", text, re.MULTILINE)
    return Path(found[1]) if found else None


def _own_configuration() -> tuple[str, ...]:
    return (
        "mkdir -p ~/.config/softhsm2/tokens",
        'echo "directories.tokendir = $HOME/.config/softhsm2/tokens" > ~/.config/softhsm2/softhsm2.conf',
        "softhsm2-util --init-token --free --label NAME",
    )
