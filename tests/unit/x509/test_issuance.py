"""Certificates and requests: what openssl and cryptography find in them, and what is refused unsigned."""

import hashlib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, SignatureAlgorithmOID
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.crypto import Algorithm, PublicKey, Signer
from hsm_signer.errors import ConfigError, HsmSignerError, KeyUnfit, SignatureInvalid
from hsm_signer.x509.certificate import parse_certificates
from hsm_signer.x509.issuance import certificate_request, create_certificate, parse_subject
from hsm_signer.x509.requirements import require_usable

SUBJECT = "CN=my app,O=Contoso"
RS256, PS256 = Algorithm.RS256, Algorithm.PS256
both_algorithms = pytest.mark.parametrize("algorithm", Algorithm)


@dataclass
class CountingSigner:
    """Signs as another does, and counts."""

    signer: Signer
    algorithms: frozenset[Algorithm] = frozenset(Algorithm)
    signed: list[Algorithm] = field(default_factory=list)

    @property
    def public_key(self) -> PublicKey:
        return self.signer.public_key

    def sign(self, algorithm: Algorithm, message: bytes) -> bytes:
        self.signed.append(algorithm)
        return self.signer.sign(algorithm, message)


class FailingSigner(CountingSigner):
    """Fails as a device does."""

    def sign(self, algorithm: Algorithm, message: bytes) -> bytes:
        raise SignatureInvalid("The device returned nonsense.")


@pytest.fixture
def created(signer: Signer, now: datetime) -> x509.Certificate:
    return x509.load_der_x509_certificate(create_certificate(signer, RS256, SUBJECT, 365, now))


@pytest.fixture
def requested(signer: Signer) -> x509.CertificateSigningRequest:
    return x509.load_der_x509_csr(certificate_request(signer, RS256, SUBJECT))


def openssl(*arguments: str) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


class TestCertificate:
    @both_algorithms
    def test_openssl_verifies_it_for_client_authentication(
        self, signer: Signer, now: datetime, algorithm: Algorithm, tmp_path: Path
    ) -> None:
        file = tmp_path / "certificate.pem"
        certificate = x509.load_der_x509_certificate(create_certificate(signer, algorithm, SUBJECT, 1, now))
        file.write_bytes(certificate.public_bytes(Encoding.PEM))
        strictly = ("-x509_strict", "-check_ss_sig", "-purpose", "sslclient", "-attime", f"{now.timestamp():.0f}")
        assert openssl("verify", *strictly, "-CAfile", str(file), str(file)) == f"{file}: OK\n"

    @both_algorithms
    def test_cryptography_verifies_its_signature(self, signer: Signer, now: datetime, algorithm: Algorithm) -> None:
        certificate = x509.load_der_x509_certificate(create_certificate(signer, algorithm, SUBJECT, 1, now))
        certificate.verify_directly_issued_by(certificate)

    def test_it_certifies_the_signers_key(self, created: x509.Certificate, key: rsa.RSAPrivateKey) -> None:
        assert created.public_key() == key.public_key()

    def test_it_is_of_version_3_and_its_own_issuer(self, created: x509.Certificate) -> None:
        assert created.version is x509.Version.v3
        assert created.issuer == created.subject

    def test_it_may_sign_for_client_authentication_and_nothing_else(self, created: x509.Certificate) -> None:
        found = {extension.value: extension.critical for extension in created.extensions}
        assert found == {
            x509.BasicConstraints(ca=False, path_length=None): True,
            x509.KeyUsage(True, False, False, False, False, False, False, False, False): True,
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]): False,
            created.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value: False,
        }

    def test_its_key_identifier_is_the_hash_of_the_key(self, created: x509.Certificate, key: rsa.RSAPrivateKey) -> None:
        bits = key.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
        identifier = created.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        assert identifier == hashlib.sha1(bits, usedforsecurity=False).digest()

    @pytest.mark.parametrize("days", [1, 365, 3650])
    def test_it_is_valid_for_exactly_the_days_asked_for(self, signer: Signer, now: datetime, days: int) -> None:
        certificate = x509.load_der_x509_certificate(create_certificate(signer, RS256, SUBJECT, days, now))
        # RFC 5280 section 4.1.2.5: the last second counts.
        length = certificate.not_valid_after_utc - certificate.not_valid_before_utc + timedelta(seconds=1)
        assert length == timedelta(days=days)

    def test_it_is_accepted_by_a_clock_some_minutes_behind(self, signer: Signer, now: datetime) -> None:
        (certificate,) = parse_certificates(create_certificate(signer, RS256, SUBJECT, 1, now), "it")
        for behind in (0, 4):
            require_usable(certificate, signer.public_key, now - timedelta(minutes=behind))

    def test_serial_numbers_are_random_positive_and_short_enough(self, signer: Signer, now: datetime) -> None:
        ders = [create_certificate(signer, RS256, SUBJECT, 1, now) for _ in range(8)]
        serials = [x509.load_der_x509_certificate(der).serial_number for der in ders]
        assert len(set(serials)) == len(serials)
        assert all(0 < serial < 2**128 for serial in serials)
        # That all eight should lack the upper 32 bits does not happen.
        assert max(serials) > 2**96

    @pytest.mark.parametrize("days", [-1, 0, 3651])
    def test_days_out_of_range_are_refused_unsigned(self, signer: Signer, now: datetime, days: int) -> None:
        counting = CountingSigner(signer)
        with pytest.raises(ConfigError, match=f"for {days} days"):
            create_certificate(counting, RS256, SUBJECT, days, now)
        assert not counting.signed


