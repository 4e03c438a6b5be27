"""Build a proof of possession for Microsoft Graph's addKey and removeKey. Pure except for the signer.

https://learn.microsoft.com/graph/application-rollkey-prooftoken
"""

from hsm_signer.crypto import Algorithm, Signer
from hsm_signer.jwt.compact import sign_jwt, thumbprints
from hsm_signer.x509.certificate import Certificate

PROOF_AUDIENCE = "00000002-0000-0000-c000-000000000000"
"""Audience of a proof: the directory behind Microsoft Graph."""

PROOF_LIFETIME = 600
"""Seconds. Graph accepts no proof with a longer lifetime."""


def build_proof(object_id: str, signer: Signer, certificate: Certificate, now: float) -> str:
    """Return a signed proof of possession as a compact JWT: RS256 with ``x5t``, the only form that Graph documents.

    Args:
        object_id: object ID, not client ID, of the application or service principal whose credentials change.
        signer: signs once, with a key that is registered there now.
        certificate: the certificate of that key.
        now: epoch seconds.

    Raises:
        HsmSignerError: the signer failed.
    """
    header = {"alg": Algorithm.RS256.value, "typ": "JWT", "x5t": thumbprints(certificate)["x5t"]}
    not_before = int(now)
    claims = {"aud": PROOF_AUDIENCE, "iss": object_id, "nbf": not_before, "exp": not_before + PROOF_LIFETIME}
    return sign_jwt(header, claims, signer)
