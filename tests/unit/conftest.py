"""Keys, certificates and a signer made with cryptography: nothing here is checked with what made it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from hsm_signer.crypto import Algorithm, PublicKey, Signer
from hsm_signer.x509.certificate import Certificate, parse_certificates
from tests.support.certificates import PrivateKey, common_name, make_certificate

NOW = datetime(2025, 6, 1, 12, 0, 0, tzinfo=UTC)


@dataclass(frozen=True)
class SoftwareSigner:
    """A key in memory that fills the `Signer` seam."""

    key: rsa.RSAPrivateKey
    algorithms: frozenset[Algorithm]

    @property
    def public_key(self) -> PublicKey:
        numbers = self.key.public_key().public_numbers()
        return PublicKey(modulus=numbers.n, exponent=numbers.e)

    def sign(self, algorithm: Algorithm, message: bytes) -> bytes:
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        return self.key.sign(message, pss if algorithm is Algorithm.PS256 else padding.PKCS1v15(), hashes.SHA256())


@pytest.fixture(scope="session")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="session")
def other_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="session")
def make_signer() -> Callable[..., Signer]:
    """Make a signer of a key, for all algorithms or for some."""

    def make(key: rsa.RSAPrivateKey, algorithms: frozenset[Algorithm] = frozenset(Algorithm)) -> Signer:
        return SoftwareSigner(key, algorithms)

    return make


@pytest.fixture(scope="session")
def signer(key: rsa.RSAPrivateKey, make_signer: Callable[..., Signer]) -> Signer:
    return make_signer(key)


@pytest.fixture(scope="session")
def issue() -> Callable[..., bytes]:
    """Issue a certificate, valid for a year around `now` unless told otherwise, and return its DER."""

    def issue(
        key: PrivateKey,
        *extensions: x509.ExtensionType,
        subject: x509.Name = common_name("unit test"),  # noqa: B008  # it cannot be changed
        not_before: datetime = NOW - timedelta(days=180),
        not_after: datetime = NOW + timedelta(days=185),
    ) -> bytes:
        made = make_certificate(key, *extensions, subject=subject, not_before=not_before, not_after=not_after)
        return made.public_bytes(Encoding.DER)

    return issue


@pytest.fixture(scope="session")
def now() -> datetime:
    """A moment at which the certificates of `issue` are valid."""
    return NOW


@pytest.fixture(scope="session")
def certificate(key: rsa.RSAPrivateKey, issue: Callable[..., bytes]) -> Certificate:
    """The certificate of `key`."""
    return parse_certificates(issue(key), "test")[0]
