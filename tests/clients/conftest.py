"""A credential over a device whose calls are counted, the Entra emulator and a stub of Key Vault: all on loopback."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hsm_signer import HsmCredential
from hsm_signer.testing import EntraEmulator, SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FaultyModule
from tests.support.names import CLIENT, OTHER_TENANT, TENANT

from .vault import Vault


@pytest.fixture(autouse=True)
def _own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    # requests prefers these variables to a session's own CA, and sends even loopback requests through a proxy.
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="session")
def softhsm() -> Iterator[SoftHsm]:
    with SoftHsm(label="clients") as softhsm:
        yield softhsm


@pytest.fixture(scope="session")
def key(softhsm: SoftHsm) -> SoftHsmKey:
    return softhsm.add_identity()


@pytest.fixture
def entra(key: SoftHsmKey) -> Iterator[EntraEmulator]:
    assert key.certificate is not None
    with EntraEmulator() as entra:
        for tenant in (TENANT, OTHER_TENANT):
            entra.register(CLIENT, key.certificate, tenant=tenant)
        yield entra


@pytest.fixture
def vault(entra: EntraEmulator, tmp_path: Path) -> Iterator[Vault]:
    with Vault(entra, TENANT, tmp_path) as vault:
        yield vault


@pytest.fixture
def arguments(
    faulty: FaultyModule, softhsm: SoftHsm, key: SoftHsmKey, entra: EntraEmulator, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The arguments of a credential for all of these."""
    monkeypatch.setenv("DEVICE_PIN", softhsm.pin)
    return {
        "tenant_id": TENANT,
        "client_id": CLIENT,
        "key": key.uri,
        "module": faulty.path,
        "module_environment": faulty.environment,
        "pin_source": "env:DEVICE_PIN",
        "authority": entra.authority,
        "ca_bundle": entra.ca_file,
    }


@pytest.fixture
def credential(arguments: dict[str, Any]) -> Iterator[HsmCredential]:
    with HsmCredential(**arguments) as credential:
        yield credential


def signatures(faulty: FaultyModule) -> int:
    """Return how often the device has signed."""
    return faulty.calls("C_Sign")
