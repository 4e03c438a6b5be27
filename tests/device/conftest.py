"""A SoftHSM with several keys, and a module that counts the calls to a stack of the matrix."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.pin.pin import Pin, PinSource
from hsm_signer.device.pin.sources import FixedLogin
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FaultyModule
from tests.support.stacks import Stack


@pytest.fixture
def counted(stack: Stack) -> Iterator[FaultyModule]:
    """Put a module that counts calls in front of a stack's module, so that the logins of every stack are counted."""
    with FaultyModule(stack.module, stack.environment, pin=stack.pin) as counted:
        yield counted


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
