"""Fixtures that the tests of several folders use."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import pytest

from hsm_signer.testing import SoftHsm
from tests.support.application import Application, running_application
from tests.support.faulty_module.control import FaultyModule
from tests.support.listener import Listener
from tests.support.names import PIN
from tests.support.stacks import Stack
from tests.support.stacks.opencryptoki import OpenCryptokiStack
from tests.support.stacks.own import OwnStack
from tests.support.stacks.p11_kit_remote import P11KitStack
from tests.support.stacks.piv import PivStack, VirtualYubiKey
from tests.support.stacks.softhsm import SoftHsmStack
from tests.support.stacks.tpm import TpmStack

Running: TypeAlias = Callable[[str], Stack]


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """Start a stack when a test first needs it, and stop them all at the end."""
    # One of each in a test run, because a loaded module keeps the card that it found first.
    started: dict[str, Stack] = {}

    def running(name: str) -> Stack:
        if name not in started:
            if name == "own":
                started[name] = OwnStack(os.environ["HSM_SIGNER_TEST_URI"])
            elif name == "softhsm":
                started[name] = SoftHsmStack()
            elif name == "tpm":
                started[name] = TpmStack()
            elif name == "p11-kit":
                started[name] = P11KitStack()
            elif name == "opencryptoki":
                started[name] = OpenCryptokiStack()
            else:
                started["ykcs11"], started["opensc"] = VirtualYubiKey().stacks
        return started[name]

    yield running
    while started:
        started.popitem()[1].close()


@pytest.fixture(params=["ykcs11", "opensc"])
def yubikey(request: pytest.FixtureRequest, running: Running) -> Iterator[PivStack]:
    """The virtual YubiKey through each of its modules."""
    stack = running(request.param)
    assert isinstance(stack, PivStack)
    stack.reset()
    yield stack
    stack.reset()


@pytest.fixture
def faulty(softhsm: SoftHsm) -> Iterator[FaultyModule]:
    """The module of the folder's `softhsm`, behind the fault module."""
    with FaultyModule(softhsm.module, softhsm.environment, pin=softhsm.pin) as faulty:
        yield faulty


@pytest.fixture
def device_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The PIN in DEVICE_PIN."""
    monkeypatch.setenv("DEVICE_PIN", PIN)


@pytest.fixture
def application(tmp_path: Path, device_pin: None) -> Iterator[Application]:
    with running_application(tmp_path) as application:
        yield application


@pytest.fixture
def systemd() -> Iterator[Listener]:
    with closing(Listener()) as listener:
        yield listener


@pytest.fixture
def assertion_file(tmp_path: Path) -> Path:
    """The path of an assertion file, in a directory that a service may write to."""
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    return directory / "assertion"


@pytest.fixture
def no_more_threads() -> Iterator[None]:
    """Make every new thread fail: no address space has room for a stack of this size."""
    previous = threading.stack_size(2**47)
    yield
    threading.stack_size(previous)
