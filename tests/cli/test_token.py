"""`token` and `assertion`: the result in every form, on stdout and in files."""

import json
import os
import shlex
import ssl
import time
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwt as jose
from joserfc.jwk import KeySet, RSAKey

from hsm_signer.testing import EntraEmulator, Refused
from tests.cli.conftest import key_uri
from tests.support.names import CLIENT, PIN, TENANT, WRONG_PIN
from tests.support.program import Program, Settings, assert_explained, options


def require_token(text: str, entra: EntraEmulator) -> None:
    """Assert that `text` is a token for us, as any API would: with the keys that its issuer publishes."""
    trust = ssl.create_default_context(cafile=entra.ca_file)
    url = f"{entra.authority}/{TENANT}/discovery/v2.0/keys"
    keys = KeySet.import_key_set(httpx.get(url, verify=trust, trust_env=False).json())
    claims = jose.decode(text, keys, algorithms=["RS256"]).claims
    assert (claims["aud"], claims["azp"]) == ("https://graph.microsoft.com", CLIENT)


def test_token_prints_the_bare_token_and_nothing_else(
    program: Program, exchange: Settings, entra: EntraEmulator
) -> None:
    result = program("token", *options(exchange))
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.endswith("\n")
    require_token(result.stdout.removesuffix("\n"), entra)


def test_token_asks_entra_once(program: Program, exchange: Settings, entra: EntraEmulator) -> None:
    before = len(entra.requests)
    program("token", *options(exchange))
    assert [request.status for request in entra.requests[before:]] == [200]


def test_token_as_json_has_the_documented_keys(program: Program, exchange: Settings, entra: EntraEmulator) -> None:
    document = program("token", *options(exchange), "-o", "json").json
    assert list(document) == [
        *("access_token", "token_type", "expires_in", "expires_on", "scope", "tenant", "client_id", "authority")
    ]
    require_token(document.pop("access_token"), entra)
    expires_in, expires_on = document.pop("expires_in"), document.pop("expires_on")
    assert type(expires_in) is type(expires_on) is int
    assert 3500 < expires_in <= 3599
    assert abs(expires_on - expires_in - time.time()) < 30
    assert document == {
        "token_type": "Bearer",
        "scope": exchange["scope"],
        "tenant": TENANT,
        "client_id": CLIENT,
        "authority": entra.authority,
    }


def test_token_as_a_header_is_ready_for_curl(program: Program, exchange: Settings, entra: EntraEmulator) -> None:
    header = program("token", *options(exchange), "-o", "header").stdout
    assert header.startswith("Authorization: Bearer ")
    require_token(header.removeprefix("Authorization: Bearer ").removesuffix("\n"), entra)


def test_token_as_an_exec_credential_is_what_kubectl_reads(
    program: Program, exchange: Settings, entra: EntraEmulator
) -> None:
    document = program("token", *options(exchange), "-o", "exec-credential").json
    status = document.pop("status")
    assert document == {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
    assert list(status) == ["token", "expirationTimestamp"]
    require_token(status["token"], entra)
    # client-go reads it as RFC 3339.
    assert 3500 < datetime.fromisoformat(status["expirationTimestamp"]).timestamp() - time.time() <= 3600


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1"),
        ("client.authentication.k8s.io/v1beta1", "client.authentication.k8s.io/v1beta1"),
        ("client.authentication.k8s.io/v7", "client.authentication.k8s.io/v1"),
        (None, "client.authentication.k8s.io/v1"),
    ],
)
def test_an_exec_credential_has_the_version_that_kubectl_asks_for(
    program: Program, exchange: Settings, asked: str | None, given: str
) -> None:
    # client-go says so in this variable, and takes no other version.
    info = json.dumps({"apiVersion": asked, "kind": "ExecCredential", "spec": {"interactive": False}}) if asked else "?"
    arguments = ("token", *options(exchange), "-o", "exec-credential")
    document = program(*arguments, environment={"KUBERNETES_EXEC_INFO": info}).json
    assert document["apiVersion"] == given


@pytest.mark.parametrize("info", ["[" * 50_000, "[1]", '"text"', '{"apiVersion": [{}]}', "9" * 5000])
def test_an_exec_credential_is_printed_whatever_kubectl_s_variable_holds(
    program: Program, exchange: Settings, info: str
) -> None:
    result = program("token", *options(exchange), "-o", "exec-credential", environment={"KUBERNETES_EXEC_INFO": info})
    assert (result.status, result.stderr) == (0, "")
    assert result.json["apiVersion"] == "client.authentication.k8s.io/v1"


def test_a_refusal_by_entra_carries_its_number_and_correlation_id(
    program: Program, exchange: Settings, entra: EntraEmulator
) -> None:
    result = program("token", *options(exchange, client_id="00000000-1111-4222-8333-444444444444"), "-o", "json")
    assert result.status == 7
    assert result.stdout == ""
    assert result.error["code"] == "entra_error"
    assert result.error["aadsts"] == 700016
    assert result.error["correlation_id"] == entra.requests[-1].headers["client-request-id"]


def test_a_refusal_by_entra_shows_people_the_correlation_id(
    program: Program, exchange: Settings, entra: EntraEmulator
) -> None:
    entra.answer_next(Refused(53003, "access_denied", "Access has been blocked."))
    result = program("token", *options(exchange))
    assert result.status == 7
    what, how, which = result.stderr.splitlines()
    assert "AADSTS53003" in what
    assert how.startswith("hint: ")
    assert which == f"correlation id: {entra.requests[-1].headers['client-request-id']}"


