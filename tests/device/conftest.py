"""A SoftHSM with what the device tests need, shared by all of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from hsm_signer.device.device import KeyReference
from hsm_signer.device.pin import FixedLogin, Pin, PinSource
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey


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


class Refer(Protocol):
    """Makes a reference to something in the SoftHSM of these tests."""

    def __call__(
        self, uri: str, *, pin: PinSource | None = None, module: Path | None = None, timeout: float = 60
    ) -> KeyReference: ...


@pytest.fixture(scope="session")
def refer(softhsm: SoftHsm) -> Refer:
    right = FixedLogin(Pin(softhsm.pin), "the test PIN")

    def refer(
        uri: str, *, pin: PinSource | None = None, module: Path | None = None, timeout: float = 60
    ) -> KeyReference:
        return KeyReference(
            uri=Pkcs11Uri.parse(uri),
            pin=pin or right,
            module=module or softhsm.module,
            module_environment=softhsm.environment,
            timeout=timeout,
        )

    return refer
