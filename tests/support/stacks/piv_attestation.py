"""How a YubiKey attests keys that it generated: the key in slot F9 signs their certificates, and Yubico certifies it.

Names, dates and extensions are those of a YubiKey 5.4.3 (docs.yubico.com, "PIV Attestation OID Arc").
"""

import datetime
import secrets

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.certificates import common_name

FIRMWARE, SERIAL, POLICIES, FORM_FACTOR = (f"1.3.6.1.4.1.41482.3.{number}" for number in (3, 7, 8, 9))
"""Extensions: three octets; an INTEGER; PIN and touch policy, one octet each; one octet. Only the serial is DER."""

VERSION = bytes((5, 4, 3))

_USB_A_KEYCHAIN = b"\x01"
# Attestations copy their dates from the certificate in F9, which has the dates of its root.
_FROM, _UNTIL = datetime.datetime(2016, 3, 14, tzinfo=datetime.UTC), datetime.datetime(2052, 4, 17, tzinfo=datetime.UTC)


def make_attesting_key() -> tuple[rsa.RSAPrivateKey, bytes]:
    """Return the contents of slot F9: the key that signs attestations, and its certificate (DER)."""
    key, root = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
    builder = (
        _builder("Yubico PIV Attestation", "Yubico PIV Root CA Serial 263751", key.public_key())
        .add_extension(_extension(FIRMWARE, VERSION), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    return key, builder.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def attest(
    attesting_key: rsa.RSAPrivateKey, reference: int, public_key: rsa.RSAPublicKey, serial: bytes, policies: bytes
) -> bytes:
    """Return a new certificate (DER) for the key in slot `reference`, with a random serial number.

    Args:
        serial: of the YubiKey, big-endian.
        policies: for PIN and touch, as in GET METADATA.
    """
    builder = _builder(f"YubiKey PIV Attestation {reference:x}", "Yubico PIV Attestation", public_key)
    number = b"\0" + serial if serial[0] & 0x80 else serial
    for oid, value in (
        (FIRMWARE, VERSION),
        (SERIAL, bytes((0x02, len(number))) + number),
        (POLICIES, policies),
        (FORM_FACTOR, _USB_A_KEYCHAIN),
    ):
        builder = builder.add_extension(_extension(oid, value), critical=False)
    return builder.sign(attesting_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _builder(subject: str, issuer: str, public_key: rsa.RSAPublicKey) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        subject_name=common_name(subject),
        issuer_name=common_name(issuer),
        public_key=public_key,
        serial_number=1 << 120 | secrets.randbits(120),  # 16 octets
        not_valid_before=_FROM,
        not_valid_after=_UNTIL,
    )


def _extension(oid: str, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
