"""Find the file of a PKCS#11 module: by its path, by its name, or through p11-kit's configuration."""

import contextlib
import glob
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError, ModuleLoadError, UriError
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

    Takes the first of these: `explicit` (``--module``), the URI's module-path, the URI's module-name (RFC 7512 section
    2.4; through p11-kit's configuration, else by file name), and p11-kit's proxy, which serves every configured module.

    Returns:
        An absolute path. Only root and we can change the file.

    Raises:
        ModuleLoadError: there is no such file, or other users could replace it.
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


def configured_modules() -> dict[str, Path]:
    """Return the modules in p11-kit's configuration files, by name (pkcs11.conf(5)), except files others can write."""
    configuration = _configuration()
    for error in configuration.refused.values():
        logger.warning("%s The module is ignored. %s", error.message, error.hint)
    return configuration.found


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
    return _proxy("No PKCS#11 module was named", directories)


def _proxy(why: str, directories: list[Path]) -> Path:
    for directory in directories:
        if os.path.isfile(directory / _PROXY):
            return directory / _PROXY
    raise ModuleLoadError(
        f"{why}, and p11-kit's proxy is not installed (looked for {_PROXY} in {', '.join(map(str, directories))}).",
        hint="Name the vendor's library with --module or the URI's module-path, or install p11-kit-modules.",
    )


@dataclass(frozen=True)
class _Configuration:
    """The modules of p11-kit's configuration.

    Attributes:
        found: the modules' libraries, by name.
        refused: by name, why the configuration file of a module was not used.
        served: the names of the modules that only p11-kit can load: it passes arguments to them, or runs them in
            another process.
    """

    found: dict[str, Path]
    refused: dict[str, ConfigError]
    served: set[str]


def _configuration() -> _Configuration:
    found: dict[str, Path] = {}
    refused: dict[str, ConfigError] = {}
    served: set[str] = set()
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
    return _Configuration(found, refused, served)


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
        return _proxy(f"Only p11-kit can load the module {name} of its configuration", _library_directories())
    if name in configured:
        return _require_file(configured[name], f"p11-kit's configuration for {name}")
    for directory in directories:
        for file in (f"{name}.so", f"lib{name}.so", f"{name}.dylib", f"lib{name}.dylib"):
            if os.path.isfile(directory / file):
                return directory / file
    raise ModuleLoadError(
        f"No module named {name!r}: p11-kit's configuration has {', '.join(sorted(configured)) or 'none'}, "
        f"and neither {name}.so nor lib{name}.so is in {', '.join(map(str, directories))}.",
        hint="Check the URI's module-name, or give the path of the library as module-path.",
    )


def _installed(file: str, directories: list[Path]) -> Path:
    """Return the installed library of this name. The current directory is not searched."""
    for directory in directories:
        if os.path.isfile(directory / file):
            return directory / file
    raise ModuleLoadError(
        f"--module names {file}, which is in none of {', '.join(map(str, directories))}.",
        hint=f"Give its path (./{file} if it is in the current directory), or install its package: softhsm2, "
        "opensc-pkcs11, ykcs11 or libtpm2-pkcs11-1.",
    )


def _require_file(path: Path, source: str) -> Path:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: the path contains a NUL
        strerror = None if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None)
        reason = f"cannot be reached ({strerror})" if strerror else "does not exist"
        raise ModuleLoadError(
            f"{source} names {path}, which {reason}.",
            hint="Check the path, or install the module's package: softhsm2, opensc-pkcs11, ykcs11 or "
            "libtpm2-pkcs11-1.",
        ) from None
    if not stat.S_ISREG(mode):
        raise ModuleLoadError(f"{source} names {path}, which is not a file.", hint="Give the path of the library file.")
    return path


def _library_directories() -> list[Path]:
    def existing() -> Iterator[Path]:
        for pattern in _LIBRARY_PATTERNS:
            yield from (Path(match) for match in sorted(glob.glob(pattern)) if os.path.isdir(match))

    return list(existing())
