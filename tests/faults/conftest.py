"""A SoftHSM behind the fault module, and a separate program that uses it through python-pkcs11."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest

from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FaultyModule

# What a client defines before its first line.
_PROGRAM = """
import os, sys, pkcs11
from pkcs11 import PROTECTED_AUTH, Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass

path, PIN = sys.argv[1:]

def token():
    return next(slot.get_token() for slot in lib.get_slots(token_present=True) if slot.get_token().label == "faults")

def key():
    return list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: b"\\x01"}))[0]

def sign(message=b"message", mechanism=Mechanism.SHA256_RSA_PKCS, **more):
    return key().sign(message, mechanism=mechanism, **more).hex()

def answer(line):
    try:
        try:
            return eval(line, globals())
        except SyntaxError:
            exec(line, globals())
            return "done"
    except Exception as error:
        return type(error).__name__

def in_child(line):
    child = os.fork()
    if child == 0:
        os._exit({"done": 0, "DeviceError": 1}.get(answer(line), 2))
    return child, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for line in sys.stdin:
    print(str(answer(line)).replace("\\n", " "), flush=True)
"""


class Client:
    """A program that loads the module and runs the lines of Python that it receives."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.pid = process.pid

    def __call__(self, line: str) -> str:
        """Run a line of Python in it; return the result, or the name of the error that it raises."""
        self.tell(line)
        return self.hear()

    def tell(self, line: str) -> None:
        """Send it a line, without waiting for the result."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        """Wait for the result of the line that was sent; empty if the program ended first."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def end(self) -> int:
        """Let it end; return its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(30)


class StartClient(Protocol):
    """Starts a client of a module."""

    def __call__(self, faulty: FaultyModule) -> Client: ...


@pytest.fixture(scope="session")
def softhsm() -> Iterator[SoftHsm]:
    with SoftHsm(label="faults") as softhsm:
        yield softhsm


@pytest.fixture(scope="session", autouse=True)
def key(softhsm: SoftHsm) -> SoftHsmKey:
    return softhsm.add_identity("key", b"\x01")


@pytest.fixture
def start(softhsm: SoftHsm) -> Iterator[StartClient]:
    with ExitStack() as stack:

        def start(faulty: FaultyModule) -> Client:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, faulty.path, softhsm.pin],
                env={**os.environ, **faulty.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return Client(process)

        yield start


@pytest.fixture
def client(faulty: FaultyModule, start: StartClient) -> Client:
    """A client that is logged in."""
    client = start(faulty)
    client("lib = pkcs11.lib(path)")
    client("session = token().open(user_pin=PIN)")
    return client
