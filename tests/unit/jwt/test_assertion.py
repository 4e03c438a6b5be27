"""Assertions have exactly the header and claims that Entra documents, and others can verify them."""

import base64
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc import jwt
from joserfc.errors import BadSignatureError
from joserfc.jwk import RSAKey
from joserfc.util import urlsafe_b64encode

from hsm_signer.crypto import Algorithm, PublicKey, Signer
from hsm_signer.errors import ConfigError, SignatureInvalid
from hsm_signer.jwt.assertion import MAXIMUM_LIFETIME, AssertionSpec, Thumbprint, build_assertion
from hsm_signer.jwt.compact import parse_jwt
from hsm_signer.x509.certificate import Certificate
from tests.support.names import CLIENT

AUDIENCE = "https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/token"
OBJECT = "5d3f0a52-7c52-4b39-9a55-1f8a4c0f6d77"
NOW = 1_750_000_000.75
JTI = uuid.UUID("6b1d7b1e-9d0f-4a7e-9b54-8f2f7f3f1c11")
SPEC = AssertionSpec(CLIENT, AUDIENCE)


@dataclass
class Recording:
    """Calls a signer, and records what it signs."""

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


def test_the_header_for_rs256_is_the_one_that_entra_documents(
    signer: Signer, certificate: Certificate, thumbprints: dict[str, str]
) -> None:
    header = build_assertion(SPEC, signer, certificate, NOW).split(".")[0]
    assert decoded(header).decode() == f'{{"alg":"RS256","typ":"JWT","x5t":"{thumbprints["x5t"]}"}}'


def test_the_header_for_ps256_has_the_sha_256_thumbprint(
    signer: Signer, certificate: Certificate, thumbprints: dict[str, str]
) -> None:
    spec = AssertionSpec(CLIENT, AUDIENCE, algorithm=Algorithm.PS256)
    header, _ = header_and_claims(build_assertion(spec, signer, certificate, NOW))
    assert header == {"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprints["x5t#S256"]}


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize(("choice", "name"), [(Thumbprint.SHA1, "x5t"), (Thumbprint.SHA256, "x5t#S256")])
def test_a_chosen_thumbprint_does_not_depend_on_the_algorithm(
    signer: Signer, certificate: Certificate, algorithm: Algorithm, choice: Thumbprint, name: str
) -> None:
    spec = AssertionSpec(CLIENT, AUDIENCE, algorithm=algorithm, thumbprint=choice)
    header, _ = header_and_claims(build_assertion(spec, signer, certificate, NOW))
    assert set(header) == {"alg", "typ", name}


def test_the_claims_are_those_that_entra_documents_with_integer_times(signer: Signer, certificate: Certificate) -> None:
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
    with pytest.raises(ConfigError, match=f"cannot be {lifetime} s"):
        AssertionSpec(CLIENT, AUDIENCE, lifetime=lifetime)


def test_a_chain_is_sent_in_order_as_padded_base64(signer: Signer, certificate: Certificate) -> None:
    chain = certificate.der, b"\xfb\xff"
    spec = AssertionSpec(CLIENT, AUDIENCE, chain=chain)
    header, _ = header_and_claims(build_assertion(spec, signer, certificate, NOW))
    assert header["x5c"] == [base64.b64encode(certificate.der).decode(), "+/8="]


@pytest.mark.parametrize("algorithm", Algorithm)
def test_joserfc_verifies_an_assertion(
    public_jwk: RSAKey, signer: Signer, certificate: Certificate, algorithm: Algorithm
) -> None:
    spec = AssertionSpec(CLIENT, AUDIENCE, algorithm=algorithm)
    token = jwt.decode(build_assertion(spec, signer, certificate, NOW), public_jwk, algorithms=[algorithm.value])
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
def test_joserfc_refuses_an_assertion_signed_with_another_key(
    other_key: rsa.RSAPrivateKey,
    make_signer: Callable[..., Signer],
    public_jwk: RSAKey,
    certificate: Certificate,
    algorithm: Algorithm,
) -> None:
    spec = AssertionSpec(CLIENT, AUDIENCE, algorithm=algorithm)
    assertion = build_assertion(spec, make_signer(other_key), certificate, NOW)
    with pytest.raises(BadSignatureError):
        jwt.decode(assertion, public_jwk, algorithms=[algorithm.value])


def test_the_signer_signs_the_signing_input_once(signer: Signer, certificate: Certificate) -> None:
    recording = Recording(signer)
    assertion = build_assertion(SPEC, recording, certificate, NOW)
    assert recording.signed == [assertion.rpartition(".")[0].encode()]


def test_an_assertion_is_only_base64url_and_two_dots(signer: Signer, certificate: Certificate) -> None:
    spec = AssertionSpec("ä client", AUDIENCE, chain=(certificate.der,))
    parts = build_assertion(spec, signer, certificate, NOW).split(".")
    assert [urlsafe_b64encode(decoded(part)).decode() for part in parts] == parts


def test_an_error_of_the_signer_reaches_the_caller(signer: Signer, certificate: Certificate) -> None:
    class Failing(Recording):
        def sign(self, algorithm: Algorithm, message: bytes) -> bytes:
            raise SignatureInvalid("The signature is wrong.")

    with pytest.raises(SignatureInvalid):
        build_assertion(SPEC, Failing(signer), certificate, NOW)


def test_an_assertion_can_be_parsed(signer: Signer, certificate: Certificate) -> None:
    parsed = parse_jwt(build_assertion(SPEC, signer, certificate, NOW, JTI))
    assert (parsed.header["alg"], parsed.claims["jti"], len(parsed.signature)) == ("RS256", str(JTI), 256)
