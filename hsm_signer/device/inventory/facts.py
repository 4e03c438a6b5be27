"""Facts about modules, devices, keys and certificates, as data that one process can send to another; pure.

If something could not be read, the facts have a `Problem` that says why.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from pkcs11 import Mechanism

from hsm_signer.crypto import Algorithm
from hsm_signer.device.locate import LibraryFacts
from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.mechanisms import plan_signing, supported
from hsm_signer.device.objects import Protection
from hsm_signer.device.pin.state import PinState
from hsm_signer.errors import HsmSignerError


@dataclass(frozen=True)
class Problem:
    """Why something could not be read, or cannot be used: an error, as a fact."""

    code: str
    message: str
    hint: str | None
    commands: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: HsmSignerError) -> Self:
        """Return an error as a fact."""
        return cls(error.code, error.message, error.hint, error.commands)


@dataclass(frozen=True)
class MechanismFacts:
    """A mechanism of the device that can sign client assertions.

    Attributes:
        name: for example "CKM_SHA256_RSA_PKCS".
        algorithm: the algorithm that it signs with.
        work: who hashes and pads: for example "hashed by the device".
        chosen: whether hsm-signer uses this mechanism for `algorithm`.
    """

    name: str
    algorithm: Algorithm
    work: str
    chosen: bool


@dataclass(frozen=True)
class KeyFacts:
    """A private key. None: the device does not report it.

    Attributes:
        uri: the key's URI, for ``--key``.
        kind: the type of the key, such as "RSA".
        bits: length of the modulus.
        protection: how the device protects it.
        problem: why it cannot sign client assertions, or None.
    """

    uri: str
    label: str
    id: bytes
    kind: str | None
    bits: int | None
    protection: Protection
    problem: Problem | None


@dataclass(frozen=True)
class CertificateFacts:
    """A certificate. Subject and validity are None when it cannot be parsed.

    Attributes:
        days_left: whole days until it expires; negative when it has expired.
        sha1: the thumbprint in ``x5t``.
        sha256: the thumbprint in ``x5t#S256``.
        key: the URI of the private key that it certifies, if the device shows one.
        problem: why it cannot be parsed, or cannot be used with the key that has its CKA_ID; or None.
        attestation: whether it only proves where a key was generated, and cannot be used to sign in.
    """

    label: str
    id: bytes
    subject: str | None
    not_before: datetime | None
    not_after: datetime | None
    days_left: int | None
    sha1: bytes
    sha256: bytes
    key: str | None
    problem: Problem | None
    attestation: bool = False


@dataclass(frozen=True)
class Contents:
    """What a device holds.

    Attributes:
        hidden: whether there may be private keys that only a login would show.
    """

    hidden: bool
    keys: tuple[KeyFacts, ...]
    certificates: tuple[CertificateFacts, ...]


@dataclass(frozen=True)
class DeviceFacts:
    """A device.

    Attributes:
        uri: the device's URI. It can be used for ``--key`` if the device has only one key.
        pad: whether it has its own PIN pad.
        mechanisms: those that can sign client assertions, the best for each algorithm first.
        contents: None if they were not read.
        problem: why the mechanisms could not be read, or None.
    """

    info: DeviceInfo
    uri: str
    pin: PinState
    pad: bool
    mechanisms: tuple[MechanismFacts, ...]
    contents: Contents | None = None
    problem: Problem | None = None


@dataclass(frozen=True)
class ModuleFacts:
    """A module and the devices that it shows.

    Attributes:
        name: what a URI's module-name takes for it, or None.
        library: None if it could not be loaded.
        problem: why it could not be loaded or examined, or None.
        absence: why it shows no device, although nothing failed, if that is known.
        uses_readers: whether it reaches its devices through smart-card readers.
    """

    name: str | None
    path: str
    library: LibraryFacts | None
    devices: tuple[DeviceFacts, ...]
    problem: Problem | None = None
    absence: Problem | None = None
    uses_readers: bool = False


def mechanism_facts(mechanisms: Collection[Mechanism]) -> tuple[MechanismFacts, ...]:
    """Return the algorithms that mechanisms can sign with.

    A mechanism that can sign with two algorithms is returned twice. One that can sign with none is left out.

    Args:
        mechanisms: the device's mechanisms that have CKF_SIGN set.
    """
    return tuple(
        MechanismFacts(
            f"CKM_{mechanism.name}", algorithm, work, chosen=mechanism is plan_signing(algorithm, mechanisms).mechanism
        )
        for algorithm in Algorithm
        for mechanism, work in _WORK.items()
        if mechanism in mechanisms and algorithm in supported({mechanism})
    )


_WORK = {
    Mechanism.SHA256_RSA_PKCS: "hashed by the device",
    Mechanism.SHA256_RSA_PKCS_PSS: "hashed by the device",
    Mechanism.RSA_PKCS: "hashed by the host",
    Mechanism.RSA_PKCS_PSS: "hashed by the host",
    Mechanism.RSA_X_509: "hashed and padded by the host",
}
