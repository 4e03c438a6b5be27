"""Find a PKCS#11 module, load it once a process, and reach it through its lane."""

import contextlib
import glob
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hsm_signer.device.lane import Lane, Slow, log_slow
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError, DeviceError, DeviceGone, DeviceTimeout, ModuleLoadError, UriError
from hsm_signer.system.private_file import read_trusted, require_trusted_path

if TYPE_CHECKING:
    from pkcs11._pkcs11 import lib as Library

T = TypeVar("T")

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


class Module:
    """A loaded module and the lane into it. There is one for each file in a process.

    Attributes:
        path: the shared library.
        library: python-pkcs11's handle, there after `load`. Only ever used from within `call`.
        generation: counts initialisations; a session is good only in the one it was opened in.
    """

    library: "Library"

    def __init__(self, path: Path, environment: Mapping[str, str]) -> None:
        self.path = path
        self.generation = 0
        self._process = os.getpid()
        self._lane = Lane(str(path))
        self._users = 0
        self._is_fresh = True
        os.environ.update(environment)
        # As it was at the last initialisation: other modules may have changed it since.
        self._environment = dict(os.environ)

    def load(self, timeout: float, slow: Slow) -> None:
        """Load and initialise it. When that fails, this object cannot be used.

        Raises:
            ModuleLoadError: it is no library, no PKCS#11 module, or refuses to initialise.
            DeviceTimeout: it did not come back. The call may still be inside the module.
        """
        try:
            self.library = self.call("loading the module", lambda: _load(self.path), timeout, slow)
        except BaseException:
            self._lane.end()
            raise

    def call(self, what: str, function: Callable[[], T], timeout: float, slow: Slow = log_slow) -> T:
        """Run `function`, which may call into the module, on the lane. See `Lane.call`."""
        return self._lane.call(what, function, timeout, slow)

    def acquire(self) -> None:
        """Count one more user."""
        self._users += 1

    def release(self) -> None:
        """Count one user less."""
        self._users -= 1

    @property
    def is_inherited(self) -> bool:
        """Whether it was loaded before this process was forked. It can be neither used nor initialised anew here."""
        return self._process != os.getpid()

    @property
    def in_use(self) -> bool:
        """Whether somebody has a session."""
        return self._users > 0

    @property
    def is_busy(self) -> bool:
        """Whether a call is still inside the module."""
        return self._lane.is_busy

    def reinitialize(self, timeout: float, slow: Slow = log_slow) -> None:
        """Finalize and initialise: the clean slate after a failure, and the way to see devices that came later.

        It ends every session in this process. Whoever holds one sees that by the generation.

        Raises:
            DeviceGone: the module refuses, as tpm2-pkcs11 does without its TPM. The next use tries again.
            DeviceTimeout: it did not come back.
        """

        def reinitialize() -> None:
            import pkcs11

            self.generation += 1
            self._environment = dict(os.environ)
            # A module whose device is gone may fail to finalize; it is initialised all the same.
            with contextlib.suppress(pkcs11.PKCS11Error):
                self.library.finalize()
            self.require_initialized()

        self.call("initialising the module", reinitialize, timeout, slow)

    def refresh(self, timeout: float, slow: Slow = log_slow, *, ours: int = 0) -> None:
        """Initialise the module anew before its first use by anybody, unless it just was.

        Some modules see only the devices that were there when they were initialised, and some fail for ever once a
        device was away. Under another user they are left alone.

        Args:
            ours: how many of its users do not mind, because their sessions are lost anyway.

        Raises:
            DeviceGone, DeviceTimeout: as `reinitialize`.
        """
        if not self._is_fresh and self._users <= ours:
            self.reinitialize(timeout, slow)
        self._is_fresh = False

    def require_initialized(self) -> None:
        """Initialise the module unless it is. Runs on the lane."""
        import pkcs11

        try:
            self.library.initialize()
        except pkcs11.PKCS11Error as error:
            raise DeviceGone(
                f"{self.path} has no device to work with: {_reason(self.path, error)}.",
                hint="Plug the device in, or see that its daemon runs.",
            ) from None

    def adopt(self, environment: Mapping[str, str], timeout: float, slow: Slow) -> None:
        """Make sure the module was initialised with `environment`."""
        if all(self._environment.get(name) == value for name, value in environment.items()):
            return
        if self.in_use:
            raise DeviceError(
                f"{self.path} is in use with another module_environment ({', '.join(sorted(environment))}).",
                hint="Close the first device, or use another process for the second.",
            )
        os.environ.update(environment)
        self.reinitialize(timeout, slow)
        self._is_fresh = True


