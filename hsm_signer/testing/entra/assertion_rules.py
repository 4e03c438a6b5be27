"""When a client assertion is valid, for Entra and by the RFCs: `check_assertion`.

Where Microsoft's page on certificate credentials is not exact, these rules are strict: a lenient stand-in would hide
mistakes. The decisions:

- Two pairs are documented and accepted: RS256 with `x5t`, PS256 with `x5t#S256` (AD FS: the first only). Both
  thumbprints together are accepted when both name the certificate. Any other pair is AADSTS5002738, although the
  service has been seen to let PS256 with `x5t` pass.
- `x5t` has 20 octets and `x5t#S256` 32. A value of another length identifies no certificate: AADSTS700027.
- All seven documented claims are required: `aud`, `iss`, `sub`, `jti`, `nbf`, `iat`, `exp` (AADSTS90014).
- `aud` is exactly the token endpoint and one string. Entra refuses an array: AADSTS50027.
- No clock skew is allowed: `nbf` <= now < `exp`. Emulator and client share a clock, so a difference is a mistake.
- `exp` - `nbf` is at most a day. No error is documented for more; AADSTS700024 is the nearest.
- A `jti` that was used before is refused with `refuse_replay` only. Entra has no error for it: AADSTS50027.
"""

import base64
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from hsm_signer.testing.entra.directory import (
    ADFS,
    Directory,
    RegisteredCertificate,
    RequestRefused,
    invalid_client,
    invalid_request,
    missing_field,
)
from hsm_signer.testing.entra.strict_jwt import Malformed, StrictJwt, decode_base64url, whole_seconds

LONGEST_LIFETIME: Final = 86400
"""Seconds."""

_THUMBPRINT_OF = {"RS256": "x5t", "PS256": "x5t#S256"}


def check_assertion(
    assertion: str, client_id: str, registered: Collection[RegisteredCertificate], directory: Directory, now: float
) -> str:
    """Return the `jti` of a valid assertion for `client_id`.

    Raises:
        Malformed: it is not a JWT, or a part of it has not the documented form.
        RequestRefused: it is a JWT, but not a valid assertion.
    """
    jwt = StrictJwt.parse(assertion)
    algorithm = _algorithm(jwt.header, directory)
    certificate = _certificate(jwt.header, registered)
    _check_chain(jwt.header, certificate)
    _check_signature(assertion, algorithm, certificate)
    _check_validity(certificate, now)
    return _check_claims(jwt.claims, client_id, directory, now)


def _algorithm(header: Mapping[str, object], directory: Directory) -> str:
    if header.get("typ") != "JWT":
        raise invalid_request(5002727, "Invalid JWT header type specified, must be 'JWT'.")
    if "crit" in header:  # RFC 7515 section 4.1.11: refuse extensions that are not understood
        raise Malformed("the header marks parameters as critical, and none of them is supported")
    given = [name for name in _THUMBPRINT_OF.values() if name in header]
    if not given:
        raise invalid_client(
            5002723,
            "Invalid JWT token. No certificate SHA-1 thumbprint, certificate SHA-256 thumbprint, nor keyId specified "
            "in token header.",
        )
    algorithm = header.get("alg")
    known = ["RS256"] if directory.tenant == ADFS else list(_THUMBPRINT_OF)
    supported = [name for name in known if _THUMBPRINT_OF[name] in given]
    if not isinstance(algorithm, str) or algorithm not in supported:
        with_thumbprint = f" with the thumbprint '{given[0]}'" if algorithm in known else ""
        raise invalid_client(
            5002738,
            f"Invalid JWT token. '{algorithm}' is not a supported signature algorithm{with_thumbprint}. "
            f"Supported signing algorithms are: '{','.join(supported)}'",
        )
    return algorithm


def _certificate(header: Mapping[str, object], registered: Collection[RegisteredCertificate]) -> RegisteredCertificate:
    named: dict[str, bytes] = {}
    for name in _THUMBPRINT_OF.values():
        if name in header:
            text = header[name]
            if not isinstance(text, str):
                raise Malformed(f"the thumbprint '{name}' is not a string")
            named[name] = decode_base64url(text, f"the thumbprint '{name}'")
    for candidate in registered:
        if named.items() <= candidate.thumbprints.items():
            return candidate
    shown = " and ".join(f"'{value.hex().upper()}' ({name}, {len(value)} octets)" for name, value in named.items())
    raise invalid_client(
        700027,
        "The certificate with identifier used to sign the client assertion is not registered on application. "
        f"[Reason - The key was not found., Thumbprint of key used by client: {shown}]",
    )


