"""Load a PKCS#11 module once in each process, and call it on its lane."""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hsm_signer.device.lane import Lane, Slow, log_slow
from hsm_signer.device.stack.stack import explained, reason_of_failure, refusal_to_load
from hsm_signer.errors import DeviceError, DeviceGone, DeviceTimeout, ModuleLoadError
from hsm_signer.system.fork import OwnerProcess, reset_after_fork

if TYPE_CHECKING:
    from pkcs11._pkcs11 import lib as Library

T = TypeVar("T")

logger = logging.getLogger(__name__)

AFTER_FORK_HINT = "Create the credential with isolated=True, or fork before the device is first used."


class Module:
    """A loaded module and the lane into it. There is one for each file in a process.

    Attributes:
        path: the shared library.
        library: python-pkcs11's handle, set by `load`. Used only inside `call`.
        generation: counts initialisations. The next one ends all sessions.
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
        """Load and initialise the module. If that fails, this object cannot be used.

        Raises:
            ModuleLoadError: it is not a library, not a PKCS#11 module, or fails to initialise.
            DeviceTimeout: the call did not return. It may still be inside the module.
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
        """Count one user fewer."""
        with self._counting:
            self._users -= 1

    @property
    def is_inherited(self) -> bool:
        """Whether it was loaded before this process was forked. This process can neither use nor initialise it."""
        return self._owner.is_parent

    @property
    def in_use(self) -> bool:
        """Whether it has users, which may have sessions."""
        return self._users > 0

    @property
    def is_busy(self) -> bool:
        """Whether a call is still inside the module."""
        return self._lane.is_busy

    def reinitialize(self, timeout: float, slow: Slow = log_slow) -> None:
        """Finalize and initialise the module, to recover from a failure or to see devices plugged in since.

        This ends every session in this process. Their owners notice it by the generation.

        Raises:
            DeviceGone: the module fails to initialise, as tpm2-pkcs11 does without its TPM. The next use tries again.
            DeviceTimeout: the call did not return.
        """

        def reinitialize() -> None:
            import pkcs11

            self.generation += 1
            self._environment = dict(os.environ)
            # A module whose device is gone may fail to finalize. Initialise it anyway.
            with contextlib.suppress(pkcs11.PKCS11Error):
                self.library.finalize()
            self.require_initialized()

        self.call("initialising the module", reinitialize, timeout, slow)

    def refresh(self, timeout: float, slow: Slow = log_slow, *, ours: int = 0) -> None:
        """Initialise the module again before it gets its first user, unless it has just been initialised.

        Some modules see only the devices that were present when they were initialised, and some keep failing after a
        device was unplugged. A module that others use stays as it is.

        Args:
            ours: how many of its users to ignore, because their sessions are lost anyway.

        Raises:
            DeviceGone, DeviceTimeout: as `reinitialize`.
        """
        if not self._is_fresh and self._users <= ours:
            self.reinitialize(timeout, slow)
        self._is_fresh = False

    def require_initialized(self) -> None:
        """Initialise the module unless it is initialised. Runs on the lane."""
        import pkcs11

        try:
            self.library.initialize()
        except pkcs11.PKCS11Error as error:
            failure = DeviceGone(
                f"{self.path} cannot be used: {_reason(self.path, error)}.",
                hint="Check that what it needs below it is running; its own documentation says what that is.",
            )
            raise explained(failure, reason_of_failure(self.path)) from None

    def adopt(self, environment: Mapping[str, str], timeout: float, slow: Slow) -> None:
        """Initialise the module again if it was initialised with another environment."""
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
        loaded: the modules that can be used.
        loading: the modules whose load has not returned: the call overran, or its caller was interrupted.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loaded: dict[str, Module] = {}
        self.loading: dict[str, Module] = {}
        reset_after_fork(self, _Modules.reset_after_fork)

    def reset_after_fork(self) -> None:
        """Keep a forked child from ending its parent's sessions, and replace the lock.

        python-pkcs11 calls C_Finalize when its library object dies, also in a child that only exits, and several
        modules then log the parent out. One more reference, never released, keeps the object alive.
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
        environment: variables that the module reads when it is initialised, such as SOFTHSM2_CONF.
        timeout: seconds that loading may take.
        slow: shows a person that this takes long.
        lane: runs its calls; None makes a new one.

    Raises:
        ModuleLoadError: it is not a file, not a library, not a PKCS#11 module, or fails to initialise.
        DeviceError: the parent of this process loaded it; or loading it would make files in the home directory.
        DeviceTimeout: the call did not return.
    """
    with _modules.lock:
        # Resolved: a module with two names must not get two lanes, and so two threads.
        name = str(path.resolve())
        module = _modules.loaded.get(name)
        if module is not None and module.is_inherited:
            raise DeviceError(
                f"{path} was loaded by the parent of this process, which owns its sessions.",
                hint=AFTER_FORK_HINT,
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

    if (refusal := refusal_to_load(path)) is not None:
        raise refusal
    try:
        return pkcs11.lib(str(path))
    except pkcs11.PKCS11Error as error:
        failure = ModuleLoadError(
            f"{path} cannot be loaded: {_reason(path, error)}.",
            hint="Check that --module names the vendor's PKCS#11 library, and that what it needs below it is running.",
        )
        # Why it failed to initialise is a question only for a library that could be loaded.
        reason = None if "OS exception" in str(error) or "undefined symbol" in str(error) else reason_of_failure(path)
        raise explained(failure, reason) from None


def _reason(path: Path, error: Exception) -> str:
    text = str(error)
    if "undefined symbol: C_GetFunctionList" in text:
        return "it is a shared library, but not a PKCS#11 module (C_GetFunctionList is missing)"
    if "OS exception while loading" in text:
        return text.removeprefix(f"OS exception while loading {path}: ").removeprefix(f"{path}: ")
    return f"it failed to initialise ({type(error).__name__}{': ' + text if text else ''})"
