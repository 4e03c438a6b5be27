"""An assertion is judged point by point: each point fails alone, and says what was found."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from joserfc.util import urlsafe_b64encode

from hsm_signer.jwt.assertion import Jwt
from hsm_signer.jwt.verification import check_assertion
from hsm_signer.x509.certificate import Certificate, parse_certificates
from tests.support.names import CLIENT

POINTS = ["signature", "thumbprint", "certificate", "times", "lifetime", "client", "claims"]
ABSENT = object()
Make = Callable[..., Jwt]


def changed(values: dict[str, Any], changes: dict[str, object]) -> dict[str, Any]:
    return {name: value for name, value in {**values, **changes}.items() if value is not ABSENT}


@pytest.fixture
def begin(now: datetime) -> int:
    """The ``nbf`` of the assertions."""
    return int(now.timestamp())


@pytest.fixture
def make(key: rsa.RSAPrivateKey, certificate: Certificate, begin: int) -> Make:
    """Make an assertion of `key`, signed by RS256, with some of its header and claims changed."""

    def make(*, about: Certificate = certificate, header: dict[str, object] | None = None, **claims: object) -> Jwt:
        good = {
            "aud": "https://example.org/token",
            "iss": CLIENT,
            "sub": CLIENT,
            "jti": "1",
            "nbf": begin,
            "exp": begin + 600,
        }
        signing_input = b"header.claims"
        return Jwt(
            header=changed({"alg": "RS256", "typ": "JWT", "x5t": x5t(about.sha1)}, header or {}),
            claims=changed(good, claims),
            signing_input=signing_input,
            signature=key.sign(signing_input, padding.PKCS1v15(), hashes.SHA256()),
        )

    return make


def x5t(thumbprint: bytes) -> str:
    return urlsafe_b64encode(thumbprint).decode()


def failing(jwt: Jwt, certificate: Certificate, now: float) -> list[str]:
    return [check.name for check in check_assertion(jwt, certificate, now) if not check.holds]


def detail(name: str, jwt: Jwt, certificate: Certificate, now: float) -> str:
    return next(check.detail for check in check_assertion(jwt, certificate, now) if check.name == name)


def test_a_good_assertion_holds_in_every_point_in_a_readers_order(
    make: Make, certificate: Certificate, begin: int
) -> None:
    checks = check_assertion(make(), certificate, begin)
    assert [(check.name, check.holds) for check in checks] == [(name, True) for name in POINTS]


def test_both_thumbprints_may_be_there_when_both_are_right(make: Make, certificate: Certificate, begin: int) -> None:
    jwt = make(header={"x5t#S256": x5t(certificate.sha256)})
    assert detail("thumbprint", jwt, certificate, begin) == "x5t and x5t#S256 of this certificate"


def test_a_signature_by_ps256_holds(key: rsa.RSAPrivateKey, make: Make, certificate: Certificate, begin: int) -> None:
    jwt = make(header={"alg": "PS256"})
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    signature = key.sign(jwt.signing_input, pss, hashes.SHA256())
    assert failing(Jwt(jwt.header, jwt.claims, jwt.signing_input, signature), certificate, begin) == []


@pytest.mark.parametrize(
    "algorithm", ["PS256", "none", "HS256", "RS512", "rs256", "", None, 256, ["RS256"], {}, ABSENT]
)
def test_another_algorithm_than_the_signatures_fails_the_signature_alone(
    make: Make, certificate: Certificate, begin: int, algorithm: object
) -> None:
    assert failing(make(header={"alg": algorithm}), certificate, begin) == ["signature"]


@pytest.mark.parametrize("signature", [b"", b"\x00", bytes(256), bytes(255), b"\xff" * 256])
def test_another_signature_fails_alone(make: Make, certificate: Certificate, begin: int, signature: bytes) -> None:
    jwt = make()
    assert failing(Jwt(jwt.header, jwt.claims, jwt.signing_input, signature), certificate, begin) == ["signature"]


def test_a_changed_signing_input_fails_the_signature_alone(make: Make, certificate: Certificate, begin: int) -> None:
    jwt = make()
    assert failing(Jwt(jwt.header, jwt.claims, b"header.claimz", jwt.signature), certificate, begin) == ["signature"]


def test_a_certificate_of_an_ec_key_fails_the_signature_alone(
    make: Make, issue: Callable[..., bytes], begin: int
) -> None:
    other = parse_certificates(issue(ec.generate_private_key(ec.SECP256R1())), "test")[0]
    assert failing(make(about=other), other, begin) == ["signature"]


def test_a_certificate_of_another_key_fails_the_signature_alone_when_the_header_names_it(
    make: Make, other_key: rsa.RSAPrivateKey, issue: Callable[..., bytes], begin: int
) -> None:
    other = parse_certificates(issue(other_key), "test")[0]
    assert failing(make(about=other), other, begin) == ["signature"]


def test_a_missing_thumbprint_fails_alone(make: Make, certificate: Certificate, begin: int) -> None:
    assert failing(make(header={"x5t": ABSENT}), certificate, begin) == ["thumbprint"]


@pytest.mark.parametrize("name", ["x5t", "x5t#S256"])
@pytest.mark.parametrize("value", ["", "AAAA", None, 1, []])
def test_one_wrong_thumbprint_fails_alone(
    make: Make, certificate: Certificate, begin: int, name: str, value: object
) -> None:
    assert failing(make(header={name: value}), certificate, begin) == ["thumbprint"]


def test_a_sha_256_thumbprint_in_x5t_fails_alone(make: Make, certificate: Certificate, begin: int) -> None:
    assert failing(make(header={"x5t": x5t(certificate.sha256)}), certificate, begin) == ["thumbprint"]


def test_a_padded_thumbprint_fails_alone(make: Make, certificate: Certificate, begin: int) -> None:
    assert failing(make(header={"x5t": x5t(certificate.sha1) + "="}), certificate, begin) == ["thumbprint"]


@pytest.mark.parametrize("days", [-400, 400])
def test_a_certificate_out_of_its_validity_fails_alone(
    make: Make, key: rsa.RSAPrivateKey, issue: Callable[..., bytes], now: datetime, begin: int, days: int
) -> None:
    start = now + timedelta(days=days)
    other = parse_certificates(issue(key, not_before=start, not_after=start + timedelta(days=300)), "test")[0]
    assert failing(make(about=other), other, begin) == ["certificate"]


@pytest.mark.parametrize("name", ["nbf", "exp"])
@pytest.mark.parametrize("value", [ABSENT, None, 1.75e9, "1750000000", True, [1]])
def test_a_time_that_is_no_integer_fails_the_times_alone(
    make: Make, certificate: Certificate, begin: int, name: str, value: object
) -> None:
    assert failing(make(**{name: value}), certificate, begin) == ["times"]


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (-1.0, "not valid for another 1 s"),
        (-0.5, "not valid for another 1 s"),
        (0, "valid for another 600 s"),
        (599.9, "valid for another 1 s"),
        (600, "expired 0 s ago"),
        (660, "expired 60 s ago"),
    ],
)
def test_an_assertion_is_valid_from_nbf_until_just_before_exp(
    make: Make, certificate: Certificate, begin: int, after: float, expected: str
) -> None:
    # RFC 7519 sections 4.1.4 and 4.1.5.
    assert detail("times", make(), certificate, begin + after) == expected


@pytest.mark.parametrize("after", [-1, 600])
def test_an_assertion_outside_its_times_fails_in_them_alone(
    make: Make, certificate: Certificate, begin: int, after: int
) -> None:
    assert failing(make(), certificate, begin + after) == ["times"]


def test_a_life_of_a_day_is_the_longest(make: Make, certificate: Certificate, begin: int) -> None:
    assert [failing(make(exp=begin + life), certificate, begin) for life in (86400, 86401)] == [[], ["lifetime"]]


def test_an_assertion_that_ends_before_it_begins_has_no_lifetime(
    make: Make, certificate: Certificate, begin: int
) -> None:
    assert failing(make(exp=begin - 1), certificate, begin - 2) == ["times", "lifetime"]


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "another"},
        {"sub": "another"},
        {"iss": ABSENT},
        {"sub": ABSENT},
        {"iss": ABSENT, "sub": ABSENT},
        {"iss": "", "sub": ""},
        {"iss": 1, "sub": 1},
        {"iss": [CLIENT], "sub": [CLIENT]},
    ],
)
def test_an_issuer_that_is_not_the_subject_fails_alone(
    make: Make, certificate: Certificate, begin: int, changes: dict[str, object]
) -> None:
    assert failing(make(**changes), certificate, begin) == ["client"]


@pytest.mark.parametrize("name", ["aud", "jti"])
@pytest.mark.parametrize("value", [ABSENT, None, "", 1, ["https://example.org/token"]])
def test_an_audience_or_an_id_that_is_no_text_fails_alone(
    make: Make, certificate: Certificate, begin: int, name: str, value: object
) -> None:
    assert failing(make(**{name: value}), certificate, begin) == ["claims"]
