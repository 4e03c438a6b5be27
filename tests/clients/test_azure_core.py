"""azure-core's own protocols, classes and bearer policies with our credentials."""

import json
import time
from typing import Any

import anyio
import pytest
from azure.core.credentials import AccessToken, AccessTokenInfo, SupportsTokenInfo, TokenCredential
from azure.core.credentials_async import AsyncSupportsTokenInfo, AsyncTokenCredential
from azure.core.pipeline import AsyncPipeline, Pipeline
from azure.core.pipeline.policies import (
    AsyncBearerTokenCredentialPolicy,
    AsyncRetryPolicy,
    BearerTokenCredentialPolicy,
    RetryPolicy,
)
from azure.core.pipeline.transport import AsyncioRequestsTransport, RequestsTransport, TrioRequestsTransport
from azure.core.rest import HttpRequest

from hsm_signer import AsyncHsmCredential, HsmCredential
from hsm_signer.errors import PinIncorrect
from hsm_signer.testing import EntraEmulator
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FaultyModule
from tests.support.names import CLIENT, GRAPH, TENANT, VAULT

from .conftest import signatures
from .vault import Vault

# What continuous access evaluation asks for after an event: a token that was issued later.
CHALLENGE = '{"access_token": {"nbf": {"essential": true, "value": "1750000000"}}}'
BACKENDS = ["asyncio", "trio"]


def test_our_credential_implements_azure_cores_protocols(credential: HsmCredential) -> None:
    # mypy checks the assignments: signatures and return types.
    token_credential: TokenCredential = credential
    supports_info: SupportsTokenInfo = credential
    assert isinstance(token_credential, TokenCredential)
    assert isinstance(supports_info, SupportsTokenInfo)


def test_our_asynchronous_credential_implements_azure_cores_protocols(arguments: dict[str, Any]) -> None:
    credential = AsyncHsmCredential(**arguments)
    token_credential: AsyncTokenCredential = credential
    supports_info: AsyncSupportsTokenInfo = credential
    assert isinstance(token_credential, AsyncTokenCredential)
    assert isinstance(supports_info, AsyncSupportsTokenInfo)


def test_azure_cores_own_classes_are_returned(credential: HsmCredential) -> None:
    token, info = credential.get_token(GRAPH), credential.get_token_info(GRAPH)
    assert (type(token), type(info)) == (AccessToken, AccessTokenInfo)
    assert token == (info.token, info.expires_on)


@pytest.mark.parametrize("backend", BACKENDS)
def test_azure_cores_own_classes_are_returned_asynchronously(arguments: dict[str, Any], backend: str) -> None:
    async def main() -> None:
        async with AsyncHsmCredential(**arguments) as credential:
            token, info = await credential.get_token(GRAPH), await credential.get_token_info(GRAPH)
        assert (type(token), type(info)) == (AccessToken, AccessTokenInfo)
        assert token == (info.token, info.expires_on)

    anyio.run(main, backend=backend)


def secret(vault: Vault) -> HttpRequest:
    return HttpRequest("GET", f"{vault.url}/secrets/a/")


def send(pipeline: "Pipeline[Any, Any]", vault: Vault) -> int:
    return int(pipeline.run(secret(vault)).http_response.status_code)


class TestBearerPolicy:
    def pipeline(self, credential: HsmCredential, vault: Vault) -> "Pipeline[Any, Any]":
        policies = [RetryPolicy(), BearerTokenCredentialPolicy(credential, VAULT)]
        return Pipeline(RequestsTransport(connection_verify=str(vault.ca_file)), policies)

    def test_one_token_serves_many_requests(
        self, credential: HsmCredential, vault: Vault, entra: EntraEmulator, faulty: FaultyModule
    ) -> None:
        with self.pipeline(credential, vault) as pipeline:
            assert [send(pipeline, vault) for _ in range(5)] == [200] * 5
        assert (len(entra.requests), signatures(faulty)) == (1, 1)

    def test_an_expired_token_is_replaced(
        self, arguments: dict[str, Any], key: SoftHsmKey, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        assert key.certificate is not None
        with EntraEmulator(token_lifetime=1) as entra:
            entra.register(CLIENT, key.certificate, tenant=TENANT)
            arguments |= {"authority": entra.authority, "ca_bundle": entra.ca_file}
            with (
                Vault(entra, TENANT, tmp_path_factory.mktemp("vault")) as vault,
                HsmCredential(**arguments) as credential,
                self.pipeline(credential, vault) as pipeline,
            ):
                send(pipeline, vault)
                # azure-core's clock cannot be set.
                time.sleep(1.1)
                assert send(pipeline, vault) == 200
                assert len(entra.requests) == len(set(vault.tokens)) == 2

    def test_a_claims_challenge_is_answered(
        self, credential: HsmCredential, vault: Vault, entra: EntraEmulator
    ) -> None:
        with self.pipeline(credential, vault) as pipeline:
            send(pipeline, vault)
            vault.demand(CHALLENGE)
            assert send(pipeline, vault) == 200
            assert send(pipeline, vault) == 200
        assert vault.statuses == [200, 401, 200, 200]
        assert [request.form.get("claims") for request in entra.requests] == [None, CHALLENGE]

    def test_both_token_requests_ask_for_continuous_access_evaluation(
        self, credential: HsmCredential, vault: Vault, entra: EntraEmulator
    ) -> None:
        policies = [BearerTokenCredentialPolicy(credential, VAULT, enable_cae=True)]
        with Pipeline(RequestsTransport(connection_verify=str(vault.ca_file)), policies) as pipeline:
            vault.demand(CHALLENGE)
            assert send(pipeline, vault) == 200
        capability = {"xms_cc": {"values": ["CP1"]}}
        first, second = (json.loads(request.form["claims"])["access_token"] for request in entra.requests)
        assert (first, second) == (capability, capability | json.loads(CHALLENGE)["access_token"])

    def test_a_refused_pin_reaches_the_caller_and_is_not_sent_again(
        self, arguments: dict[str, Any], vault: Vault, faulty: FaultyModule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DEVICE_PIN", "not-the-pin")
        with HsmCredential(**arguments) as credential, self.pipeline(credential, vault) as pipeline:
            for _ in range(2):
                with pytest.raises(PinIncorrect):
                    send(pipeline, vault)
        assert len(faulty.logins()) == 1


@pytest.mark.parametrize("backend", BACKENDS)
class TestAsyncBearerPolicy:
    def pipeline(self, credential: AsyncHsmCredential, vault: Vault, backend: str) -> "AsyncPipeline[Any, Any]":
        transports = {"asyncio": AsyncioRequestsTransport, "trio": TrioRequestsTransport}
        policies = [AsyncRetryPolicy(), AsyncBearerTokenCredentialPolicy(credential, VAULT)]
        return AsyncPipeline(transports[backend](connection_verify=str(vault.ca_file)), policies)

    def test_it_gets_a_token_and_answers_a_claims_challenge(
        self, arguments: dict[str, Any], vault: Vault, entra: EntraEmulator, backend: str
    ) -> None:
        async def main() -> list[int]:
            async with (
                AsyncHsmCredential(**arguments) as credential,
                self.pipeline(credential, vault, backend) as pipeline,
            ):
                first = await pipeline.run(secret(vault))
                vault.demand(CHALLENGE)
                second = await pipeline.run(secret(vault))
                return [response.http_response.status_code for response in (first, second)]

        assert anyio.run(main, backend=backend) == [200, 200]
        assert vault.statuses == [200, 401, 200]
        assert [request.form.get("claims") for request in entra.requests] == [None, CHALLENGE]
