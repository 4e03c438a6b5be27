"""The emulator as a service: the tokens it gives, its metadata, its life from start to stop."""

import base64
import hashlib
import socket
import ssl
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jws, jwt
from joserfc.jwk import KeySet, RSAKey

from hsm_signer.errors import ConfigError
from hsm_signer.testing import EntraEmulator, Slow
from hsm_signer.testing.entra.loopback import server_url
from tests.support.names import CLIENT
from tests.testing.conftest import NOW, TENANT, make_certificate

KEY, OTHER_KEY = (rsa.generate_private_key(65537, 2048) for _ in range(2))
CERTIFICATE, OTHER_CERTIFICATE = make_certificate(KEY), make_certificate(OTHER_KEY)
PEM, OTHER_DER = CERTIFICATE.public_bytes(Encoding.PEM), OTHER_CERTIFICATE.public_bytes(Encoding.DER)


def thumbprint(certificate: x509.Certificate, algorithm: str) -> str:
    digest = hashlib.new(algorithm, certificate.public_bytes(Encoding.DER)).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def assertion(
    entra: EntraEmulator,
    *,
    tenant: str = TENANT,
    key: rsa.RSAPrivateKey = KEY,
    certificate: x509.Certificate = CERTIFICATE,
    header: dict[str, object] | None = None,
) -> str:
    claims: dict[str, object] = {
        "aud": entra.token_endpoint(tenant),
        "iss": CLIENT,
        "sub": CLIENT,
        "jti": str(uuid.uuid4()),
        "nbf": NOW,
        "iat": NOW,
        "exp": NOW + 600,
    }
    header = header or {"alg": "RS256", "x5t": thumbprint(certificate, "sha1")}
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    registry = jws.JWSRegistry(algorithms=["RS256", "PS256"])
    return jwt.encode(header, claims, RSAKey.import_key(pem), registry=registry)


def form(signed: str, scope: str = "https://graph.microsoft.com/.default") -> dict[str, str]:
    return {
        "grant_type": "client_credentials",
        "client_id": CLIENT,
        "scope": scope,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": signed,
    }


def client(entra: EntraEmulator) -> httpx.Client:
    trust = ssl.create_default_context(cafile=entra.ca_file) if entra.ca_file else False
    return httpx.Client(verify=trust, timeout=10)


@pytest.fixture
def entra() -> Iterator[EntraEmulator]:
    with EntraEmulator(clock=lambda: NOW) as emulator:
        emulator.register(CLIENT, PEM, tenant=TENANT)
        yield emulator


@pytest.fixture
def http(entra: EntraEmulator) -> Iterator[httpx.Client]:
    with client(entra) as opened:
        yield opened


def test_the_token_response_has_the_same_members_as_entras(entra: EntraEmulator, http: httpx.Client) -> None:
    answer = http.post(entra.token_endpoint(TENANT), data=form(assertion(entra))).json()
    assert isinstance(answer.pop("access_token"), str)
    assert answer == {"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599}


def test_a_token_verifies_through_the_published_metadata(entra: EntraEmulator, http: httpx.Client) -> None:
    configuration = http.get(f"{entra.authority}/{TENANT}/v2.0/.well-known/openid-configuration").json()
    answer = http.post(configuration["token_endpoint"], data=form(assertion(entra))).json()
    keys = KeySet.import_key_set(http.get(configuration["jwks_uri"]).json())

    token = jwt.decode(answer["access_token"], keys, algorithms=["RS256"])

    jwt.JWTClaimsRegistry(
        now=NOW,
        iss={"essential": True, "value": configuration["issuer"]},
        aud={"essential": True, "value": "https://graph.microsoft.com"},
        azp={"essential": True, "value": CLIENT},
        tid={"essential": True, "value": TENANT},
    ).validate(token.claims)
    assert token.claims["exp"] == NOW + 3599


def test_the_issuer_is_under_the_emulators_own_authority(entra: EntraEmulator, http: httpx.Client) -> None:
    configuration = http.get(f"{entra.authority}/{TENANT}/v2.0/.well-known/openid-configuration").json()
    assert configuration["issuer"] == f"{entra.authority}/{TENANT}/v2.0"
    assert httpx.URL(configuration["issuer"]).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("tenant", "issuer"),
    [
        ("common", "{tenantid}"),
        ("organizations", "{tenantid}"),
        ("consumers", "9188040d-6c67-4c5b-b112-36a304b66dad"),  # the tenant of all personal accounts
    ],
)
def test_common_organizations_and_consumers_have_metadata(
    entra: EntraEmulator, http: httpx.Client, tenant: str, issuer: str
) -> None:
    response = http.get(f"{entra.authority}/{tenant}/v2.0/.well-known/openid-configuration")
    assert response.status_code == 200
    assert response.json()["issuer"] == f"{entra.authority}/{issuer}/v2.0"
    assert response.json()["token_endpoint"] == f"{entra.authority}/{tenant}/oauth2/v2.0/token"
    assert http.get(response.json()["jwks_uri"]).status_code == 200


