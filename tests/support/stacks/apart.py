"""A separate program that uses a stack's device, so that what a module does to its process affects no other test."""

import os
import subprocess
import sys
import textwrap
from typing import Self

from . import Stack

_PRELUDE = """
import os
from pathlib import Path

from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.manage.certificates import read_certificate
from hsm_signer.device.pin.sources import EnvironmentPin
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import HsmSignerError

def access(uri, pin="STACK_PIN"):
    return KeyAccess(Pkcs11Uri.parse(uri), EnvironmentPin(pin), Path(os.environ["STACK_MODULE"]))

def outcome(function, *arguments):
    # The result, or the name of the error's class.
    try:
        return function(*arguments)
    except HsmSignerError as error:
        return type(error).__name__

def tell(*words):
    print(*words, flush=True)

KEY, ALWAYS = os.environ["STACK_KEY"], os.environ["STACK_ALWAYS"]
wait = input
"""


class Apart:
    """Runs lines of Python in a separate process; a context manager.

    The lines can use `open_device`, `access(KEY)` and `access(KEY, "STACK_WRONG_PIN")`, `ALWAYS` (the key that
    requires the PIN for each signature) and `outcome`; they `tell` us a line and `wait` until we say `go`.
    """

    def __init__(self, stack: Stack, lines: str) -> None:
        always = stack.always_authenticate_key
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PRELUDE + textwrap.dedent(lines)],
            env={
                **os.environ,
                **stack.environment,
                "STACK_MODULE": str(stack.module),
                "STACK_KEY": stack.key.uri,
                "STACK_ALWAYS": always.uri if always else "",
                "STACK_PIN": stack.pin,
                "STACK_WRONG_PIN": stack.wrong_pin,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def hear(self) -> str:
        """Return the next line that it tells, or the empty string when it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def go(self) -> None:
        """Let it continue."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def rest(self) -> list[str]:
        """Let it run to its end, and return the remaining lines."""
        out, _ = self._process.communicate()
        assert self._process.returncode == 0
        return out.splitlines()


def run_apart(stack: Stack, lines: str) -> list[str]:
    """Run `lines` to their end, and return what they told."""
    with Apart(stack, lines) as apart:
        return apart.rest()
