"""An application that reads and replaces its keys through the emulator's Graph, with other libraries than ours."""

import base64
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jws, jwt
from joserfc.jwk import RSAKey

from hsm_signer.testing import EntraEmulator
from tests.support import certificates
from tests.support.certificates import PrivateKey, common_name
from tests.support.names import CLIENT, OTHER_CLIENT

NOW = 1_800_000_000
TENANT = "contoso.onmicrosoft.com"
AUDIENCE = "00000002-0000-0000-c000-000000000000"


def make_certificate(
    key: PrivateKey, days: tuple[float, float] = (-1, 30), issuer: rsa.RSAPrivateKey | None = None
) -> x509.Certificate:
    """A certificate valid from and until so many days from now; self-signed without an issuer."""
    now = datetime.fromtimestamp(NOW, UTC)
    return certificates.make_certificate(
        key,
        issuer=(common_name("issuer"), issuer) if issuer else None,
        not_before=now + timedelta(days=days[0]),
        not_after=now + timedelta(days=days[1]),
    )


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def x5t(certificate: x509.Certificate) -> str:
    return base64url(hashlib.sha1(der(certificate)).digest())  # noqa: S324 - RFC 7515 section 4.1.7


OLD_KEY, NEW_KEY, EXPIRED_KEY, STRANGE_KEY = (rsa.generate_private_key(65537, 2048) for _ in range(4))
OLD, NEW, STRANGE = make_certificate(OLD_KEY), make_certificate(NEW_KEY), make_certificate(STRANGE_KEY)
EXPIRED = make_certificate(EXPIRED_KEY, (-9, -2))


def sign(
    claims: Mapping[str, object], key: rsa.RSAPrivateKey = OLD_KEY, header: Mapping[str, object] | None = None
) -> str:
    header = {"alg": "RS256", "x5t": x5t(OLD)} if header is None else header
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    registry = jws.JWSRegistry(algorithms=["RS256", "PS256"], strict_check_header=False)
    return jwt.encode(dict(header), dict(claims), RSAKey.import_key(pem), registry=registry)


def sign_by_hand(header: Mapping[str, object], claims: Mapping[str, object]) -> str:
    """Sign an RS256 JWT with the old key and any header, even one that no library would make."""
    signing_input = ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))
    return f"{signing_input}.{base64url(OLD_KEY.sign(signing_input.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


class Clock:
    """A clock that stands still until a test sets it."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Caller:
    """The application with its old key. Its requests are valid except for what a test changes."""

    entra: EntraEmulator
    http: httpx.Client
    kind: str = "applications"
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def object_id(self) -> str:
        find = self.entra.object_id if self.kind == "applications" else self.entra.service_principal_id
        return find(CLIENT, tenant=TENANT)

    @property
    def url(self) -> str:
        return f"{self.entra.graph}/v1.0/{self.kind}/{self.object_id}"

    def ask_token(
        self,
        key: rsa.RSAPrivateKey = OLD_KEY,
        certificate: x509.Certificate = OLD,
        *,
        client_id: str = CLIENT,
        resource: str = "https://graph.microsoft.com",
    ) -> httpx.Response:
        endpoint = self.entra.token_endpoint(TENANT)
        claims = {"aud": endpoint, "iss": client_id, "sub": client_id, "jti": str(uuid.uuid4()),
                  "nbf": NOW, "iat": NOW, "exp": NOW + 3600}  # fmt: skip
        form = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "scope": f"{resource}/.default",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": sign(claims, key, {"alg": "RS256", "x5t": x5t(certificate)}),
        }
        return self.http.post(endpoint, data=form)

    def authorize(self, **changes: str) -> None:
        self.headers["Authorization"] = f"Bearer {self.ask_token(**changes).json()['access_token']}"  # type: ignore[arg-type]

    def claims(self, **changes: object) -> dict[str, object]:
        """The claims of a proof. A change to None leaves one out."""
        right = {"aud": AUDIENCE, "iss": self.object_id, "nbf": NOW, "exp": NOW + 600}
        return {name: value for name, value in (right | changes).items() if value is not None}

    def proof(self, **changes: object) -> str:
        return sign(self.claims(**changes))

    def post(self, action: str, body: object) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self.headers}
        return self.http.post(f"{self.url}/{action}", content=content, headers=headers)

    def body(self, certificate: x509.Certificate = NEW, proof: str | None = None) -> dict[str, object]:
        key = base64.b64encode(der(certificate)).decode()
        credential = {"type": "AsymmetricX509Cert", "usage": "Verify", "key": key}
        return {"keyCredential": credential, "passwordCredential": None, "proof": proof or self.proof()}

    def add(self, certificate: x509.Certificate = NEW, proof: str | None = None) -> httpx.Response:
        return self.post("addKey", self.body(certificate, proof))

    def remove(self, key_id: str, proof: str | None = None) -> httpx.Response:
        return self.post("removeKey", {"keyId": key_id, "proof": proof or self.proof()})

    def read(self, path: str | None = None, **query: str) -> httpx.Response:
        return self.http.get(path or self.url, params=query, headers=self.headers)

    def held(self) -> set[x509.Certificate]:
        """Return the certificates that the object has, according to the emulator itself."""
        own = {"service_principal": True} if self.kind == "servicePrincipals" else {}
        return {found.certificate for found in self.entra.key_credentials(CLIENT, tenant=TENANT, **own)}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def entra(clock: Clock) -> Iterator[EntraEmulator]:
    with EntraEmulator(https=False, clock=clock) as emulator:
        for certificate in (OLD, EXPIRED):
            emulator.register(CLIENT, der(certificate), tenant=TENANT)
        emulator.register(OTHER_CLIENT, der(OLD), tenant=TENANT)
        yield emulator


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=10) as client:
        yield client


@pytest.fixture
def caller(entra: EntraEmulator, http: httpx.Client) -> Caller:
    caller = Caller(entra, http)
    caller.authorize()
    return caller


@pytest.fixture
def principal(entra: EntraEmulator, caller: Caller) -> Caller:
    """The same caller, whose service principal has the old certificate."""
    entra.register(CLIENT, der(OLD), tenant=TENANT, service_principal=True)
    return Caller(entra, caller.http, "servicePrincipals", caller.headers)


def code(response: httpx.Response) -> tuple[int, str]:
    """Return the HTTP status and Graph's error code of an answer, which must be a complete error document."""
    error = response.json()["error"]
    assert error["message"]
    assert set(error["innerError"]) == {"date", "request-id", "client-request-id"}
    return response.status_code, error["code"]


def reason(response: httpx.Response) -> str:
    """Return why a proof was refused."""
    assert code(response) == (401, "Authentication_MissingOrMalformed")
    assert response.json()["error"]["message"] == "Access Token missing or malformed."
    (detail,) = response.json()["error"]["details"]
    assert detail["target"] == "proof"
    return str(detail["message"])
