"""Which mechanism signs, and that the signature made from the device's input verifies elsewhere."""

import hashlib
from functools import cache
from itertools import combinations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils
from hypothesis import given, settings
from hypothesis import strategies as st
from pkcs11 import MGF, Mechanism

from hsm_signer.crypto import Algorithm
from hsm_signer.device.mechanisms import USED, SigningPlan, plan_signing, supported
from hsm_signer.errors import MechanismUnsupported

BEST_FIRST = {
    Algorithm.RS256: (Mechanism.SHA256_RSA_PKCS, Mechanism.RSA_PKCS, Mechanism.RSA_X_509),
    Algorithm.PS256: (Mechanism.SHA256_RSA_PKCS_PSS, Mechanism.RSA_PKCS_PSS, Mechanism.RSA_X_509),
}
PLANS = [(algorithm, mechanism) for algorithm, mechanisms in BEST_FIRST.items() for mechanism in mechanisms]
UNRELATED = frozenset({Mechanism.SHA512_RSA_PKCS, Mechanism.SHA1_RSA_PKCS_PSS, Mechanism.ECDSA, Mechanism.AES_CBC})
# 2049 bits: a PSS encoding is a byte shorter than the modulus (RFC 8017 section 8.1.1).
LENGTHS = [2048, 2049, 2050, 2051, 2055, 2056, 3072, 4096]
SHA256 = hashes.SHA256()
PSS = padding.PSS(padding.MGF1(SHA256), 32)


@cache
def key_of(bits: int) -> rsa.RSAPrivateKey:
    if bits % 2 == 0:
        return rsa.generate_private_key(65537, bits)
    # OpenSSL makes both primes equally long, so it rounds an odd length down: take one prime longer than the other.
    p, q = key_of(bits + 1).private_numbers().p, key_of(bits - 1).private_numbers().q
    d = pow(65537, -1, (p - 1) * (q - 1))
    exponents = rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q)
    return rsa.RSAPrivateNumbers(p, q, d, *exponents, rsa.RSAPublicNumbers(65537, p * q)).private_key()


def raw_rsa(key: rsa.RSAPrivateKey, block: bytes) -> bytes:
    """The bare private-key operation on a block as long as the modulus (RFC 8017 section 5.2.1)."""
    numbers = key.private_numbers()
    number, modulus = int.from_bytes(block, "big"), numbers.public_numbers.n
    assert len(block) == (modulus.bit_length() + 7) // 8
    assert number < modulus
    return pow(number, numbers.d, modulus).to_bytes(len(block), "big")


