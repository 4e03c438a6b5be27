"""What joserfc and cryptography say about the key and the certificate."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.jwk import RSAKey
from joserfc.util import urlsafe_b64encode

from hsm_signer.x509.certificate import Certificate


@pytest.fixture(scope="session")
def public_jwk(key: rsa.RSAPrivateKey) -> RSAKey:
    """The public half of `key`, for joserfc."""
    return RSAKey.import_key(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


@pytest.fixture(scope="session")
def thumbprints(certificate: Certificate) -> dict[str, str]:
    """The thumbprints of `certificate` as a header has them, by cryptography and joserfc."""
    parsed = x509.load_der_x509_certificate(certificate.der)
    algorithms = {"x5t": hashes.SHA1(), "x5t#S256": hashes.SHA256()}  # noqa: S303  # a name, no guard
    return {name: urlsafe_b64encode(parsed.fingerprint(algorithm)).decode() for name, algorithm in algorithms.items()}
