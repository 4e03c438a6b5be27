"""The stacks of the matrix, each started when it is first needed; and a SoftHSM with several keys."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeAlias

import pytest

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.pin.pin import Pin, PinSource
from hsm_signer.device.pin.sources import FixedLogin
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FaultyModule
from tests.support.stacks import Stack
from tests.support.stacks.opencryptoki import OpenCryptokiStack
from tests.support.stacks.own import OwnStack
from tests.support.stacks.p11_kit_remote import P11KitStack
from tests.support.stacks.piv import PivStack, VirtualYubiKey
from tests.support.stacks.softhsm import SoftHsmStack
from tests.support.stacks.tpm import TpmStack

Running: TypeAlias = Callable[[str], Stack]

# One of each in a run, whichever directory's tests ask: a loaded module stays with the card that it found first.
started: dict[str, Stack] = {}


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """Start a stack when it is first needed, and stop them all at the end."""

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


@pytest.fixture
def counted(stack: Stack) -> Iterator[FaultyModule]:
    """The module of a stack behind one that does nothing but count, so that the logins of every stack are counted."""
    with FaultyModule(stack.module, stack.environment, pin=stack.pin) as counted:
        yield counted


@pytest.fixture(params=["ykcs11", "opensc"])
def yubikey(request: pytest.FixtureRequest, running: Running) -> Iterator[PivStack]:
    """The virtual YubiKey through each of its modules."""
    stack = running(request.param)
    assert isinstance(stack, PivStack)
    stack.reset()
    yield stack
    stack.reset()


@pytest.fixture(scope="session")
def softhsm() -> Iterator[SoftHsm]:
    with SoftHsm(label="device tests") as softhsm:
        yield softhsm


@pytest.fixture(scope="session")
def key(softhsm: SoftHsm) -> SoftHsmKey:
    return softhsm.add_identity("first key", b"\x01")


@pytest.fixture(scope="session")
def second_key(softhsm: SoftHsm, key: SoftHsmKey) -> SoftHsmKey:
    return softhsm.add_identity("second key", b"\x02")


class AccessTo(Protocol):
    """Returns access to a key or device in the SoftHSM of these tests."""

    def __call__(
        self, uri: str, *, pin: PinSource | None = None, module: Path | None = None, timeout: float = 60
    ) -> KeyAccess: ...


@pytest.fixture(scope="session")
def access_to(softhsm: SoftHsm) -> AccessTo:
    right = FixedLogin(Pin(softhsm.pin), "the test PIN")

    def access_to(
        uri: str, *, pin: PinSource | None = None, module: Path | None = None, timeout: float = 60
    ) -> KeyAccess:
        return KeyAccess(
            uri=Pkcs11Uri.parse(uri),
            pin=pin or right,
            module=module or softhsm.module,
            module_environment=softhsm.environment,
            timeout=timeout,
        )

    return access_to
