"""Check an assertion against its certificate, offline; pure.

These are the checks that Entra makes, so they can explain a refusal without another request.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from hsm_signer.crypto import Algorithm
from hsm_signer.jwt.assertion import MAXIMUM_LIFETIME
from hsm_signer.jwt.compact import Jwt, thumbprints
from hsm_signer.x509.certificate import Certificate


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        holds: whether the check passed.
        detail: what was found.
    """

    name: str
    holds: bool
    detail: str


def check_assertion(jwt: Jwt, certificate: Certificate, now: float) -> list[Check]:
    """Check an assertion against the certificate that it should name.

    Args:
        jwt: the assertion.
        certificate: the certificate that is registered with the app.
        now: epoch seconds.

    Returns:
        All results: signature, then certificate, times and claims.
    """
    return [
        _signature(jwt, certificate),
        _thumbprint(jwt, certificate),
        _validity(certificate, now),
        *_times(jwt, now),
        _client(jwt),
        _required_claims(jwt),
    ]


def is_access_token(jwt: Jwt) -> bool:
    """Return whether a JWT is an access token by Entra instead of an assertion: its client is not its issuer.

    https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference: `appid` (v1) or `azp` (v2).
    """
    issuer, client = jwt.claims.get("iss"), jwt.claims.get("azp", jwt.claims.get("appid"))
    return isinstance(client, str) and issuer not in (client, jwt.claims.get("sub"))


def _signature(jwt: Jwt, certificate: Certificate) -> Check:
    name = jwt.header.get("alg")
    if name not in list(Algorithm):
        return Check("signature", False, f"alg is {name!r}; Entra accepts RS256 and PS256")
    if certificate.public_key is None:
        return Check("signature", False, "the certificate has no RSA key")
    holds = certificate.public_key.verify(Algorithm(name), jwt.signing_input, jwt.signature)
    return Check("signature", holds, f"{name}, {'made' if holds else 'not made'} by the certificate's key")


def _thumbprint(jwt: Jwt, certificate: Certificate) -> Check:
    expected = thumbprints(certificate)
    present = {name: jwt.header[name] for name in expected if name in jwt.header}
    if not present:
        return Check("thumbprint", False, "the header has neither x5t nor x5t#S256")
    wrong = [f"{name} is {value}, the certificate's is {expected[name]}" for name, value in present.items()
             if value != expected[name]]  # fmt: skip
    return Check("thumbprint", not wrong, "; ".join(wrong) or f"{' and '.join(present)} of this certificate")


def _validity(certificate: Certificate, now: float) -> Check:
    moment = datetime.fromtimestamp(now, UTC)
    holds = certificate.not_before <= moment <= certificate.not_after
    return Check("certificate", holds, f"valid {certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d}")


def _times(jwt: Jwt, now: float) -> list[Check]:
    not_before, expiry = jwt.claims.get("nbf"), jwt.claims.get("exp")
    if type(not_before) is not int or type(expiry) is not int:
        return [Check("times", False, "nbf and exp must both be integers")]
    seconds = expiry - not_before
    lifetime = Check(
        "lifetime", 0 < seconds <= MAXIMUM_LIFETIME, f"{seconds} s; at most {MAXIMUM_LIFETIME} are accepted"
    )
    if now < not_before:
        return [Check("times", False, f"not valid for another {not_before - int(now)} s"), lifetime]
    if now >= expiry:
        return [Check("times", False, f"expired {int(now) - expiry} s ago"), lifetime]
    return [Check("times", True, f"valid for another {expiry - int(now)} s"), lifetime]


def _client(jwt: Jwt) -> Check:
    issuer, subject = jwt.claims.get("iss"), jwt.claims.get("sub")
    holds = isinstance(issuer, str) and bool(issuer) and issuer == subject
    return Check("client", holds, f"iss and sub are {issuer}" if holds else f"iss is {issuer!r}, sub is {subject!r}")


def _required_claims(jwt: Jwt) -> Check:
    missing = [name for name in ("aud", "jti") if not isinstance(jwt.claims.get(name), str) or not jwt.claims[name]]
    return Check("claims", not missing, f"no {' and no '.join(missing)}" if missing else f"for {jwt.claims['aud']}")
