"""Client assertions and proofs: strict base64url, the compact JWS around a signature, the claims; pure but for signing.

RFC 7515 is the envelope, RFC 7523 section 3 the claims, and Microsoft's page on certificate credentials the header:
https://learn.microsoft.com/entra/identity-platform/certificate-credentials
"""

import base64
import binascii
import contextlib
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hsm_signer.crypto import Algorithm, Signer
from hsm_signer.errors import ConfigError, JwtError
from hsm_signer.system.strict_json import parse_json
from hsm_signer.x509.certificate import Certificate

DEFAULT_LIFETIME = 600
MAXIMUM_LIFETIME = 86400
"""Seconds. Entra refuses assertions that live longer than a day."""

FILE_LIFETIME = 3600
"""Seconds that an assertion in a file lives, where nothing else is configured."""

KEPT_BY_READERS = 600
"""Seconds for which an SDK may go on with what it has read: azure-identity reads the file every ten minutes."""

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
"""RFC 7523 section 2.2."""

PROOF_AUDIENCE = "00000002-0000-0000-c000-000000000000"
"""Who reads a proof of possession: the directory behind Microsoft Graph."""

PROOF_LIFETIME = 600
"""Seconds. Graph accepts no proof that lives longer."""

# json.dumps would make one of these each time.
_COMPACT = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


class Thumbprint(StrEnum):
    """Which hash of the certificate the header names it by."""

    SHA1 = "sha1"
    SHA256 = "sha256"


