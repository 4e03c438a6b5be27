"""What a worker and its parent say to each other, and the socket pair they say it over."""

import pickle
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hsm_signer.crypto import Algorithm, PublicKey
from hsm_signer.device.pin import Login, PinRequest
from hsm_signer.errors import HsmSignerError

if TYPE_CHECKING:
    from hsm_signer.device.device import Device, KeyReference
    from hsm_signer.device.signer import DeviceSigner

_LENGTH = struct.Struct("!I")
_CHUNK = 65536


@dataclass(frozen=True)
class Open:
    """Parent to worker, first of all."""

    reference: "KeyReference"
    source: str
    attended: bool
    log_level: int


class Request(Protocol):
    """Parent to worker: something to do with the open device. The answer is the bytes it returns."""

    def perform(self, device: "Device", signer: "DeviceSigner") -> bytes:
        """Do it, in the worker."""
        ...


@dataclass(frozen=True)
class Sign:
    """Parent to worker: a `Request` for a signature."""

    algorithm: Algorithm
    message: bytes

    def perform(self, device: "Device", signer: "DeviceSigner") -> bytes:
        return signer.sign(self.algorithm, self.message)


@dataclass(frozen=True)
class ReadCertificate:
    """Parent to worker: a `Request` for the certificate beside the key, as DER."""

    def perform(self, device: "Device", signer: "DeviceSigner") -> bytes:
        return device.certificate(signer)


@dataclass(frozen=True)
class Calling:
    """Worker to parent: a call into the module begins, and may take that many seconds."""

    seconds: float


@dataclass(frozen=True)
class Logged:
    """Worker to parent: what it would have logged."""

    logger: str
    level: int
    message: str


@dataclass(frozen=True)
class PinWanted:
    """Worker to parent: the device is about to be logged in to."""

    request: PinRequest


@dataclass(frozen=True)
class PinGiven:
    """Parent to worker: what to log in with, or why there is nothing; and which state of the source that was."""

    login: Login
    error: HsmSignerError | None
    identity: str


@dataclass(frozen=True)
class Opened:
    """Worker to parent, in answer to `Open`."""

    public_key: PublicKey
    algorithms: frozenset[Algorithm]
    device: str


@dataclass(frozen=True)
class Failed:
    """Worker to parent, in answer to anything."""

    error: HsmSignerError


class Channel:
    """Pickled messages over one end of a socket pair. Both ends are this package, of one user."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._unread = bytearray()

    def send(self, message: object) -> None:
        """Send a message.

        Raises:
            OSError: the other end is gone.
        """
        data = pickle.dumps(message)
        self._end.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self, deadline: float | None = None) -> Any:
        """Return the next message.

        Raises:
            TimeoutError: `deadline`, on the monotonic clock, has passed.
            EOFError: the other end is gone.
        """
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
        return pickle.loads(self._read(length, deadline))  # noqa: S301  # from ourselves

    def close(self) -> None:
        """Close this end."""
        self._end.close()

    def _read(self, size: int, deadline: float | None) -> bytes:
        while len(self._unread) < size:
            # A timeout of zero would make the socket non-blocking.
            self._end.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
            try:
                # Whatever is there: most messages come whole, and each look costs.
                chunk = self._end.recv(_CHUNK)
            except ConnectionError:
                chunk = b""
            if not chunk:
                raise EOFError
            self._unread += chunk
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data
