"""azure-identity: our assertions as its credential, and our credential in its chains."""

from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.core.pipeline.transport import AsyncioRequestsTransport
from azure.identity import ChainedTokenCredential, ClientAssertionCredential
from azure.identity.aio import ChainedTokenCredential as AsyncChainedTokenCredential
from azure.identity.aio import ClientAssertionCredential as AsyncClientAssertionCredential

from hsm_signer import AsyncHsmCredential, HsmCredential
from hsm_signer.testing import EntraEmulator
from tests.support.faulty_module.control import FaultyModule
from tests.support.names import CLIENT, GRAPH, TENANT

from .conftest import signatures


@pytest.fixture
def by_assertion(credential: HsmCredential, entra: EntraEmulator) -> Iterator[ClientAssertionCredential]:
    with ClientAssertionCredential(
        TENANT,
        CLIENT,
        credential.assertion,
        authority=entra.authority,
        connection_verify=str(entra.ca_file),
        disable_instance_discovery=True,
    ) as by_assertion:
        yield by_assertion


def test_a_client_assertion_credential_gets_tokens_for_one_signature(
    by_assertion: ClientAssertionCredential, entra: EntraEmulator, faulty: FaultyModule
) -> None:
    assert len({by_assertion.get_token(GRAPH).token for _ in range(5)}) == 1
    assert (len(entra.requests), signatures(faulty)) == (1, 1)


def test_the_asynchronous_client_assertion_credential_takes_the_same_callback(
    credential: HsmCredential, entra: EntraEmulator
) -> None:
    async def main() -> str:
        transport = AsyncioRequestsTransport(connection_verify=str(entra.ca_file))
        async with AsyncClientAssertionCredential(
            TENANT, CLIENT, credential.assertion, authority=entra.authority, transport=transport
        ) as by_assertion:
            return (await by_assertion.get_token(GRAPH)).token

    assert anyio.run(main)


def test_a_chain_uses_our_credential(credential: HsmCredential, entra: EntraEmulator) -> None:
    chain = ChainedTokenCredential(credential)
    assert chain.get_token(GRAPH).token
    chain.close()
    assert [request.status for request in entra.requests] == [200]


def test_an_asynchronous_chain_uses_our_credential(arguments: dict[str, Any]) -> None:
    async def main() -> str:
        async with AsyncChainedTokenCredential(AsyncHsmCredential(**arguments)) as chain:
            return (await chain.get_token_info(GRAPH)).token

    assert anyio.run(main)


def test_a_chain_stops_at_our_error_and_does_not_try_another_identity(
    arguments: dict[str, Any],
    by_assertion: ClientAssertionCredential,
    entra: EntraEmulator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEVICE_PIN", "not-the-pin")
    with HsmCredential(**arguments) as refused:
        with pytest.raises(ClientAuthenticationError, match="Wrong PIN") as caught:
            ChainedTokenCredential(refused, by_assertion).get_token(GRAPH)
    assert "not-the-pin" not in str(caught.value)
    assert entra.requests == []
