"""Examine every installed module, each in a separate process, so that a faulty one affects only its own entry.

A vendor's library may hang, crash the process it is loaded into, or need environment variables that others must not
see.
"""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hsm_signer.device.child import parent_channel
from hsm_signer.device.elsewhere import ask_elsewhere
from hsm_signer.device.inventory.facts import ModuleFacts, Problem
from hsm_signer.device.lane import Slow, log_slow
from hsm_signer.device.module_search import ModuleReference
from hsm_signer.errors import HsmSignerError

_PROGRAM = "hsm_signer.device.inventory.survey"


@dataclass(frozen=True)
class LookThrough:
    """Message from the parent: the module to examine. The answer is `ModuleFacts`."""

    path: Path
    name: str | None
    timeout: float
    contents: bool


def survey(
    module: ModuleReference,
    environment: Mapping[str, str],
    timeout: float,
    slow: Slow = log_slow,
    *,
    contents: bool = False,
) -> ModuleFacts:
    """List the devices of a module, without a login. Errors are part of the facts.

    Args:
        environment: variables set before the module loads.
        timeout: seconds one call into the module may take. A few seconds later the process is killed.
        slow: shows a person that it takes longer than a moment.
        contents: whether to list the keys and certificates, too, as far as devices show them without a login.
    """
    try:
        question = LookThrough(module.path, module.name, timeout, contents)
        return ask_elsewhere(_PROGRAM, question, ModuleFacts, module.path, environment, timeout, slow)
    except HsmSignerError as error:
        return ModuleFacts(module.name, str(module.path), None, (), Problem.of(error))


def main() -> NoReturn:
    """Examine the module that the parent names, and send it the facts."""
    channel = parent_channel(LookThrough)
    from hsm_signer.device.inventory.inspect import look_through

    # If the parent has ended, nobody needs the answer.
    with contextlib.suppress(EOFError, OSError):
        wanted: LookThrough = channel.receive()
        channel.send(look_through(wanted.path, wanted.name, wanted.timeout, contents=wanted.contents))
    # Finalizers call C_Finalize, which can hang.
    os._exit(0)
