"""Messages over a socket pair between this process and one that it started."""

import contextlib
import socket
import struct
import time
from typing import Any

from hsm_signer.device import wire
from hsm_signer.device.lane import MOMENT, Slow
from hsm_signer.device.wire import Malformed
from hsm_signer.errors import DeviceError

_LENGTH = struct.Struct("!I")
_CHUNK = 65536
_LONGEST = 1 << 22
"""Bytes of a message. An error that lists tens of thousands of keys is shorter."""
_LESS = "Sign a shorter message."


class Channel:
    """Sends and receives messages over one end of a socket pair. A message is its class name and its fields, as JSON.

    Args:
        end: one end of the socket pair.
        kinds: the classes of the messages that may arrive.
    """

    def __init__(self, end: socket.socket, *kinds: type) -> None:
        self._end = end
        self._kinds = {kind.__name__: kind for kind in kinds}
        self._unread = bytearray()

    def send(self, message: object, seconds: float | None = None) -> None:
        """Send a message.

        Args:
            seconds: how long to wait while the socket's buffer is full. None: without limit.

        Raises:
            DeviceError: it is too long, and was not sent.
            OSError: the other end is closed, or did not read in time.
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
            del data  # it may contain a PIN, and a traceback shows it

    def receive(self, deadline: float | None = None) -> Any:
        """Return the next message.

        Args:
            deadline: on the monotonic clock, in seconds. None: wait without limit.

        Raises:
            TimeoutError: the deadline has passed. A later call may still receive the message.
            EOFError: the other end is closed.
            Malformed: what arrived is not a message of the expected kinds. Nothing more can be received.
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

    def receive_with_cue(self, deadline: float, doing: str, slow: Slow) -> Any:
        """Return the next message as `receive` does. If it takes longer than `MOMENT`, show a person why.

        Args:
            doing: what the other end does, for messages: "signing".
            slow: called with `doing`.
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
        """Receive until there are at least `size` unread bytes."""
        while len(self._unread) < size:
            # A timeout of zero would make the socket non-blocking.
            self._end.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
            try:
                # All that has arrived: most messages arrive whole, and each call costs time.
                chunk = self._end.recv(_CHUNK)
            except ConnectionError:
                chunk = b""
            if not chunk:
                raise EOFError
            self._unread += chunk
