"""MSAL's confidential client, with our assertions as its credential."""

from collections.abc import Callable
from typing import Any

import msal  # type: ignore[import-untyped]
import pytest
import requests

from hsm_signer import HsmCredential
from hsm_signer.testing import EntraEmulator
from tests.support.faulty_module.control import FaultyModule
from tests.support.names import CLIENT, GRAPH, TENANT, VAULT

from .conftest import signatures

Connect = Callable[[Callable[..., str]], Callable[[str], str]]


@pytest.fixture
def connect(entra: EntraEmulator) -> Connect:
    """Create MSAL's client with a callback for assertions; return a function that gets a token for a scope."""

    def connect(callback: Callable[..., str]) -> Callable[[str], str]:
        application = msal.ConfidentialClientApplication(
            CLIENT,
            client_credential={"client_assertion": callback},
            authority=f"{entra.authority}/{TENANT}",
            instance_discovery=False,
            verify=str(entra.ca_file),
        )
        return lambda scope: str(application.acquire_token_for_client([scope])["access_token"])

    return connect


def test_one_signature_serves_many_calls(
    connect: Connect, credential: HsmCredential, entra: EntraEmulator, faulty: FaultyModule
) -> None:
    get_token = connect(credential.assertion)
    assert len({get_token(GRAPH) for _ in range(20)}) == 1
    assert (len(entra.requests), signatures(faulty)) == (1, 1)


def test_each_token_costs_its_own_signature(connect: Connect, credential: HsmCredential, faulty: FaultyModule) -> None:
    get_token = connect(credential.assertion)
    assert get_token(GRAPH) != get_token(VAULT)
    assert signatures(faulty) == 2


def test_a_callback_can_pass_on_msals_context(connect: Connect, credential: HsmCredential) -> None:
    told = []

    def callback(context: dict[str, str]) -> str:
        told.append(context["client_id"])
        return credential.assertion(context)

    assert connect(callback)(GRAPH)
    assert told == [CLIENT]


class AtMicrosoft(requests.Session):
    """Reaches the emulator under the name of Entra's own host, like an entry in /etc/hosts."""

    def __init__(self, entra: EntraEmulator) -> None:
        super().__init__()
        self.verify = str(entra.ca_file)
        self._authority = entra.authority

    def request(self, method: str, url: str, **options: Any) -> requests.Response:  # type: ignore[override]
        if (path := url.removeprefix("https://login.microsoftonline.com")) != url:
            url = self._authority + path
            options["headers"] = {**(options.get("headers") or {}), "Host": "login.microsoftonline.com"}
        return super().request(method, url, **options)


def test_az_logs_in_and_out(credential: HsmCredential, entra: EntraEmulator) -> None:
    """Uses instance discovery, and logs out through the authority of all organizations."""
    with AtMicrosoft(entra) as session:
        login = msal.ConfidentialClientApplication(
            CLIENT,
            client_credential={"client_assertion": credential.assertion},
            authority=f"https://login.microsoftonline.com/{TENANT}",
            client_capabilities=["CP1"],
            http_client=session,
        )
        assert login.acquire_token_for_client([GRAPH])["access_token"]
        logout = msal.ConfidentialClientApplication(
            CLIENT,
            authority="https://login.microsoftonline.com/organizations",
            token_cache=login.token_cache,
            http_client=session,
        )
        logout.remove_tokens_for_client()
    assert not list(login.token_cache.search("AccessToken"))
