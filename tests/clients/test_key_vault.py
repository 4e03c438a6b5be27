"""A real client of an Azure service, azure-keyvault-secrets, with our credentials."""

from pathlib import Path
from typing import Any

import anyio
import pytest
from azure.core.pipeline.transport import AsyncioRequestsTransport
from azure.keyvault.secrets import SecretClient
from azure.keyvault.secrets.aio import SecretClient as AsyncSecretClient

from hsm_signer import AsyncHsmCredential, HsmCredential
from hsm_signer.errors import ConfigError
from hsm_signer.testing import EntraEmulator
from tests.support.faulty_module.control import FaultyModule
from tests.support.names import OTHER_TENANT

from .conftest import signatures
from .vault import SECRET, Vault

# The stub's address is not in Key Vault's domain.
HERE: dict[str, Any] = {"verify_challenge_resource": False}


def test_a_secret_is_read(credential: HsmCredential, vault: Vault, entra: EntraEmulator, faulty: FaultyModule) -> None:
    with SecretClient(vault.url, credential, connection_verify=str(vault.ca_file), **HERE) as client:
        assert [client.get_secret("a").value for _ in range(3)] == [SECRET] * 3
    assert vault.statuses == [401, 200, 200, 200]
    assert (len(entra.requests), signatures(faulty)) == (1, 1)


def test_a_secret_is_read_by_the_asynchronous_client(
    arguments: dict[str, Any], vault: Vault, entra: EntraEmulator
) -> None:
    async def main() -> str | None:
        transport = AsyncioRequestsTransport(connection_verify=str(vault.ca_file))
        async with (
            AsyncHsmCredential(**arguments) as credential,
            AsyncSecretClient(vault.url, credential, transport=transport, **HERE) as client,
        ):
            return (await client.get_secret("a")).value

    assert (anyio.run(main), len(entra.requests)) == (SECRET, 1)


def test_the_client_answers_a_claims_challenge_by_itself(
    credential: HsmCredential, vault: Vault, entra: EntraEmulator
) -> None:
    with SecretClient(vault.url, credential, connection_verify=str(vault.ca_file), **HERE) as client:
        client.get_secret("a")
        vault.demand('{"access_token": {"nbf": {"essential": true, "value": "1750000000"}}}')
        assert client.get_secret("a").value == SECRET
    assert "1750000000" in entra.requests[1].form["claims"]


@pytest.fixture
def vault_elsewhere(entra: EntraEmulator, tmp_path: Path) -> Vault:
    return Vault(entra, OTHER_TENANT, tmp_path)


def test_a_vault_of_another_tenant_gets_a_token_if_the_tenant_is_allowed(
    arguments: dict[str, Any], vault_elsewhere: Vault, entra: EntraEmulator
) -> None:
    arguments["additionally_allowed_tenants"] = [OTHER_TENANT]
    with vault_elsewhere as vault, HsmCredential(**arguments) as credential:
        with SecretClient(vault.url, credential, connection_verify=str(vault.ca_file), **HERE) as client:
            assert client.get_secret("a").value == SECRET
    assert [request.tenant for request in entra.requests] == [OTHER_TENANT]


def test_a_vault_of_another_tenant_gets_no_token_if_the_tenant_is_not_allowed(
    credential: HsmCredential, vault_elsewhere: Vault, entra: EntraEmulator
) -> None:
    with (
        vault_elsewhere as vault,
        SecretClient(vault.url, credential, connection_verify=str(vault.ca_file), **HERE) as client,
        pytest.raises(ConfigError, match=OTHER_TENANT),
    ):
        client.get_secret("a")
    assert entra.requests == []
