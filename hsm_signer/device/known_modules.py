"""The PKCS#11 modules that we know by name: their files, where systems put them, and the packages to install; pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class KnownModule:
    """A module that can be named without a path.

    Attributes:
        name: what ``--module`` and a URI's module-name take.
        device: what it is for.
        files: names of the shared library, the preferred one first.
        directories: where it is, besides the directories for all libraries.
        packages: what to install, by package manager: "apt", "dnf", "pacman", "brew".
        is_searched: whether it is tried when no module is named. Those of network HSMs need a configuration first.
    """

    name: str
    device: str
    files: tuple[str, ...]
    directories: tuple[str, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    is_searched: bool = True


# Paths: Debian 12, Fedora, Arch and Homebrew; those of network HSMs are from the vendors' documents.
_TABLE = (
    KnownModule(
        "ykcs11",
        "a YubiKey",
        ("libykcs11.so", "libykcs11.so.2", "libykcs11.so.1", "libykcs11.dylib"),
        packages={
            "apt": "ykcs11 pcscd",
            "dnf": "yubico-piv-tool pcsc-lite",
            "pacman": "yubico-piv-tool pcsclite ccid",
            "brew": "yubico-piv-tool",
        },
    ),
    KnownModule(
        "opensc",
        "another smart card",
        ("opensc-pkcs11.so", "opensc-pkcs11.dylib"),
        directories=("/Library/OpenSC/lib",),
        packages={
            "apt": "opensc-pkcs11 pcscd",
            "dnf": "opensc pcsc-lite",
            "pacman": "opensc pcsclite ccid",
            "brew": "opensc",
        },
    ),
    KnownModule(
        "tpm2",
        "a TPM",
        ("libtpm2_pkcs11.so", "libtpm2_pkcs11.so.1", "libtpm2_pkcs11.so.0"),
        packages={
            "apt": "libtpm2-pkcs11-1 libtpm2-pkcs11-tools",
            "dnf": "tpm2-pkcs11 tpm2-pkcs11-tools",
            "pacman": "tpm2-pkcs11",
        },
    ),
    KnownModule(
        "softhsm2",
        "SoftHSM (keys in files, for tests)",
        ("libsofthsm2.so", "libsofthsm2.dylib"),
        directories=(
            "/usr/lib/softhsm",
            "/usr/lib/*-linux-*/softhsm",
            "/usr/lib64/softhsm",
            "/usr/local/lib/softhsm",
            "/opt/homebrew/lib/softhsm",
        ),
        packages={"apt": "softhsm2", "dnf": "softhsm", "pacman": "softhsm", "brew": "softhsm"},
    ),
    KnownModule(
        "opencryptoki",
        "openCryptoki",
        ("libopencryptoki.so", "libopencryptoki.so.0"),
        directories=("/usr/lib64/opencryptoki", "/usr/lib/*-linux-*/opencryptoki"),
        packages={"apt": "opencryptoki", "dnf": "opencryptoki"},
        is_searched=False,
    ),
    KnownModule(
        "yubihsm",
        "a YubiHSM 2",
        ("yubihsm_pkcs11.so", "yubihsm_pkcs11.dylib"),
        packages={"apt": "yubihsm-pkcs11"},
        is_searched=False,
    ),
    KnownModule(
        "cloudhsm",
        "AWS CloudHSM",
        ("libcloudhsm_pkcs11.so",),
        directories=("/opt/cloudhsm/lib",),
        is_searched=False,
    ),
    KnownModule(
        "luna",
        "a Thales Luna HSM",
        ("libCryptoki2_64.so",),
        directories=("/usr/safenet/lunaclient/lib", "/usr/lunasa/lib"),
        is_searched=False,
    ),
    KnownModule(
        "nshield",
        "an Entrust nShield HSM",
        ("libcknfast.so",),
        directories=("/opt/nfast/toolkits/pkcs11",),
        is_searched=False,
    ),
)

KNOWN_MODULES: Mapping[str, KnownModule] = {module.name: module for module in _TABLE}
"""The table, by name."""

FIRST_CHOICES = ("ykcs11", "tpm2", "opensc", "softhsm2")
"""What somebody without a module chooses from."""

_HELPERS = {
    "p11-kit-proxy": {"apt": "p11-kit-modules", "dnf": "p11-kit", "pacman": "p11-kit", "brew": "p11-kit"},
    "pcscd": {"apt": "pcscd", "dnf": "pcsc-lite", "pacman": "pcsclite ccid"},
}
"""Packages of what is not a module, but needed by some."""

_INSTALL = {
    "apt": "sudo apt install",
    "dnf": "sudo dnf install",
    "pacman": "sudo pacman -S",
    "brew": "brew install",
}
# The ID and ID_LIKE of os-release(5).
_MANAGERS = {"debian": "apt", "ubuntu": "apt", "fedora": "dnf", "rhel": "dnf", "arch": "pacman", "macos": "brew"}


def install_commands(names: Collection[str], systems: Collection[str]) -> tuple[str, ...]:
    """Return the commands that install modules, each with what the module is for.

    Args:
        names: of known modules, or "p11-kit-proxy", "pcscd".
        systems: what this one is, or is like: "debian", "fedora", "arch", "macos". Unknown ones give the commands of
            Debian and Fedora.
    """
    managers = dict.fromkeys(_MANAGERS[system] for system in systems if system in _MANAGERS)
    lines = [
        (f"{_INSTALL[manager]} {packages[manager]}", purpose)
        for manager in list(managers)[:1] or ("apt", "dnf")
        for packages, purpose in map(_packages, names)
        if manager in packages
    ]
    width = max((len(command) for command, _ in lines), default=0)
    return tuple(f"{command:{width}}  # {purpose}" for command, purpose in lines)


def _packages(name: str) -> tuple[Mapping[str, str], str]:
    """Return the packages of a module or a helper, and what they are for."""
    known = KNOWN_MODULES.get(name)
    return (_HELPERS[name], name) if known is None else (known.packages, known.device)
