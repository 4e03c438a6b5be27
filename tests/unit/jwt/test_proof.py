"""A proof of possession has exactly the header and claims that Graph documents, and others can verify it."""

from joserfc import jwt
from joserfc.jwk import RSAKey

from hsm_signer.crypto import Signer
from hsm_signer.jwt.proof import build_proof
from hsm_signer.x509.certificate import Certificate


def test_joserfc_verifies_a_proof_that_is_as_graph_documents_it(
    public_jwk: RSAKey, signer: Signer, certificate: Certificate, thumbprints: dict[str, str]
) -> None:
    object_id = "5d3f0a52-7c52-4b39-9a55-1f8a4c0f6d77"
    proof = jwt.decode(build_proof(object_id, signer, certificate, 1_750_000_000.75), public_jwk, algorithms=["RS256"])
    assert proof.header == {"alg": "RS256", "typ": "JWT", "x5t": thumbprints["x5t"]}
    assert proof.claims == {
        "aud": "00000002-0000-0000-c000-000000000000",
        "iss": object_id,
        "nbf": 1750000000,
        "exp": 1750000600,
    }
