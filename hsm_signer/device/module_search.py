"""Find the file of a PKCS#11 module: by its path, by its name, or through p11-kit's configuration.

When no module is named, every command looks through `modules_to_search`.
"""

import contextlib
import difflib
import glob
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hsm_signer.device.known_modules import FIRST_CHOICES, KNOWN_MODULES, KnownModule, install_commands
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError, ModuleLoadError, UriError
from hsm_signer.system.operating_system import system_names
from hsm_signer.system.trusted_path import read_trusted, require_trusted_path

logger = logging.getLogger(__name__)

_PROXY = "p11-kit-proxy.so"
# Where distributions put modules. p11-kit resolves the relative paths of its configuration in the first of these.
_LIBRARY_PATTERNS = (
    "/usr/lib/*-linux-*/pkcs11",
    "/usr/lib64/pkcs11",
    "/usr/lib/pkcs11",
    "/usr/local/lib/pkcs11",
    "/opt/homebrew/lib/pkcs11",
    "/usr/lib/*-linux-*",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/opt/homebrew/lib",
)
# pkcs11.conf(5): later directories override earlier ones, and the user's own comes last.
_CONFIGURATION_DIRECTORIES = ("/usr/share/p11-kit/modules", "/etc/pkcs11/modules")


def find_module(explicit: Path | None, uri: Pkcs11Uri) -> Path:
    """Find the module to load.

    The first of: `explicit` (``--module``), the URI's module-path, the URI's module-name (RFC 7512 section 2.4). A
    name is one of p11-kit's configuration, else of a known module, else of a file.

    Returns:
        An absolute path. Only root and we can change the file.

    Raises:
        ModuleLoadError: none is named, there is no such file, or other users could replace it.
        UriError: the URI's module-name is a path.
    """
    path = _find(explicit, uri)
    try:
        if path.name == _PROXY:
            _require_trusted_configuration()
        require_trusted_path(path, "module")
    except ConfigError as error:
        raise ModuleLoadError(error.message, hint=error.hint) from None
    except OSError as error:
        raise ModuleLoadError(
            f"The module {path} cannot be reached: {error.strerror}.", hint="Check the permissions of its directories."
        ) from None
    return path


@dataclass(frozen=True)
class ModuleReference:
    """A module to examine.

    Attributes:
        path: the shared library.
        name: what a URI's module-name takes for it, or None if it was named by its file.
    """

    path: Path
    name: str | None = None


def modules_to_search(explicit: Path | None = None) -> list[ModuleReference]:
    """Return p11-kit's modules, then the known modules that are installed and are not among them.

    Modules that p11-kit's configuration keeps from p11-kit's proxy are left out: they hold no keys of users.

    Args:
        explicit: a module that comes first, and may be one of them.
    """
    configuration = _configuration()
    for error in configuration.refused.values():
        logger.warning("%s The module is ignored. %s", error.message, error.hint)
    found = [
        ModuleReference(path, name) for name, path in configuration.found.items() if name not in configuration.hidden
    ]
    directories = _library_directories()
    for known in KNOWN_MODULES.values():
        file = _known_file(known, directories) if known.is_searched and known.name not in configuration.found else None
        if file is not None and not any(_is_same(file, module.path) for module in found):
            found.append(ModuleReference(file, known.name))
    if explicit is None:
        return found
    path = find_module(explicit, Pkcs11Uri()) if is_name(explicit) else explicit
    same = [module for module in found if _is_same(path, module.path)]
    first = same or [ModuleReference(path, str(explicit) if is_name(explicit) else None)]
    return first + [module for module in found if module not in same]


def is_name(module: Path) -> bool:
    """Return whether ``--module`` has the name of a module, not of a file."""
    return module.name == str(module) and "." not in module.name


def way_to(path: Path) -> Pkcs11Uri:
    """Return a URI that leads to a module and no more: with its name, if it has one, else with its path."""
    for module in modules_to_search():
        if module.name is not None and _is_same(path, module.path):
            return Pkcs11Uri(module_name=module.name)
    return Pkcs11Uri(module_path=str(path))


