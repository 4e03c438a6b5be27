"""What the emulator refuses, seen from outside: one wrong thing a request, over https."""

import base64
import hashlib
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jwt
from joserfc.jwk import RSAKey

from hsm_signer.testing import EntraEmulator
from tests.support.names import CLIENT, OTHER_CLIENT
from tests.testing.conftest import NOW, make_certificate

TENANT = "3fb4a1c6-52c5-4a0b-9d4e-0d7f4a7e6c11"


def _make_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _thumbprint(certificate: x509.Certificate, algorithm: str) -> str:
    return _encode(hashlib.new(algorithm, certificate.public_bytes(Encoding.DER)).digest())


KEY, OTHER_KEY, EXPIRED_KEY, SMALL_KEY = _make_key(), _make_key(), _make_key(), _make_key(1024)
CERTIFICATE, OTHER_CERTIFICATE = make_certificate(KEY), make_certificate(OTHER_KEY)
EXPIRED_CERTIFICATE, SMALL_CERTIFICATE = make_certificate(EXPIRED_KEY, (-9, -2)), make_certificate(SMALL_KEY)
SHA1, SHA256 = _thumbprint(CERTIFICATE, "sha1"), _thumbprint(CERTIFICATE, "sha256")


@pytest.fixture(scope="module")
def entra() -> Iterator[EntraEmulator]:
    with EntraEmulator(clock=lambda: NOW) as emulator:
        for certificate in (CERTIFICATE, EXPIRED_CERTIFICATE, SMALL_CERTIFICATE):
            emulator.register(CLIENT, certificate.public_bytes(Encoding.PEM), tenant=TENANT)
            emulator.register(CLIENT, certificate.public_bytes(Encoding.DER), tenant="adfs")
        yield emulator


@pytest.fixture(scope="module")
def http(entra: EntraEmulator) -> Iterator[httpx.Client]:
    with httpx.Client(verify=ssl.create_default_context(cafile=entra.ca_file)) as client:
        yield client


@dataclass(frozen=True)
class Caller:
    """Makes a request that is right but for what a test changes. A change to None leaves the thing out."""

    entra: EntraEmulator
    http: httpx.Client
    tenant: str = TENANT
    headers: Mapping[str, str] = field(default_factory=dict)

    def claims(self, **changes: object) -> dict[str, object]:
        right = {
            "aud": self.entra.token_endpoint(self.tenant),
            "iss": CLIENT,
            "sub": CLIENT,
            "jti": "5e1c7d8e",
            "nbf": NOW,
            "iat": NOW,
            "exp": NOW + 600,
        }
        return {name: value for name, value in (right | changes).items() if value is not None}

    def post(self, assertion: str, **changes: str | None) -> httpx.Response:
        right = {
            "grant_type": "client_credentials",
            "client_id": CLIENT,
            "scope": "https://graph.microsoft.com/.default",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": assertion,
        }
        form = {name: value for name, value in (right | changes).items() if value is not None}
        return self.http.post(self.entra.token_endpoint(self.tenant), data=form, headers=dict(self.headers))

    def post_claims(self, **changes: object) -> httpx.Response:
        return self.post(by_joserfc({"alg": "RS256", "x5t": SHA1}, self.claims(**changes)))

    def post_header(self, **changes: object) -> httpx.Response:
        header = {"alg": "RS256", "typ": "JWT", "x5t": SHA1} | changes
        return self.post(
            by_hand({name: value for name, value in header.items() if value is not None}, self.claims(), KEY)
        )

    def post_form(self, **changes: str | None) -> httpx.Response:
        return self.post(by_joserfc({"alg": "RS256", "x5t": SHA1}, self.claims()), **changes)


@pytest.fixture
def caller(entra: EntraEmulator, http: httpx.Client) -> Caller:
    return Caller(entra, http)


def by_joserfc(header: dict[str, str], claims: dict[str, object], key: rsa.RSAPrivateKey = KEY) -> str:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return jwt.encode(header, claims, RSAKey.import_key(pem), algorithms=[header["alg"]])


