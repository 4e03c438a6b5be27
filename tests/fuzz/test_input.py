"""Any input of a user, a file or the environment soon gives a value or one of our own errors.

Each `example` is an input that failed once, and was fixed.
"""

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from hsm_signer.cli.commands.token import _exec_credential_version
from hsm_signer.cli.text.certificate import certificate_json, certificate_text
from hsm_signer.cli.text.jwt import jwt_text
from hsm_signer.cli.text.layout import to_json
from hsm_signer.config.keyfile import read_key_file
from hsm_signer.config.profile import load_profile
from hsm_signer.config.settings import SETTINGS
from hsm_signer.crypto import Algorithm
from hsm_signer.device import module_search
from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.pin.parse import parse_pin_source
from hsm_signer.device.pin.refusals import PinRecord, forget_failures
from hsm_signer.device.pin.sources import FixedLogin
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.entra import route
from hsm_signer.entra.aadsts import lookup, parse_code
from hsm_signer.entra.authority import resolve_endpoint
from hsm_signer.entra.graph_service import resolve_graph
from hsm_signer.entra.scopes import check_scopes
from hsm_signer.jwt.compact import parse_jwt
from hsm_signer.jwt.verification import check_assertion
from hsm_signer.system.display import displayable
from hsm_signer.x509.certificate import is_attestation, parse_certificates
from hsm_signer.x509.issuance import parse_subject
from hsm_signer.x509.requirements import require_usable
from tests.fuzz.mutation import (
    any_text,
    base64url,
    fuzz,
    mutated,
    mutated_text,
    odd_json,
    only_errors_of_ours,
    with_odd_members,
)
from tests.support.certificates import make_certificate

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
DEVICE = DeviceInfo("label", "maker", "model", "serial", 1, "slot", "slot maker", "library", "description", (2, 6))
ENDPOINT = resolve_endpoint(tenant="contoso.example")


_NAME = [(NameOID.COUNTRY_NAME, "NO"), (NameOID.ORGANIZATION_NAME, "Blåbær, Inc."), (NameOID.COMMON_NAME, "app")]
MADE = make_certificate(
    rsa.generate_private_key(65537, 2048),
    x509.KeyUsage(True, False, False, False, False, False, False, False, False),
    x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
    subject=x509.Name([x509.NameAttribute(*part) for part in _NAME]),
    not_before=NOW,
    # A GeneralizedTime (RFC 5280 section 4.1.2.5).
    not_after=datetime(2051, 1, 1, tzinfo=UTC),
)
DER, PEM = MADE.public_bytes(Encoding.DER), MADE.public_bytes(Encoding.PEM)
CERTIFICATE = parse_certificates(DER, "It")[0]


@fuzz
@given(
    mutated_text(
        "pkcs11:token=Office%20card;object=k;id=%01%AB;slot-id=1;library-version=1.2;type=private"
        "?module-name=m&pin-source=file:/p&module-path=/m.so&x-a=b"
    )
)
def test_any_string_is_a_uri_or_our_error(text: str) -> None:
    with only_errors_of_ours():
        uri = Pkcs11Uri.parse(text)
        assert Pkcs11Uri.parse(str(uri)) == uri


@fuzz
@given(
    mutated_text(
        "file:/etc/pin", "file:///etc/p%69n", "env:PIN", "fd:3", "command:/bin/pass 'a b'", "credential:pin", "prompt"
    )
    | st.lists(any_text, max_size=3),
)
@example("file:///\udc80")
def test_any_string_is_a_pin_source_or_our_error(source: str | list[str]) -> None:
    with only_errors_of_ours():
        parse_pin_source(source, prompt=None, environ={})


PROFILE = b"""[profile.default]
key = ["pkcs11:token=a", "pkcs11:token=b;id=%01?pin-source=file:pin"]
module_environment = { SOFTHSM2_CONF = "conf" }
pin_source = ["/usr/bin/pass", "card"]
lifetime = 600
send_chain = true
device_timeout = 1.5
"""
toml_values = st.sampled_from(
    [
        *("''", "'text'", "'''a\nb'''", '"\\u0000"', "'file:/nowhere'", "'pkcs11:'", "'~nobody/x'", "'\u202e'"),
        *("1", "-1", "1e400", "-inf", "nan", "9" * 400, "9" * 5000, "true", "'https://[::1'", "'https://x/.default'"),
        *("[]", "[1, 'a']", "[['a']]", "{}", "{a = [1]}", "{'a=b' = 'c'}", "[" * 900 + "]" * 900),
        *("1979-05-27", "07:32:00", "1979-05-27T07:32:00Z"),
    ]
)
profiles = st.dictionaries(st.sampled_from(list(SETTINGS)), toml_values, max_size=4).map(
    lambda table: "[profile.default]\n" + "".join(f"{name} = {value}\n" for name, value in table.items())
)


@fuzz
@given(content=mutated(PROFILE) | profiles.map(str.encode))
@example(content=f"[profile.default]\nlifetime = {'9' * 400}\n".encode())
def test_any_file_is_a_profile_or_our_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    with only_errors_of_ours():
        profile = load_profile({}, config=file, environ={})
        resolve_endpoint(
            tenant=profile.tenant,
            cloud=profile.cloud,
            authority=profile.authority,
            token_endpoint=profile.token_endpoint,
            audience=profile.audience,
        )


KEY_FILE = {
    "key": "pkcs11:token=Office;id=%01",
    "registered": True,
    "key_id": "11111111-2222-4333-8444-555555555555",
    "object_id": "11111111-2222-4333-8444-555555555555",
    "next": {"key": "pkcs11:token=Office;id=%02", "registered": False},
    "retired": [{"key": "pkcs11:token=Office;id=%03", "x5t": "abc", "until": "2026-01-31T12:00:00Z", "delete": True}],
}


