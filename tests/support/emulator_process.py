"""The command `emulator`, as a process."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

Start = Callable[..., "subprocess.Popen[str]"]
"""Starts an emulator for the good key, with further arguments, until the test ends."""


def ready(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Read the line that says where it listens."""
    assert process.stdout is not None
    document: dict[str, Any] = json.loads(process.stdout.readline())
    return document
