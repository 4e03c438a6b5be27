"""A certificate as text and as JSON; pure."""

from datetime import datetime
from typing import Any

from hsm_signer.cli.text.layout import row, to_json, validity_in_words
from hsm_signer.jwt.compact import base64url_encode
from hsm_signer.x509.certificate import Certificate, certificate_details, to_pem

ATTESTATION = "attestation: proof that a device generated the key; not for signing in"
"""How text for people names an attestation certificate."""


def certificate_json(certificate: Certificate, now: datetime) -> str:
    """Return the facts about a certificate, and the certificate itself as PEM, as JSON."""
    return to_json({**certificate_facts(certificate, now), "pem": to_pem(certificate.der).decode("ascii")})


def certificate_facts(certificate: Certificate, now: datetime) -> dict[str, Any]:
    """Return the facts about a certificate, by the names that scripts read.

    Args:
        now: `days_left` counts from here; timezone-aware.
    """
    details = certificate_details(certificate)
    return {
        "subject": certificate.subject,
        "issuer": details.issuer,
        "serial": f"{details.serial:x}",
        "not_before": f"{certificate.not_before:%Y-%m-%dT%H:%M:%SZ}",
        "not_after": f"{certificate.not_after:%Y-%m-%dT%H:%M:%SZ}",
        "days_left": (certificate.not_after - now).days,
        "bits": None if certificate.public_key is None else certificate.public_key.bits,
        "key_usage": None if certificate.key_usage is None else sorted(certificate.key_usage),
        "extended_key_usage": None if details.purposes is None else sorted(details.purposes),
        "attestation": certificate.is_attestation,
        "sha1": certificate.sha1.hex(),
        "sha256": certificate.sha256.hex(),
        "x5t": base64url_encode(certificate.sha1),
        "x5t#S256": base64url_encode(certificate.sha256),
        "portal": certificate.sha1.hex().upper(),
    }


def certificate_text(certificate: Certificate, now: datetime) -> str:
    """Return the facts about a certificate as lines, without a newline at the end."""
    facts = certificate_facts(certificate, now)
    rows = {
        **({"kind": ATTESTATION} if certificate.is_attestation else {}),
        "subject": facts["subject"],
        "issuer": facts["issuer"],
        "serial": facts["serial"],
        "valid": validity_in_words(certificate.not_before, certificate.not_after, facts["days_left"]),
        "key": f"RSA, {facts['bits']} bits" if facts["bits"] else "not RSA",
        "usage": _names(facts["key_usage"]),
        "purpose": _names(facts["extended_key_usage"]),
        "SHA-1": f"{facts['portal']} (as the portal shows it)",
        "x5t": facts["x5t"],
        "SHA-256": certificate.sha256.hex().upper(),
        "x5t#S256": facts["x5t#S256"],
    }
    return "\n".join(line for label, value in rows.items() for line in row(0, label, value))


def _names(names: list[str] | None) -> str:
    return "any" if names is None else ", ".join(name.replace("_", " ") for name in names) or "none"
