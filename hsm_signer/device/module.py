"""Load a PKCS#11 module once in a process, and reach it through its lane."""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hsm_signer.device.lane import Lane, Slow, log_slow
from hsm_signer.errors import DeviceError, DeviceGone, DeviceTimeout, ModuleLoadError
from hsm_signer.system.fork import OwnerProcess, reset_after_fork

if TYPE_CHECKING:
    from pkcs11._pkcs11 import lib as Library

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Module:
    """A loaded module and the lane into it. There is one for each file in a process.

    Attributes:
        path: the shared library.
        library: python-pkcs11's handle, there after `load`. Only ever used from within `call`.
        generation: counts initialisations; a session is good only in the one it was opened in.
    """

    library: "Library"

    def __init__(self, path: Path, environment: Mapping[str, str], lane: Lane) -> None:
        self.path = path
        self.generation = 0
        self._owner = OwnerProcess()
        self._lane = lane
        self._users = 0
        self._counting = threading.Lock()
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

    def announce(self, what: str, seconds: float) -> None:
        """Say that something other than a call starts. See `Lane.announce`."""
        self._lane.announce(what, seconds)

    def acquire(self) -> None:
        """Count one more user."""
        with self._counting:
            self._users += 1

    def release(self) -> None:
        """Count one user less."""
        with self._counting:
            self._users -= 1

    @property
    def is_inherited(self) -> bool:
        """Whether it was loaded before this process was forked. It can be neither used nor initialised anew here."""
        return self._owner.is_parent

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


class _Modules:
    """The modules of this process, by the resolved paths of their files.

    Attributes:
        lock: held while one is loaded.
        loaded: those that can be used.
        loading: those that have not come back from loading: the call overran, or its caller was interrupted.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loaded: dict[str, Module] = {}
        self.loading: dict[str, Module] = {}
        reset_after_fork(self, _Modules.reset_after_fork)

    def reset_after_fork(self) -> None:
        """Keep a forked child from ending its parent's sessions.

        python-pkcs11 calls C_Finalize when its library object dies, also in a child that only exits, and several
        modules then log the parent out. One more reference, never given back, keeps the object alive to the end.
        """
        import ctypes

        self.lock = threading.Lock()
        for module in self.loaded.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(module.library))


_modules = _Modules()


def load_module(
    path: Path,
    environment: Mapping[str, str],
    timeout: float,
    slow: Slow = log_slow,
    lane: Lane | None = None,
) -> Module:
    """Load a module, or return it if this process already has.

    Args:
        path: the shared library.
        environment: variables the module reads when it is initialised, such as SOFTHSM2_CONF.
        timeout: seconds.
        slow: shows a person that it takes longer than a moment.
        lane: for its calls; None for a thread of its own.

    Raises:
        ModuleLoadError: it is no file, no library, no PKCS#11 module, or refuses to initialise.
        DeviceError: it belongs to the parent of this process.
        DeviceTimeout: it did not come back.
    """
    with _modules.lock:
        # By whatever name: two lanes into one module would be two threads in it.
        name = str(path.resolve())
        module = _modules.loaded.get(name)
        if module is not None and module.is_inherited:
            raise DeviceError(
                f"{path} was loaded by the parent of this process, and its sessions are the parent's.",
                hint="After a fork, serve the device from a process of its own (isolated=True of a credential), "
                "or fork before the first use.",
            )
        if module is None:
            module = _modules.loaded[name] = _loaded(
                name, Module(path, environment, lane or Lane(str(path))), timeout, slow
            )
        else:
            module.adopt(environment, timeout, slow)
        return module


def _loaded(name: str, module: Module, timeout: float, slow: Slow) -> Module:
    earlier = _modules.loading.get(name)
    if earlier is not None and earlier.is_busy:
        raise DeviceTimeout(
            f"An earlier attempt to load {module.path} has not returned.",
            hint="Check that its device and its daemon answer. If it never returns, restart the program.",
        )
    _modules.loading[name] = module
    try:
        module.load(timeout, slow)
    finally:
        if not module.is_busy:
            del _modules.loading[name]
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