def test_an_unregistered_certificate_is_named_as_the_portal_shows_it(
    program: Program, exchange: Settings, entra: EntraEmulator, certificate: Path
) -> None:
    unknown = Refused(700027, "invalid_client", "The certificate is unknown.")
    entra.answer_next(unknown)
    result = program("token", *options(exchange))
    assert result.status == 7
    _, hint, command, _ = result.stderr.splitlines()
    known = x509.load_der_x509_certificate(certificate.read_bytes())
    assert f" {known.subject.rfc4514_string()} " in hint
    assert known.fingerprint(hashes.SHA1()).hex().upper() in hint  # noqa: S303  # as the portal does
    assert f"App registrations > the app {CLIENT} > Certificates & secrets" in hint
    name, *words = shlex.split(command, comments=True)
    assert name == "hsm-signer"
    assert program(*words).status == 0
    assert x509.load_pem_x509_certificate((program.directory / "app.pem").read_bytes()) == known


def test_an_unregistered_certificate_from_a_file_names_the_file(
    program: Program, exchange: Settings, entra: EntraEmulator, certificate: Path
) -> None:
    entra.answer_next(Refused(700027, "invalid_client", "The certificate is unknown."))
    result = program("token", *options(exchange, certificate=str(certificate)), "-o", "json")
    assert str(certificate) in result.error["hint"]
    assert "commands" not in result.error


def test_an_unreachable_endpoint_is_a_network_error(program: Program, exchange: Settings) -> None:
    result = program("token", *options(exchange, authority="http://127.0.0.1:1", network_timeout="1"))
    assert_explained(result, 6, "network_error")


@pytest.mark.parametrize("setting", ["tenant", "scope"])
def test_what_is_missing_can_be_given_in_every_way_the_hint_names(
    program: Program, exchange: Settings, setting: str
) -> None:
    result = program("token", *options(exchange, **{"authority": None, setting: None}))
    assert_explained(result, 2, "config_error")
    hint = result.stderr.splitlines()[1]
    name = setting.upper()
    assert f"--{setting.replace('_', '-')}" in hint
    assert f"HSM_SIGNER_{name}" in hint
    assert f"{setting} in a profile" in hint


@pytest.mark.parametrize(("algorithm", "thumbprint"), [("RS256", "x5t"), ("PS256", "x5t#S256")])
def test_assertion_prints_a_jwt_that_another_library_verifies(
    program: Program, signing: Settings, certificate: Path, algorithm: str, thumbprint: str
) -> None:
    result = program("assertion", *options(signing, algorithm=algorithm))
    assert (result.status, result.stderr) == (0, "")
    public_key = x509.load_der_x509_certificate(certificate.read_bytes()).public_key()
    pem = public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    token = jose.decode(result.stdout.removesuffix("\n"), RSAKey.import_key(pem), algorithms=["RS256", "PS256"])
    assert thumbprint in token.header
    assert token.claims["iss"] == token.claims["sub"] == CLIENT


def test_assertion_as_json_shows_header_claims_and_the_jwt_they_are_from(program: Program, signing: Settings) -> None:
    document = program("assertion", *options(signing, lifetime="300"), "-o", "json").json
    assert list(document) == ["header", "claims", "jwt"]
    assert document["header"]["alg"] == "RS256"
    assert document["claims"]["aud"] == f"https://login.microsoftonline.com/{TENANT}/oauth2/v2.0/token"
    assert document["claims"]["exp"] - document["claims"]["nbf"] == 300
    decoded = program("decode", document["jwt"], "-o", "json").json
    assert decoded == {"header": document["header"], "claims": document["claims"]}


@pytest.mark.parametrize("command", ["token", "assertion"])
def test_an_output_file_holds_the_result_alone_and_only_its_owner_can_read_it(
    program: Program, exchange: Settings, signing: Settings, command: str
) -> None:
    settings = exchange if command == "token" else signing
    open_to_all = ("sh", "-c", 'umask 0; exec "$@"', "sh")
    result = program(command, *options(settings), "--output-file", "result", within=open_to_all)
    assert (result.status, result.stdout, result.stderr) == (0, "", "")
    file = program.directory / "result"
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(file.read_text().split(".")) == 3
    # SDKs post the text of an assertion file untrimmed.
    assert not file.read_text()[-1].isspace()


def test_an_output_file_is_replaced_while_its_readers_keep_the_old_one_whole(
    program: Program, signing: Settings
) -> None:
    file = program.directory / "result"
    file.write_text("as before")
    with file.open() as reader:
        result = program("assertion", *options(signing), "-o", "json", "--output-file", "result")
        assert result.status == 0
        assert reader.read() == "as before"
    assert list(json.loads(file.read_text())) == ["header", "claims", "jwt"]


@pytest.mark.parametrize(
    ("command", "changes", "environment", "status"),
    [
        pytest.param("assertion", {"key": key_uri("expired")}, {}, 5, id="expired certificate"),
        pytest.param("assertion", {"key": "pkcs11:token=spare"}, {"DEVICE_PIN": WRONG_PIN}, 4, id="wrong PIN"),
        pytest.param("token", {"client_id": "nobody"}, {"DEVICE_PIN": PIN}, 7, id="refused by Entra"),
    ],
)
def test_a_failure_leaves_the_output_file_as_it_was_and_nothing_beside_it(
    program: Program,
    exchange: Settings,
    signing: Settings,
    command: str,
    changes: Settings,
    environment: Settings,
    status: int,
) -> None:
    settings = exchange if command == "token" else signing
    file = program.directory / "result"
    file.write_text("as before")
    result = program(command, *options({**settings, **changes}), "--output-file", "result", environment=environment)
    assert result.status == status
    assert file.read_text() == "as before"
    assert os.listdir(program.directory) == ["result"]