@fuzz
@given(content=mutated(json.dumps(KEY_FILE).encode()) | with_odd_members(KEY_FILE))
def test_any_file_is_a_key_file_or_our_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key.json"
    file.write_bytes(content)
    with only_errors_of_ours():
        read = read_key_file(file)
        assert displayable(str(read)).isprintable()


RECORD = {
    "module": "/m.so",
    "device": asdict(DEVICE),
    "sources": {
        "the file /pin": {"outcome": "begun", "times": 1, "at": 1.7e9},
        "inode 1": {"outcome": "refused", "times": 1, "at": 1.7e9},
    },
}


@fuzz
@given(content=mutated(json.dumps(RECORD).encode()) | with_odd_members(RECORD))
def test_any_file_is_a_record_of_refused_pins_or_our_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record.json").write_bytes(content)
    record = PinRecord(tmp_path, Path("/m.so"), DEVICE)
    with only_errors_of_ours():
        record.require_not_refused(FixedLogin(None, "the file /pin"), "the file /pin")
    forget_failures(tmp_path, lambda device: "label" in str(device))


jwt_part = with_odd_members({"alg": "RS256", "x5t": "abc", "nbf": 1, "iat": 1.5, "exp": 2, "aud": "a", "x5c": ["a"]})


@fuzz
@given(
    st.tuples(jwt_part, jwt_part, st.binary(max_size=256)).map(lambda parts: ".".join(map(base64url, parts)))
    | mutated_text("eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjF9.c2ln")
)
def test_any_string_is_a_jwt_or_our_error(text: str) -> None:
    with only_errors_of_ours():
        jwt = parse_jwt(text)
        assert all(line.isprintable() for line in jwt_text(jwt, NOW.timestamp()).split("\n"))
        # Infinity and NaN are no JSON.
        json.loads(to_json({"header": jwt.header, "claims": jwt.claims}), parse_constant=pytest.fail)
        for check in check_assertion(jwt, CERTIFICATE, NOW.timestamp()):
            assert displayable(check.detail).isprintable()


@fuzz
@given(mutated(DER, DER, DER, PEM, pkcs7.serialize_certificates([MADE, MADE], Encoding.DER)))
def test_any_bytes_are_a_certificate_or_our_error(data: bytes) -> None:
    assert is_attestation(data) in (True, False)
    with only_errors_of_ours():
        for certificate in parse_certificates(data, "It"):
            assert all(line.isprintable() for line in certificate_text(certificate, NOW).split("\n"))
            assert json.loads(certificate_json(certificate, NOW))
            if certificate.public_key is not None:
                assert not certificate.public_key.verify(Algorithm.RS256, b"message", b"no signature")
                require_usable(certificate, certificate.public_key, NOW)


@fuzz
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    | odd_json.map(json.dumps)
    | st.just("[" * 100_000)
)
def test_any_exec_info_of_kubernetes_is_read_or_our_error(info: str) -> None:
    assert _exec_credential_version(info).startswith("client.authentication.k8s.io/v1")


@fuzz
@given(mutated_text("AADSTS700027: text", "700027"))
def test_any_text_has_an_entra_error_number_or_none(text: str) -> None:
    with only_errors_of_ours():
        lookup(parse_code(text))


urls = mutated_text(
    "https://login.microsoftonline.com/",
    "http://127.0.0.1:80/x?y#z",
    "https://[::1]:443",
    "https://u:p@h",
    "h/.default",
)


@fuzz
@given(st.none() | urls, st.none() | urls, st.none() | urls, st.none() | any_text)
@example(None, None, "https://[::1", None)
def test_any_addresses_are_a_client_or_our_error(
    authority: str | None, endpoint: str | None, audience: str | None, tenant: str | None
) -> None:
    with only_errors_of_ours():
        resolve_endpoint(tenant=tenant, authority=authority, token_endpoint=endpoint, audience=audience)
    with only_errors_of_ours():
        resolve_graph(ENDPOINT, authority)
    with only_errors_of_ours():
        check_scopes(ENDPOINT, [each for each in (audience, tenant) if each is not None])


@fuzz
@given(
    name=st.sampled_from(["HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"]),
    value=mutated(b"http://u:p@proxy.example:3128", b"http://[::1]:1", b".example,*").filter(
        lambda raw: b"\0" not in raw
    ),
)
def test_any_proxy_variable_is_used_or_our_error(monkeypatch: pytest.MonkeyPatch, name: str, value: bytes) -> None:
    with monkeypatch.context() as patch, only_errors_of_ours():
        patch.setenv(name, os.fsdecode(value))
        route.proxy_for("https://login.example/x")


@fuzz
@given(mutated_text("CN=app+OU=x,O=Contoso\\, Inc.,2.5.4.5=#0401AB"))
def test_any_string_is_a_subject_or_our_error(text: str) -> None:
    with only_errors_of_ours():
        parse_subject(text)


@fuzz
@given(content=mutated(b"# comment\nmodule: libvendor.so\n", b"x-init-reserved: a\nremote: |x\n"))
@example(content=b"module: \0\n")
def test_any_file_is_a_p11_kit_configuration_or_our_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    (tmp_path / "vendor.module").write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr(module_search, "_CONFIGURATION_DIRECTORIES", (str(tmp_path),))
        for uri in (Pkcs11Uri(), Pkcs11Uri(module_name="vendor")):
            with only_errors_of_ours():
                module_search.modules_to_search()
                module_search.find_module(None, uri)
