"""The device matrix: each stack is a device behind its PKCS#11 module, ready for the contract suite."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import rsa


@dataclass(frozen=True)
class StackKey:
    """A key on a stack's device, and the public key that verifies its signatures."""

    uri: str
    public_key: rsa.RSAPublicKey
    certificate: bytes | None


class Stack(Protocol):
    """A device behind its module.

    Attributes:
        name: for the test's id.
        module: the PKCS#11 module.
        environment: variables that the module needs before it loads.
        pin: the right PIN.
        wrong_pin: a wrong PIN of valid form.
        key: an ordinary key.
        always_authenticate_key: a key that requires the PIN for each signature; None if the device has none.
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
        """Unplug the device, as a person would."""

    def plug(self) -> None:
        """Plug it in; return when the system has noticed."""

    def reset(self) -> None:
        """Restore all PIN tries and undo what the last test changed."""

    def close(self) -> None:
        """Stop everything that was started."""
