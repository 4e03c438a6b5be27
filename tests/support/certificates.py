"""Certificates made with cryptography, so that no test checks our code with our own code."""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def make_certificate(
    key: PrivateKey | rsa.RSAPublicKey,
    *extensions: x509.ExtensionType,
    subject: x509.Name = common_name("test"),  # noqa: B008  # immutable
    issuer: tuple[x509.Name, PrivateKey] | None = None,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> x509.Certificate:
    """Return a certificate for a key. By default it is valid from yesterday for a month.

    Args:
        key: the private key, or the public key if an issuer signs.
        extensions: all critical.
        issuer: its name and its key; None for a self-signed certificate.
    """
    now = datetime.now(UTC)
    if issuer is None:
        assert not isinstance(key, rsa.RSAPublicKey), "Only a private key signs its own certificate."
        issuer = subject, key
    builder = x509.CertificateBuilder(
        issuer_name=issuer[0],
        subject_name=subject,
        public_key=key if isinstance(key, rsa.RSAPublicKey) else key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=not_before or now - timedelta(days=1),
        not_valid_after=not_after or now + timedelta(days=30),
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(issuer[1], hashes.SHA256())
