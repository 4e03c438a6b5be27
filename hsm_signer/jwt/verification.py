"""Whether an assertion would hold, judged offline and point by point; pure.

The same points Entra checks, so that a refusal can be understood without asking it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from hsm_signer.crypto import Algorithm
from hsm_signer.jwt.assertion import MAXIMUM_LIFETIME, Jwt, base64url_encode
from hsm_signer.x509.certificate import Certificate


@dataclass(frozen=True)
class Check:
    """One point.

    Attributes:
        name: what was looked at.
        holds: whether it is as it should be.
        detail: what was found.
    """

    name: str
    holds: bool
    detail: str


def check_assertion(jwt: Jwt, certificate: Certificate, now: float) -> list[Check]:
    """Judge an assertion against the certificate it should name.

    Args:
        jwt: the assertion.
        certificate: the one registered with the app.
        now: epoch seconds.

    Returns:
        Every point, in the order a reader asks: signature, certificate, times, claims.
    """
    return [
        _signature(jwt, certificate),
        _thumbprint(jwt, certificate),
        _validity(certificate, now),
        *_times(jwt, now),
        _parties(jwt),
        _presence(jwt),
    ]


def _signature(jwt: Jwt, certificate: Certificate) -> Check:
    name = jwt.header.get("alg")
    if name not in list(Algorithm):
        return Check("signature", False, f"alg is {name!r}; Entra accepts RS256 and PS256")
    if certificate.public_key is None:
        return Check("signature", False, "the certificate holds no RSA key")
    holds = certificate.public_key.verify(Algorithm(name), jwt.signing_input, jwt.signature)
    return Check("signature", holds, f"{name}, {'made' if holds else 'not made'} by the certificate's key")


def _thumbprint(jwt: Jwt, certificate: Certificate) -> Check:
    expected = {"x5t": base64url_encode(certificate.sha1), "x5t#S256": base64url_encode(certificate.sha256)}
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
    times = {name: jwt.claims.get(name) for name in ("nbf", "exp")}
    begin, end = times["nbf"], times["exp"]
    if type(begin) is not int or type(end) is not int:
        return [Check("times", False, "nbf and exp must both be there, as integers")]
    lifetime = Check(
        "lifetime", 0 < end - begin <= MAXIMUM_LIFETIME, f"{end - begin} s; at most {MAXIMUM_LIFETIME} are accepted"
    )
    if now < begin:
        return [Check("times", False, f"not valid for another {begin - int(now)} s"), lifetime]
    if now >= end:
        return [Check("times", False, f"expired {int(now) - end} s ago"), lifetime]
    return [Check("times", True, f"valid for another {end - int(now)} s"), lifetime]


def _parties(jwt: Jwt) -> Check:
    issuer, subject = jwt.claims.get("iss"), jwt.claims.get("sub")
    holds = isinstance(issuer, str) and bool(issuer) and issuer == subject
    return Check("client", holds, f"iss and sub are {issuer}" if holds else f"iss is {issuer!r}, sub is {subject!r}")


def _presence(jwt: Jwt) -> Check:
    absent = [name for name in ("aud", "jti") if not isinstance(jwt.claims.get(name), str) or not jwt.claims[name]]
    return Check("claims", not absent, f"without {' and '.join(absent)}" if absent else f"for {jwt.claims['aud']}")
