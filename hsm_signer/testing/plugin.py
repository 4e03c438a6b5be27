"""The pytest plugin: a SoftHSM device, the Entra emulator and a credential between them, as fixtures.

    def test_my_program_gets_a_token(hsm_credential):
        assert my_program.token(hsm_credential)

pytest loads it in every run of an environment that has this package. So it imports nothing until a fixture is used.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hsm_signer.credential.azure import HsmCredential
    from hsm_signer.testing.entra.emulator import EntraEmulator
    from hsm_signer.testing.softhsm import SoftHsm, SoftHsmKey

TENANT = "contoso.onmicrosoft.com"
CLIENT_ID = "11111111-2222-4333-8444-555555555555"


@pytest.fixture(scope="session")
def softhsm_device() -> "Iterator[SoftHsm]":
    """Yield a SoftHSM device. It is empty, or has the key of `hsm_credential` if a test has used that.

    There is one for the whole run, because a process loads a PKCS#11 module once, with one configuration.
    """
    from hsm_signer.testing import SoftHsm

    with SoftHsm() as device:
        yield device


@pytest.fixture
def entra_emulator() -> "Iterator[EntraEmulator]":
    """Yield an emulator of Entra and Graph on a free loopback port. No application is registered with it."""
    from hsm_signer.testing import EntraEmulator

    with EntraEmulator() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def _hsm_key(softhsm_device: "SoftHsm") -> "SoftHsmKey":
    """Return a key with its certificate: one for the whole run, because generating it takes a tenth of a second."""
    return softhsm_device.add_identity("hsm_credential", b"hsm_credential")


@pytest.fixture
def hsm_credential(
    softhsm_device: "SoftHsm", _hsm_key: "SoftHsmKey", entra_emulator: "EntraEmulator"
) -> "Iterator[HsmCredential]":
    """Yield a credential whose key is in `softhsm_device`, for an application registered with `entra_emulator`."""
    from hsm_signer import HsmCredential

    assert _hsm_key.certificate is not None  # noqa: S101  # add_identity stores one
    entra_emulator.register(CLIENT_ID, _hsm_key.certificate, tenant=TENANT)
    with HsmCredential(
        TENANT,
        CLIENT_ID,
        _hsm_key.uri,
        module=softhsm_device.module,
        module_environment=softhsm_device.environment,
        pin_source=softhsm_device.pin_source,
        pin_record=False,
        authority=entra_emulator.authority,
        ca_bundle=str(entra_emulator.ca_file),
    ) as credential:
        yield credential