def no_modules() -> ModuleLoadError:
    """Return the error for a machine that has no module at all."""
    return ModuleLoadError(
        "No PKCS#11 module is installed on this machine. It is the library that talks to your device.",
        hint="Install the one for your device, or name the vendor's library with --module FILE:",
        commands=install_commands(FIRST_CHOICES, system_names()),
    )


def is_served_by_p11_kit(path: Path, uri: Pkcs11Uri) -> bool:
    """Return whether `path` is p11-kit's proxy, and the URI names one module that only the proxy can load."""
    return path.name == _PROXY and uri.module_name in _configuration().served


def _find(explicit: Path | None, uri: Pkcs11Uri) -> Path:
    directories = _library_directories()
    if explicit is not None:
        if explicit.name == str(explicit):
            return _installed(explicit.name, directories)
        return _require_file(explicit.absolute(), "--module")
    if uri.module_path is not None:
        path = Path(uri.module_path)
        if path.is_dir() and uri.module_name is not None:
            return _named(uri.module_name, [path])
        return _require_file(path, "the URI's module-path")
    if uri.module_name is not None:
        return _named(uri.module_name, directories)
    raise ModuleLoadError("No PKCS#11 module was named.", hint="Name the vendor's library with --module.")


def _proxy(why: str) -> Path:
    for directory in _library_directories():
        if os.path.isfile(directory / _PROXY):
            return directory / _PROXY
    raise ModuleLoadError(
        f"{why}, and p11-kit's proxy ({_PROXY}) is not installed.",
        hint="Install the package that has it:",
        commands=install_commands(["p11-kit-proxy"], system_names()),
    )


@dataclass(frozen=True)
class _Configuration:
    """The modules of p11-kit's configuration.

    Attributes:
        found: their libraries, by name.
        refused: why the file of a name was not used.
        served: the names of those that only p11-kit can load, because it passes arguments or runs them elsewhere.
        hidden: the names of those that p11-kit does not show through its proxy.
    """

    found: dict[str, Path]
    refused: dict[str, ConfigError]
    served: set[str]
    hidden: set[str]


def _configuration() -> _Configuration:
    found: dict[str, Path] = {}
    refused: dict[str, ConfigError] = {}
    served: set[str] = set()
    hidden: set[str] = set()
    directories = _library_directories()
    for directory in _configuration_directories():
        try:
            files = sorted(directory.glob("*.module"))
        except OSError:  # p11-kit also skips a directory that it may not read: HOME may be another user's
            continue
        for file in files:
            try:
                lines = read_trusted(file, "p11-kit configuration")[0].decode(errors="replace").splitlines()
            except ConfigError as error:
                refused[file.stem] = error
                continue
            for line in lines:
                key, value = (part.strip() for part in line.partition(":")[::2])
                if key == "module" and value:
                    # An absolute value replaces the directory it is joined to.
                    candidates = [directory / value for directory in directories]
                    found[file.stem] = next(filter(os.path.isfile, candidates), candidates[0])
                elif key in ("x-init-reserved", "remote") and value:
                    served.add(file.stem)
                elif key in ("enable-in", "disable-in") and value:
                    # Programs, separated by commas or spaces. The proxy's is its name without the suffix.
                    if (Path(_PROXY).stem in value.replace(",", " ").split()) is (key == "disable-in"):
                        hidden.add(file.stem)
    return _Configuration(found, refused, served, hidden)


def _configuration_directories() -> list[Path]:
    directories = list(map(Path, _CONFIGURATION_DIRECTORIES))
    # As p11-kit does: HOME may be another user's under sudo, or in a setuid program.
    if 0 not in (os.getuid(), os.geteuid()) and os.getuid() == os.geteuid() and os.getgid() == os.getegid():
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        directories.append(Path(home, "pkcs11/modules"))
    return directories


