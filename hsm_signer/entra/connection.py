"""The network connection of one HTTP attempt. Another thread can close it, and it receives a limited number of bytes.

httpx's timeouts are for single operations. A server that sends a byte now and then, or one interim response after
another (1xx, RFC 9110 section 15.2), never exceeds them, and httpcore reads interim responses without a limit.
"""

import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpcore
from httpcore import SOCKET_OPTION

THREAD = "hsm-signer-http"
"""Name of the threads that run attempts."""

_CONNECT_TIMEOUT = 10.0
"""Seconds for one address, and for the TLS handshake, when connecting before the request."""
_KEPT_OPEN = 15.0
"""Seconds for which a server keeps a connection without a request open. All servers that we know wait longer."""


class TooMuch(Exception):
    """The server sent more bytes than the connection may receive."""


class Connection(httpcore.NetworkBackend):
    """Opens one connection for httpcore, which another thread can close.

    Args:
        limit: bytes that the connection may receive, including interim responses and headers.

    Attributes:
        busy: held while `connect_ahead` runs: a request waits for it, and then uses its connection.
    """

    def __init__(self, limit: int) -> None:
        self.busy = threading.RLock()
        self._used: _Stream | None = None
        self._ahead: _Ahead | None = None
        self._limit = limit
        self._network = httpcore.SyncBackend()
        self._lock = threading.Lock()
        self._is_cut = False
        # A duplicate of the socket: during the handshake, TLS owns the original and hides it.
        self._end: socket.socket | None = None

    @property
    def was_stale(self) -> bool:
        """Whether a request used the connection made ahead and received nothing: the server may have closed it."""
        return self._used is not None and self._used.left == self._limit

    def cut(self) -> None:
        """Close the connection, from any thread: reads and writes fail at once, and no new connection is opened."""
        with self._lock:
            self._is_cut = True
            end, self._end = self._end, None
            ahead, self._ahead = self._ahead, None
        if end is not None:
            with suppress(OSError):  # the server has closed it
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        if ahead is not None:
            ahead.stream.close()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of `host` that answers. `timeout` is for each address, in seconds."""
        with self.busy:
            ahead, self._ahead = self._ahead, None
            if ahead is not None:
                if ahead.is_for(host, port):
                    self._used = ahead.stream
                    return ahead.stream
                ahead.stream.close()
            return _Stream(self._connect(host, port, timeout, local_address, socket_options), self._limit)

    def connect_ahead(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Connect now for a later request, and do the TLS handshake. If this fails, the request tries and reports it.

        Args:
            host: the server, or its proxy.
            tls: for the handshake. None: httpcore does it later, or there is none.
        """
        with self.busy, suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
            stream: httpcore.NetworkStream = self._connect(host, port, _CONNECT_TIMEOUT)
            if tls is not None:
                tls.set_alpn_protocols(["http/1.1"])  # as httpcore does
                stream = stream.start_tls(tls, host, _CONNECT_TIMEOUT)
            ahead = _Ahead(host, port, _Stream(stream, self._limit, has_tls=tls is not None), time.monotonic())
            with self._lock:
                if not self._is_cut:
                    self._ahead = ahead
                    return
            stream.close()

    def _connect(
        self,
        host: str,
        port: int,
        timeout: float | None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        error: Exception = httpcore.ConnectError("no address")
        for address in _addresses(host, port):
            if self._is_cut:
                break
            try:
                stream = self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failure:
                error = failure
            else:
                self._adopt(stream)
                return stream
        raise error

    def _adopt(self, stream: httpcore.NetworkStream) -> None:
        with self._lock:
            if not self._is_cut:
                if self._end is not None:
                    self._end.close()
                self._end = stream.get_extra_info("socket").dup()
                return
        stream.close()
        raise httpcore.ConnectTimeout


class _Stream(httpcore.NetworkStream):
    """A network stream that receives a limited number of bytes.

    Args:
        limit: the number of bytes.
        has_tls: whether the TLS handshake was already done, so that `start_tls` has nothing to do.

    Attributes:
        left: bytes that it may still receive.
    """

    def __init__(self, stream: httpcore.NetworkStream, limit: int, *, has_tls: bool = False) -> None:
        self._stream = stream
        self.left = limit
        self._has_tls = has_tls

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, timeout)
        self.left -= len(data)
        if self.left < 0:
            raise TooMuch
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        if self._has_tls:
            return self
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, timeout), self.left)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


@dataclass(frozen=True)
class _Ahead:
    """A connection that was made before the request.

    Attributes:
        since: when it was made, on the monotonic clock.
    """

    host: str
    port: int
    stream: _Stream
    since: float

    def is_for(self, host: str, port: int) -> bool:
        """Return whether it goes to this host, and is so recent that the server has not closed it yet."""
        return (self.host, self.port) == (host, port) and time.monotonic() - self.since < _KEPT_OPEN


def _is_from_elsewhere(record: logging.LogRecord) -> bool:
    """Return whether a log record is not from an attempt. Those quote the response, which may echo the request."""
    return threading.current_thread().name != THREAD


for _name in ("httpcore.http11", "httpx"):
    logging.getLogger(_name).addFilter(_is_from_elsewhere)


def _addresses(host: str, port: int) -> list[str]:
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error
