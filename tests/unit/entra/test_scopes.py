"""The scopes that Entra and other servers accept."""

import pytest

from hsm_signer.entra.authority import resolve_endpoint
from hsm_signer.entra.scopes import check_scopes
from hsm_signer.errors import ConfigError
from tests.support.names import GRAPH, TENANT

ENTRA = resolve_endpoint(tenant=TENANT)
CUSTOM = resolve_endpoint(tenant=None, token_endpoint="https://sts.example.com/token")


def test_the_parameter_is_the_scope() -> None:
    assert check_scopes(ENTRA, [GRAPH]) == GRAPH


@pytest.mark.parametrize(
    "scope", ["api://x/.default", "https://vault.azure.net//.default", "72f988bf-86f1-41af-91ab/.default"]
)
def test_a_default_scope_may_name_any_resource(scope: str) -> None:
    assert check_scopes(ENTRA, [scope]) == scope


@pytest.mark.parametrize("scope", ["https://graph.microsoft.com/User.Read", ".default", "/.default", "x.default"])
def test_entra_accepts_only_default_scopes(scope: str) -> None:
    with pytest.raises(ConfigError, match=r"does not end in '/\.default'"):
        check_scopes(ENTRA, [scope])


def test_the_right_scope_is_suggested() -> None:
    with pytest.raises(ConfigError) as caught:
        check_scopes(ENTRA, ["https://graph.microsoft.com/User.Read"])
    assert GRAPH in str(caught.value.hint)


def test_scopes_for_two_resources_are_refused_for_entra() -> None:
    with pytest.raises(ConfigError, match="2 resources"):
        check_scopes(ENTRA, [GRAPH, "https://vault.azure.net/.default"])


def test_a_scope_given_twice_is_one_scope() -> None:
    assert check_scopes(ENTRA, [GRAPH, GRAPH]) == GRAPH


def test_a_custom_server_accepts_any_scopes() -> None:
    assert check_scopes(CUSTOM, ["read", "write"]) == "read write"


def test_no_scope_is_refused() -> None:
    with pytest.raises(ConfigError, match="No scope"):
        check_scopes(CUSTOM, [])


@pytest.mark.parametrize("scope", ["", "a b", 'a"b', "a\\b", "a\nb", "ä"])
def test_a_scope_has_only_the_characters_of_rfc_6749(scope: str) -> None:
    with pytest.raises(ConfigError, match="character"):
        check_scopes(CUSTOM, [scope])
