"""Assertions say exactly what Entra documents, others verify them, and reading one is strict and tells nothing."""

import base64
import json
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.errors import BadSignatureError
from joserfc.jwk import RSAKey
from joserfc.util import urlsafe_b64encode

from hsm_signer.crypto import Algorithm, PublicKey, Signer
from hsm_signer.errors import ConfigError, JwtError, SignatureInvalid
from hsm_signer.jwt.assertion import (
    MAXIMUM_LIFETIME,
    AssertionSpec,
    Thumbprint,
    base64url_decode,
    base64url_encode,
    build_assertion,
    build_proof,
    parse_jwt,
)
from hsm_signer.x509.certificate import Certificate
from tests.support.names import CLIENT

AUDIENCE = "https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/token"
OBJECT = "5d3f0a52-7c52-4b39-9a55-1f8a4c0f6d77"
NOW = 1_750_000_000.75
JTI = uuid.UUID("6b1d7b1e-9d0f-4a7e-9b54-8f2f7f3f1c11")
SPEC = AssertionSpec(CLIENT, AUDIENCE)


@dataclass
class Recording:
    """Passes on to a signer, and remembers what it was asked to sign."""

    signer: Signer
    signed: list[bytes] = field(default_factory=list)

    @property
    def public_key(self) -> PublicKey:
        return self.signer.public_key

    @property
    def algorithms(self) -> frozenset[Algorithm]:
        return self.signer.algorithms

    def sign(self, algorithm: Algorithm, message: bytes) -> bytes:
        self.signed.append(message)
        return self.signer.sign(algorithm, message)


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def header_and_claims(assertion: str) -> tuple[dict[str, Any], dict[str, Any]]:
    header, claims, _ = assertion.split(".")
    return json.loads(decoded(header)), json.loads(decoded(claims))


def thumbprint(certificate: Certificate, algorithm: hashes.HashAlgorithm) -> str:
    """The thumbprint as a header has it, by cryptography and joserfc."""
    return urlsafe_b64encode(x509.load_der_x509_certificate(certificate.der).fingerprint(algorithm)).decode()


