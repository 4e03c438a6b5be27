"""Make one attempt at an HTTP request on a separate thread and connection, or connect before the request.

Each attempt runs on a daemon thread while the caller waits for the rest of the deadline: httpx's timeouts are for
single operations, so a resolver that hangs or headers that arrive byte by byte would never exceed them. When the caller
stops waiting, it closes the connection of the attempt, which ends the thread. Only name resolution cannot be
interrupted: that thread ends when the resolver gives up.

An attempt returns its failure as a value, not as an exception: an httpx exception contains the request, and with it the
assertion, and must not be in the chain of an error that somebody logs.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hsm_signer.entra.http_answer import MAXIMUM_BODY, WRONG_SERVER, Failure, HttpResponse, explain
from hsm_signer.entra.route import proxy_for
from hsm_signer.entra.url import host_of
from hsm_signer.entra.waiting import Waiting
from hsm_signer.errors import NetworkError
from hsm_signer.system.fork import without_forks
from hsm_signer.system.secret import Secret, revealed
from hsm_signer.system.threads import NO_THREAD_HINT
from hsm_signer.version import __version__

# Slow imports are made where they are needed: a program that only signs must not wait for them.
if TYPE_CHECKING:
    import ssl

    from hsm_signer.entra.connection import Connection

MAXIMUM_BYTES = MAXIMUM_BODY + 128 * 1024
"""Bytes that a connection may receive: the body, headers (httpcore reads up to 100 KiB) and interim responses."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a request.

    Attributes:
        content: the body, as an argument of httpx: `data` for a form, or `json` for a document.
        trust: verifies the server.
        proxy: the proxy's URL, which may contain a password, or None.
        left: returns the seconds until the caller's deadline.
    """

    method: str
    url: str
    content: Mapping[str, Any] = field(repr=False)
    headers: Mapping[str, str | Secret] = field(repr=False)
    trust: "ssl.SSLContext"
    proxy: str | None = field(repr=False)
    left: Callable[[], float]

    def run(self, connection: "Connection") -> "HttpResponse | Failure":
        """Send the request, and return the response or why it failed."""
        from hsm_signer.entra.connection import TooMuch
        from hsm_signer.entra.httpx_import import httpx

        host = host_of(self.url)
        # At the deadline the caller closes an open connection, but it cannot close one that is being opened. These
        # limits end that soon after, and leave time for another address or attempt if packets to the first are lost.
        limits = httpx.Timeout(self.left() + 1, connect=min(self.left() + 1, 10))
        headers = {
            "User-Agent": f"hsm-signer/{__version__}",
            "Accept": "application/json",
            # Without compression, a small response cannot expand beyond the size limit.
            "Accept-Encoding": "identity",
            **revealed(self.headers),
        }
        content: dict[str, Any] = {kind: revealed(values) for kind, values in self.content.items()}
        try:
            # By default, httpx would verify a proxy that uses TLS with certifi's CA certificates.
            secured = self.trust if self.proxy and urlsplit(self.proxy).scheme == "https" else None
            proxy = httpx.Proxy(self.proxy, ssl_context=secured) if self.proxy else None
            transport = httpx.HTTPTransport(verify=self.trust, proxy=proxy, trust_env=False)
            # httpx has no argument for this, but httpcore has (https://www.encode.io/httpcore/network-backends/).
            transport._pool._network_backend = connection
            with (
                httpx.Client(transport=transport, trust_env=False, timeout=limits) as client,
                client.stream(self.method, self.url, headers=headers, **content) as response,
            ):
                body = bytearray()
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > MAXIMUM_BODY:
                        raise TooMuch
                lower = {name.lower(): value for name, value in response.headers.items()}
                return HttpResponse(response.status_code, lower, bytes(body))
        except httpx.HTTPError as error:
            return explain(error, host, self.proxy)
        except TooMuch:
            return Failure(f"{host} sent more than {MAXIMUM_BODY} bytes.", WRONG_SERVER, retry=False)
        except (httpx.InvalidURL, UnicodeError):
            return Failure(
                f"The URL of {host}, or of the proxy, is not valid.",
                "Check --authority, --token-endpoint and the variable HTTPS_PROXY.",
                retry=False,
            )


def connect_ahead(url: str, trust: "ssl.SSLContext") -> "Future[Connection] | None":
    """On a new thread, import the modules for a request, and connect to the server or its proxy.

    Returns:
        A future of the connection, set before it is connected: a request then waits for it. None if no thread can be
        started.
    """
    future: Future[Connection] = Future()

    def work() -> None:
        with without_forks():
            from hsm_signer.entra.connection import Connection
            from hsm_signer.entra.httpx_import import httpx

            "".encode("idna")  # imports the codec for host names

        connection = Connection(MAXIMUM_BYTES)
        # Locked before the caller gets the connection, so that a request waits until it is connected.
        with connection.busy:
            future.set_result(connection)
            with contextlib.suppress(Exception):  # the request will fail in the same way, and explain it
                proxy = proxy_for(url)
                target = httpx.URL(proxy or url)
                tls = trust if target.scheme == "https" and proxy is None else None
                port = target.port or {"https": 443}.get(target.scheme, 80)
                connection.connect_ahead(target.raw_host.decode("ascii"), port, tls)

    with contextlib.suppress(RuntimeError):
        threading.Thread(target=work, name="hsm-signer-connect", daemon=True).start()
        return future
    return None


def run_within(
    seconds: float, attempt: Attempt, connection: "Connection", waiting: Waiting
) -> "HttpResponse | Failure | None":
    """Return the result of an attempt, or None if it takes longer. Its connection is closed in both cases.

    Args:
        waiting: shows that it takes long.

    Raises:
        NetworkError: no thread can be started.
    """
    from hsm_signer.entra.connection import THREAD

    future: Future[HttpResponse | Failure] = Future()

    def work() -> None:
        try:
            future.set_result(attempt.run(connection))
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=work, name=THREAD, daemon=True).start()
        patience = min(waiting.patience, max(seconds, 0))
        if not wait([future], timeout=patience).done:
            waiting.show()
            wait([future], timeout=max(seconds - patience, 0))
    except RuntimeError:
        message = f"No thread could be started for the request to {host_of(attempt.url)}."
        raise NetworkError(message, hint=NO_THREAD_HINT) from None
    else:
        return future.result() if future.done() else None
    finally:
        connection.cut()