def by_hand(header: Mapping[str, object] | bytes, claims: Mapping[str, object] | bytes, key: rsa.RSAPrivateKey) -> str:
    """An RS256 JWT of any header and claims, for what no library would make."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    signing_input = ".".join(map(_encode, parts))
    return f"{signing_input}.{_encode(key.sign(signing_input.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def refusal(response: httpx.Response) -> tuple[int, str, int]:
    """AADSTS number, OAuth error and HTTP status of an answer that is an error document in every part."""
    document = response.json()
    (number,) = document["error_codes"]
    assert document["error_description"].startswith(f"AADSTS{number}: ")
    return number, document["error"], response.status_code


def test_the_request_that_the_other_tests_change_is_accepted(caller: Caller) -> None:
    assert caller.post_form().status_code == 200


def test_an_error_document_has_the_same_members_as_entras(entra: EntraEmulator, http: httpx.Client) -> None:
    correlation_id = "2f0c6f47-4b2c-4d55-8f36-7a9f6a2f2b10"
    document = Caller(entra, http, headers={"client-request-id": correlation_id}).post_claims(aud="elsewhere").json()
    trace_id, timestamp = document["trace_id"], document["timestamp"]
    assert document.pop("error_description").endswith(
        f" Trace ID: {trace_id} Correlation ID: {correlation_id} Timestamp: {timestamp}"
    )
    assert document == {
        "error": "invalid_client",
        "error_codes": [700023],
        "timestamp": "2027-01-15 08:00:00Z",
        "trace_id": trace_id,
        "correlation_id": correlation_id,
        "error_uri": f"{entra.authority}/error?code=700023",
    }


@pytest.mark.parametrize(
    ("tenant", "expected"),
    [
        pytest.param("fabrikam.onmicrosoft.com", (90002, "invalid_request", 400), id="unknown domain"),
        pytest.param("00000000-1111-2222-3333-444444444444", (90002, "invalid_request", 400), id="unknown id"),
        pytest.param("fabrikam", (900023, "invalid_request", 400), id="neither id nor domain"),
        pytest.param("common", (50059, "invalid_request", 400), id="no single tenant"),
    ],
)
def test_an_unknown_tenant_is_refused(
    entra: EntraEmulator, http: httpx.Client, tenant: str, expected: tuple[int, str, int]
) -> None:
    assert refusal(Caller(entra, http, tenant).post_form()) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"grant_type": "password"}, (70003, "unsupported_grant_type", 400), id="wrong grant type"),
        pytest.param({"grant_type": None}, (900144, "invalid_request", 400), id="no grant type"),
        pytest.param({"client_id": None}, (900144, "invalid_request", 400), id="no client id"),
        pytest.param({"client_id": OTHER_CLIENT}, (700016, "unauthorized_client", 400), id="unknown client"),
        pytest.param({"client_assertion_type": None}, (900144, "invalid_request", 400), id="no assertion type"),
        pytest.param({"client_assertion_type": "jwt"}, (90011, "invalid_request", 400), id="wrong assertion type"),
        pytest.param({"client_assertion": None}, (7000216, "invalid_client", 401), id="no assertion"),
        pytest.param({"client_secret": "hunter2"}, (7000215, "invalid_client", 401), id="a secret"),
        pytest.param({"scope": None}, (90014, "invalid_request", 400), id="no scope"),
        pytest.param(
            {"scope": "https://graph.microsoft.com/User.Read"},
            (1002012, "invalid_scope", 400),
            id="scope without /.default",
        ),
        pytest.param({"scope": "/.default"}, (1002012, "invalid_scope", 400), id="scope without resource"),
        pytest.param(
            {"scope": "openid offline_access profile"}, (1002012, "invalid_scope", 400), id="scopes of a user only"
        ),
        pytest.param(
            {"scope": "https://graph.microsoft.com/.default email"},
            (1002012, "invalid_scope", 400),
            id="scope of a user that MSAL does not append",
        ),
        pytest.param(
            {"scope": "https://graph.microsoft.com/.default https://vault.azure.net/.default"},
            (70011, "invalid_scope", 400),
            id="two resources",
        ),
        pytest.param(
            {"scope": "https://fabrikam.example/.default"}, (500011, "invalid_resource", 400), id="unknown resource"
        ),
    ],
)
def test_an_invalid_form_is_refused(
    caller: Caller, changes: dict[str, str | None], expected: tuple[int, str, int]
) -> None:
    assert refusal(caller.post_form(**changes)) == expected


def test_a_parameter_that_is_given_twice_is_refused(caller: Caller) -> None:
    response = caller.http.post(
        caller.entra.token_endpoint(TENANT),
        content="grant_type=client_credentials&grant_type=client_credentials",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert refusal(response) == (90013, "invalid_request", 400)


def test_a_form_in_json_is_refused(caller: Caller) -> None:
    response = caller.http.post(caller.entra.token_endpoint(TENANT), json={"grant_type": "client_credentials"})
    assert refusal(response) == (900144, "invalid_request", 400)


def test_a_get_is_refused(caller: Caller) -> None:
    assert refusal(caller.http.get(caller.entra.token_endpoint(TENANT))) == (900561, "invalid_request", 400)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"x5t": None}, (5002723, "invalid_client", 401), id="no thumbprint"),
        pytest.param(
            {"x5t": _thumbprint(OTHER_CERTIFICATE, "sha1")}, (700027, "invalid_client", 401), id="unknown thumbprint"
        ),
        pytest.param({"x5t": SHA256}, (700027, "invalid_client", 401), id="SHA-256 in x5t"),
        pytest.param(
            {"x5t": base64.urlsafe_b64decode(SHA1 + "=").hex()}, (700027, "invalid_client", 401), id="x5t in hex"
        ),
        pytest.param({"x5t": SHA1 + "="}, (50027, "invalid_request", 400), id="padded thumbprint"),
        pytest.param({"x5t": 20}, (50027, "invalid_request", 400), id="thumbprint no string"),
        pytest.param(
            {"x5t#S256": _thumbprint(OTHER_CERTIFICATE, "sha256")},
            (700027, "invalid_client", 401),
            id="thumbprints of two certificates",
        ),
        pytest.param(
            {"x5t": None, "x5t#S256": SHA256}, (5002738, "invalid_client", 401), id="RS256 with x5t#S256 alone"
        ),
        pytest.param({"alg": "ES256"}, (5002738, "invalid_client", 401), id="EC algorithm"),
        pytest.param({"alg": "HS256"}, (5002738, "invalid_client", 401), id="symmetric algorithm"),
        pytest.param({"alg": "none"}, (5002738, "invalid_client", 401), id="no signature"),
        pytest.param({"alg": None}, (5002738, "invalid_client", 401), id="no algorithm"),
        pytest.param({"alg": ["RS256"]}, (5002738, "invalid_client", 401), id="algorithm no string"),
        pytest.param({"alg": "PS256"}, (5002738, "invalid_client", 401), id="PS256 with x5t alone"),
        pytest.param({"typ": None}, (5002727, "invalid_request", 400), id="no type"),
        pytest.param({"typ": "at+jwt"}, (5002727, "invalid_request", 400), id="another type"),
        pytest.param({"crit": ["b64"], "b64": False}, (50027, "invalid_request", 400), id="critical extension"),
        pytest.param({"x5c": []}, (50027, "invalid_request", 400), id="empty chain"),
        pytest.param({"x5c": ["MIIB"]}, (50027, "invalid_request", 400), id="chain of nonsense"),
        pytest.param({"x5c": [5]}, (50027, "invalid_request", 400), id="chain of numbers"),
        pytest.param(
            {"x5c": [base64.b64encode(OTHER_CERTIFICATE.public_bytes(Encoding.DER)).decode()]},
            (50027, "invalid_request", 400),
            id="chain of another certificate",
        ),
        pytest.param(
            {
                "x5c": [
                    base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
                    for certificate in (CERTIFICATE, OTHER_CERTIFICATE)
                ]
            },
            (50027, "invalid_request", 400),
            id="chain out of order",
        ),
    ],
)
def test_an_invalid_header_is_refused(
    caller: Caller, changes: dict[str, object], expected: tuple[int, str, int]
) -> None:
    assert refusal(caller.post_header(**changes)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {"aud": "https://login.microsoftonline.com/common"}, (700023, "invalid_client", 401), id="wrong audience"
        ),
        pytest.param({"iss": OTHER_CLIENT, "sub": OTHER_CLIENT}, (700021, "invalid_client", 401), id="another issuer"),
        pytest.param({"sub": OTHER_CLIENT}, (50048, "invalid_client", 401), id="another subject"),
        pytest.param({"jti": ""}, (50027, "invalid_request", 400), id="empty jti"),
        pytest.param({"jti": 7}, (50027, "invalid_request", 400), id="jti no string"),
        pytest.param({"aud": ["a", "b"]}, (50027, "invalid_request", 400), id="array of audiences"),
        pytest.param({"nbf": NOW - 600, "exp": NOW}, (700024, "invalid_client", 401), id="expired"),
        pytest.param({"nbf": NOW + 1}, (700024, "invalid_client", 401), id="not yet valid"),
        pytest.param({"exp": NOW + 86401}, (700024, "invalid_client", 401), id="lifetime over a day"),
        pytest.param(
            {"nbf": 10**20, "exp": 10**20 + 600}, (700024, "invalid_client", 401), id="after the end of the calendar"
        ),
        *(
            pytest.param({name: None}, (90014, "invalid_request", 400), id=f"no {name}")
            for name in ("aud", "iss", "sub", "jti", "nbf", "iat", "exp")
        ),
        *(
            pytest.param({name: wrong}, (50027, "invalid_request", 400), id=f"{name} is a {type(wrong).__name__}")
            for name in ("nbf", "iat", "exp")
            for wrong in (NOW + 0.5, float(NOW), str(NOW), True)
        ),
    ],
)
def test_invalid_claims_are_refused(caller: Caller, changes: dict[str, object], expected: tuple[int, str, int]) -> None:
    assert refusal(caller.post_claims(**changes)) == expected


def test_the_last_second_and_the_longest_lifetime_are_accepted(caller: Caller) -> None:
    assert caller.post_claims(nbf=NOW - 86399, exp=NOW + 1).status_code == 200


def test_a_string_that_is_not_a_jwt_is_refused(caller: Caller) -> None:
    assert refusal(caller.post("not.a-jwt")) == (50027, "invalid_request", 400)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_padded_base64url_is_refused(caller: Caller, part: int) -> None:
    parts = by_hand(b'{"alg": "RS256", "typ": "JWT", "x5t": "%b"}' % SHA1.encode(), caller.claims(), KEY).split(".")
    parts[part] += "=" * (-len(parts[part]) % 4 or 4)
    assert refusal(caller.post(".".join(parts))) == (50027, "invalid_request", 400)


def test_a_claim_that_is_given_twice_is_refused(caller: Caller) -> None:
    claims = json.dumps(caller.claims())[:-1] + f', "exp": {NOW + 600}}}'
    assertion = by_hand({"alg": "RS256", "typ": "JWT", "x5t": SHA1}, claims.encode(), KEY)
    assert refusal(caller.post(assertion)) == (50027, "invalid_request", 400)


def test_a_signature_by_another_key_is_refused(caller: Caller) -> None:
    assertion = by_joserfc({"alg": "RS256", "x5t": SHA1}, caller.claims(), OTHER_KEY)
    assert refusal(caller.post(assertion)) == (700027, "invalid_client", 401)


def test_a_signature_with_the_padding_of_another_algorithm_is_refused(caller: Caller) -> None:
    assertion = by_hand({"alg": "PS256", "typ": "JWT", "x5t#S256": SHA256}, caller.claims(), KEY)
    assert refusal(caller.post(assertion)) == (700027, "invalid_client", 401)


def test_claims_that_were_changed_after_signing_are_refused(caller: Caller) -> None:
    header, _, signature = by_joserfc({"alg": "RS256", "x5t": SHA1}, caller.claims()).split(".")
    changed = _encode(json.dumps(caller.claims(jti="another")).encode())
    assert refusal(caller.post(f"{header}.{changed}.{signature}")) == (700027, "invalid_client", 401)


def test_a_key_of_fewer_than_2048_bits_is_refused(caller: Caller) -> None:
    header = {"alg": "RS256", "typ": "JWT", "x5t": _thumbprint(SMALL_CERTIFICATE, "sha1")}
    assert refusal(caller.post(by_hand(header, caller.claims(), SMALL_KEY))) == (700027, "invalid_client", 401)


def test_an_expired_certificate_is_refused(caller: Caller) -> None:
    header = {"alg": "RS256", "x5t": _thumbprint(EXPIRED_CERTIFICATE, "sha1")}
    assertion = by_joserfc(header, caller.claims(), EXPIRED_KEY)
    assert refusal(caller.post(assertion)) == (1000502, "invalid_client", 401)


def test_ps256_is_refused_by_ad_fs(entra: EntraEmulator, http: httpx.Client) -> None:
    caller = Caller(entra, http, "adfs")
    assertion = by_joserfc({"alg": "PS256", "x5t#S256": SHA256}, caller.claims())
    assert refusal(caller.post(assertion)) == (5002738, "invalid_client", 401)


def test_no_refusal_repeats_the_assertion(caller: Caller) -> None:
    assertion = by_joserfc({"alg": "RS256", "x5t": SHA1}, caller.claims(), OTHER_KEY)
    assert all(part not in caller.post(assertion).text for part in assertion.split("."))
