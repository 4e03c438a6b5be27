"""What Entra requires of a key and of its certificate."""

from datetime import UTC, datetime

from hsm_signer.crypto import PublicKey
from hsm_signer.errors import CertificateMismatch, CertificateUnusable, KeyLookupError, KeyUnfit
from hsm_signer.x509.certificate import Certificate

MINIMUM_BITS = 2048
"""Entra refuses RSA keys shorter than this (AADSTS700027)."""

RENEWAL_DAYS = 30
"""A certificate that expires in fewer days is due to be replaced."""


def require_length(public_key: PublicKey, what: str, error: type[KeyLookupError] = KeyUnfit) -> None:
    """Check that a key is long enough for Entra.

    Args:
        what: the subject of the message: "The key 'app'".
        error: the class of the error to raise.

    Raises:
        KeyLookupError: the key is too short. Its class is `error`.
    """
    if public_key.bits < MINIMUM_BITS:
        raise error(
            f"{what} has only {public_key.bits} bits. Entra requires at least {MINIMUM_BITS}.",
            hint="Generate a longer key: hsm-signer key generate",
        )


def require_usable(certificate: Certificate, public_key: PublicKey, now: datetime) -> None:
    """Check that Entra accepts `certificate` for `public_key` at `now`.

    Args:
        now: the time of signing, timezone-aware.

    Raises:
        CertificateMismatch: it is for another key.
        CertificateUnusable: it has expired or is not yet valid, its key is too short, or it is not for digital
            signatures.
    """
    if certificate.public_key is None:
        raise CertificateUnusable(
            f"The certificate {certificate.subject} is not for an RSA key.",
            hint=f"Use an RSA key of {MINIMUM_BITS} bits or more: Entra accepts no other keys for client assertions.",
        )
    if certificate.public_key != public_key:
        raise CertificateMismatch(
            f"The certificate {certificate.subject} (SHA-1 {certificate.sha1.hex().upper()}) is for another key than "
            "the one on the device.",
            hint="Name the certificate of this key with --certificate, or the key of this certificate with --key.",
        )
    require_length(public_key, f"The key in the certificate {certificate.subject}", CertificateUnusable)
    if now < certificate.not_before:
        raise CertificateUnusable(
            f"The certificate {certificate.subject} is not valid before {_utc(certificate.not_before)}. "
            f"It is now {_utc(now)}.",
            hint="Check this machine's clock: timedatectl",
        )
    if now > certificate.not_after:
        raise CertificateUnusable(
            f"The certificate {certificate.subject} expired on {_utc(certificate.not_after)}. It is now {_utc(now)}.",
            hint="Create a new certificate (hsm-signer certificate create), and upload it to the app registration.",
        )
    if certificate.key_usage is not None and "digital_signature" not in certificate.key_usage:
        raise CertificateUnusable(
            f"The certificate {certificate.subject} is not for digital signatures "
            f"(key usage: {', '.join(sorted(certificate.key_usage)) or 'none'}).",
            hint="Use a certificate whose key usage contains digitalSignature, or has no key usage.",
        )


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
