"""The device matrix: each stack is a device behind its PKCS#11 module, ready for the contract suite."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import rsa


@dataclass(frozen=True)
class StackKey:
    """A key on a stack's device, and the public key its signatures are judged by."""

    uri: str
    public_key: rsa.RSAPublicKey
    certificate: bytes | None


class Stack(Protocol):
    """A device behind its module.

    Attributes:
        name: for the test's id.
        module: the PKCS#11 module.
        environment: what the module needs before it loads.
        pin: the right PIN.
        wrong_pin: a PIN of acceptable form that is wrong.
        key: an ordinary key.
        always_authenticate_key: one that wants the PIN for each signature, or None where the device has none.
        has_pss: whether the device signs PS256.
        locks: whether wrong PINs lock it.
    """

    name: str
    module: Path
    environment: Mapping[str, str]
    pin: str
    wrong_pin: str
    key: StackKey
    always_authenticate_key: StackKey | None
    has_pss: bool
    locks: bool

    def unplug(self) -> None:
        """Take the device away, as a person would."""

    def plug(self) -> None:
        """Bring it back; returns when the system has noticed."""

    def reset(self) -> None:
        """Give back all PIN tries and clear what the last test left."""

    def close(self) -> None:
        """Stop everything that was started."""