_modules: dict[str, Module] = {}
_loading: dict[str, Module] = {}
"""Modules that have not come back from loading: the call overran, or its caller was interrupted."""
_modules_lock = threading.Lock()


def load_module(path: Path, environment: Mapping[str, str], timeout: float, slow: Slow = log_slow) -> Module:
    """Load a module, or return it if this process already has.

    Args:
        path: the shared library.
        environment: variables the module reads when it is initialised, such as SOFTHSM2_CONF.
        timeout: seconds.
        slow: shows a person that it takes longer than a moment.

    Raises:
        ModuleLoadError: it is no file, no library, no PKCS#11 module, or refuses to initialise.
        DeviceError: it belongs to the parent of this process.
        DeviceTimeout: it did not come back.
    """
    with _modules_lock:
        # By whatever name: two lanes into one module would be two threads in it.
        name = str(path.resolve())
        module = _modules.get(name)
        if module is not None and module.is_inherited:
            raise DeviceError(
                f"{path} was loaded by the parent of this process, and its sessions are the parent's.",
                hint="After a fork, serve the device from a process of its own (isolated=True of a credential), "
                "or fork before the first use.",
            )
        if module is None:
            module = _modules[name] = _loaded(name, Module(path, environment), timeout, slow)
        else:
            module.adopt(environment, timeout, slow)
        return module


def _loaded(name: str, module: Module, timeout: float, slow: Slow) -> Module:
    earlier = _loading.get(name)
    if earlier is not None and earlier.is_busy:
        raise DeviceTimeout(
            f"An earlier attempt to load {module.path} has not returned.",
            hint="Check that its device and its daemon answer. If it never returns, restart the program.",
        )
    _loading[name] = module
    try:
        module.load(timeout, slow)
    finally:
        if not module.is_busy:
            del _loading[name]
    logger.debug("loaded %s", module.path)
    return module


def _load(path: Path) -> "Library":
    import pkcs11

    try:
        return pkcs11.lib(str(path))
    except pkcs11.PKCS11Error as error:
        raise ModuleLoadError(f"{path} cannot be loaded: {_reason(path, error)}.", hint=_mending(path)) from None


def _reason(path: Path, error: Exception) -> str:
    text = str(error)
    if "undefined symbol: C_GetFunctionList" in text:
        return "it is a shared library, but no PKCS#11 module (C_GetFunctionList is missing)"
    if "OS exception while loading" in text:
        return text.removeprefix(f"OS exception while loading {path}: ").removeprefix(f"{path}: ")
    return f"it refused to initialise ({type(error).__name__}{': ' + text if text else ''})"


def _mending(path: Path) -> str:
    if "softhsm" in path.name:
        return "SoftHSM needs SOFTHSM2_CONF to name a readable configuration: set it in module_environment."
    if "opencryptoki" in path.name:
        return (
            "openCryptoki needs its daemon: sudo systemctl start pkcsslotd. It serves only root and members of the "
            "group pkcs11."
        )
    return (
        "Name the vendor's PKCS#11 library with --module, for example libykcs11.so, "
        "and see that its daemon (pcscd, tpm2-abrmd) runs."
    )


