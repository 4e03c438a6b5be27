"""Endpoints: where an assertion goes, for whom it is made out, and which scopes may be asked for."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.entra.authority import Cloud, Endpoint, check_scopes, is_loopback, resolve_endpoint, resolve_graph
from hsm_signer.errors import ConfigError
from tests.support.names import GRAPH

GUID = "72f988bf-86f1-41af-91ab-2d7cd011db47"
HOST_LABELS = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=20)


def custom(url: str = "https://sts.example.com/token") -> Endpoint:
    return resolve_endpoint(tenant=None, token_endpoint=url)


@pytest.mark.parametrize(
    ("cloud", "host"),
    [
        (Cloud.PUBLIC, "login.microsoftonline.com"),
        (Cloud.USGOV, "login.microsoftonline.us"),
        (Cloud.CHINA, "login.partner.microsoftonline.cn"),
    ],
)
def test_each_cloud_has_its_own_token_endpoint(cloud: Cloud, host: str) -> None:
    endpoint = resolve_endpoint(tenant=GUID, cloud=cloud)
    assert endpoint.token_endpoint == f"https://{host}/{GUID}/oauth2/v2.0/token"


def test_the_audience_is_the_token_endpoint_unless_given() -> None:
    endpoint = resolve_endpoint(tenant=GUID)
    assert endpoint.audience == endpoint.token_endpoint


def test_an_entra_endpoint_is_described_in_full() -> None:
    url = "https://login.microsoftonline.com/contoso.com/oauth2/v2.0/token"
    assert resolve_endpoint(tenant="contoso.com") == Endpoint(
        url, url, "https://login.microsoftonline.com", "contoso.com", entra=True
    )


@pytest.mark.parametrize("tenant", ["common", "organizations", "consumers", "Common"])
def test_shared_tenants_are_refused_with_the_reason(tenant: str) -> None:
    with pytest.raises(ConfigError, match="must name one tenant"):
        resolve_endpoint(tenant=tenant)


@pytest.mark.parametrize(
    "tenant",
    [
        "contoso",
        "contoso.com/x",
        "../x.com",
        "a b.com",
        "-a.com",
        "a..com",
        GUID[:-1],
        f"{GUID}\n",
        "contoso.com\n",
        "ü.com",
        "a.com?x",
    ],
)
def test_a_malformed_tenant_is_refused(tenant: str) -> None:
    with pytest.raises(ConfigError, match="neither a GUID nor a domain"):
        resolve_endpoint(tenant=tenant)


@pytest.mark.parametrize("tenant", [None, ""])
def test_a_missing_tenant_is_refused(tenant: str | None) -> None:
    with pytest.raises(ConfigError, match="No tenant was given"):
        resolve_endpoint(tenant=tenant)


def test_ad_fs_has_its_own_path_without_a_version() -> None:
    endpoint = resolve_endpoint(tenant="adfs", authority="https://adfs.example.com")
    assert endpoint.token_endpoint == "https://adfs.example.com/adfs/oauth2/token"


def test_ad_fs_without_an_authority_is_refused() -> None:
    with pytest.raises(ConfigError, match="AD FS"):
        resolve_endpoint(tenant="adfs")


def test_a_ciam_authority_takes_a_tenant() -> None:
    endpoint = resolve_endpoint(tenant=GUID, authority="https://contoso.ciamlogin.com/")
    assert endpoint.token_endpoint == f"https://contoso.ciamlogin.com/{GUID}/oauth2/v2.0/token"


def test_a_ciam_authority_implies_its_tenant() -> None:
    endpoint = resolve_endpoint(tenant=None, authority="contoso.ciamlogin.com")
    assert endpoint.token_endpoint == "https://contoso.ciamlogin.com/contoso.onmicrosoft.com/oauth2/v2.0/token"


@pytest.mark.parametrize(
    ("authority", "origin"),
    [
        ("https://login.example.com", "https://login.example.com"),
        ("https://login.example.com/", "https://login.example.com"),
        ("https://login.example.com.", "https://login.example.com"),
        ("login.example.com", "https://login.example.com"),
        ("HTTPS://Login.Example.COM", "https://login.example.com"),
        ("login.example.com:8443", "https://login.example.com:8443"),
        ("https://login.example.com:443", "https://login.example.com"),
        ("localhost:8443", "https://localhost:8443"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("http://127.9.9.9:8080/", "http://127.9.9.9:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("https://token_server", "https://token_server"),
    ],
)
def test_an_authority_is_brought_into_one_form(authority: str, origin: str) -> None:
    assert resolve_endpoint(tenant=GUID, authority=authority).authority == origin


@pytest.mark.parametrize(
    ("authority", "reason"),
    [
        ("http://login.microsoftonline.com", "plain http"),
        ("http://localhost.example.com", "plain http"),
        ("http://128.0.0.1", "plain http"),
        ("http://0.0.0.0", "plain http"),
        ("https://user@login.example.com", "user name"),
        ("https://localhost@login.example.com", "user name"),
        ("https://@login.example.com", "user name"),
        ("https://login.example.com?x=1", "more than a host"),
        ("https://login.example.com/tenant", "more than a host"),
        ("https://login.example.com#x", "fragment"),
        ("https://login.example.com#", "fragment"),
        ("ftp://login.example.com", "not an https URL"),
        ("https://", "no usable host"),
        ("https://a..b", "no usable host"),
        ("https://" + "a" * 64 + ".com", "no usable host"),
        ("https://login.example.com:0", "no usable host"),
        ("https://login.example.com:99999", "cannot be parsed"),
        ("https://login.example.com:x", "cannot be parsed"),
        ("https://[::1", "cannot be parsed"),
        ("https://evil.example\\@login.example.com", "backslash"),
        ("https://login.example.com\n", "space"),
        (" https://login.example.com", "space"),
        ("https://lögin.example.com", "ASCII"),
    ],
)
def test_an_unsafe_or_malformed_authority_is_refused_with_the_reason(authority: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        resolve_endpoint(tenant=GUID, authority=authority)


def test_a_password_in_an_authority_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_endpoint(tenant=GUID, authority="https://user:hunter2@login.example.com")
    assert "hunter2" not in f"{caught.value.message} {caught.value.hint}"


def test_a_custom_token_endpoint_needs_no_tenant() -> None:
    url = "https://sts.example.com/realms/a/token?v=1"
    assert custom(url) == Endpoint(url, url, "https://sts.example.com", None, entra=False)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sts.example.com/token", "not an https URL"),
        ("http://sts.example.com/token", "plain http"),
        ("https://u:p@sts.example.com/token", "user name"),
        ("https://sts.example.com/token#f", "fragment"),
    ],
)
def test_an_unsafe_token_endpoint_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        custom(url)


@pytest.mark.parametrize(
    "audience",
    [
        f"https://login.microsoftonline.com/{GUID}/oauth2/v2.0/token",
        f"https://LOGIN.microsoftonline.COM/{GUID}/v2.0",
        "login.microsoftonline.com",
        "https://login.microsoftonline.com:443/x",
        "https://login.microsoftonline.com./x",
        "https://user@login.microsoftonline.com/x",
        "https:\\\\login.microsoftonline.com\\x",
        "https://login%2Emicrosoftonline.com/x",
        "https://login.microsoftonline.us/x",
        "https://login.partner.microsoftonline.cn/x",
        "https://login.chinacloudapi.cn/x",
        "https://westeurope.login.microsoft.com/x",
        f"https://sts.windows.net/{GUID}/",
        "https://login.windows.net/common",
        f"https://contoso.ciamlogin.com/{GUID}/v2.0",
    ],
)
def test_an_assertion_for_entra_is_not_handed_to_another_server(audience: str) -> None:
    with pytest.raises(ConfigError, match="could use it there in your name"):
        resolve_endpoint(tenant=None, token_endpoint="https://sts.example.com/token", audience=audience)


def test_an_assertion_for_one_cloud_is_not_sent_to_another() -> None:
    with pytest.raises(ConfigError, match=r"login\.microsoftonline\.com"):
        resolve_endpoint(tenant=GUID, cloud=Cloud.CHINA, audience=f"https://login.microsoftonline.com/{GUID}/v2.0")


def test_an_audience_may_name_the_entra_host_that_gets_the_assertion() -> None:
    audience = f"https://login.microsoftonline.com/{GUID}/v2.0"
    assert resolve_endpoint(tenant=GUID, audience=audience).audience == audience


@pytest.mark.parametrize("audience", ["https://sts.example.com", "urn:example:sts", "https://blob.core.windows.net/x"])
def test_an_audience_elsewhere_is_free(audience: str) -> None:
    endpoint = resolve_endpoint(tenant=None, token_endpoint="https://10.0.0.1/token", audience=audience)
    assert endpoint.audience == audience


@pytest.mark.parametrize("tenant", [GUID, None])
@pytest.mark.parametrize(
    "audience",
    [
        "00000002-0000-0000-c000-000000000000",
        "00000002-0000-0000-C000-000000000000",
        "spn:00000002-0000-0000-c000-000000000000",
        "%30%30000002-0000-0000-c000-000000000000",
    ],
)
def test_a_proof_for_graph_is_made_for_no_endpoint(audience: str, tenant: str | None) -> None:
    other = None if tenant else "https://sts.example.com/token"
    with pytest.raises(ConfigError, match="for proofs to Microsoft Graph only"):
        resolve_endpoint(tenant=tenant, token_endpoint=other, audience=audience)


@pytest.mark.parametrize(
    "host", ["graph.microsoft.com", "graph.microsoft.us", "graph.windows.net", "dod-graph.microsoft.us"]
)
def test_an_assertion_for_graph_is_handed_to_no_other_server(host: str) -> None:
    with pytest.raises(ConfigError, match=r"is sent to sts\.example\.com"):
        resolve_endpoint(tenant=None, token_endpoint="https://sts.example.com/token", audience=f"https://{host}/")


@pytest.mark.parametrize("audience", ["", "a b", "ü"])
def test_a_malformed_audience_is_refused(audience: str) -> None:
    with pytest.raises(ConfigError, match="audience"):
        resolve_endpoint(tenant=GUID, audience=audience)


@given(labels=st.lists(HOST_LABELS, min_size=1, max_size=5), port=st.none() | st.integers(1, 65535))
def test_an_authority_survives_a_second_reading(labels: list[str], port: int | None) -> None:
    authority = ".".join(labels) + ("" if port is None else f":{port}")
    once = resolve_endpoint(tenant=GUID, authority=authority).authority
    assert resolve_endpoint(tenant=GUID, authority=once).authority == once


@given(text=st.text(max_size=60), what=st.sampled_from(["tenant", "authority", "token_endpoint", "audience"]))
def test_any_text_is_either_understood_or_refused(text: str, what: str) -> None:
    settings: dict[str, str | None] = {"authority": None, "token_endpoint": None, "audience": None, what: text}
    try:
        endpoint = resolve_endpoint(
            tenant=text if what == "tenant" else GUID,
            authority=settings["authority"],
            token_endpoint=settings["token_endpoint"],
            audience=settings["audience"],
        )
    except ConfigError:
        return
    assert endpoint.token_endpoint.startswith(("https://", "http://"))


def test_a_scope_becomes_the_parameter() -> None:
    assert check_scopes(resolve_endpoint(tenant=GUID), [GRAPH]) == GRAPH


@pytest.mark.parametrize("scope", ["api://x/.default", "https://vault.azure.net//.default", f"{GUID}/.default"])
def test_every_resource_may_be_asked_for_by_default(scope: str) -> None:
    assert check_scopes(resolve_endpoint(tenant=GUID), [scope]) == scope


@pytest.mark.parametrize("scope", ["https://graph.microsoft.com/User.Read", ".default", "/.default", "x.default"])
def test_entra_takes_no_scope_but_default(scope: str) -> None:
    with pytest.raises(ConfigError, match=r"does not end in '/\.default'"):
        check_scopes(resolve_endpoint(tenant=GUID), [scope])


def test_the_right_scope_is_suggested() -> None:
    with pytest.raises(ConfigError) as caught:
        check_scopes(resolve_endpoint(tenant=GUID), ["https://graph.microsoft.com/User.Read"])
    assert GRAPH in str(caught.value.hint)


def test_entra_gives_a_token_for_one_resource_only() -> None:
    with pytest.raises(ConfigError, match="2 resources"):
        check_scopes(resolve_endpoint(tenant=GUID), [GRAPH, "https://vault.azure.net/.default"])


def test_a_scope_given_twice_is_one_scope() -> None:
    assert check_scopes(resolve_endpoint(tenant=GUID), [GRAPH, GRAPH]) == GRAPH


def test_a_custom_server_takes_any_scopes() -> None:
    assert check_scopes(custom(), ["read", "write"]) == "read write"


def test_a_request_without_scope_is_refused() -> None:
    with pytest.raises(ConfigError, match="No scope"):
        check_scopes(custom(), [])


@pytest.mark.parametrize("scope", ["", "a b", 'a"b', "a\\b", "a\nb", "ä"])
def test_a_scope_has_only_the_characters_of_rfc_6749(scope: str) -> None:
    with pytest.raises(ConfigError, match="character"):
        check_scopes(custom(), [scope])


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.255.0.3", "::1", "[::1]"])
def test_loopback_hosts_are_recognized(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.example.com", "127.0.0.1.example.com", "128.0.0.1", "::2", "::", "", "1"])
def test_other_hosts_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("cloud", "host"),
    [
        (Cloud.PUBLIC, "graph.microsoft.com"),
        (Cloud.USGOV, "graph.microsoft.us"),
        (Cloud.CHINA, "microsoftgraph.chinacloudapi.cn"),
    ],
)
def test_each_cloud_has_its_own_graph(cloud: Cloud, host: str) -> None:
    graph = resolve_graph(resolve_endpoint(tenant=GUID, cloud=cloud))
    assert (graph.origin, graph.scope) == (f"https://{host}", f"https://{host}/.default")


def test_an_authority_named_by_its_host_has_its_clouds_graph() -> None:
    endpoint = resolve_endpoint(tenant=GUID, authority="login.microsoftonline.us")
    assert resolve_graph(endpoint).origin == "https://graph.microsoft.us"


def test_another_name_of_the_public_authority_has_the_public_graph() -> None:
    endpoint = resolve_endpoint(tenant=None, authority="https://contoso.ciamlogin.com")
    assert resolve_graph(endpoint).origin == "https://graph.microsoft.com"


def test_the_graph_of_the_defence_department_can_be_chosen() -> None:
    graph = resolve_graph(resolve_endpoint(tenant=GUID, cloud=Cloud.USGOV), "dod-graph.microsoft.us")
    assert (graph.origin, graph.scope) == (
        "https://dod-graph.microsoft.us",
        "https://dod-graph.microsoft.us/.default",
    )


def test_an_authority_that_is_none_of_microsofts_is_its_own_graph() -> None:
    graph = resolve_graph(resolve_endpoint(tenant=GUID, authority="http://127.0.0.1:8443"))
    assert (graph.origin, graph.scope) == ("http://127.0.0.1:8443", GRAPH)


@pytest.mark.parametrize("graph", ["https://graph.example.com", "https://graph.microsoft.com.example.com"])
def test_a_token_for_graph_goes_to_no_strangers_host(graph: str) -> None:
    with pytest.raises(ConfigError, match="none of Microsoft Graph's hosts"):
        resolve_graph(resolve_endpoint(tenant=GUID), graph)


@pytest.mark.parametrize(
    "endpoint",
    [
        pytest.param(custom(), id="another server"),
        pytest.param(resolve_endpoint(tenant="adfs", authority="https://adfs.example.com"), id="AD FS"),
    ],
)
def test_a_server_that_is_not_entra_has_no_graph(endpoint: Endpoint) -> None:
    with pytest.raises(ConfigError, match="are not registered in Microsoft Graph"):
        resolve_graph(endpoint)
