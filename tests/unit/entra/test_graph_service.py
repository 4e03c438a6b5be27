"""The Microsoft Graph that belongs to an endpoint."""

import pytest

from hsm_signer.entra.authority import Endpoint, resolve_endpoint
from hsm_signer.entra.clouds import Cloud
from hsm_signer.entra.graph_service import resolve_graph
from hsm_signer.errors import ConfigError
from tests.support.names import GRAPH, TENANT

CUSTOM = resolve_endpoint(tenant=None, token_endpoint="https://sts.example.com/token")


@pytest.mark.parametrize(
    ("cloud", "host"),
    [
        (Cloud.PUBLIC, "graph.microsoft.com"),
        (Cloud.USGOV, "graph.microsoft.us"),
        (Cloud.CHINA, "microsoftgraph.chinacloudapi.cn"),
    ],
)
def test_each_cloud_has_its_own_graph(cloud: Cloud, host: str) -> None:
    graph = resolve_graph(resolve_endpoint(tenant=TENANT, cloud=cloud))
    assert (graph.origin, graph.scope) == (f"https://{host}", f"https://{host}/.default")


def test_the_authority_of_a_cloud_has_the_graph_of_the_cloud() -> None:
    endpoint = resolve_endpoint(tenant=TENANT, authority="login.microsoftonline.us")
    assert resolve_graph(endpoint).origin == "https://graph.microsoft.us"


def test_another_authority_of_the_public_cloud_has_the_public_graph() -> None:
    endpoint = resolve_endpoint(tenant=None, authority="https://contoso.ciamlogin.com")
    assert resolve_graph(endpoint).origin == "https://graph.microsoft.com"


def test_the_graph_of_the_department_of_defense_can_be_chosen() -> None:
    graph = resolve_graph(resolve_endpoint(tenant=TENANT, cloud=Cloud.USGOV), "dod-graph.microsoft.us")
    assert (graph.origin, graph.scope) == (
        "https://dod-graph.microsoft.us",
        "https://dod-graph.microsoft.us/.default",
    )


def test_an_authority_that_is_not_microsofts_is_its_own_graph() -> None:
    graph = resolve_graph(resolve_endpoint(tenant=TENANT, authority="http://127.0.0.1:8443"))
    assert (graph.origin, graph.scope) == ("http://127.0.0.1:8443", GRAPH)


@pytest.mark.parametrize("graph", ["https://graph.example.com", "https://graph.microsoft.com.example.com"])
def test_a_token_for_graph_is_not_sent_to_another_host(graph: str) -> None:
    with pytest.raises(ConfigError, match="not one of Microsoft Graph's hosts"):
        resolve_graph(resolve_endpoint(tenant=TENANT), graph)


@pytest.mark.parametrize(
    "endpoint",
    [
        pytest.param(CUSTOM, id="another server"),
        pytest.param(resolve_endpoint(tenant="adfs", authority="https://adfs.example.com"), id="AD FS"),
    ],
)
def test_a_server_that_is_not_entra_has_no_graph(endpoint: Endpoint) -> None:
    with pytest.raises(ConfigError, match="are not registered in Microsoft Graph"):
        resolve_graph(endpoint)
