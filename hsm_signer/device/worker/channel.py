"""What a process of ours and its parent say to each other, and the socket pair they say it over."""

import contextlib
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hsm_signer.crypto import Algorithm, PublicKey
from hsm_signer.device.lane import MOMENT, Slow
from hsm_signer.device.pin.pin import Login, PinRequest
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.device.worker import wire
from hsm_signer.device.worker.wire import Malformed
from hsm_signer.errors import DeviceError, HsmSignerError

if TYPE_CHECKING:
    from hsm_signer.device.device import Device
    from hsm_signer.device.signer import DeviceSigner

_LENGTH = struct.Struct("!I")
_CHUNK = 65536
_LONGEST = 1 << 22
"""Bytes of a message. An error that lists tens of thousands of keys is shorter."""
_LESS = "Sign a shorter message."


@dataclass(frozen=True)
class Open:
    """Parent to worker, first of all: a `KeyAccess` without what cannot travel.

    Attributes:
        source: what to call the PIN source.
        attended: whether a person answers it.
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
    """Parent to worker: something to do with the open device. The answer is `Done`, with the bytes it returns.

    Attributes:
        doing: for messages. A worker does not announce the first call of a request.
    """

    doing: ClassVar[str]

    def perform(self, device: "Device", signer: "DeviceSigner") -> bytes:
        """Do it, in the worker."""
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
    """Parent to worker: a `Request` for the certificate beside the key, as DER."""

    doing: ClassVar[str] = "looking up the certificate"

    def perform(self, device: "Device", signer: "DeviceSigner") -> bytes:
        from hsm_signer.device.manage.certificates import read_certificate

        return read_certificate(device, signer.key.info)


@dataclass(frozen=True)
class Calling:
    """Worker to parent: a call into the module begins, and may take that many seconds."""

    what: str
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
    """Parent to worker: what to log in with."""

    login: Login


@dataclass(frozen=True)
class Opened:
    """Worker to parent, in answer to `Open`.

    Attributes:
        always_authenticate: whether the key wants the PIN with each signature.
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


class Channel:
    """Messages over one end of a socket pair. A message is the name of its class and its fields, as JSON.

    Args:
        end: of the socket pair.
        kinds: the classes of the messages that may arrive.
    """

    def __init__(self, end: socket.socket, *kinds: type) -> None:
        self._end = end
        self._kinds = {kind.__name__: kind for kind in kinds}
        self._unread = bytearray()

    def send(self, message: object, seconds: float | None = None) -> None:
        """Send a message.

        Args:
            seconds: how long the other end may take to make room for it.

        Raises:
            DeviceError: it is too long, and was not sent.
            OSError: the other end is gone, or made no room.
        """
        data = wire.dump(type(message).__name__, message)
        try:
            if len(data) > _LONGEST:
                raise DeviceError(
                    f"A message of {len(data)} bytes is too long to be sent to another process.", hint=_LESS
                )
            self._end.settimeout(seconds)
            self._end.sendall(_LENGTH.pack(len(data)) + data)
        finally:
            del data  # it may hold a PIN, and a traceback shows it

    def receive(self, deadline: float | None = None) -> Any:
        """Return the next message.

        Raises:
            TimeoutError: `deadline`, on the monotonic clock, has passed. A later call may still receive the message.
            EOFError: the other end is gone.
            Malformed: what arrived is no message of the expected kinds. Nothing more can be received.
        """
        self._fill(_LENGTH.size, deadline)
        (length,) = _LENGTH.unpack_from(self._unread)
        if length > _LONGEST:
            raise Malformed
        end = _LENGTH.size + length
        self._fill(end, deadline)
        data = bytes(self._unread[_LENGTH.size : end])
        del self._unread[:end]
        match wire.parse(data):
            case [str(name), fields] if name in self._kinds:
                return wire.read(self._kinds[name], fields)
        raise Malformed

    def receive_patiently(self, deadline: float, doing: str, slow: Slow) -> Any:
        """Return the next message as `receive` does, and show a person what takes longer than a moment.

        Args:
            doing: what the other end does, for messages: "signing".
            slow: shows it.
        """
        moment = time.monotonic() + MOMENT
        if moment < deadline:
            with contextlib.suppress(TimeoutError):
                return self.receive(moment)
            with slow(doing):
                return self.receive(deadline)
        return self.receive(deadline)

    def close(self) -> None:
        """Close this end."""
        self._end.close()

    def _fill(self, size: int, deadline: float | None) -> None:
        """Have at least `size` unread bytes."""
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
