"""Create certificates (RFC 5280) and certificate requests (PKCS#10, RFC 2986) for a key on a device.

The device signs them, over SHA-256.
"""

import re
import secrets
from datetime import datetime, timedelta
from typing import Any, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hsm_signer.crypto import Algorithm, Signer
from hsm_signer.errors import ConfigError
from hsm_signer.x509.requirements import require_length

DEFAULT_DAYS = 365
MAXIMUM_DAYS = 3650

_CLOCK_SKEW = timedelta(minutes=5)
_SECOND = timedelta(seconds=1)
# X.520 and RFC 4519 make these a PrintableString or an IA5String. cryptography does not check the characters.
_ASCII = (
    NameOID.COUNTRY_NAME,
    NameOID.DN_QUALIFIER,
    NameOID.DOMAIN_COMPONENT,
    NameOID.EMAIL_ADDRESS,
    NameOID.SERIAL_NUMBER,
)
_SHA256 = hashes.SHA256()
# RFC 4055 section 3.1; the salt is as long as the hash. For the builders, None means PKCS#1 v1.5.
_PADDING = {Algorithm.RS256: None, Algorithm.PS256: padding.PSS(padding.MGF1(_SHA256), salt_length=32)}


def create_certificate(signer: Signer, algorithm: Algorithm, subject: str, days: int, now: datetime) -> bytes:
    """Return a self-signed certificate for the signer's key, as DER.

    It is valid for exactly `days`, starting a few minutes ago: a reader's clock may be behind, and policies that limit
    lifetimes count from the start.

    Args:
        signer: signs once.
        algorithm: the algorithm of the certificate's signature.
        subject: as RFC 4514 writes it: "CN=my app,O=Contoso".
        days: validity in days, 1 to `MAXIMUM_DAYS`.
        now: the current time, timezone-aware.

    Raises:
        ConfigError: the subject is malformed, or the days are out of range.
        KeyUnfit: the key is too short for Entra.
        HsmSignerError: the signer failed.
    """
    if not 1 <= days <= MAXIMUM_DAYS:
        raise ConfigError(
            f"A certificate cannot be valid for {days} days.", hint=f"Choose 1 to {MAXIMUM_DAYS} with --days."
        )
    name = parse_subject(subject)
    key = _SignerKey(signer, algorithm)
    begin = now - _CLOCK_SKEW
    builder = x509.CertificateBuilder(
        subject_name=name,
        issuer_name=name,
        public_key=key.public_key(),
        # RFC 5280 section 4.1.2.2: positive, and at most 20 octets.
        serial_number=1 + secrets.randbelow(2**128 - 1),
        not_valid_before=begin,
        # RFC 5280 section 4.1.2.5: the last second belongs to the validity.
        not_valid_after=begin + timedelta(days=days) - _SECOND,
    )
    # RFC 5280 section 4.2.1.2, method 1.
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    for extension, critical in _EXTENSIONS:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, _SHA256, rsa_padding=_PADDING[algorithm]).public_bytes(Encoding.DER)


def certificate_request(signer: Signer, algorithm: Algorithm, subject: str) -> bytes:
    """Return a request for a certificate for the signer's key, as DER, with the extensions of `create_certificate`.

    Args:
        signer: signs once.
        algorithm: the algorithm of the request's signature.
        subject: as RFC 4514 writes it. The certification authority may choose another.

    Raises:
        ConfigError: the subject is malformed.
        KeyUnfit: the key is too short for Entra.
        HsmSignerError: the signer failed.
    """
    key = _SignerKey(signer, algorithm)
    builder = x509.CertificateSigningRequestBuilder(parse_subject(subject))
    for extension, critical in _EXTENSIONS:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, _SHA256, rsa_padding=_PADDING[algorithm]).public_bytes(Encoding.DER)


def parse_subject(text: str) -> x509.Name:
    """Parse a distinguished name as RFC 4514 writes it, the most specific part first.

    Raises:
        ConfigError: it is empty or malformed, or a value is not allowed for its attribute.
    """
    try:
        name = _parse_name(text)
    except ValueError:
        # The parser does not say where the error is. A comma after a backslash is part of a value.
        part = next(filter(_is_malformed, re.split(r"(?<!\\),", text)), text)
        raise ConfigError(f"The subject {text!r} is malformed at {part!r}.", hint=_FORM) from None
    if not name.rdns:
        # RFC 5280 section 4.1.2.4: the issuer, which is the subject here, must not be empty.
        raise ConfigError("The subject is empty.", hint=_FORM)
    return name


def _parse_name(text: str) -> x509.Name:
    name = x509.Name.from_rfc4514_string(text)
    if not all(str(attribute.value).isascii() for attribute in name if attribute.oid in _ASCII):
        raise ValueError
    return name


def _is_malformed(part: str) -> bool:
    try:
        return not _parse_name(part).rdns
    except ValueError:
        return True


class _SignerKey(rsa.RSAPrivateKey):
    """A signer in the form of a private key, for cryptography's builders. It can only sign.

    https://cryptography.io/en/latest/hazmat/primitives/asymmetric/rsa/ describes the interface.
    """

    def __init__(self, signer: Signer, algorithm: Algorithm) -> None:
        require_length(signer.public_key, "The key")
        self._signer = signer
        self._algorithm = algorithm

    @property
    def key_size(self) -> int:
        return self._signer.public_key.bits

    def public_key(self) -> rsa.RSAPublicKey:
        numbers = self._signer.public_key
        return rsa.RSAPublicNumbers(numbers.exponent, numbers.modulus).public_key()

    def sign(self, data: bytes, padding: object, algorithm: object) -> bytes:
        # The builders pass `_PADDING` and `_SHA256`, which mean the same as the algorithm.
        return self._signer.sign(self._algorithm, data)

    def decrypt(self, ciphertext: bytes, padding: object) -> NoReturn:
        raise NotImplementedError("the key only signs")

    def private_numbers(self) -> NoReturn:
        raise NotImplementedError("the key does not leave its device")

    def private_bytes(self, encoding: object, format: object, encryption_algorithm: object) -> NoReturn:
        raise NotImplementedError("the key does not leave its device")

    def __copy__(self) -> NoReturn:
        raise NotImplementedError("the key does not leave its device")

    def __deepcopy__(self, memo: dict[Any, Any]) -> NoReturn:
        raise NotImplementedError("the key does not leave its device")


# The second item says whether the extension is critical (RFC 5280 sections 4.2.1.3 and 4.2.1.9): software that does not
# understand such a restriction must not accept the certificate. Entra ignores the purpose (section 4.2.1.12).
_EXTENSIONS: tuple[tuple[x509.ExtensionType, bool], ...] = (
    (x509.BasicConstraints(ca=False, path_length=None), True),
    (
        x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=False,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        ),
        True,
    ),
    (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False),
)
_FORM = (
    "Write it like CN=my app,O=Contoso,C=DE (RFC 4514): names in capitals (CN, O, OU, L, ST, C, DC, STREET, UID), no "
    "space after a comma, and a backslash before a comma in a value. CN has at most 64 characters, C has two."
)
