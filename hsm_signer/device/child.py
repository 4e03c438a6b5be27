"""How this package starts itself in another process: nobody else chooses what that imports."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[2])


def child_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `main` of one of our modules.

    Args:
        module: its name. Not the caller's main module again.
        arguments: for all to read.
    """
    # -P: the current directory is not where modules come from, or whoever owns it would choose them.
    return [sys.executable, "-P", "-c", f"from {module} import main; main()", *arguments]


def child_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for it: ours, `variables`, and where modules are found.

    This very package comes first, wherever it was found; then what else we can import.
    """
    return {**os.environ, **variables, "PYTHONPATH": os.pathsep.join([_ROOT, *filter(None, sys.path)])}
