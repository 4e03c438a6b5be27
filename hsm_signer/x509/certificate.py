"""Parse X.509 certificates (RFC 5280), hash them, and select the certificate of a key."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from asn1crypto import pem, x509

from hsm_signer.crypto import PublicKey
from hsm_signer.errors import CertificateMismatch, CertificateUnusable


@dataclass(frozen=True)
class Certificate:
    """The parts of an X.509 certificate that a client assertion needs.

    Attributes:
        der: the certificate, DER.
        public_key: its RSA key, or None if the key is not RSA.
        subject: its subject, as RFC 4514 writes it.
        not_before: start of its validity, UTC.
        not_after: end of its validity, UTC.
        key_usage: the names in its key usage extension, or None if there is no such extension (RFC 5280 section
            4.2.1.3).
    """

    der: bytes
    public_key: PublicKey | None
    subject: str
    not_before: datetime
    not_after: datetime
    key_usage: frozenset[str] | None

    @cached_property
    def sha1(self) -> bytes:
        """The SHA-1 thumbprint, 20 bytes, for ``x5t`` (RFC 7515 section 4.1.7)."""
        return hashlib.sha1(self.der, usedforsecurity=False).digest()

    @cached_property
    def sha256(self) -> bytes:
        """The SHA-256 thumbprint, 32 bytes, for ``x5t#S256`` (RFC 7515 section 4.1.8)."""
        return hashlib.sha256(self.der).digest()

    @cached_property
    def is_attestation(self) -> bool:
        """See `is_attestation`."""
        return is_attestation(self.der)


@dataclass(frozen=True)
class CertificateDetails:
    """More about a certificate, for people.

    Attributes:
        issuer: its issuer, as RFC 4514 writes it.
        serial: its serial number.
        purposes: the names in its extended key usage extension, or None if there is no such extension (RFC 5280 section
            4.2.1.12).
    """

    issuer: str
    serial: int
    purposes: frozenset[str] | None


def parse_certificates(data: bytes, source: str) -> list[Certificate]:
    """Parse one certificate, or all certificates of a chain, in their order.

    Args:
        data: DER or PEM of a certificate or of PKCS#7 (RFC 5652), or PEM of several. Other PEM blocks are ignored. The
            order in PKCS#7 has no meaning.
        source: where the data came from, at the start of a sentence.

    Raises:
        CertificateUnusable: there is no certificate, or one of them cannot be parsed.
    """
    if not pem.detect(data):
        return [_parse(der, source) for der in _unpack(data, source)]
    try:
        blocks = [der for kind, _, der in pem.unarmor(data, multiple=True) if kind in _PEM_LABELS]
    except ValueError as error:
        raise CertificateUnusable(f"{source} holds damaged PEM: {error}.", hint="Export it again.") from None
    if not blocks:
        raise CertificateUnusable(
            f"{source} is PEM, but holds no certificate.", hint="Give a file with a BEGIN CERTIFICATE line."
        )
    return [_parse(der, source) for block in blocks for der in _unpack(block, source)]


def to_pem(der: bytes, label: str = "CERTIFICATE") -> bytes:
    """Return DER as PEM (RFC 7468), with a newline at its end.

    Args:
        label: the PEM label, such as "CERTIFICATE REQUEST".
    """
    armored: bytes = pem.armor(label, der)
    return armored


def select_certificate(certificates: Sequence[Certificate], public_key: PublicKey, source: str) -> Certificate:
    """Return the certificate for a key. If there are several, return the one that expires last.

    Args:
        source: where they came from, for messages.

    Raises:
        CertificateMismatch: none of them is for the key.
    """
    matching = [certificate for certificate in certificates if certificate.public_key == public_key]
    if not matching:
        subjects = "; ".join(certificate.subject for certificate in certificates)
        raise CertificateMismatch(
            f"No certificate in {source} is for the key on the device. It holds: {subjects}.",
            hint="Give the certificate of this key, or name this certificate's key with --key.",
        )
    # Attestation certificates are valid for decades.
    return max(matching, key=lambda certificate: (not certificate.is_attestation, certificate.not_after))


def is_attestation(der: bytes) -> bool:
    """Return whether a certificate proves that a device generated a key. Such a certificate is not for signing in.

    A YubiKey makes a new one in each session for each key that it generated. ykcs11 lists it together with the key's
    own certificate, with the same CKA_ID.

    Args:
        der: the certificate. The result is False for bytes that cannot be parsed.
    """
    try:
        extensions = x509.Certificate.load(der)["tbs_certificate"]["extensions"]
        return any(extension["extn_id"].dotted in _ATTESTATION for extension in extensions)
    except _UNPARSEABLE:
        return False


