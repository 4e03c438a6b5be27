"""Signature algorithms, public keys, and the `Signer` protocol."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa


class Algorithm(StrEnum):
    """The JWS algorithms Entra accepts for client assertions (RFC 7518 section 3.1)."""

    RS256 = "RS256"
    PS256 = "PS256"


@dataclass(frozen=True)
class PublicKey:
    """An RSA public key."""

    modulus: int
    exponent: int

    @property
    def bits(self) -> int:
        """Length of the modulus in bits."""
        return self.modulus.bit_length()

    def verify(self, algorithm: Algorithm, message: bytes, signature: bytes) -> bool:
        """Return whether `signature` is this key's signature over `message` (RFC 7518 sections 3.3 and 3.5)."""
        try:
            self._rsa.verify(signature, message, _PADDING[algorithm], _SHA256)
        except (InvalidSignature, ValueError, OverflowError):  # the last two: not an RSA key
            return False
        return True

    @cached_property
    def _rsa(self) -> rsa.RSAPublicKey:
        return rsa.RSAPublicNumbers(self.exponent, self.modulus).public_key()


class Signer(Protocol):
    """Holds a private key and signs with it."""

    @property
    def public_key(self) -> PublicKey:
        """The public key."""
        ...

    @property
    def algorithms(self) -> frozenset[Algorithm]:
        """The algorithms that `sign` supports."""
        ...

    def sign(self, algorithm: Algorithm, message: bytes) -> bytes:
        """Return the signature over `message`, verified with `public_key` before it is returned."""
        ...


_SHA256 = hashes.SHA256()
# RFC 7518 section 3.5: the salt is as long as the hash.
_PADDING: dict[Algorithm, padding.AsymmetricPadding] = {
    Algorithm.RS256: padding.PKCS1v15(),
    Algorithm.PS256: padding.PSS(mgf=padding.MGF1(_SHA256), salt_length=32),
}