class TestRequest:
    @both_algorithms
    def test_openssl_verifies_it(self, signer: Signer, algorithm: Algorithm, tmp_path: Path) -> None:
        file = tmp_path / "request.pem"
        request = x509.load_der_x509_csr(certificate_request(signer, algorithm, SUBJECT))
        file.write_bytes(request.public_bytes(Encoding.PEM))
        assert "verify OK" in openssl("req", "-in", str(file), "-noout", "-verify")

    def test_it_is_for_the_signers_key(self, requested: x509.CertificateSigningRequest, key: rsa.RSAPrivateKey) -> None:
        assert requested.public_key() == key.public_key()

    def test_it_asks_for_what_a_certificate_of_our_own_has(
        self, requested: x509.CertificateSigningRequest, created: x509.Certificate
    ) -> None:
        # The key identifier is the authority's to give.
        own = [each for each in created.extensions if not isinstance(each.value, x509.SubjectKeyIdentifier)]
        assert list(requested.extensions) == own

    def test_its_subject_is_the_one_asked_for(self, requested: x509.CertificateSigningRequest) -> None:
        assert requested.subject.rfc4514_string() == SUBJECT


Issue = Callable[[Signer, Algorithm, str], x509.Certificate | x509.CertificateSigningRequest]


@pytest.fixture(params=["certificate", "request"])
def issue(request: pytest.FixtureRequest, now: datetime) -> Issue:
    """Make either."""
    if request.param == "request":
        return lambda signer, algorithm, subject: x509.load_der_x509_csr(
            certificate_request(signer, algorithm, subject)
        )
    return lambda signer, algorithm, subject: x509.load_der_x509_certificate(
        create_certificate(signer, algorithm, subject, 365, now)
    )


