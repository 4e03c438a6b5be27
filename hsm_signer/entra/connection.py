"""The connection of one HTTP attempt: another thread can cut it, and it brings only so many bytes.

httpx's timeouts are for single operations. A server that sends a byte now and then, or one interim response after
another (1xx, RFC 9110 section 15.2), meets none of them, and httpcore reads interim responses without end.
"""

import logging
import socket
import ssl
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import httpcore
from httpcore import SOCKET_OPTION

THREAD = "hsm-signer-http"
"""Name of the threads that attempts run in."""


class TooMuch(Exception):
    """The server sent more bytes than the connection may bring."""


class Connection(httpcore.NetworkBackend):
    """Connects once, for httpcore, and can be cut.

    Args:
        limit: bytes that it may bring, interim responses and headers included.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._network = httpcore.SyncBackend()
        self._lock = threading.Lock()
        self._is_cut = False
        # A duplicate: TLS takes the socket itself over, and hides it while its handshake runs.
        self._end: socket.socket | None = None

    def cut(self) -> None:
        """End it from any thread: what reads from it or writes to it fails at once, and nothing connects any more."""
        with self._lock:
            self._is_cut = True
            end, self._end = self._end, None
        if end is not None:
            with suppress(OSError):  # the server has ended it
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of `host` that answers; `timeout` is for each of them."""
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
                return _Stream(stream, self._limit)
        raise error

    def _adopt(self, stream: httpcore.NetworkStream) -> None:
        with self._lock:
            if not self._is_cut:
                self._end = stream.get_extra_info("socket").dup()
                return
        stream.close()
        raise httpcore.ConnectTimeout


class _Stream(httpcore.NetworkStream):
    """What is sent over the connection; with a limit on what it brings."""

    def __init__(self, stream: httpcore.NetworkStream, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, timeout)
        self._left -= len(data)
        if self._left < 0:
            raise TooMuch
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, timeout), self._left)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _is_of_another(record: logging.LogRecord) -> bool:
    """Tell whether a record is none of an attempt's: those quote the answer, and a server may echo what it was sent."""
    return threading.current_thread().name != THREAD


for _name in ("httpcore.http11", "httpx"):
    logging.getLogger(_name).addFilter(_is_of_another)


def _addresses(host: str, port: int) -> list[str]:
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error