def test_a_token_of_ad_fs_verifies_through_its_own_metadata(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.register(CLIENT, PEM, tenant="adfs")
    configuration = http.get(f"{entra.authority}/adfs/.well-known/openid-configuration").json()
    answer = http.post(configuration["token_endpoint"], data=form(assertion(entra, tenant="adfs"))).json()
    keys = KeySet.import_key_set(http.get(configuration["jwks_uri"]).json())
    token = jwt.decode(answer["access_token"], keys, algorithms=["RS256"])
    assert token.claims["iss"] == configuration["issuer"] == f"{entra.authority}/adfs"


def test_instance_discovery_accepts_the_emulators_own_host(entra: EntraEmulator, http: httpx.Client) -> None:
    answer = http.get(
        f"{entra.authority}/common/discovery/instance",
        params={
            "api-version": "1.1",
            "authorization_endpoint": f"{entra.authority}/{TENANT}/oauth2/v2.0/authorize",
        },
    ).json()
    assert http.get(answer["tenant_discovery_endpoint"]).json()["token_endpoint"] == entra.token_endpoint(TENANT)
    assert answer["metadata"] == [
        {"preferred_network": "127.0.0.1", "preferred_cache": "127.0.0.1", "aliases": ["127.0.0.1"]}
    ]


@pytest.mark.parametrize(
    "path",
    [
        # What az 2.91 asks login.microsoftonline.com for, in order, from `az login` to `az logout`.
        f"/{TENANT}/v2.0/.well-known/openid-configuration",
        "/organizations/v2.0/.well-known/openid-configuration",
        "/common/discovery/instance?api-version=1.1"
        "&authorization_endpoint=https%3A%2F%2Flogin.microsoftonline.com%2Fcommon%2Foauth2%2Fauthorize",
        # Instead of the last, where the authority is a registered cloud's (`az cloud register`).
        "/common/discovery/instance?authorization_endpoint="
        "https%3A%2F%2Flogin.microsoftonline.com%2Forganizations%2Foauth2%2Fv2.0%2Fauthorize&api-version=1.0",
    ],
)
def test_the_metadata_that_az_requests_is_served(entra: EntraEmulator, http: httpx.Client, path: str) -> None:
    """By the name that /etc/hosts gives the emulator."""
    response = http.get(entra.authority + path, headers={"Host": "login.microsoftonline.com"})
    assert response.status_code == 200


def test_the_resource_that_az_requests_is_known(entra: EntraEmulator, http: httpx.Client) -> None:
    signed = form(assertion(entra), "https://management.core.windows.net//.default")
    assert http.post(entra.token_endpoint(TENANT), data=signed).status_code == 200


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://login.example.com/common/oauth2/authorize",
        "https://login.example.com[/",
        "https://127.0.0.1.example.com",
        "",
    ],
)
def test_instance_discovery_refuses_every_other_host(entra: EntraEmulator, http: httpx.Client, endpoint: str) -> None:
    answer = http.get(
        f"{entra.authority}/common/discovery/instance",
        params={"api-version": "1.1", "authorization_endpoint": endpoint},
    )
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_instance")
    assert answer.json()["error_codes"] == [50049]


def test_the_published_keys_are_public_keys_only(entra: EntraEmulator, http: httpx.Client) -> None:
    (key,) = http.get(f"{entra.authority}/{TENANT}/discovery/v2.0/keys").json()["keys"]
    assert set(key) == {"kty", "use", "alg", "kid", "n", "e"}


def test_an_unknown_tenant_has_no_metadata(entra: EntraEmulator, http: httpx.Client) -> None:
    response = http.get(f"{entra.authority}/fabrikam.com/v2.0/.well-known/openid-configuration")
    assert (response.status_code, response.json()["error"]) == (400, "invalid_tenant")
    assert response.json()["error_codes"] == [90002]