def sign_as_device(key: rsa.RSAPrivateKey, signing: SigningPlan, message: bytes) -> bytes:
    """Sign the plan's input as a device does, by mechanism (PKCS#11 v3.1 section 6.1)."""
    data = signing.prepare(message, key.key_size)
    match signing.mechanism:
        case Mechanism.SHA256_RSA_PKCS:
            return key.sign(data, padding.PKCS1v15(), SHA256)
        case Mechanism.SHA256_RSA_PKCS_PSS:
            return key.sign(data, PSS, SHA256)
        case Mechanism.RSA_PKCS:
            filling = b"\xff" * ((key.key_size + 7) // 8 - len(data) - 3)
            return raw_rsa(key, b"\x00\x01" + filling + b"\x00" + data)
        case Mechanism.RSA_PKCS_PSS:
            return key.sign(data, PSS, utils.Prehashed(SHA256))
        case _:
            return raw_rsa(key, data)


def verify(key: rsa.RSAPrivateKey, algorithm: Algorithm, signature: bytes, message: bytes) -> None:
    key.public_key().verify(signature, message, PSS if algorithm is Algorithm.PS256 else padding.PKCS1v15(), SHA256)


@pytest.mark.parametrize("bits", LENGTHS)
def test_the_test_keys_have_the_requested_length(bits: int) -> None:
    assert key_of(bits).public_key().public_numbers().n.bit_length() == bits


@pytest.mark.parametrize(("algorithm", "mechanism"), PLANS)
@pytest.mark.parametrize("bits", LENGTHS)
def test_every_plan_gives_a_signature_that_verifies(bits: int, algorithm: Algorithm, mechanism: Mechanism) -> None:
    key, message = key_of(bits), b"header.claims"
    verify(key, algorithm, sign_as_device(key, plan_signing(algorithm, {mechanism}), message), message)


@pytest.mark.parametrize("bits", [2048, 2049])
@settings(deadline=None, max_examples=25)
@given(message=st.binary(max_size=300))
def test_a_block_padded_on_the_host_verifies_whatever_the_message(bits: int, message: bytes) -> None:
    key = key_of(bits)
    for algorithm in Algorithm:
        verify(key, algorithm, sign_as_device(key, plan_signing(algorithm, {Mechanism.RSA_X_509}), message), message)


@pytest.mark.parametrize("algorithm", Algorithm)
@given(bits=st.integers(2048, 4200))
def test_a_block_padded_on_the_host_is_as_long_as_the_modulus_and_smaller_as_a_number(
    algorithm: Algorithm, bits: int
) -> None:
    block = plan_signing(algorithm, {Mechanism.RSA_X_509}).prepare(b"message", bits)
    assert (len(block), int.from_bytes(block, "big") >> (bits - 1)) == ((bits + 7) // 8, 0)


def test_a_pss_block_has_a_fresh_salt_each_time() -> None:
    signing = plan_signing(Algorithm.PS256, {Mechanism.RSA_X_509})
    assert signing.prepare(b"message", 2048) != signing.prepare(b"message", 2048)


@pytest.mark.parametrize("mechanism", [Mechanism.SHA256_RSA_PKCS, Mechanism.SHA256_RSA_PKCS_PSS])
def test_a_device_that_hashes_gets_the_message_itself(mechanism: Mechanism) -> None:
    algorithm = next(algorithm for algorithm, best in PLANS if best is mechanism)
    assert plan_signing(algorithm, {mechanism}).prepare(b"message", 2048) == b"message"


def test_raw_pss_gets_only_the_digest() -> None:
    signing = plan_signing(Algorithm.PS256, {Mechanism.RSA_PKCS_PSS})
    assert signing.prepare(b"message", 2048) == hashlib.sha256(b"message").digest()


@pytest.mark.parametrize(("algorithm", "mechanism"), PLANS)
def test_only_pss_mechanisms_have_parameters(algorithm: Algorithm, mechanism: Mechanism) -> None:
    expected = (Mechanism.SHA256, MGF.SHA256, 32) if mechanism.name.endswith("PSS") else None
    assert plan_signing(algorithm, {mechanism}).parameters == expected


@pytest.mark.parametrize("algorithm", Algorithm)
def test_the_plan_that_leaves_the_most_to_the_device_is_chosen(algorithm: Algorithm) -> None:
    best_first = BEST_FIRST[algorithm]
    offers = [offer for size in (1, 2, 3) for offer in combinations(best_first, size)]
    chosen = [plan_signing(algorithm, UNRELATED.union(offer)).mechanism for offer in offers]
    assert chosen == [min(offer, key=best_first.index) for offer in offers]


@pytest.mark.parametrize("algorithm", Algorithm)
def test_the_error_for_an_unsupported_algorithm_names_the_missing_mechanisms(algorithm: Algorithm) -> None:
    with pytest.raises(MechanismUnsupported) as refused:
        plan_signing(algorithm, UNRELATED)
    names = ", ".join(f"CKM_{mechanism.name}" for mechanism in BEST_FIRST[algorithm])
    assert refused.value.message == f"The device cannot sign with {algorithm}: it offers none of {names}."


@pytest.mark.parametrize(("algorithm", "other"), [(Algorithm.RS256, "auto"), (Algorithm.PS256, "RS256")])
def test_the_hint_names_another_algorithm(algorithm: Algorithm, other: str) -> None:
    with pytest.raises(MechanismUnsupported) as refused:
        plan_signing(algorithm, UNRELATED)
    assert f"--algorithm {other}" in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("mechanisms", "expected"),
    [
        (UNRELATED, set()),
        ({Mechanism.SHA256_RSA_PKCS}, {Algorithm.RS256}),
        ({Mechanism.RSA_PKCS}, {Algorithm.RS256}),
        ({Mechanism.SHA256_RSA_PKCS_PSS}, {Algorithm.PS256}),
        ({Mechanism.RSA_PKCS_PSS}, {Algorithm.PS256}),
        ({Mechanism.RSA_X_509}, {Algorithm.RS256, Algorithm.PS256}),
        ({Mechanism.RSA_PKCS, Mechanism.RSA_PKCS_PSS}, {Algorithm.RS256, Algorithm.PS256}),
    ],
)
def test_the_supported_algorithms_are_those_that_have_a_plan(
    mechanisms: frozenset[Mechanism], expected: set[Algorithm]
) -> None:
    assert supported(mechanisms) == expected


def test_the_list_of_signing_mechanisms_holds_every_mechanism_of_a_plan() -> None:
    assert {mechanism for _, mechanism in PLANS} == USED
