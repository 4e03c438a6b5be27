"""The messages between a worker and its parent."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from hsm_signer.crypto import Algorithm, PublicKey
from hsm_signer.device.pin.pin import Login, PinRequest
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import HsmSignerError

if TYPE_CHECKING:
    from hsm_signer.device.device import Device
    from hsm_signer.device.signer import DeviceSigner


@dataclass(frozen=True)
class Open:
    """Parent to worker, the first message: a `KeyAccess` without what cannot be sent.

    Attributes:
        source: the description of the PIN source.
        attended: whether a person answers.
    """

    uri: Pkcs11Uri
    module: Path | None
    module_environment: Mapping[str, str]
    timeout: float
    allow_last_try: bool
    writable: bool
    pin_record: Path | None
    source: str
    attended: bool
    log_level: int


class Request(Protocol):
    """Parent to worker: something to do with the open device. The answer is `Done`, with what `perform` returned.

    Attributes:
        doing: what the worker does, for messages. A worker does not announce the first call of a request.
    """

    doing: ClassVar[str]

    def perform(self, device: "Device", signer: "DeviceSigner") -> bytes:
        """Do what was requested, and return the answer. Called in the worker."""
        ...


@dataclass(frozen=True)
class Sign:
    """Parent to worker: a `Request` for a signature, which the parent verifies."""

    doing: ClassVar[str] = "signing"

    algorithm: Algorithm
    message: bytes

    def perform(self, device: "Device", signer: "DeviceSigner") -> bytes:
        return signer.sign_unverified(self.algorithm, self.message)


@dataclass(frozen=True)
class ReadCertificate:
    """Parent to worker: a `Request` for the certificate with the key's CKA_ID, as DER."""

    doing: ClassVar[str] = "looking up the certificate"

    def perform(self, device: "Device", signer: "DeviceSigner") -> bytes:
        from hsm_signer.device.manage.certificates import read_certificate

        return read_certificate(device, signer.key.info)


@dataclass(frozen=True)
class Calling:
    """Worker to parent: a call into the module starts, and may take this many seconds."""

    what: str
    seconds: float


@dataclass(frozen=True)
class Logged:
    """Worker to parent: a log record."""

    logger: str
    level: int
    message: str


@dataclass(frozen=True)
class AskForPin:
    """Worker to parent: the device requires a login."""

    request: PinRequest


@dataclass(frozen=True)
class PinAnswer:
    """Parent to worker: what to log in with."""

    login: Login


@dataclass(frozen=True)
class Opened:
    """Worker to parent, in answer to `Open`.

    Attributes:
        always_authenticate: whether the key requires the PIN for each signature.
    """

    public_key: PublicKey
    algorithms: frozenset[Algorithm]
    device: str
    always_authenticate: bool


@dataclass(frozen=True)
class Done:
    """Worker to parent, in answer to a `Request`."""

    result: bytes


@dataclass(frozen=True)
class Failed:
    """Worker to parent, in answer to anything."""

    error: HsmSignerError
