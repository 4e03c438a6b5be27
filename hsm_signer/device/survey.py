"""Look through every module there is, each in a process of its own: a bad one costs its own entry and no other.

A vendor's library may hang, crash the process it is loaded into, or want an environment that another one must not see.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hsm_signer.device.child import child_command, child_environment
from hsm_signer.device.facts import ModuleFacts, Problem
from hsm_signer.device.lane import MOMENT, Slow
from hsm_signer.device.module import configured_modules
from hsm_signer.errors import DeviceError, DeviceTimeout, HsmSignerError

_START = 5.0
"""Seconds a survey may take beside a call into the module: starting Python and importing."""


@dataclass(frozen=True)
class ModuleReference:
    """A module to look through.

    Attributes:
        path: the shared library.
        name: in p11-kit's configuration, or None when it was named by its file.
    """

    path: Path
    name: str | None = None


def known_modules(explicit: Path | None) -> list[ModuleReference]:
    """Return the modules of p11-kit's configuration and, before them, `explicit`, which may be one of them."""
    named = [ModuleReference(path, name) for name, path in configured_modules().items()]
    if explicit is None:
        return named
    wanted = os.path.realpath(explicit)
    same = [module for module in named if os.path.realpath(module.path) == wanted]
    return (same or [ModuleReference(explicit)]) + [module for module in named if module not in same]


def survey(
    module: ModuleReference, environment: Mapping[str, str], timeout: float, slow: Slow | None = None
) -> ModuleFacts:
    """Look through a module, without a login. Whatever goes wrong is in the facts.

    Args:
        environment: variables set before the module loads.
        timeout: seconds one call into the module may take. Some seconds after that the process is killed.
        slow: shows a person that it takes longer than a moment; or None.
    """
    try:
        answer = _run((module, timeout), environment, timeout + _START, slow)
    except subprocess.TimeoutExpired:
        error: HsmSignerError = DeviceTimeout(
            f"{module.path} did not come back within {timeout:g} s. Its process was killed.",
            hint="Check that its devices and daemons answer; a slow one may need a longer --device-timeout.",
        )
    except _Died as died:
        error = DeviceError(
            f"{module.path} ended the process it was loaded into ({died}).",
            hint="Look for an update of the vendor's library; the other modules are not affected.",
        )
    else:
        facts: ModuleFacts = pickle.loads(answer)  # noqa: S301  # from ourselves
        return facts
    return ModuleFacts(module.name, str(module.path), None, (), Problem.of(error))


def main() -> NoReturn:
    """Look through the module that stdin names, and write the facts to stdout."""
    from hsm_signer.device.inventory import look_through

    # Modules print to stdout as they like.
    answer = os.dup(1)
    os.dup2(2, 1)
    module, timeout = pickle.load(sys.stdin.buffer)  # noqa: S301  # from ourselves
    with open(answer, "wb") as stream:
        pickle.dump(look_through(module.path, module.name, timeout), stream)
    # Finalizers call C_Finalize, which can hang.
    os._exit(0)


class _Died(Exception):
    """The process ended without an answer; the text says how."""


def _run(
    request: tuple[ModuleReference, float], environment: Mapping[str, str], seconds: float, slow: Slow | None
) -> bytes:
    with subprocess.Popen(  # noqa: S603  # this Python
        child_command("hsm_signer.device.survey"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=child_environment(environment),
    ) as process:
        try:
            answer = _communicate(process, pickle.dumps(request), seconds, slow)
        finally:
            process.kill()
    if process.returncode == 0:
        return answer
    if process.returncode > 0:
        raise _Died(f"status {process.returncode}")
    raise _Died(signal.Signals(-process.returncode).name)


def _communicate(process: "subprocess.Popen[bytes]", request: bytes, seconds: float, slow: Slow | None) -> bytes:
    try:
        return process.communicate(request, timeout=MOMENT)[0]
    except subprocess.TimeoutExpired:
        with slow("being looked for") if slow else contextlib.nullcontext():
            return process.communicate(timeout=seconds - MOMENT)[0]
