"""The Graph client: it sends what Graph documents, understands the answers, and explains refusals."""

import base64
import json
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from hsm_signer.entra.graph import Graph, Holder, KeyCredential, Registration
from hsm_signer.entra.graph_service import GraphService
from hsm_signer.entra.http import HttpClient
from hsm_signer.errors import EntraError, NetworkError
from hsm_signer.system.secret import Secret
from hsm_signer.x509.certificate import Certificate, parse_certificates
from tests.support.names import CLIENT

KEY_ID = "11111111-2222-3333-4444-555555555555"
TOKEN, PROOF = "bearer-token-4711", "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJhIn0.c2lnbmF0dXJl"

Serve = Callable[..., int]


def answer(document: object, status: str = "200 OK") -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def refusal(code: str, message: str = "No.", status: str = "400 Bad Request") -> bytes:
    return answer({"error": {"code": code, "message": message, "innerError": {"request-id": KEY_ID}}}, status)


def graph(port: int, holder: Holder = Holder.APPLICATION) -> Graph:
    service = GraphService(f"http://127.0.0.1:{port}", "https://graph.microsoft.com/.default")
    return Graph(service, CLIENT, holder, HttpClient(timeout=5), lambda: Secret(TOKEN))


@pytest.fixture(scope="session")
def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


@pytest.fixture(scope="session")
def ours(der: bytes) -> Certificate:
    (parsed,) = parse_certificates(der, "the test")
    return parsed


@pytest.mark.parametrize("holder", Holder)
def test_an_application_and_its_service_principal_are_addressed_by_the_client_id(
    serve: Serve, received: list[bytes], holder: Holder
) -> None:
    graph(serve(answer({"id": "object", "keyCredentials": []})), holder).registration()
    assert received[0].startswith(f"GET /v1.0/{holder}(appId='{CLIENT}')?$select=id,keyCredentials ".encode())
    assert f"Authorization: Bearer {TOKEN}".encode() in received[0]


def test_a_certificate_is_added_as_graph_documents_it(serve: Serve, received: list[bytes], der: bytes) -> None:
    added = graph(serve(answer({"keyId": KEY_ID}))).add_key(der, Secret(PROOF))
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(f"POST /v1.0/applications(appId='{CLIENT}')/addKey ".encode())
    assert json.loads(body) == {
        "keyCredential": {"type": "AsymmetricX509Cert", "usage": "Verify", "key": base64.b64encode(der).decode()},
        "passwordCredential": None,
        "proof": PROOF,
    }
    assert added.key_id == KEY_ID


def test_a_credential_is_removed_by_its_id(serve: Serve, received: list[bytes]) -> None:
    graph(serve(answer(b"", "204 No Content"))).remove_key(KEY_ID, Secret(PROOF))
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(f"POST /v1.0/applications(appId='{CLIENT}')/removeKey ".encode())
    assert json.loads(body) == {"keyId": KEY_ID, "proof": PROOF}


@pytest.mark.parametrize("form", ["hexadecimal", "base64", "key"])
def test_a_registered_certificate_is_found_by_either_form_of_its_thumbprint_or_its_content(
    serve: Serve, certificate: x509.Certificate, ours: Certificate, der: bytes, form: str
) -> None:
    thumbprint = certificate.fingerprint(hashes.SHA1())  # noqa: S303  # SHA-1 identifies the certificate, and protects nothing
    entry = {
        "hexadecimal": {"customKeyIdentifier": thumbprint.hex().upper()},
        "base64": {"customKeyIdentifier": base64.b64encode(thumbprint).decode()},
        "key": {"key": base64.b64encode(der).decode(), "customKeyIdentifier": "another"},
    }[form]
    other = {"keyId": "other", "customKeyIdentifier": None, "key": None}
    document = {"id": "object", "keyCredentials": [other, {"keyId": KEY_ID, **entry}]}
    registration = graph(serve(answer(document))).registration()
    assert registration.find(ours) == KEY_ID
    assert registration.key_ids == {"other", KEY_ID}


def test_a_certificate_that_is_not_registered_is_not_found(ours: Certificate) -> None:
    assert Registration("object", (KeyCredential("other", b"", b""),)).find(ours) is None


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("Authentication_MissingOrMalformed", "--object-id"),
        ("InvalidAuthenticationToken", "--cloud"),
        ("Authorization_RequestDenied", "Application.Read.All"),
        ("Request_ResourceNotFound", "--service-principal"),
        ("CredentialInvalidLifetimeAsPerAppPolicy", "--days"),
        ("CredentialIssuerNotAllowedAsPerAppPolicy", "from a trusted CA"),
        ("SomethingNew", "learn.microsoft.com"),
    ],
)
def test_the_hint_of_a_refusal_says_what_to_do(serve: Serve, der: bytes, code: str, hint: str) -> None:
    with pytest.raises(EntraError) as caught:
        graph(serve(refusal(code))).add_key(der, Secret(PROOF))
    error = caught.value
    assert (error.error, error.correlation_id, error.exit_status) == (code, KEY_ID, 7)
    assert error.hint is not None
    assert hint in error.hint


@pytest.mark.parametrize("echo", [PROOF, PROOF.split(".")[1], TOKEN, "eyJ0eXAiOiJKV1QifQ.e30.c2ln"])
def test_the_error_of_a_refusal_does_not_repeat_the_request(serve: Serve, echo: str) -> None:
    with pytest.raises(EntraError) as caught:
        graph(serve(refusal("Request_BadRequest", f"Bad: {echo} \x1b[31m"))).remove_key(KEY_ID, Secret(PROOF))
    assert echo not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "nonsense",
    [
        pytest.param(b"<html>", id="HTML"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b"{}", id="empty"),
        pytest.param(b'{"id": 1, "keyCredentials": []}', id="id is no text"),
        pytest.param(b'{"id": "a", "keyCredentials": {}}', id="no list"),
        pytest.param(b'{"id": "a", "keyCredentials": [1]}', id="entry is no object"),
        pytest.param(b'{"id": "a", "keyCredentials": [{"key": "a"}]}', id="entry without an id"),
    ],
)
def test_an_invalid_answer_is_an_error(serve: Serve, nonsense: bytes) -> None:
    with pytest.raises(NetworkError, match="The answer of 127"):
        graph(serve(answer(nonsense))).registration()
