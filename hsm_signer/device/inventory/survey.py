"""Examine every installed module, each in a separate process, so that a faulty one affects only its own entry.

A vendor's library may hang, crash the process it is loaded into, or need environment variables that others must not
see.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hsm_signer.device.child import ChildProcess, parent_channel
from hsm_signer.device.inventory.facts import ModuleFacts, Problem
from hsm_signer.device.lane import Slow, log_slow
from hsm_signer.device.module_search import configured_modules
from hsm_signer.device.wire import Malformed
from hsm_signer.errors import DeviceError, DeviceTimeout, HsmSignerError

_START = 5.0
"""Seconds for starting Python and importing, in addition to the timeout of a call into the module."""


@dataclass(frozen=True)
class ModuleReference:
    """A module to examine.

    Attributes:
        path: the shared library.
        name: its name in p11-kit's configuration, or None if it was given by its path.
    """

    path: Path
    name: str | None = None


def known_modules(explicit: Path | None) -> list[ModuleReference]:
    """Return the modules of p11-kit's configuration. `explicit`, which may be one of them, comes first."""
    named = [ModuleReference(path, name) for name, path in configured_modules().items()]
    if explicit is None:
        return named
    wanted = os.path.realpath(explicit)
    same = [module for module in named if os.path.realpath(module.path) == wanted]
    return (same or [ModuleReference(explicit)]) + [module for module in named if module not in same]


@dataclass(frozen=True)
class LookThrough:
    """Message from the parent: the module to examine. The answer is `ModuleFacts`."""

    path: Path
    name: str | None
    timeout: float


def survey(
    module: ModuleReference, environment: Mapping[str, str], timeout: float, slow: Slow = log_slow
) -> ModuleFacts:
    """List the devices of a module, without a login. Errors are part of the facts.

    Args:
        environment: variables set before the module loads.
        timeout: seconds one call into the module may take. A few seconds later the process is killed.
        slow: shows a person that it takes longer than a moment.
    """
    try:
        return _survey(module, environment, timeout, slow)
    except HsmSignerError as error:
        return ModuleFacts(module.name, str(module.path), None, (), Problem.of(error))


def _survey(module: ModuleReference, environment: Mapping[str, str], timeout: float, slow: Slow) -> ModuleFacts:
    deadline = time.monotonic() + timeout + _START
    child = ChildProcess("hsm_signer.device.inventory.survey", environment, ModuleFacts)
    try:
        with contextlib.suppress(OSError):
            child.channel.send(LookThrough(module.path, module.name, timeout), timeout)
        facts: ModuleFacts = child.channel.receive_with_cue(deadline, "looking for devices", slow)
        return facts
    except TimeoutError:
        raise DeviceTimeout(
            f"{module.path} did not return within {timeout:g} s. Its process was killed.",
            hint="Check that its devices are plugged in and its daemon is running. For a slow device, set a longer "
            "--device-timeout.",
        ) from None
    except EOFError:
        raise DeviceError(
            f"{module.path} crashed its process ({child.describe_exit()}).",
            hint="Look for an update of the vendor's library. The other modules are not affected.",
        ) from None
    except Malformed:
        raise DeviceError(
            f"The process that loaded {module.path} sent an invalid answer. It was killed.",
            hint="The module is faulty or hostile. The other modules are not affected.",
        ) from None
    finally:
        child.kill()


def main() -> NoReturn:
    """Examine the module that the parent names, and send it the facts."""
    channel = parent_channel(LookThrough)
    from hsm_signer.device.inventory.inspect import look_through

    # If the parent has ended, nobody needs the answer.
    with contextlib.suppress(EOFError, OSError):
        wanted: LookThrough = channel.receive()
        channel.send(look_through(wanted.path, wanted.name, wanted.timeout))
    # Finalizers call C_Finalize, which can hang.
    os._exit(0)