@dataclass(frozen=True)
class AssertionSpec:
    """Everything in an assertion that does not come from the key or the clock.

    Attributes:
        client_id: of the app registration; issuer and subject.
        audience: the token endpoint.
        lifetime: seconds from ``nbf`` to ``exp``, 1 to `MAXIMUM_LIFETIME`.
        algorithm: RS256 or PS256.
        thumbprint: None lets it follow the algorithm: SHA-1 with RS256, SHA-256 with PS256.
        chain: certificates for ``x5c``, DER, the signing one first; empty leaves the header out.
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
            f"An assertion cannot live for {seconds} s.",
            hint=f"Choose 1 to {MAXIMUM_LIFETIME} seconds; {DEFAULT_LIFETIME} is the default.",
        )


def build_assertion(
    spec: AssertionSpec, signer: Signer, certificate: Certificate, now: float, jti: uuid.UUID | None = None
) -> str:
    """Return a signed client assertion as a compact JWT.

    Args:
        spec: what it says.
        signer: signs it; called once.
        certificate: of the signer's key, named in the header.
        now: epoch seconds; becomes ``nbf`` and ``iat``.
        jti: the assertion's own id, a fresh GUID when None.

    Raises:
        HsmSignerError: whatever the signer raises.
    """
    claims = assertion_claims(spec, int(now), jti or uuid.uuid4())
    return _signed_jwt(assertion_header(spec, certificate), claims, signer, spec.algorithm)


def build_proof(object_id: str, signer: Signer, certificate: Certificate, now: float) -> str:
    """Return the proof of possession that Microsoft Graph's addKey and removeKey ask for, as a compact JWT.

    RS256 with ``x5t``: Graph documents no other.
    https://learn.microsoft.com/graph/application-rollkey-prooftoken

    Args:
        object_id: of the application or service principal whose credentials change; not its client id.
        signer: holds a key that is registered there now; called once.
        certificate: of that key.
        now: epoch seconds.

    Raises:
        HsmSignerError: whatever the signer raises.
    """
    header = {"alg": Algorithm.RS256.value, "typ": "JWT", "x5t": thumbprints(certificate)["x5t"]}
    begin = int(now)
    claims = {"aud": PROOF_AUDIENCE, "iss": object_id, "nbf": begin, "exp": begin + PROOF_LIFETIME}
    return _signed_jwt(header, claims, signer, Algorithm.RS256)


def assertion_header(spec: AssertionSpec, certificate: Certificate) -> dict[str, Any]:
    """Return the JOSE header (RFC 7515 section 4.1)."""
    thumbprint = spec.thumbprint or (Thumbprint.SHA256 if spec.algorithm is Algorithm.PS256 else Thumbprint.SHA1)
    name = "x5t" if thumbprint is Thumbprint.SHA1 else "x5t#S256"
    header: dict[str, Any] = {"alg": spec.algorithm.value, "typ": "JWT", name: thumbprints(certificate)[name]}
    if spec.chain:
        # RFC 7515 section 4.1.6: base64, not base64url.
        header["x5c"] = [base64.b64encode(der).decode("ascii") for der in spec.chain]
    return header


def thumbprints(certificate: Certificate) -> dict[str, str]:
    """Return the thumbprints of a certificate, by the header parameter that holds each (RFC 7515 section 4.1)."""
    return {"x5t": base64url_encode(certificate.sha1), "x5t#S256": base64url_encode(certificate.sha256)}


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


@dataclass(frozen=True)
class Jwt:
    """A JWT taken apart, its signature not yet verified.

    Attributes:
        header: the JOSE header.
        claims: the payload.
        signing_input: what was signed.
        signature: over the signing input.
    """

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    signing_input: bytes
    signature: bytes


def parse_jwt(text: str) -> Jwt:
    """Take a compact JWT apart, strictly (RFC 7515 section 5.2, RFC 7519 section 7.2).

    Raises:
        JwtError: it is not three base64url parts with JSON objects in the first two. The text is never quoted.
    """
    parts = text.strip().split(".")
    if len(parts) != 3:
        raise JwtError(
            f"This is not a compact JWT: it has {len(parts)} part{'s' if len(parts) != 1 else ''}, not 3.",
            hint="A JWT is header.claims.signature. Was it cut off, or quoted twice?",
        )
    header, claims, signature = parts
    return Jwt(
        header=_decode_json(header, "header"),
        claims=_decode_json(claims, "claims"),
        signing_input=f"{header}.{claims}".encode("ascii"),
        signature=_decode(signature, "signature"),
    )


def base64url_encode(data: bytes) -> str:
    """Encode without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def base64url_decode(text: str) -> bytes:
    """Decode strictly: no padding, no other character, no stray bits at the end (RFC 4648 section 3.5).

    Raises:
        ValueError: `text` is not the base64url of anything.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        raise ValueError("it has padding or characters outside the base64url alphabet")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise ValueError("its length is not that of a base64url text") from None
    if base64url_encode(data) != text:
        raise ValueError("its last character has stray bits")
    return data


def _signed_jwt(header: dict[str, Any], claims: dict[str, Any], signer: Signer, algorithm: Algorithm) -> str:
    """Return the compact serialization (RFC 7515 section 7.1) of what the signer signs."""
    signing_input = f"{_encode_json(header)}.{_encode_json(claims)}"
    signature = signer.sign(algorithm, signing_input.encode("ascii"))
    return f"{signing_input}.{base64url_encode(signature)}"


def _encode_json(value: dict[str, Any]) -> str:
    return base64url_encode(_COMPACT.encode(value).encode("utf-8"))


def _decode(text: str, part: str) -> bytes:
    try:
        return base64url_decode(text)
    except ValueError as error:
        raise JwtError(
            f"The {part} of the JWT is not base64url: {error}.", hint="Was it cut off, or encoded twice?"
        ) from None


def _decode_json(text: str, part: str) -> dict[str, Any]:
    data = _decode(text, part)
    value: object = None
    # Not raised from within: the exception of what is no UTF-8 carries the text.
    with contextlib.suppress(ValueError):
        value = parse_json(data.decode("utf-8"))
    if not isinstance(value, dict):
        raise JwtError(f"The {part} of the JWT is not a JSON object.", hint="Is this an opaque or an encrypted token?")
    return value
