"""Build client assertions for Entra. Pure except for the signer.

RFC 7523 section 3 defines the claims, and Microsoft's page on certificate credentials the header:
https://learn.microsoft.com/entra/identity-platform/certificate-credentials
"""

import base64
import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hsm_signer.crypto import Algorithm, Signer
from hsm_signer.errors import ConfigError
from hsm_signer.jwt.compact import sign_jwt, thumbprints
from hsm_signer.x509.certificate import Certificate

DEFAULT_LIFETIME = 600
MAXIMUM_LIFETIME = 86400
"""Seconds. Entra refuses assertions that live longer than a day."""

FILE_LIFETIME = 3600
"""Default lifetime, in seconds, of an assertion in a file."""

KEPT_BY_READERS = 600
"""Seconds for which an SDK may keep using an assertion after reading it: azure-identity rereads it every 10 minutes."""


class Thumbprint(StrEnum):
    """Which hash of the certificate goes into the header."""

    SHA1 = "sha1"
    SHA256 = "sha256"


@dataclass(frozen=True)
class AssertionSpec:
    """Everything in an assertion that does not come from the key or the clock.

    Attributes:
        client_id: application (client) ID; issuer and subject.
        audience: the token endpoint.
        lifetime: seconds from ``nbf`` to ``exp``, 1 to `MAXIMUM_LIFETIME`.
        algorithm: RS256 or PS256.
        thumbprint: the hash that identifies the certificate. None: SHA-1 with RS256, SHA-256 with PS256.
        chain: certificates for ``x5c``, DER, the key's own first; empty: no ``x5c``.
    """

    client_id: str
    audience: str
    lifetime: int = DEFAULT_LIFETIME
    algorithm: Algorithm = Algorithm.RS256
    thumbprint: Thumbprint | None = None
    chain: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        check_lifetime(self.lifetime)


def check_lifetime(seconds: int) -> None:
    """Check that an assertion may have this lifetime.

    Raises:
        ConfigError: it is not 1 to `MAXIMUM_LIFETIME`.
    """
    if not 1 <= seconds <= MAXIMUM_LIFETIME:
        raise ConfigError(
            f"The lifetime of an assertion cannot be {seconds} s.",
            hint=f"Choose 1 to {MAXIMUM_LIFETIME} seconds. The default is {DEFAULT_LIFETIME}.",
        )


def build_assertion(
    spec: AssertionSpec, signer: Signer, certificate: Certificate, now: float, jti: uuid.UUID | None = None
) -> str:
    """Return a signed client assertion as a compact JWT.

    Args:
        spec: what to put into it.
        signer: signs once.
        certificate: the certificate of the signer's key; its thumbprint goes into the header.
        now: epoch seconds; becomes ``nbf`` and ``iat``.
        jti: the ID of the assertion. None: a new GUID.

    Raises:
        HsmSignerError: the signer failed.
    """
    return sign_jwt(assertion_header(spec, certificate), assertion_claims(spec, int(now), jti or uuid.uuid4()), signer)


def assertion_header(spec: AssertionSpec, certificate: Certificate) -> dict[str, Any]:
    """Return the JOSE header (RFC 7515 section 4.1)."""
    thumbprint = spec.thumbprint or (Thumbprint.SHA256 if spec.algorithm is Algorithm.PS256 else Thumbprint.SHA1)
    name = "x5t" if thumbprint is Thumbprint.SHA1 else "x5t#S256"
    header: dict[str, Any] = {"alg": spec.algorithm.value, "typ": "JWT", name: thumbprints(certificate)[name]}
    if spec.chain:
        # RFC 7515 section 4.1.6: base64, not base64url.
        header["x5c"] = [base64.b64encode(der).decode("ascii") for der in spec.chain]
    return header


def assertion_claims(spec: AssertionSpec, now: int, jti: uuid.UUID) -> dict[str, Any]:
    """Return the claims (RFC 7523 section 3). Times are integers: epoch seconds."""
    return {
        "aud": spec.audience,
        "iss": spec.client_id,
        "sub": spec.client_id,
        "jti": str(jti),
        "nbf": now,
        "iat": now,
        "exp": now + spec.lifetime,
    }
