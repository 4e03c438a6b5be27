"""When a proof of possession is valid, for Microsoft Graph and by the RFCs: `check_proof`.

The source is Microsoft's page "Generate proof-of-possession tokens for rolling keys". Where it is not exact, these
rules are strict. The decisions:

- `alg` is RS256, the algorithm of Microsoft's examples. Whether the service takes PS256 is not documented.
- The page does not mention the header. `typ` may be left out, or is JWT (RFC 7519 section 5.1). `x5t` may be left out,
  or names a certificate of the object, and then only that one counts (RFC 7515 section 4.1.7). `crit` is refused
  (section 4.1.11), `kid` ignored.
- A certificate that is registered on the object in the path, and valid now, made the signature.
- `aud` is exactly `AUDIENCE` and one string; `iss` is the id of the object in the path, never the client id.
- `nbf` and `exp` are integers, `exp` - `nbf` is at most ten minutes, and `nbf` <= now < `exp`: no clock skew.

Every refusal is ``Authentication_MissingOrMalformed``, "Access Token missing or malformed.": public reports
show it for refused proofs, though not for each reason. The document's ``details`` have the reason, which the service
does not give.
"""

from collections.abc import Collection, Mapping
from typing import Final

from hsm_signer.testing.entra.directory import DirectoryObject, GraphRefusal, RegisteredCertificate
from hsm_signer.testing.entra.strict_jwt import Malformed, StrictJwt, decode_base64url, whole_seconds

AUDIENCE: Final = "00000002-0000-0000-c000-000000000000"
"""The appId of Azure AD Graph. Some versions of the page name Microsoft Graph's; the reference of addKey names this."""

LONGEST_LIFETIME: Final = 600
"""Seconds."""


class GraphRefused(Exception):
    """A rule refuses a request to Graph."""

    def __init__(self, refusal: GraphRefusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


def check_proof(proof: str, holder: DirectoryObject, now: float) -> None:
    """Check that `proof` is valid now, and signed by a key that is registered on `holder`.

    Raises:
        GraphRefused: it is not.
    """
    try:
        jwt = StrictJwt.parse(proof)
        _check_signature(proof, jwt.header, holder.credentials, now)
        _check_claims(jwt.claims, holder.id, now)
    except Malformed as malformed:
        message = "Access Token missing or malformed."
        raise GraphRefused(
            GraphRefusal(
                "Authentication_MissingOrMalformed", message, 401, f"The proof is refused: {malformed}.", "proof"
            )
        ) from None


def _check_signature(
    proof: str, header: Mapping[str, object], registered: Collection[RegisteredCertificate], now: float
) -> None:
    if header.get("alg") != "RS256":
        raise Malformed("the header's 'alg' is not RS256")
    if header.get("typ", "JWT") != "JWT":
        raise Malformed("the header's 'typ' is not JWT")
    if "crit" in header:
        raise Malformed("the header marks parameters as critical, and none of them is supported")
    candidates = _named(header, registered) if "x5t" in header else registered
    valid = [candidate for candidate in candidates if candidate.covers(now)]
    if not valid:
        raise Malformed("no certificate that is registered on the object and valid now can have signed it")
    if not any(candidate.verifies(proof, "RS256") for candidate in valid):
        raise Malformed("no certificate that is registered on the object and valid now made the signature")


def _named(header: Mapping[str, object], registered: Collection[RegisteredCertificate]) -> list[RegisteredCertificate]:
    text = header["x5t"]
    if not isinstance(text, str):
        raise Malformed("the thumbprint 'x5t' is not a string")
    thumbprint = decode_base64url(text, "the thumbprint 'x5t'")
    return [candidate for candidate in registered if candidate.thumbprints["x5t"] == thumbprint]


def _check_claims(claims: Mapping[str, object], issuer: str, now: float) -> None:
    for name in ("aud", "iss", "nbf", "exp"):
        if name not in claims:
            raise Malformed(f"the claim '{name}' is missing")
    if claims["aud"] != AUDIENCE:
        raise Malformed(f"the claim 'aud' is not '{AUDIENCE}'")
    if claims["iss"] != issuer:
        raise Malformed("the claim 'iss' is not the ID of the object whose keys are replaced")
    not_before, expires = (whole_seconds(claims[name], f"the claim '{name}'") for name in ("nbf", "exp"))
    if expires - not_before > LONGEST_LIFETIME:
        raise Malformed(f"a lifetime of {expires - not_before} seconds is longer than {LONGEST_LIFETIME}")
    if not not_before <= now < expires:
        raise Malformed("it is not valid now: compare 'nbf' and 'exp' with the Date header of this answer")