def _require_trusted_configuration() -> None:
    """Make sure that no other user can choose a module that p11-kit's proxy will load.

    Raises:
        ConfigError: another user can.
    """
    configuration = _configuration()
    for error in configuration.refused.values():
        raise error
    for path in configuration.found.values():
        with contextlib.suppress(OSError):  # p11-kit does not load a file that does not exist
            require_trusted_path(path, "module of p11-kit's configuration")


def _named(name: str, directories: list[Path]) -> Path:
    if "/" in name:
        raise UriError(
            f"The URI's module-name {name!r} is a path.", hint="Give a name without a slash, or use module-path."
        )
    configuration = _configuration()
    configured, refused = configuration.found, configuration.refused
    if name in refused:
        raise ModuleLoadError(refused[name].message, hint=refused[name].hint)
    if name in configuration.served:
        return _proxy(f"Only p11-kit can load the module {name} of its configuration")
    if name in configured:
        return _require_file(configured[name], f"p11-kit's configuration for {name}")
    known = KNOWN_MODULES.get(name)
    if known is not None and (file := _known_file(known, directories)) is not None:
        return file
    for directory in directories:
        for file_name in (f"{name}.so", f"lib{name}.so", f"{name}.dylib", f"lib{name}.dylib"):
            if os.path.isfile(directory / file_name):
                return directory / file_name
    if known is not None:
        raise ModuleLoadError(
            f"The module {name}, for {known.device}, is not installed.",
            hint="Install it, or give its path:",
            commands=install_commands([name], system_names()),
        )
    names = sorted({*configured, *KNOWN_MODULES})
    near = difflib.get_close_matches(name, names, n=1)
    raise ModuleLoadError(
        f"No module is named {name!r}, and neither {name}.so nor lib{name}.so is in "
        f"{', '.join(map(str, directories))}.",
        hint=f"Did you mean {near[0]}?"
        if near
        else f"Give the path of the vendor's library, or one of these names: {', '.join(names)}.",
    )


def _known_file(known: KnownModule, directories: list[Path]) -> Path | None:
    own = (Path(match) for pattern in known.directories for match in sorted(glob.glob(pattern)))
    candidates = (directory / file for directory in [*directories, *own] for file in known.files)
    return next(filter(os.path.isfile, candidates), None)


def _is_same(path: Path, other: Path) -> bool:
    try:
        return os.path.realpath(path) == os.path.realpath(other)
    except ValueError:  # p11-kit's configuration may contain a NUL
        return False


def _installed(word: str, directories: list[Path]) -> Path:
    """Return the installed library that has this file name or name. The current directory is not searched."""
    for directory in directories:
        if os.path.isfile(directory / word):
            return directory / word
    if is_name(Path(word)):
        return _named(word, directories)
    raise ModuleLoadError(
        f"--module names {word}, which is not in any of {', '.join(map(str, directories))}.",
        hint=f"Give its path (./{word} if it is in the current directory), or install it:",
        commands=_packages_of(word),
    )


def _packages_of(file: str) -> tuple[str, ...]:
    """Return the commands that install the module with this file, or those for every kind of device."""
    names = [known.name for known in KNOWN_MODULES.values() if file in known.files and known.packages]
    return install_commands(names or FIRST_CHOICES, system_names())


def _require_file(path: Path, source: str) -> Path:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: the path contains a NUL
        strerror = None if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None)
        reason = f"cannot be reached ({strerror})" if strerror else "does not exist"
        raise ModuleLoadError(
            f"{source} names {path}, which {reason}.",
            hint="Check the path, or install the module:",
            commands=_packages_of(path.name),
        ) from None
    if not stat.S_ISREG(mode):
        raise ModuleLoadError(f"{source} names {path}, which is not a file.", hint="Give the path of the library file.")
    return path


def _library_directories() -> list[Path]:
    def existing() -> Iterator[Path]:
        for pattern in _LIBRARY_PATTERNS:
            yield from (Path(match) for match in sorted(glob.glob(pattern)) if os.path.isdir(match))

    return list(existing())