def _check_chain(header: Mapping[str, object], certificate: RegisteredCertificate) -> None:
    # RFC 7515 section 4.1.6: standard base64 of DER; the first is the signer's, and each one is certified by the next.
    if "x5c" not in header:
        return
    entries = header["x5c"]
    if not isinstance(entries, list) or not entries:
        raise Malformed("'x5c' is not an array of certificates")
    try:
        chain = [x509.load_der_x509_certificate(base64.b64decode(entry, validate=True)) for entry in entries]
        for subject, issuer in pairwise(chain):
            subject.verify_directly_issued_by(issuer)
    except (TypeError, ValueError, InvalidSignature):
        raise Malformed("'x5c' is not a chain of DER certificates in standard base64") from None
    if chain[0] != certificate.certificate:
        raise Malformed("the first certificate of 'x5c' is not the one the thumbprint names")


def _check_signature(assertion: str, algorithm: str, certificate: RegisteredCertificate) -> None:
    if certificate.public_key.key_size < 2048:
        raise _not_verified(f"The key has {certificate.public_key.key_size} bits, fewer than 2048", certificate)
    if not certificate.verifies(assertion, algorithm):
        raise _not_verified("The provided signature value did not match the expected signature value", certificate)


def _not_verified(reason: str, certificate: RegisteredCertificate) -> RequestRefused:
    thumbprint = certificate.thumbprints["x5t"].hex().upper()
    return invalid_client(
        700027,
        f"Client assertion contains an invalid signature. [Reason - {reason}., "
        f"Thumbprint of key used by client: '{thumbprint}']",
    )


def _check_validity(certificate: RegisteredCertificate, now: float) -> None:
    if not certificate.covers(now):
        start = certificate.certificate.not_valid_before_utc.timestamp()
        end = certificate.certificate.not_valid_after_utc.timestamp()
        raise invalid_client(
            1000502,
            "The provided certificate is not within its specified validity time range. "
            f"Current time: {_time(now)}, certificate valid from {_time(start)} to {_time(end)}.",
        )


def _check_claims(claims: Mapping[str, object], client_id: str, directory: Directory, now: float) -> str:
    audience, issuer, subject, jti = (_text(claims, name) for name in ("aud", "iss", "sub", "jti"))
    not_before, _, expires = (_seconds(claims, name) for name in ("nbf", "iat", "exp"))
    if issuer != client_id:
        raise invalid_client(700021, "Client assertion application identifier doesn't match 'client_id' parameter.")
    if subject != issuer:
        raise invalid_client(50048, "Subject must match Issuer claim in the client assertion.")
    if audience != directory.token_endpoint:
        raise invalid_client(
            700023,
            "Client assertion audience claim does not match Realm issuer. "
            f"[Expected - '{directory.token_endpoint}', found - '{audience}']",
        )
    _check_times(not_before, expires, now)
    if (client_id, jti) in directory.spent:
        raise invalid_client(50027, "JWT token is invalid: an assertion with this 'jti' was used before.")
    return jti


def _text(claims: Mapping[str, object], name: str) -> str:
    if name not in claims:
        raise missing_field(name)
    value = claims[name]
    if not isinstance(value, str) or not value:
        raise Malformed(f"the claim '{name}' is not a string, or is empty")
    return value


def _seconds(claims: Mapping[str, object], name: str) -> int:
    if name not in claims:
        raise missing_field(name)
    return whole_seconds(claims[name], f"the claim '{name}'")


def _check_times(not_before: int, expires: int, now: float) -> None:
    if expires - not_before > LONGEST_LIFETIME:
        problem = f"A lifetime of {expires - not_before} seconds is longer than {LONGEST_LIFETIME}."
    elif not not_before <= now < expires:
        problem = (
            f"Current time: {_time(now)}, assertion valid from {_time(not_before)}, "
            f"expiry time of assertion {_time(expires)}."
        )
    else:
        return
    raise invalid_client(700024, f"Client assertion is not within its valid time range. {problem}")


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"{seconds} seconds after 1970"