def find_module(explicit: Path | None, uri: Pkcs11Uri) -> Path:
    """Decide which module to load.

    The first of: `explicit` (``--module``), the URI's module-path, the URI's module-name (RFC 7512 section 2.4,
    through p11-kit's configuration, else by file name), p11-kit's proxy, which serves every configured module.

    Returns:
        An absolute path that nobody besides root and us can lead elsewhere.

    Raises:
        ModuleLoadError: with everything that was looked for; or other users could replace what would be loaded.
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
            f"The module {path} cannot be reached: {error.strerror}.", hint="Check the modes of its directories."
        ) from None
    return path


def configured_modules() -> dict[str, Path]:
    """Return the modules p11-kit's configuration names, by name (pkcs11.conf(5)); without what is not to be trusted."""
    configuration = _configuration()
    for error in configuration.refused.values():
        logger.warning("%s It is left out. %s", error.message, error.hint)
    return configuration.found


def is_served_by_p11_kit(path: Path, uri: Pkcs11Uri) -> bool:
    """Tell whether `path` is p11-kit's proxy, and of the devices it shows only those of the URI's module are meant."""
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
        found: their libraries, by name.
        refused: why the file of a name was not used.
        served: the names of those that only p11-kit can load: it gives them arguments, or runs them elsewhere.
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
        except OSError:  # p11-kit, too, passes over what it may not read: HOME may be another user's
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
    # As p11-kit does: root's HOME may be somebody else's (sudo), and so may that of a program with more rights than
    # its caller.
    if 0 not in (os.getuid(), os.geteuid()) and os.getuid() == os.geteuid() and os.getgid() == os.getegid():
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        directories.append(Path(home, "pkcs11/modules"))
    return directories


def _require_trusted_configuration() -> None:
    """Make sure that nobody else chooses a module that p11-kit's proxy will load.

    Raises:
        ConfigError: somebody can.
    """
    configuration = _configuration()
    for error in configuration.refused.values():
        raise error
    for path in configuration.found.values():
        with contextlib.suppress(OSError):  # what is not there is not loaded
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
        hint="Check the URI's module-name, or give the file itself as module-path.",
    )


def _installed(file: str, directories: list[Path]) -> Path:
    """Return the library of this name that is installed. The current directory is none of the places to look in."""
    for directory in directories:
        if os.path.isfile(directory / file):
            return directory / file
    raise ModuleLoadError(
        f"--module names {file}, which is in none of {', '.join(map(str, directories))}.",
        hint=f"Give its path. A file in the current directory is ./{file}; the packages are softhsm2, opensc-pkcs11, "
        "ykcs11, libtpm2-pkcs11-1 and the like.",
    )


def _require_file(path: Path, source: str) -> Path:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: it holds a NUL
        strerror = None if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None)
        reason = f"cannot be reached ({strerror})" if strerror else "does not exist"
        raise ModuleLoadError(
            f"{source} names {path}, which {reason}.",
            hint="Check the path; the packages are softhsm2, opensc-pkcs11, ykcs11, libtpm2-pkcs11-1 and the like.",
        ) from None
    if not stat.S_ISREG(mode):
        raise ModuleLoadError(f"{source} names {path}, which is not a file.", hint="Name the shared library itself.")
    return path


def _library_directories() -> list[Path]:
    def existing() -> Iterator[Path]:
        for pattern in _LIBRARY_PATTERNS:
            yield from (Path(match) for match in sorted(glob.glob(pattern)) if os.path.isdir(match))

    return list(existing())


def _keep_modules_in_child() -> None:
    """Keep a forked child from ending its parent's session.

    python-pkcs11 calls C_Finalize when its library object dies, also in a child that only exits, and several modules
    then log the parent out. One more reference, never given back, keeps the object alive to the end.
    """
    import ctypes

    global _modules_lock
    # Another thread of the parent may have held it.
    _modules_lock = threading.Lock()
    for module in _modules.values():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(module.library))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_modules_in_child)