def public_jwk(key: rsa.RSAPrivateKey) -> RSAKey:
    return RSAKey.import_key(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def test_the_header_for_rs256_is_the_one_entra_shows(signer: Signer, certificate: Certificate) -> None:
    header = build_assertion(SPEC, signer, certificate, NOW).split(".")[0]
    x5t = thumbprint(certificate, hashes.SHA1())  # noqa: S303  # a name, no guard
    assert decoded(header).decode() == f'{{"alg":"RS256","typ":"JWT","x5t":"{x5t}"}}'


def test_the_header_for_ps256_names_the_certificate_by_sha_256(signer: Signer, certificate: Certificate) -> None:
    spec = AssertionSpec(CLIENT, AUDIENCE, algorithm=Algorithm.PS256)
    header, _ = header_and_claims(build_assertion(spec, signer, certificate, NOW))
    assert header == {"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint(certificate, hashes.SHA256())}


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize(("choice", "name"), [(Thumbprint.SHA1, "x5t"), (Thumbprint.SHA256, "x5t#S256")])
def test_a_thumbprint_that_is_chosen_does_not_follow_the_algorithm(
    signer: Signer, certificate: Certificate, algorithm: Algorithm, choice: Thumbprint, name: str
) -> None:
    spec = AssertionSpec(CLIENT, AUDIENCE, algorithm=algorithm, thumbprint=choice)
    header, _ = header_and_claims(build_assertion(spec, signer, certificate, NOW))
    assert set(header) == {"alg", "typ", name}


def test_the_claims_are_those_entra_documents_with_integer_times(signer: Signer, certificate: Certificate) -> None:
    claims = build_assertion(SPEC, signer, certificate, NOW, JTI).split(".")[1]
    assert decoded(claims).decode() == (
        f'{{"aud":"{AUDIENCE}","iss":"{CLIENT}","sub":"{CLIENT}","jti":"{JTI}",'
        '"nbf":1750000000,"iat":1750000000,"exp":1750000600}'
    )


def test_each_assertion_has_a_guid_of_its_own(signer: Signer, certificate: Certificate) -> None:
    made = [header_and_claims(build_assertion(SPEC, signer, certificate, NOW))[1]["jti"] for _ in range(2)]
    assert (len(set(made)), {uuid.UUID(jti).version for jti in made}) == (2, {4})


@pytest.mark.parametrize("lifetime", [1, 300, MAXIMUM_LIFETIME])
def test_the_lifetime_is_the_time_from_nbf_to_exp(signer: Signer, certificate: Certificate, lifetime: int) -> None:
    spec = AssertionSpec(CLIENT, AUDIENCE, lifetime=lifetime)
    _, claims = header_and_claims(build_assertion(spec, signer, certificate, NOW))
    assert claims["exp"] - claims["nbf"] == lifetime


@pytest.mark.parametrize("lifetime", [-1, 0, 86401])
def test_a_lifetime_out_of_range_is_refused(lifetime: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot live for {lifetime} s"):
        AssertionSpec(CLIENT, AUDIENCE, lifetime=lifetime)


def test_a_chain_is_sent_as_padded_base64_in_its_order(signer: Signer, certificate: Certificate) -> None:
    chain = certificate.der, b"\xfb\xff"
    spec = AssertionSpec(CLIENT, AUDIENCE, chain=chain)
    header, _ = header_and_claims(build_assertion(spec, signer, certificate, NOW))
    assert header["x5c"] == [base64.b64encode(certificate.der).decode(), "+/8="]


@pytest.mark.parametrize("algorithm", Algorithm)
def test_joserfc_verifies_an_assertion(
    key: rsa.RSAPrivateKey, signer: Signer, certificate: Certificate, algorithm: Algorithm
) -> None:
    spec = AssertionSpec(CLIENT, AUDIENCE, algorithm=algorithm)
    token = jwt.decode(build_assertion(spec, signer, certificate, NOW), public_jwk(key), algorithms=[algorithm.value])
    requests = jwt.JWTClaimsRegistry(
        now=int(NOW),
        aud={"essential": True, "value": AUDIENCE},
        iss={"essential": True, "value": CLIENT},
        sub={"essential": True, "value": CLIENT},
        jti={"essential": True},
        nbf={"essential": True},
        exp={"essential": True},
    )
    requests.validate(token.claims)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_joserfc_refuses_an_assertion_of_another_key(
    other_key: rsa.RSAPrivateKey, signer: Signer, certificate: Certificate, algorithm: Algorithm
) -> None:
    assertion = build_assertion(AssertionSpec(CLIENT, AUDIENCE, algorithm=algorithm), signer, certificate, NOW)
    with pytest.raises(BadSignatureError):
        jwt.decode(assertion, public_jwk(other_key), algorithms=[algorithm.value])


def test_the_signer_is_asked_once_for_the_signing_input(signer: Signer, certificate: Certificate) -> None:
    recording = Recording(signer)
    assertion = build_assertion(SPEC, recording, certificate, NOW)
    assert recording.signed == [assertion.rpartition(".")[0].encode()]


def test_an_assertion_is_only_base64url_and_two_dots(signer: Signer, certificate: Certificate) -> None:
    spec = AssertionSpec("ä client", AUDIENCE, chain=(certificate.der,))
    parts = build_assertion(spec, signer, certificate, NOW).split(".")
    assert [urlsafe_b64encode(decoded(part)).decode() for part in parts] == parts


def test_what_a_signer_raises_reaches_the_caller(signer: Signer, certificate: Certificate) -> None:
    class Failing(Recording):
        def sign(self, algorithm: Algorithm, message: bytes) -> bytes:
            raise SignatureInvalid("The device is out of its mind.")

    with pytest.raises(SignatureInvalid):
        build_assertion(SPEC, Failing(signer), certificate, NOW)


def test_a_proof_says_what_graph_documents_and_nothing_else(signer: Signer, certificate: Certificate) -> None:
    header, claims = header_and_claims(build_proof(OBJECT, signer, certificate, NOW))
    x5t = thumbprint(certificate, hashes.SHA1())  # noqa: S303  # a name, no guard
    assert header == {"alg": "RS256", "typ": "JWT", "x5t": x5t}
    assert claims == {
        "aud": "00000002-0000-0000-c000-000000000000",
        "iss": OBJECT,
        "nbf": 1750000000,
        "exp": 1750000600,
    }


def test_joserfc_verifies_a_proof(key: rsa.RSAPrivateKey, signer: Signer, certificate: Certificate) -> None:
    proof = build_proof(OBJECT, signer, certificate, NOW)
    assert jwt.decode(proof, public_jwk(key), algorithms=["RS256"]).claims["iss"] == OBJECT


@given(st.binary())
def test_base64url_is_what_joserfc_writes(data: bytes) -> None:
    assert base64url_encode(data) == urlsafe_b64encode(data).decode()


@given(st.binary())
def test_base64url_reads_back_the_same(data: bytes) -> None:
    assert base64url_decode(base64url_encode(data)) == data


def accepts(decode: Callable[[str], object], text: str) -> bool:
    try:
        decode(text)
    except ValueError:
        return False
    return True


@given(st.text("AQgw_-=+/ \n.é"))
def test_base64url_is_refused_or_the_only_text_for_what_it_holds(text: str) -> None:
    assert not accepts(base64url_decode, text) or base64url_encode(base64url_decode(text)) == text


@pytest.mark.parametrize(
    "text",
    ["QQ==", "QUE=", "Q", "QUFBQ", "QR", "QUF", "+w", "/w", "QQ\n", " QQ", "Q Q", "QQ\u0661", "QQ.", "\uff21\uff21"],
)
def test_text_that_is_not_strict_base64url_is_refused(text: str) -> None:
    assert not accepts(base64url_decode, text)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=4)


def part(value: object) -> str:
    return urlsafe_b64encode(json.dumps(value).encode()).decode()


@given(json_objects, json_objects, st.binary(max_size=64))
def test_a_jwt_is_taken_apart_without_loss(header: dict[str, Any], claims: dict[str, Any], signature: bytes) -> None:
    signing_input = f"{part(header)}.{part(claims)}"
    parsed = parse_jwt(f"{signing_input}.{urlsafe_b64encode(signature).decode()}")
    assert (parsed.header, parsed.claims, parsed.signing_input, parsed.signature) == (
        header,
        claims,
        signing_input.encode(),
        signature,
    )


def test_what_we_build_can_be_taken_apart(signer: Signer, certificate: Certificate) -> None:
    parsed = parse_jwt(build_assertion(SPEC, signer, certificate, NOW, JTI))
    assert (parsed.header["alg"], parsed.claims["jti"], len(parsed.signature)) == ("RS256", str(JTI), 256)


def test_whitespace_around_a_jwt_is_passed_over() -> None:
    assert parse_jwt(f" {part({})}.{part({})}.\r\n").claims == {}


SECRET = "s3cret-4711"
HEADER, CLAIMS = part({"alg": "RS256"}), part({"sub": SECRET})


def raw(text: str | bytes) -> str:
    return urlsafe_b64encode(text.encode() if isinstance(text, str) else text).decode()


MALFORMED = {
    "empty": ("", "it has 1 part, not 3"),
    "opaque": (SECRET, "it has 1 part, not 3"),
    "cut off": (f"{HEADER}.{CLAIMS}", "it has 2 parts, not 3"),
    "encrypted": (f"{HEADER}.{CLAIMS}.{CLAIMS}.{CLAIMS}.{CLAIMS}", "it has 5 parts, not 3"),
    "padded": (f"{HEADER}.{raw(SECRET + '!!')}=.", "The claims of the JWT is not base64url: it has padding"),
    "spaced": (f"{HEADER}.{CLAIMS} {SECRET}.", "or characters outside"),
    "standard base64": (f"{HEADER}.+/{CLAIMS}.", "or characters outside"),
    "impossible length": (f"{HEADER}.{CLAIMS}.AAAAA", "The signature of the JWT is not base64url: its length"),
    "stray bits": (f"{HEADER}.{CLAIMS}.QR", "its last character has stray bits"),
    "not ascii": (f"{HEADER}.{CLAIMS}é.", "or characters outside"),
    "empty header": (f".{CLAIMS}.", "The header of the JWT is not a JSON object"),
    "not utf-8": (f"{HEADER}.{raw(b'{' + SECRET.encode() + bytes([0xFF]))}.", "The claims of the JWT is not a JSON"),
    "not json": (f"{HEADER}.{raw('{' + SECRET)}.", "The claims of the JWT is not a JSON object"),
    "a list": (f"{HEADER}.{part([SECRET])}.", "The claims of the JWT is not a JSON object"),
    "a string": (f"{part(SECRET)}.{CLAIMS}.", "The header of the JWT is not a JSON object"),
    "a name twice": (f'{HEADER}.{raw(f"""{{"{SECRET}": 1, "{SECRET}": 2}}""")}.', "is not a JSON object"),
    "a name twice within": (
        f'{HEADER}.{raw(f"""{{"a": {{"{SECRET}": 1, "{SECRET}": 1}}}}""")}.',
        "is not a JSON object",
    ),
    "no number": (f'{HEADER}.{raw(f"""{{"{SECRET}": NaN}}""")}.', "is not a JSON object"),
    "infinite": (f'{HEADER}.{raw(f"""{{"{SECRET}": -Infinity}}""")}.', "is not a JSON object"),
    "too large a number": (f'{HEADER}.{raw(f"""{{"{SECRET}": {"1" * 5000}}}""")}.', "is not a JSON object"),
    "too deep": (f"{HEADER}.{raw(SECRET + '[' * 100_000)}.", "is not a JSON object"),
    "deep": (f"{HEADER}.{raw('[' * 100_000)}.", "is not a JSON object"),
}


def told(error: BaseException) -> str:
    """All an error, or anything it was raised from, would show to anybody."""
    texts = ["".join(traceback.format_exception(error))]
    cause: BaseException | None = error
    while cause is not None:
        texts.append(f"{cause!r} {cause.args!r} {vars(cause)!r}")
        cause = cause.__context__
    return "".join(texts)


@pytest.mark.parametrize(("text", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_compact_jwt_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(JwtError) as refused:
        parse_jwt(text)
    assert reason in refused.value.message


@pytest.mark.parametrize("text", [text for text, _ in MALFORMED.values()], ids=MALFORMED)
def test_a_refusal_does_not_hold_what_was_refused(text: str) -> None:
    with pytest.raises(JwtError) as refused:
        parse_jwt(text)
    shown = told(refused.value)
    assert not any(secret in shown for secret in (SECRET, raw(SECRET)[:12], CLAIMS[8:]))


def refusal_of(text: str) -> JwtError | None:
    try:
        parse_jwt(text)
    except JwtError as refused:
        return refused
    return None


@given(st.lists(st.text() | st.binary().map(raw) | json_values.map(part), max_size=5))
def test_any_text_is_a_jwt_or_refused_as_one(parts: list[str]) -> None:
    text = ".".join(parts)
    assert refusal_of(text) is not None or len(parts) == 3


@given(st.text("s3cret47{}[]:,", min_size=8))
def test_no_refusal_quotes_the_text(text: str) -> None:
    refused = refusal_of(f"{HEADER}.{raw(text)}.")
    shown = "" if refused is None else told(refused)
    assert (text in shown, raw(text) in shown) == (False, False)
