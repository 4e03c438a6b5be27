"""Where an assertion is sent, and the audience it names."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.entra.authority import Endpoint, resolve_endpoint
from hsm_signer.entra.clouds import Cloud
from hsm_signer.errors import ConfigError

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


def test_all_fields_of_an_entra_endpoint() -> None:
    url = "https://login.microsoftonline.com/contoso.com/oauth2/v2.0/token"
    assert resolve_endpoint(tenant="contoso.com") == Endpoint(
        url, url, "https://login.microsoftonline.com", "contoso.com", entra=True
    )


@pytest.mark.parametrize("tenant", ["common", "organizations", "consumers", "Common"])
def test_a_shared_tenant_is_refused_with_the_reason(tenant: str) -> None:
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
    with pytest.raises(ConfigError, match="No tenant is set"):
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
def test_an_authority_is_normalized(authority: str, origin: str) -> None:
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
        ("https://login.example.com?x=1", "has a path or a query"),
        ("https://login.example.com/tenant", "has a path or a query"),
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


def test_a_password_in_an_authority_is_not_shown() -> None:
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
def test_an_assertion_for_entra_is_not_sent_to_another_server(audience: str) -> None:
    with pytest.raises(ConfigError, match="could use it to sign in as your application"):
        resolve_endpoint(tenant=None, token_endpoint="https://sts.example.com/token", audience=audience)


def test_an_assertion_for_one_cloud_is_not_sent_to_another() -> None:
    with pytest.raises(ConfigError, match=r"login\.microsoftonline\.com"):
        resolve_endpoint(tenant=GUID, cloud=Cloud.CHINA, audience=f"https://login.microsoftonline.com/{GUID}/v2.0")


def test_an_audience_may_name_the_entra_host_that_gets_the_assertion() -> None:
    audience = f"https://login.microsoftonline.com/{GUID}/v2.0"
    assert resolve_endpoint(tenant=GUID, audience=audience).audience == audience


@pytest.mark.parametrize("audience", ["https://sts.example.com", "urn:example:sts", "https://blob.core.windows.net/x"])
def test_any_other_audience_is_accepted(audience: str) -> None:
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
def test_no_assertion_has_the_audience_of_proofs_for_graph(audience: str, tenant: str | None) -> None:
    other = None if tenant else "https://sts.example.com/token"
    with pytest.raises(ConfigError, match="for proofs to Microsoft Graph only"):
        resolve_endpoint(tenant=tenant, token_endpoint=other, audience=audience)


@pytest.mark.parametrize(
    "host", ["graph.microsoft.com", "graph.microsoft.us", "graph.windows.net", "dod-graph.microsoft.us"]
)
def test_an_assertion_for_graph_is_not_sent_to_another_server(host: str) -> None:
    with pytest.raises(ConfigError, match=r"is sent to sts\.example\.com"):
        resolve_endpoint(tenant=None, token_endpoint="https://sts.example.com/token", audience=f"https://{host}/")


@pytest.mark.parametrize("audience", ["", "a b", "ü"])
def test_a_malformed_audience_is_refused(audience: str) -> None:
    with pytest.raises(ConfigError, match="audience"):
        resolve_endpoint(tenant=GUID, audience=audience)


@given(labels=st.lists(HOST_LABELS, min_size=1, max_size=5), port=st.none() | st.integers(1, 65535))
def test_a_normalized_authority_stays_the_same(labels: list[str], port: int | None) -> None:
    authority = ".".join(labels) + ("" if port is None else f":{port}")
    once = resolve_endpoint(tenant=GUID, authority=authority).authority
    assert resolve_endpoint(tenant=GUID, authority=once).authority == once


@given(text=st.text(max_size=60), what=st.sampled_from(["tenant", "authority", "token_endpoint", "audience"]))
def test_any_string_is_accepted_or_refused(text: str, what: str) -> None:
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