@pytest.mark.parametrize(
    "header",
    [
        pytest.param({"alg": "RS256", "x5t": thumbprint(CERTIFICATE, "sha1")}, id="RS256 with x5t"),
        pytest.param({"alg": "PS256", "x5t#S256": thumbprint(CERTIFICATE, "sha256")}, id="PS256 with x5t#S256"),
        pytest.param(
            {
                "alg": "PS256",
                "x5t": thumbprint(CERTIFICATE, "sha1"),
                "x5t#S256": thumbprint(CERTIFICATE, "sha256"),
            },
            id="PS256 with both",
        ),
    ],
)
def test_the_documented_headers_are_accepted(
    entra: EntraEmulator, http: httpx.Client, header: dict[str, object]
) -> None:
    signed = assertion(entra, header=header)
    assert http.post(entra.token_endpoint(TENANT), data=form(signed)).status_code == 200


def test_a_header_with_the_chain_is_accepted(entra: EntraEmulator, http: httpx.Client) -> None:
    chain = [base64.b64encode(CERTIFICATE.public_bytes(Encoding.DER)).decode()]
    signed = assertion(entra, header={"alg": "RS256", "x5t": thumbprint(CERTIFICATE, "sha1"), "x5c": chain})
    assert http.post(entra.token_endpoint(TENANT), data=form(signed)).status_code == 200


