"""An identity signs assertions for its client, and signs nothing without a valid certificate for its key."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from hsm_signer.credential.identity import Identity
from hsm_signer.crypto import Algorithm, PublicKey, Signer
from hsm_signer.errors import (
    CertificateMismatch,
    CertificateUnusable,
    ConfigError,
)
from hsm_signer.jwt.assertion import Thumbprint
from hsm_signer.jwt.compact import parse_jwt
from hsm_signer.x509.certificate import Certificate, parse_certificates
from tests.support.names import AUDIENCE
from tests.unit.credential.conftest import APP, CertificatesInMemory

Issue = Callable[..., bytes]
MakeSigner = Callable[..., Signer]


def identity(signer: Signer, *certificates: Certificate, now: datetime, **settings: Any) -> Identity:
    return Identity(replace(APP, **settings), signer, CertificatesInMemory(certificates), now=now.timestamp)


def header(assertion: str) -> dict[str, Any]:
    return dict(parse_jwt(assertion).header)


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        (frozenset(Algorithm), "PS256"),
        (frozenset({Algorithm.PS256}), "PS256"),
        (frozenset({Algorithm.RS256}), "RS256"),
        (frozenset(), "RS256"),
    ],
    ids=["both", "PS256 only", "RS256 only", "neither"],
)
def test_auto_is_ps256_if_the_device_supports_it_otherwise_rs256(
    key: rsa.RSAPrivateKey, make_signer: MakeSigner, certificate: Certificate, now: datetime,
    able: frozenset[Algorithm], expected: str,
) -> None:  # fmt: skip
    made = identity(make_signer(key, able), certificate, now=now, algorithm=None)
    assert header(made.assertion(AUDIENCE))["alg"] == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"alg", "typ", "x5t"}),
        ({"algorithm": None}, {"alg", "typ", "x5t#S256"}),
        ({"thumbprint": Thumbprint.SHA256}, {"alg", "typ", "x5t#S256"}),
        ({"send_chain": True}, {"alg", "typ", "x5t", "x5c"}),
    ],
)
def test_the_header_follows_the_settings(
    signer: Signer, certificate: Certificate, now: datetime, settings: dict[str, Any], expected: set[str]
) -> None:
    assert set(header(identity(signer, certificate, now=now, **settings).assertion(AUDIENCE))) == expected


def test_the_whole_chain_is_sent(
    signer: Signer, certificate: Certificate, other_key: rsa.RSAPrivateKey, issue: Issue, now: datetime
) -> None:
    issuer = parse_certificates(issue(other_key), "test")[0]
    sent = header(identity(signer, certificate, issuer, now=now, send_chain=True).assertion(AUDIENCE))
    assert len(sent["x5c"]) == 2


def test_an_assertion_names_the_client_the_audience_and_the_times(
    signer: Signer, certificate: Certificate, now: datetime
) -> None:
    claims = parse_jwt(identity(signer, certificate, now=now).assertion(AUDIENCE, 300)).claims
    assert (claims["iss"], claims["aud"]) == (APP.client_id, AUDIENCE)
    assert (claims["nbf"], claims["exp"]) == (int(now.timestamp()), int(now.timestamp()) + 300)


class NeverSigns:
    """A signer that must not sign."""

    algorithms = frozenset(Algorithm)

    def __init__(self, public_key: PublicKey) -> None:
        self.public_key = public_key

    def sign(self, algorithm: Algorithm, message: bytes) -> bytes:
        raise AssertionError("the device signed an assertion that nobody accepts")


def test_nothing_is_signed_when_the_certificate_has_expired(
    signer: Signer, certificate: Certificate, now: datetime
) -> None:
    expired = identity(NeverSigns(signer.public_key), certificate, now=now + timedelta(days=400))
    with pytest.raises(CertificateUnusable, match="expired on"):
        expired.assertion(AUDIENCE)


def test_nothing_is_signed_when_the_certificate_belongs_to_another_key(
    signer: Signer, other_key: rsa.RSAPrivateKey, issue: Issue, now: datetime
) -> None:
    other = parse_certificates(issue(other_key), "test")[0]
    with pytest.raises(CertificateMismatch):
        identity(NeverSigns(signer.public_key), other, now=now).assertion(AUDIENCE)


def test_nothing_is_signed_when_the_lifetime_is_out_of_range(
    signer: Signer, certificate: Certificate, now: datetime
) -> None:
    with pytest.raises(ConfigError, match="lifetime of an assertion cannot be"):
        identity(NeverSigns(signer.public_key), certificate, now=now).assertion(AUDIENCE, 86401)


def test_an_identity_uses_the_wall_clock(signer: Signer, key: rsa.RSAPrivateKey, issue: Issue) -> None:
    moment = datetime.now(UTC)
    current = parse_certificates(
        issue(key, not_before=moment - timedelta(hours=1), not_after=moment + timedelta(hours=1)), "test"
    )
    claims = parse_jwt(Identity(APP, signer, CertificatesInMemory(tuple(current))).assertion(AUDIENCE)).claims
    assert 0 <= claims["nbf"] - int(moment.timestamp()) <= 5