class TestEither:
    def test_rs256_is_rsa_pkcs1_with_sha_256(self, issue: Issue, signer: Signer) -> None:
        made = issue(signer, RS256, SUBJECT)
        assert made.signature_algorithm_oid == SignatureAlgorithmOID.RSA_WITH_SHA256

    def test_ps256_is_pss_with_sha_256_throughout_and_32_octets_of_salt(self, issue: Issue, signer: Signer) -> None:
        made = issue(signer, PS256, SUBJECT)
        parameters = made.signature_algorithm_parameters
        assert made.signature_algorithm_oid == SignatureAlgorithmOID.RSASSA_PSS
        assert isinstance(made.signature_hash_algorithm, hashes.SHA256)
        assert isinstance(parameters, padding.PSS)
        assert isinstance(parameters.mgf, padding.MGF1)
        assert isinstance(parameters.mgf._algorithm, hashes.SHA256)
        assert parameters._salt_length == 32

    @both_algorithms
    def test_the_device_signs_once(self, issue: Issue, signer: Signer, algorithm: Algorithm) -> None:
        counting = CountingSigner(signer)
        issue(counting, algorithm, SUBJECT)
        assert counting.signed == [algorithm]

    def test_a_malformed_subject_is_refused_unsigned(self, issue: Issue, signer: Signer) -> None:
        counting = CountingSigner(signer)
        with pytest.raises(ConfigError):
            issue(counting, RS256, "my app")
        assert not counting.signed

    def test_a_short_key_is_refused_unsigned(self, issue: Issue, make_signer: Callable[..., Signer]) -> None:
        short = rsa.generate_private_key(65537, 1024)  # noqa: S505  # refused, which is the point
        counting = CountingSigner(make_signer(short))
        with pytest.raises(KeyUnfit, match="1024 bits"):
            issue(counting, RS256, SUBJECT)
        assert not counting.signed

    def test_what_the_signer_raises_is_what_the_caller_gets(self, issue: Issue, signer: Signer) -> None:
        with pytest.raises(SignatureInvalid, match="nonsense"):
            issue(FailingSigner(signer), RS256, SUBJECT)


@pytest.mark.parametrize(
    "text",
    [
        "CN=my app",
        "CN=my app,OU=Signing,O=Contoso,L=Köln,ST=NRW,C=DE",
        r"CN=Contoso\, Ltd.,O=a\+b\\c",
        "CN=app+UID=4711,DC=contoso,DC=example",
        "1.2.840.113549.1.9.1=app@contoso.example,CN=app",
    ],
)
def test_a_subject_is_read_as_rfc_4514_writes_it(text: str) -> None:
    assert parse_subject(text).rfc4514_string() == text


def test_the_most_specific_name_comes_last_in_the_certificate() -> None:
    # RFC 4514 section 2.1
    assert [attribute.oid for attribute in parse_subject("CN=app,O=Contoso")] == [
        NameOID.ORGANIZATION_NAME,
        NameOID.COMMON_NAME,
    ]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("my app", "my app"),
        ("/CN=app/O=Contoso", "/CN=app/O=Contoso"),
        ("CN=app, O=Contoso", " O=Contoso"),
        ("CN=app,", ""),
        ("CN=app,,O=Contoso", ""),
        ("CN=app,X=y", "X=y"),
        (r"CN=a\,b,cn=c", "cn=c"),
        ("CN=", "CN="),
        ("CN=" + 65 * "a", "CN=" + 65 * "a"),
        ("CN=app,C=Germany", "C=Germany"),
        ("CN=app,DC=münchen", "DC=münchen"),
        ("CN=app,C=ßß", "C=ßß"),
        (r"O=\zz", r"O=\zz"),
        (r"CN=\C3", r"CN=\C3"),
        ("CN=#zz", "CN=#zz"),
        ("CN=a\udc80", "CN=a\udc80"),
        ("CN=a\0b", "CN=a\0b"),
        ("CN=a+CN=a", "CN=a+CN=a"),
        ("9.9=a", "9.9=a"),
    ],
)
def test_a_malformed_subject_is_refused_with_the_part_that_is(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_subject(text)
    assert caught.value.message == f"The subject {text!r} is malformed at {part!r}."
    assert "RFC 4514" in str(caught.value.hint)


def test_an_empty_subject_is_refused() -> None:
    with pytest.raises(ConfigError, match="is empty"):
        parse_subject("")


ANY_KEY = ec.generate_private_key(ec.SECP256R1())


@given(st.text(st.characters(codec=None), max_size=20).map(lambda text: f"CN={text}") | st.text(max_size=20))
def test_every_subject_is_either_refused_or_read_back_from_der(text: str) -> None:
    try:
        name = parse_subject(text)
    except HsmSignerError:
        return
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(ANY_KEY, hashes.SHA256())
    assert x509.load_der_x509_csr(request.public_bytes(Encoding.DER)).subject == name