def test_an_application_may_have_several_certificates(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.register(CLIENT, OTHER_DER, tenant=TENANT)
    for signed in (assertion(entra), assertion(entra, key=OTHER_KEY, certificate=OTHER_CERTIFICATE)):
        assert http.post(entra.token_endpoint(TENANT), data=form(signed)).status_code == 200


def test_ad_fs_has_its_own_token_endpoint(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.register(CLIENT, PEM, tenant="adfs")
    assert entra.token_endpoint("adfs") == f"{entra.authority}/adfs/oauth2/token"
    signed = assertion(entra, tenant="adfs")
    assert http.post(entra.token_endpoint("adfs"), data=form(signed)).status_code == 200


def test_a_resource_can_be_added(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.add_resource("api://inventory")
    answer = http.post(entra.token_endpoint(TENANT), data=form(assertion(entra), "api://inventory/.default")).json()
    keys = KeySet.import_key_set(http.get(f"{entra.authority}/{TENANT}/discovery/v2.0/keys").json())
    assert jwt.decode(answer["access_token"], keys, algorithms=["RS256"]).claims["aud"] == "api://inventory"


def test_a_trailing_slash_of_a_resource_is_kept_in_the_audience(entra: EntraEmulator, http: httpx.Client) -> None:
    scope = "https://management.azure.com//.default"
    answer = http.post(entra.token_endpoint(TENANT), data=form(assertion(entra), scope)).json()
    keys = KeySet.import_key_set(http.get(f"{entra.authority}/{TENANT}/discovery/v2.0/keys").json())
    claims = jwt.decode(answer["access_token"], keys, algorithms=["RS256"]).claims
    assert claims["aud"] == "https://management.azure.com/"


@pytest.mark.parametrize(
    "scope",
    [
        # MSAL for Go and for Java append these three to every request for a token.
        pytest.param("https://graph.microsoft.com/.default openid offline_access profile", id="as MSAL for Go"),
        pytest.param("openid profile offline_access https://graph.microsoft.com/.default", id="as MSAL for Java"),
    ],
)
def test_the_scopes_that_msal_appends_are_ignored(entra: EntraEmulator, http: httpx.Client, scope: str) -> None:
    answer = http.post(entra.token_endpoint(TENANT), data=form(assertion(entra), scope)).json()
    keys = KeySet.import_key_set(http.get(f"{entra.authority}/{TENANT}/discovery/v2.0/keys").json())
    claims = jwt.decode(answer["access_token"], keys, algorithms=["RS256"]).claims
    assert claims["aud"] == "https://graph.microsoft.com"


def test_token_lifetimes_are_the_configured_ones() -> None:
    with EntraEmulator(clock=lambda: NOW, token_lifetime=60, refresh_in=30) as entra, client(entra) as http:
        entra.register(CLIENT, PEM, tenant=TENANT)
        answer = http.post(entra.token_endpoint(TENANT), data=form(assertion(entra))).json()
    del answer["access_token"]
    assert answer == {"token_type": "Bearer", "expires_in": 60, "ext_expires_in": 60, "refresh_in": 30}


def test_an_assertion_can_be_replayed_by_default(entra: EntraEmulator, http: httpx.Client) -> None:
    signed = form(assertion(entra))
    assert [http.post(entra.token_endpoint(TENANT), data=signed).status_code for _ in range(2)] == [200, 200]


def test_with_refuse_replay_a_replayed_assertion_is_refused() -> None:
    with EntraEmulator(clock=lambda: NOW, refuse_replay=True) as entra, client(entra) as http:
        entra.register(CLIENT, PEM, tenant=TENANT)
        signed = form(assertion(entra))
        answers = [http.post(entra.token_endpoint(TENANT), data=signed) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 401]
    assert answers[1].json()["error_codes"] == [50027]


def test_an_assertion_that_was_refused_is_no_replay() -> None:
    with EntraEmulator(clock=lambda: NOW, refuse_replay=True) as entra, client(entra) as http:
        entra.register(CLIENT, PEM, tenant=TENANT)
        signed = assertion(entra)
        refused = http.post(entra.token_endpoint(TENANT), data=form(signed, "https://unknown.example/.default"))
        accepted = http.post(entra.token_endpoint(TENANT), data=form(signed))
    assert (refused.status_code, accepted.status_code) == (400, 200)


def test_the_date_header_follows_the_emulators_clock(entra: EntraEmulator, http: httpx.Client) -> None:
    response = http.post(entra.token_endpoint(TENANT), data={})
    assert response.headers.get_list("date") == ["Fri, 15 Jan 2027 08:00:00 GMT"]
    assert parsedate_to_datetime(response.headers["date"]).timestamp() == NOW


def test_requests_are_kept_as_received(entra: EntraEmulator, http: httpx.Client) -> None:
    signed = assertion(entra)
    http.post(entra.token_endpoint(TENANT), data=form(signed), headers={"User-Agent": "probe/1"})
    http.post(entra.token_endpoint("fabrikam.com"), data={"grant_type": "password"})
    http.get(f"{entra.authority}/{TENANT}/discovery/v2.0/keys")

    first, second = entra.requests
    assert (first.tenant, first.status, first.headers["user-agent"]) == (TENANT, 200, "probe/1")
    assert first.form["client_assertion"] == signed
    assert (second.tenant, second.status, dict(second.form)) == ("fabrikam.com", 400, {"grant_type": "password"})


def test_no_repr_shows_the_assertion(entra: EntraEmulator, http: httpx.Client) -> None:
    sent = form("header.claims.signature") | {"client_secret": "hunter2"}
    http.post(entra.token_endpoint(TENANT), data=sent, headers={"Authorization": "Basic hunter2"})
    shown = repr(entra.requests)
    assert CLIENT in shown
    assert "hunter2" not in shown
    assert "signature" not in shown


def test_two_emulators_run_side_by_side(entra: EntraEmulator, http: httpx.Client) -> None:
    with EntraEmulator(clock=lambda: NOW) as other, client(other) as other_http:
        other.register(CLIENT, PEM, tenant=TENANT)
        own = http.post(entra.token_endpoint(TENANT), data=form(assertion(entra)))
        foreign = other_http.post(other.token_endpoint(TENANT), data=form(assertion(entra)))
        assert own.status_code == 200
        assert foreign.json()["error_codes"] == [700023]
        assert (len(entra.requests), len(other.requests)) == (1, 1)
        with pytest.raises(httpx.ConnectError):
            http.get(other.authority)


@pytest.mark.parametrize(
    ("where", "url"),
    [
        # Clients leave a default port out of the audience, which is compared as a string.
        (("https", "127.0.0.1", 443), "https://127.0.0.1"),
        (("http", "localhost", 80), "http://localhost"),
        (("https", "127.0.0.1", 80), "https://127.0.0.1:80"),
        (("https", "::1", 8443), "https://[::1]:8443"),
    ],
)
def test_the_authority_has_no_port_if_it_is_the_default_one(where: tuple[str, str, int], url: str) -> None:
    assert server_url(*where) == url


def test_plain_http_needs_no_ca() -> None:
    with EntraEmulator(https=False, clock=lambda: NOW) as entra, httpx.Client() as http:
        entra.register(CLIENT, PEM, tenant=TENANT)
        assert entra.ca_file is None
        assert entra.authority.startswith("http://127.0.0.1:")
        assert http.post(entra.token_endpoint(TENANT), data=form(assertion(entra))).status_code == 200


def test_after_a_restart_it_has_new_keys() -> None:
    entra = EntraEmulator(clock=lambda: NOW)
    entra.register(CLIENT, PEM, tenant=TENANT)
    key_ids = set()
    for _ in range(2):
        with entra, client(entra) as http:
            key_ids |= {
                key["kid"] for key in http.get(f"{entra.authority}/{TENANT}/discovery/v2.0/keys").json()["keys"]
            }
            assert http.post(entra.token_endpoint(TENANT), data=form(assertion(entra))).status_code == 200
    assert len(key_ids) == 2


def test_stop_removes_the_ca_file() -> None:
    with EntraEmulator() as entra:
        ca_file = entra.ca_file
        assert ca_file is not None
        assert ca_file.is_file()
    assert not ca_file.parent.exists()


def test_stop_closes_idle_connections() -> None:
    with EntraEmulator(https=False) as entra:
        port = httpx.URL(entra.authority).port
        assert port is not None
        silent = socket.create_connection(("127.0.0.1", port))
        with httpx.Client() as http:
            http.get(entra.authority)  # the silent connection was accepted before this one
    with silent:
        silent.settimeout(10)
        try:
            assert silent.recv(1) == b""
        except ConnectionResetError:
            pass


def test_a_host_that_is_not_loopback_is_refused() -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::", "login.microsoftonline.com"):  # noqa: S104 - the point of the test
        with pytest.raises(ConfigError, match="not a loopback address"):
            EntraEmulator(host=host)


def test_ipv6_loopback_is_served() -> None:
    with EntraEmulator(host="::1") as entra, client(entra) as http:
        assert entra.authority.startswith("https://[::1]:")
        assert http.post(entra.token_endpoint(TENANT), data={}).status_code == 400


def test_the_error_about_a_port_in_use_names_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = occupied.getsockname()[1]
        entra = EntraEmulator(port=port)
        with pytest.raises(ConfigError, match=f"127.0.0.1 port {port}: Address already in use"):
            entra.start()


def test_a_second_start_is_refused(entra: EntraEmulator) -> None:
    with pytest.raises(ConfigError, match="running already"):
        entra.start()


def test_a_stopped_emulator_has_no_authority() -> None:
    with pytest.raises(ConfigError, match="not running"):
        _ = EntraEmulator().authority


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        pytest.param(b"nonsense", "in PEM or DER", id="no certificate"),
        pytest.param(
            make_certificate(ec.generate_private_key(ec.SECP256R1())).public_bytes(Encoding.DER), "RSA", id="EC key"
        ),
    ],
)
def test_a_certificate_that_entra_could_not_use_is_not_registered(certificate: bytes, reason: str) -> None:
    entra = EntraEmulator()
    with pytest.raises(ConfigError, match=reason):
        entra.register(CLIENT, certificate, tenant=TENANT)


def test_an_application_cannot_be_registered_with_common() -> None:
    with pytest.raises(ConfigError, match="not the name of one tenant"):
        EntraEmulator().register(CLIENT, PEM, tenant="common")


def test_a_slow_answer_does_not_delay_other_requests(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.answer_next(Slow(3600))

    def wait() -> None:
        with client(entra) as patient, pytest.raises(httpx.TransportError):
            patient.post(entra.token_endpoint(TENANT), data={}, timeout=None)

    thread = threading.Thread(target=wait)
    thread.start()
    while not entra.requests:  # the slow answer is the other thread's
        http.get(entra.authority)
    assert http.post(entra.token_endpoint(TENANT), data=form(assertion(entra))).status_code == 200
    entra.stop()
    thread.join()


def test_it_prints_nothing_logs_nothing_and_changes_no_signal_handler() -> None:
    program = """
import signal, ssl, httpx, logging
from hsm_signer.testing import EntraEmulator, Truncated
before = signal.getsignal(signal.SIGINT)
with EntraEmulator() as entra:
    entra.answer_next(Truncated())
    with httpx.Client(verify=ssl.create_default_context(cafile=entra.ca_file)) as http:
        for _ in range(2):
            try:
                http.post(entra.token_endpoint("contoso.com"), data={})
            except httpx.TransportError:
                pass
    assert signal.getsignal(signal.SIGINT) is before
"""
    ran = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "joserfc", "trustme"])
def test_without_the_testing_extra_the_error_says_what_to_install(package: str) -> None:
    program = f"""
import sys
sys.modules[{package!r}] = None
from hsm_signer.errors import ConfigError
try:
    from hsm_signer.testing import EntraEmulator
except ConfigError as error:
    print(error.message)
    print(error.hint)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    message, hint = ran.stdout.splitlines()
    assert package in message
    assert "pip install 'hsm-signer[testing]'" in hint


def test_importing_the_package_loads_no_web_server() -> None:
    program = "import sys, hsm_signer.testing; print(sorted({'starlette', 'uvicorn', 'joserfc'} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "[]\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    import hsm_signer.testing

    with pytest.raises(AttributeError, match="no attribute 'Emulator'"):
        _ = hsm_signer.testing.Emulator  # type: ignore[attr-defined]
