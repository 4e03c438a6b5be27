"""MSAL's confidential client, with our assertions as its credential."""

from collections.abc import Callable

import msal  # type: ignore[import-untyped]
import pytest

from hsm_signer import HsmCredential
from hsm_signer.testing import EntraEmulator
from tests.faults.control import FaultyModule

from .conftest import CLIENT, GRAPH, TENANT, VAULT, signatures

Connect = Callable[[Callable[..., str]], Callable[[str], str]]


@pytest.fixture
def connect(entra: EntraEmulator) -> Connect:
    """Make MSAL's client of a callback for assertions; what is returned gets a token for a scope."""

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


def test_each_token_costs_a_signature_of_its_own(
    connect: Connect, credential: HsmCredential, faulty: FaultyModule
) -> None:
    get_token = connect(credential.assertion)
    assert get_token(GRAPH) != get_token(VAULT)
    assert signatures(faulty) == 2


def test_a_callback_that_is_told_the_context_may_pass_it_on(connect: Connect, credential: HsmCredential) -> None:
    told = []

    def callback(context: dict[str, str]) -> str:
        told.append(context["client_id"])
        return credential.assertion(context)

    assert connect(callback)(GRAPH)
    assert told == [CLIENT]
