"""Keys and certificates that Entra refuses are refused with a reason."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hsm_signer.crypto import PublicKey
from hsm_signer.errors import CertificateMismatch, CertificateUnusable, KeyUnfit
from hsm_signer.x509.certificate import parse_certificates
from hsm_signer.x509.requirements import require_length, require_usable

SECOND = timedelta(seconds=1)
Issue = Callable[..., bytes]

USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign",
)  # fmt: skip


def key_usage(*names: str) -> x509.KeyUsage:
    flags = dict.fromkeys((*USAGES, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(**{**flags, **dict.fromkeys(names, True)})


@pytest.fixture(scope="module")
def der(key: rsa.RSAPrivateKey, issue: Issue) -> bytes:
    return issue(key, key_usage("digital_signature"))


@pytest.fixture(scope="module")
def other_der(other_key: rsa.RSAPrivateKey, issue: Issue) -> bytes:
    return issue(other_key)


def test_a_key_of_2048_bits_is_long_enough() -> None:
    require_length(PublicKey(1 << 2047, 65537), "The key")


def test_a_shorter_key_is_refused_with_its_length() -> None:
    with pytest.raises(KeyUnfit, match=r"^The key 'app' has only 2047 bits\. Entra requires at least 2048\.") as caught:
        require_length(PublicKey(1 << 2046, 65537), "The key 'app'")
    assert "hsm-signer key generate" in (caught.value.hint or "")


def check(der: bytes, key: rsa.RSAPrivateKey, now: datetime) -> None:
    public = key.public_key().public_numbers()
    require_usable(parse_certificates(der, "test")[0], PublicKey(public.n, public.e), now)


def test_a_certificate_of_the_key_within_its_validity_is_usable(
    der: bytes, key: rsa.RSAPrivateKey, now: datetime
) -> None:
    check(der, key, now)


def test_a_certificate_of_another_key_is_refused_with_its_thumbprint(
    other_der: bytes, key: rsa.RSAPrivateKey, now: datetime
) -> None:
    thumbprint = x509.load_der_x509_certificate(other_der).fingerprint(hashes.SHA1())  # noqa: S303  # a name
    with pytest.raises(CertificateMismatch, match=thumbprint.hex().upper()):
        check(other_der, key, now)


def test_a_certificate_of_an_ec_key_is_refused(key: rsa.RSAPrivateKey, issue: Issue, now: datetime) -> None:
    with pytest.raises(CertificateUnusable, match="is not for an RSA key"):
        check(issue(ec.generate_private_key(ec.SECP256R1())), key, now)


def test_a_key_of_1024_bits_is_refused(issue: Issue, now: datetime) -> None:
    short = rsa.generate_private_key(65537, 1024)  # noqa: S505  # refused, which is the point
    with pytest.raises(CertificateUnusable, match="has only 1024 bits"):
        check(issue(short), short, now)


@pytest.mark.parametrize(
    "usage",
    [
        key_usage("digital_signature"),
        key_usage(*USAGES),
        key_usage("digital_signature", "key_encipherment"),
    ],
    ids=["alone", "all", "some"],
)
def test_a_key_usage_that_contains_digital_signature_is_accepted(
    key: rsa.RSAPrivateKey, issue: Issue, now: datetime, usage: x509.KeyUsage
) -> None:
    check(issue(key, usage), key, now)


def test_a_certificate_without_key_usage_is_accepted(key: rsa.RSAPrivateKey, issue: Issue, now: datetime) -> None:
    check(issue(key), key, now)


@pytest.mark.parametrize("name", USAGES[1:])
def test_another_key_usage_alone_is_refused_with_its_name(
    key: rsa.RSAPrivateKey, issue: Issue, now: datetime, name: str
) -> None:
    # X.509 renamed nonRepudiation; asn1crypto keeps the older name.
    shown = {"content_commitment": "non_repudiation"}.get(name, name)
    with pytest.raises(CertificateUnusable, match=rf"not for digital signatures \(key usage: {shown}\)"):
        check(issue(key, key_usage(name)), key, now)


def test_an_empty_key_usage_is_refused(key: rsa.RSAPrivateKey, issue: Issue, now: datetime) -> None:
    with pytest.raises(CertificateUnusable, match=r"key usage: none"):
        check(issue(key, key_usage()), key, now)


@pytest.fixture
def year(key: rsa.RSAPrivateKey, issue: Issue) -> bytes:
    begin, end = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC)
    return issue(key, not_before=begin, not_after=end)


@pytest.mark.parametrize(
    "moment", [datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC)], ids=str
)
def test_the_first_and_the_last_second_belong_to_the_validity(
    year: bytes, key: rsa.RSAPrivateKey, moment: datetime
) -> None:
    # RFC 5280 section 4.1.2.5: inclusive.
    check(year, key, moment)


def test_before_its_validity_a_certificate_is_refused_with_both_times(year: bytes, key: rsa.RSAPrivateKey) -> None:
    with pytest.raises(
        CertificateUnusable, match=r"not valid before 2025-01-01 00:00:00 UTC. It is now 2024-12-31 23:59:59 UTC"
    ):
        check(year, key, datetime(2025, 1, 1, tzinfo=UTC) - SECOND)


def test_after_its_validity_a_certificate_is_refused_with_both_times(year: bytes, key: rsa.RSAPrivateKey) -> None:
    with pytest.raises(
        CertificateUnusable, match=r"expired on 2025-12-31 23:59:59 UTC. It is now 2026-01-01 00:00:00 UTC"
    ):
        check(year, key, datetime(2026, 1, 1, tzinfo=UTC))


def test_the_time_of_another_zone_is_compared_as_the_moment_it_is(year: bytes, key: rsa.RSAPrivateKey) -> None:
    check(year, key, datetime.fromisoformat("2026-01-01T04:59:59+05:00"))
