"""A web server for this machine only. It runs in its own thread, and stops without waiting for clients."""

import asyncio
import ipaddress
import logging
import socket
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from hsm_signer.errors import ConfigError

TRANSPORT: Final = "hsm_signer.transport"
"""The name under which ``scope["extensions"]`` holds the connection's `asyncio.Transport`."""

# Without a handler, logging prints warnings to stderr. This one leaves that choice to the program.
logging.getLogger("uvicorn").addHandler(logging.NullHandler())


class _Protocol(H11Protocol):
    """HTTP/1.1 that gives its transport to the application, so that an answer can violate the protocol on purpose."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        application: ASGIApp = self.app

        async def with_transport(scope: Scope, receive: Receive, send: Send) -> None:
            scope["extensions"] = {TRANSPORT: transport}
            await application(scope, receive, send)

        self.app = with_transport
        self.access_log = False


class LoopbackServer:
    """Serve `application` on a loopback address until `stop`.

    The constructor binds the port, so that `authority` is known before the first request. `start` begins to answer.

    Args:
        host: an address of the loopback network, or ``localhost`` for 127.0.0.1.
        port: 0 for any that is free.
        certificate: PEM file with private key and chain for https, or None for http.

    Raises:
        ConfigError: the host is not loopback, or the port is not available.
    """

    def __init__(self, application: ASGIApp, *, host: str, port: int, certificate: Path | None) -> None:
        config = uvicorn.Config(
            application,
            http=_Protocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=1,
            ssl_certfile=certificate,
        )
        config.load()
        self._server = uvicorn.Server(config)
        self._listener = _listen(host, port)
        self._loop: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, name="loopback server", daemon=True)
        self.authority = server_url("http" if certificate is None else "https", host, self._listener.getsockname()[1])
        self.stopping = asyncio.Event()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        self._loop.result()

    def stop(self) -> None:
        """Close every connection at once, and end the thread."""
        self._loop.result().call_soon_threadsafe(self._hang_up)
        self._thread.join()

    def close(self) -> None:
        """Release the port of a server that was not started, or has stopped."""
        self._listener.close()

    def _hang_up(self) -> None:
        self.stopping.set()
        self._server.should_exit = True
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop.set_result(asyncio.get_running_loop())
        with self._listener:  # uvicorn leaves it open if it is stopped before it has started
            await self._server.serve(sockets=[self._listener])


def server_url(scheme: str, host: str, port: int) -> str:
    """The server's URL. Clients leave a default port out of the audience, which is compared as a string."""
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}" if port == {"http": 80, "https": 443}[scheme] else f"{scheme}://{name}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    require_loopback(host)
    address = "127.0.0.1" if host == "localhost" else host
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"Cannot listen on {address} port {port}: {getattr(error, 'strerror', None) or error}.",
            hint="Stop the program that uses the port, or choose another one. Port 0 is any free one.",
        ) from error


def require_loopback(host: str) -> None:
    """Refuse every host but this machine: the emulator issues tokens for every valid request.

    Raises:
        ConfigError: the host is not a loopback address.
    """
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigError(
            f"'{host}' is not a loopback address, and the emulator listens on no other.",
            hint="Use 127.0.0.1, ::1 or localhost.",
        )
