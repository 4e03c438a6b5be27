"""Each check of an assertion fails on its own, and reports what was found."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from joserfc.util import urlsafe_b64encode

from hsm_signer.jwt.compact import Jwt
from hsm_signer.jwt.verification import check_assertion
from hsm_signer.x509.certificate import Certificate, parse_certificates
from tests.support.names import CLIENT

CHECKS = ["signature", "thumbprint", "certificate", "times", "lifetime", "client", "claims"]
ABSENT = object()
Make = Callable[..., Jwt]


def changed(values: dict[str, Any], changes: dict[str, object]) -> dict[str, Any]:
    return {name: value for name, value in {**values, **changes}.items() if value is not ABSENT}


@pytest.fixture
def not_before(now: datetime) -> int:
    """The ``nbf`` of the assertions."""
    return int(now.timestamp())


@pytest.fixture
def make(key: rsa.RSAPrivateKey, certificate: Certificate, not_before: int) -> Make:
    """Make an assertion of `key`, signed by RS256, with some of its header and claims changed."""

    def make(*, about: Certificate = certificate, header: dict[str, object] | None = None, **claims: object) -> Jwt:
        good = {
            "aud": "https://example.org/token",
            "iss": CLIENT,
            "sub": CLIENT,
            "jti": "1",
            "nbf": not_before,
            "exp": not_before + 600,
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


def test_a_good_assertion_passes_all_checks_in_order(make: Make, certificate: Certificate, not_before: int) -> None:
    checks = check_assertion(make(), certificate, not_before)
    assert [(check.name, check.holds) for check in checks] == [(name, True) for name in CHECKS]


def test_a_header_may_have_both_thumbprints(make: Make, certificate: Certificate, not_before: int) -> None:
    jwt = make(header={"x5t#S256": x5t(certificate.sha256)})
    assert detail("thumbprint", jwt, certificate, not_before) == "x5t and x5t#S256 of this certificate"


def test_a_ps256_signature_passes(
    key: rsa.RSAPrivateKey, make: Make, certificate: Certificate, not_before: int
) -> None:
    jwt = make(header={"alg": "PS256"})
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    signature = key.sign(jwt.signing_input, pss, hashes.SHA256())
    assert failing(Jwt(jwt.header, jwt.claims, jwt.signing_input, signature), certificate, not_before) == []


@pytest.mark.parametrize(
    "algorithm", ["PS256", "none", "HS256", "RS512", "rs256", "", None, 256, ["RS256"], {}, ABSENT]
)
def test_an_algorithm_that_did_not_sign_fails_only_the_signature(
    make: Make, certificate: Certificate, not_before: int, algorithm: object
) -> None:
    assert failing(make(header={"alg": algorithm}), certificate, not_before) == ["signature"]


@pytest.mark.parametrize("signature", [b"", b"\x00", bytes(256), bytes(255), b"\xff" * 256])
def test_a_wrong_signature_fails_only_the_signature(
    make: Make, certificate: Certificate, not_before: int, signature: bytes
) -> None:
    jwt = make()
    assert failing(Jwt(jwt.header, jwt.claims, jwt.signing_input, signature), certificate, not_before) == ["signature"]


def test_a_changed_signing_input_fails_only_the_signature(
    make: Make, certificate: Certificate, not_before: int
) -> None:
    jwt = make()
    assert failing(Jwt(jwt.header, jwt.claims, b"header.claimz", jwt.signature), certificate, not_before) == [
        "signature"
    ]


def test_a_certificate_with_an_ec_key_fails_only_the_signature(
    make: Make, issue: Callable[..., bytes], not_before: int
) -> None:
    other = parse_certificates(issue(ec.generate_private_key(ec.SECP256R1())), "test")[0]
    assert failing(make(about=other), other, not_before) == ["signature"]


def test_the_certificate_of_another_key_fails_only_the_signature_if_the_header_names_it(
    make: Make, other_key: rsa.RSAPrivateKey, issue: Callable[..., bytes], not_before: int
) -> None:
    other = parse_certificates(issue(other_key), "test")[0]
    assert failing(make(about=other), other, not_before) == ["signature"]


def test_a_missing_thumbprint_fails_only_the_thumbprint(make: Make, certificate: Certificate, not_before: int) -> None:
    assert failing(make(header={"x5t": ABSENT}), certificate, not_before) == ["thumbprint"]


@pytest.mark.parametrize("name", ["x5t", "x5t#S256"])
@pytest.mark.parametrize("value", ["", "AAAA", None, 1, []])
def test_one_wrong_thumbprint_fails_only_the_thumbprint(
    make: Make, certificate: Certificate, not_before: int, name: str, value: object
) -> None:
    assert failing(make(header={name: value}), certificate, not_before) == ["thumbprint"]


def test_a_sha_256_thumbprint_in_x5t_fails_only_the_thumbprint(
    make: Make, certificate: Certificate, not_before: int
) -> None:
    assert failing(make(header={"x5t": x5t(certificate.sha256)}), certificate, not_before) == ["thumbprint"]


def test_a_padded_thumbprint_fails_only_the_thumbprint(make: Make, certificate: Certificate, not_before: int) -> None:
    assert failing(make(header={"x5t": x5t(certificate.sha1) + "="}), certificate, not_before) == ["thumbprint"]


@pytest.mark.parametrize("days", [-400, 400])
def test_an_expired_or_future_certificate_fails_only_the_certificate(
    make: Make, key: rsa.RSAPrivateKey, issue: Callable[..., bytes], now: datetime, not_before: int, days: int
) -> None:
    start = now + timedelta(days=days)
    other = parse_certificates(issue(key, not_before=start, not_after=start + timedelta(days=300)), "test")[0]
    assert failing(make(about=other), other, not_before) == ["certificate"]


@pytest.mark.parametrize("name", ["nbf", "exp"])
@pytest.mark.parametrize("value", [ABSENT, None, 1.75e9, "1750000000", True, [1]])
def test_a_time_that_is_not_an_integer_fails_only_the_times(
    make: Make, certificate: Certificate, not_before: int, name: str, value: object
) -> None:
    assert failing(make(**{name: value}), certificate, not_before) == ["times"]


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
    make: Make, certificate: Certificate, not_before: int, after: float, expected: str
) -> None:
    # RFC 7519 sections 4.1.4 and 4.1.5.
    assert detail("times", make(), certificate, not_before + after) == expected


@pytest.mark.parametrize("after", [-1, 600])
def test_an_assertion_outside_its_times_fails_only_the_times(
    make: Make, certificate: Certificate, not_before: int, after: int
) -> None:
    assert failing(make(), certificate, not_before + after) == ["times"]


def test_the_longest_lifetime_is_a_day(make: Make, certificate: Certificate, not_before: int) -> None:
    assert [failing(make(exp=not_before + life), certificate, not_before) for life in (86400, 86401)] == [
        [],
        ["lifetime"],
    ]


def test_an_assertion_that_expires_before_nbf_fails_times_and_lifetime(
    make: Make, certificate: Certificate, not_before: int
) -> None:
    assert failing(make(exp=not_before - 1), certificate, not_before - 2) == ["times", "lifetime"]


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
def test_an_issuer_that_is_not_the_subject_fails_only_the_client(
    make: Make, certificate: Certificate, not_before: int, changes: dict[str, object]
) -> None:
    assert failing(make(**changes), certificate, not_before) == ["client"]


@pytest.mark.parametrize("name", ["aud", "jti"])
@pytest.mark.parametrize("value", [ABSENT, None, "", 1, ["https://example.org/token"]])
def test_an_audience_or_an_id_that_is_not_a_string_fails_only_the_claims(
    make: Make, certificate: Certificate, not_before: int, name: str, value: object
) -> None:
    assert failing(make(**{name: value}), certificate, not_before) == ["claims"]
