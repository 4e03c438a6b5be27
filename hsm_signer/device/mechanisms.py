"""Choose the mechanism for an algorithm on a device, and what the host does before; pure.

Devices differ in how much of the work they do. At best the device hashes and pads. Some only pad what the host has
hashed, or only do the RSA operation on a block that the host has hashed and padded.
"""

import hashlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pkcs11 import MGF, Mechanism

from hsm_signer.crypto import Algorithm
from hsm_signer.errors import MechanismUnsupported

PssParameters = tuple[Mechanism, MGF, int]

# PKCS#11 v3.1 section 6.1.10: hash, mask generation function, salt length. RFC 7518 section 3.5 fixes all three.
# Always given: python-pkcs11 would default to SHA-1.
_PSS: PssParameters = (Mechanism.SHA256, MGF.SHA256, 32)

# RFC 8017 section 9.2, note 1: the DER of DigestInfo for SHA-256 before the digest itself.
_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")


@dataclass(frozen=True)
class SigningPlan:
    """How one algorithm is signed on one device.

    Attributes:
        mechanism: the mechanism that the device uses.
        parameters: the mechanism's parameters, or None if it takes none.
        prepare: returns the input for the device, from the message and the length of the key in bits.
    """

    mechanism: Mechanism
    parameters: PssParameters | None
    prepare: Callable[[bytes, int], bytes]


def plan_signing(algorithm: Algorithm, mechanisms: Collection[Mechanism]) -> SigningPlan:
    """Return how a device with these mechanisms signs with an algorithm: the plan with the least work for the host.

    Args:
        mechanisms: the device's mechanisms that have CKF_SIGN set (PKCS#11 v3.1 section 3.5).

    Raises:
        MechanismUnsupported: none of them can sign with it.
    """
    candidates = _PLANS[algorithm]
    for candidate in candidates:
        if candidate.mechanism in mechanisms:
            return candidate
    names = ", ".join(f"CKM_{candidate.mechanism.name}" for candidate in candidates)
    raise MechanismUnsupported(
        f"The device cannot sign with {algorithm}: it offers none of {names}.",
        hint="Use --algorithm RS256, or auto."
        if algorithm is Algorithm.PS256
        else "Use --algorithm auto, which tries PS256. If that fails too, use another device.",
    )


def supported(mechanisms: Collection[Mechanism]) -> frozenset[Algorithm]:
    """Return the algorithms that these mechanisms can sign with."""
    return frozenset(
        algorithm for algorithm, plans in _PLANS.items() if any(plan.mechanism in mechanisms for plan in plans)
    )


def _message(message: bytes, bits: int) -> bytes:
    return message


def _digest(message: bytes, bits: int) -> bytes:
    return hashlib.sha256(message).digest()


def _digest_info(message: bytes, bits: int) -> bytes:
    return _DIGEST_INFO + hashlib.sha256(message).digest()


def _pkcs1_block(message: bytes, bits: int) -> bytes:
    """EMSA-PKCS1-v1_5, RFC 8017 section 9.2."""
    info = _digest_info(message, bits)
    return b"\x00\x01" + b"\xff" * ((bits + 7) // 8 - len(info) - 3) + b"\x00" + info


def _pss_block(message: bytes, bits: int) -> bytes:
    """EMSA-PSS, RFC 8017 section 9.1.1, with a leading zero where the encoding is a byte shorter than the key."""
    encoded_bits = bits - 1
    length = (encoded_bits + 7) // 8
    salt = os.urandom(32)
    digest = hashlib.sha256(bytes(8) + hashlib.sha256(message).digest() + salt).digest()
    block = bytes(length - len(salt) - len(digest) - 2) + b"\x01" + salt
    masked = int.from_bytes(block, "big") ^ int.from_bytes(_mgf1(digest, len(block)), "big")
    masked &= (1 << (8 * len(block) - (8 * length - encoded_bits))) - 1
    return (masked.to_bytes(len(block), "big") + digest + b"\xbc").rjust((bits + 7) // 8, b"\x00")


def _mgf1(seed: bytes, length: int) -> bytes:
    """RFC 8017 appendix B.2.1."""
    blocks = (hashlib.sha256(seed + counter.to_bytes(4, "big")).digest() for counter in range(-(-length // 32)))
    return b"".join(blocks)[:length]


_PLANS: dict[Algorithm, tuple[SigningPlan, ...]] = {
    Algorithm.RS256: (
        SigningPlan(Mechanism.SHA256_RSA_PKCS, None, _message),
        SigningPlan(Mechanism.RSA_PKCS, None, _digest_info),
        SigningPlan(Mechanism.RSA_X_509, None, _pkcs1_block),
    ),
    Algorithm.PS256: (
        SigningPlan(Mechanism.SHA256_RSA_PKCS_PSS, _PSS, _message),
        SigningPlan(Mechanism.RSA_PKCS_PSS, _PSS, _digest),
        SigningPlan(Mechanism.RSA_X_509, None, _pss_block),
    ),
}

USED = frozenset(plan.mechanism for plans in _PLANS.values() for plan in plans)
"""All mechanisms that `plan_signing` can choose."""
