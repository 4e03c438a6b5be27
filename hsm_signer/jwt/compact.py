"""Sign and parse compact JWTs, with strict base64url (RFC 7515, RFC 7519). Pure except for the signer."""

import base64
import binascii
import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hsm_signer.crypto import Algorithm, Signer
from hsm_signer.errors import JwtError
from hsm_signer.system.strict_json import parse_json
from hsm_signer.x509.certificate import Certificate

# json.dumps would create one of these for each call.
_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True)
class Jwt:
    """A parsed JWT. Its signature is not verified yet.

    Attributes:
        header: the JOSE header.
        claims: the payload.
        signing_input: the bytes that were signed.
        signature: the signature of the signing input.
    """

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    signing_input: bytes
    signature: bytes


def sign_jwt(header: Mapping[str, Any], claims: Mapping[str, Any], signer: Signer) -> str:
    """Return a signed JWT in compact serialization (RFC 7515 section 7.1).

    Args:
        header: the JOSE header; its ``alg`` is the algorithm to sign with.
        claims: the payload.
        signer: signs once.

    Raises:
        HsmSignerError: the signer failed.
    """
    signing_input = f"{_encode_json(header)}.{_encode_json(claims)}"
    signature = signer.sign(Algorithm(header["alg"]), signing_input.encode("ascii"))
    return f"{signing_input}.{base64url_encode(signature)}"


def parse_jwt(text: str) -> Jwt:
    """Parse a compact JWT strictly (RFC 7515 section 5.2, RFC 7519 section 7.2).

    Raises:
        JwtError: the text is not three base64url parts with JSON objects in the first two. The error never quotes it.
    """
    parts = text.strip().split(".")
    if len(parts) != 3:
        raise JwtError(
            f"This is not a compact JWT: it has {len(parts)} part{'s' if len(parts) != 1 else ''}, not 3.",
            hint="A JWT has the form header.claims.signature. Check that it is complete, and not quoted twice.",
        )
    header, claims, signature = parts
    return Jwt(
        header=_decode_json(header, "header"),
        claims=_decode_json(claims, "claims"),
        signing_input=f"{header}.{claims}".encode("ascii"),
        signature=_decode(signature, "signature"),
    )


def thumbprints(certificate: Certificate) -> dict[str, str]:
    """Return the thumbprints of a certificate by header parameter, ``x5t`` and ``x5t#S256`` (RFC 7515 section 4.1)."""
    return {"x5t": base64url_encode(certificate.sha1), "x5t#S256": base64url_encode(certificate.sha256)}


def base64url_encode(data: bytes) -> str:
    """Encode without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def base64url_decode(text: str) -> bytes:
    """Decode strictly: no padding, no other characters, and unused bits must be zero (RFC 4648 section 3.5).

    Raises:
        ValueError: `text` is not valid base64url.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        raise ValueError("it has padding or characters outside the base64url alphabet")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise ValueError("no base64url string has this length") from None
    if base64url_encode(data) != text:
        raise ValueError("the unused bits of its last character are not zero")
    return data


def _encode_json(value: Mapping[str, Any]) -> str:
    return base64url_encode(_JSON.encode(value).encode("utf-8"))


def _decode(text: str, part: str) -> bytes:
    try:
        return base64url_decode(text)
    except ValueError as error:
        raise JwtError(
            f"The {part} of the JWT is not base64url: {error}.",
            hint="Check that the JWT is complete, and not encoded twice.",
        ) from None


def _decode_json(text: str, part: str) -> dict[str, Any]:
    data = _decode(text, part)
    value: object = None
    # A UnicodeDecodeError contains the text, so the JwtError must not have it as its context.
    with contextlib.suppress(ValueError):
        value = parse_json(data.decode("utf-8"))
    if not isinstance(value, dict):
        raise JwtError(
            f"The {part} of the JWT is not a JSON object.",
            hint="Check that this is a signed JWT, not an opaque or encrypted token.",
        )
    return value