def certificate_details(certificate: Certificate) -> CertificateDetails:
    """Return more about a certificate, for people.

    Raises:
        CertificateUnusable: these parts cannot be parsed.
    """
    try:
        parsed = x509.Certificate.load(certificate.der)
        purposes = parsed.extended_key_usage_value
        return CertificateDetails(
            issuer=_name(parsed.issuer),
            serial=parsed.serial_number,
            purposes=None if purposes is None else frozenset(purposes.native),
        )
    except _UNPARSEABLE as error:
        raise _malformed(f"The certificate {certificate.subject}", error) from None


def _parse(der: bytes, source: str) -> Certificate:
    try:
        parsed = x509.Certificate.load(der, strict=True)
        body = parsed["tbs_certificate"]
        validity = body["validity"]
        usage = parsed.key_usage_value
        return Certificate(
            der=der,
            public_key=_public_key(body["subject_public_key_info"]),
            subject=_name(parsed.subject),
            not_before=_moment(validity["not_before"].native),
            not_after=_moment(validity["not_after"].native),
            key_usage=None if usage is None else frozenset(usage.native),
        )
    except _UNPARSEABLE as error:
        raise _malformed(source, error) from None


def _malformed(source: str, error: Exception) -> CertificateUnusable:
    return CertificateUnusable(
        f"{source} is not an X.509 certificate: {_first_line(error)}.", hint="Give a certificate as PEM or DER."
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _moment(found: object) -> datetime:
    # asn1crypto has its own class for the year 0, which Python's datetime does not have.
    if not isinstance(found, datetime):
        raise ValueError("its validity dates are outside the calendar")
    return found.astimezone(UTC)


def _unpack(der: bytes, source: str) -> list[bytes]:
    """Return the certificates in PKCS#7, or `der` itself."""
    # RFC 5652 section 3: a ContentInfo begins with its type. A certificate begins with another SEQUENCE.
    if _SIGNED_DATA not in der[: len(_SIGNED_DATA) + _LONGEST_HEADER]:
        return [der]
    from asn1crypto import cms

    try:
        content = cms.ContentInfo.load(der, strict=True)["content"]
        found = [choice.chosen.dump() for choice in content["certificates"]]
    except _UNPARSEABLE as error:
        raise CertificateUnusable(
            f"{source} is damaged PKCS#7: {_first_line(error)}.", hint="Export it again."
        ) from None
    if not found:
        raise CertificateUnusable(f"{source} is PKCS#7, but holds no certificate.", hint="Export it with its chain.")
    return found


def _public_key(info: "x509.PublicKeyInfo") -> PublicKey | None:
    if info.algorithm != "rsa":
        return None
    numbers = info["public_key"].parsed
    return PublicKey(modulus=numbers["modulus"].native, exponent=numbers["public_exponent"].native)


def _name(name: "x509.Name") -> str:
    # RFC 4514 section 2.1: the most specific name first. Only well-known short names are used.
    rdns = [[(part["type"].native, part["value"].native) for part in rdn] for rdn in reversed(list(name.chosen))]
    parts = ["+".join(f"{_SHORT.get(kind, kind)}={_escaped(str(value))}" for kind, value in rdn) for rdn in rdns]
    return ",".join(parts) or "without a subject"


def _escaped(value: str) -> str:
    """Escape a value (RFC 4514 section 2.4). Control characters and invisible ones are written in hexadecimal."""
    text = re.sub(r'[\\"+,;<>]|^[ #]| \Z', r"\\\g<0>", value)
    return "".join(c if c.isprintable() else "".join(f"\\{octet:02X}" for octet in c.encode()) for c in text)


# The exceptions that asn1crypto raises for damaged DER.
_UNPARSEABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
_PEM_LABELS = ("CERTIFICATE", "PKCS7", "CMS")  # RFC 7468 sections 5, 8 and 9
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")  # RFC 5652 section 5.1: id-signedData, DER
_LONGEST_HEADER = 6
# The firmware's version: an extension of every attestation certificate of a YubiKey (PIV) or YubiHSM, and of the
# certificate of the key that signs them (docs.yubico.com, "PIV Attestation OID Arc" and "YubiHSM OIDs"). Not the whole
# of Yubico's arc: `yubico-piv-tool --attestation -a selfsign-certificate` puts .3.2 and .3.11 into ordinary ones.
_ATTESTATION = frozenset({"1.3.6.1.4.1.41482.3.3", "1.3.6.1.4.1.41482.4.1"})
_SHORT = {
    "common_name": "CN",
    "organization_name": "O",
    "organizational_unit_name": "OU",
    "country_name": "C",
    "locality_name": "L",
    "state_or_province_name": "ST",
    "domain_component": "DC",
}
