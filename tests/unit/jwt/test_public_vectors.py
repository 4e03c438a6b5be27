"""Public test vectors for what is signed and verified: Wycheproof's JSON web signatures, and RFC 7515's own example."""

import json
from pathlib import Path
from typing import Any

import pytest

from hsm_signer.crypto import Algorithm, PublicKey
from hsm_signer.jwt.compact import base64url_decode, parse_jwt

WYCHEPROOF: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "wycheproof_jws.json").read_text(encoding="ascii")
)["groups"]

# RFC 7515 appendix A.2
EXAMPLE = (
    "eyJhbGciOiJSUzI1NiJ9"
    ".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
    ".cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1d"
    "nZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC"
    "-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
)
EXAMPLE_MODULUS = (
    "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgN"
    "MsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xs"
    "mtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"
)


def public_key(n: str, e: str = "AQAB") -> PublicKey:
    return PublicKey(*(int.from_bytes(base64url_decode(number), "big") for number in (n, e)))


def accepts(text: str, key: PublicKey, algorithm: str) -> bool:
    """Whether a compact JWS of any payload is the key's. The vectors' payloads are no claims, so this is no JWT."""
    parts = text.split(".")
    if len(parts) != 3:
        return False
    try:
        header, _, signature = map(base64url_decode, parts)
        named = json.loads(header)["alg"]
    except ValueError:
        return False
    signing_input = ".".join(parts[:2]).encode("ascii")
    return named == algorithm and key.verify(Algorithm(algorithm), signing_input, signature)


def test_there_are_as_many_as_wycheproof_has_for_these_algorithms() -> None:
    assert sum(len(group["valid"]) + len(group["invalid"]) for group in WYCHEPROOF) == 279


@pytest.mark.parametrize("group", WYCHEPROOF, ids=lambda group: f"{group['alg']}, {len(group['invalid'])} invalid")
def test_wycheproofs_verdicts_are_ours(group: dict[str, Any]) -> None:
    key = public_key(group["n"], group["e"])
    assert [number for number, text in group["valid"].items() if not accepts(text, key, group["alg"])] == []
    assert [number for number, text in group["invalid"].items() if accepts(text, key, group["alg"])] == []


def test_the_example_of_rfc_7515_is_read_and_verified() -> None:
    jwt = parse_jwt(EXAMPLE)
    assert jwt.header == {"alg": "RS256"}
    assert jwt.claims == {"iss": "joe", "exp": 1300819380, "http://example.com/is_root": True}
    key = public_key(EXAMPLE_MODULUS)
    assert key.verify(Algorithm.RS256, jwt.signing_input, jwt.signature)
    assert not key.verify(Algorithm.PS256, jwt.signing_input, jwt.signature)
