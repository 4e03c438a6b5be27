"""The only HTTP client: posts forms and JSON and gets documents over verified TLS, within a deadline, with retries.

Each attempt runs on a daemon thread while the caller waits for the rest of the deadline: httpx's timeouts are for
single operations, so neither a resolver that hangs nor headers that arrive byte by byte would ever exceed them. When
the caller stops waiting, the connection of the attempt is cut, which ends its thread. Only name resolution cannot be
interrupted: that thread ends when the resolver gives up.

An attempt returns its failure as a value, not as an exception: an httpx exception holds the request, and with it the
assertion, and must not be in the chain of an error that somebody logs.
"""

import contextlib
import copy
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from hsm_signer.entra.http_answer import MAXIMUM_BODY, WRONG_SERVER, Failure, HttpResponse, explain, judge
from hsm_signer.entra.url import host_of, is_loopback
from hsm_signer.errors import ConfigError, NetworkError
from hsm_signer.system.fork import without_forks
from hsm_signer.system.secret import Secret, hidden_locals, revealed
from hsm_signer.system.threads import NO_THREAD_HINT
from hsm_signer.system.trusted_path import require_trusted_path
from hsm_signer.version import __version__

# Slow imports are made where they are needed: a program that only signs must not wait for them.
if TYPE_CHECKING:
    import ssl

    from hsm_signer.entra.connection import Connection


logger = logging.getLogger(__name__)


class HttpClient:
    """Posts forms and JSON, and gets documents. No connection outlives a call, so there is nothing to close.

    `connecting_to` connects while the caller is busy with something else.

    Args:
        timeout: seconds for one request, with all its attempts and pauses.
        ca_bundle: PEM file of extra CA certificates to trust. Verification cannot be turned off.
        sleep: waits for that many seconds.
        monotonic: seconds on a clock that is never set.
        now: seconds since the epoch.
        jitter: returns a random number from 0 up to 1.

    Raises:
        ConfigError: the CA bundle cannot be read, contains no certificate, or another user could replace it.
    """

    def __init__(
        self,
        *,
        timeout: float,
        ca_bundle: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._timeout = timeout
        self._trust = _load_trust(ca_bundle)
        self._sleep = sleep
        self._monotonic = monotonic
        self._now = now
        self._jitter = jitter
        self._ahead: Future[Connection] | None = None

    @contextlib.contextmanager
    def connecting_to(self, url: str) -> Iterator[Self]:
        """Yield a client whose first request goes over a connection to `url` that is being made from now on.

        Resolving the name, connecting and the TLS handshake take three round trips or more, which a device uses to
        sign. On leaving, a connection that was not used is closed.
        """
        client = copy.copy(self)
        client._ahead = ahead = _connect_ahead(url, self._trust)
        try:
            yield client
        finally:
            if ahead is not None:
                ahead.add_done_callback(lambda made: made.result().cut())

    def post_form(
        self, url: str, form: Mapping[str, str | Secret], headers: Mapping[str, str | Secret]
    ) -> HttpResponse:
        """Post `form` to `url` and return the response.

        After a connection error, 429 or 5xx the same form is sent again, up to four times in all.

        Raises:
            NetworkError: no usable response arrived in time; the message names the last cause.
            ConfigError: a proxy variable in the environment is unusable.
        """
        return self._send("POST", url, headers, data=form)

    def post_json(self, url: str, document: Mapping[str, object], headers: Mapping[str, str | Secret]) -> HttpResponse:
        """Post `document` to `url` as JSON, in the same way. A retry may reach a server that has already done it.

        Args:
            document: its members may be `Secret`, but not what is inside them.

        Raises:
            NetworkError, ConfigError: as `post_form`.
        """
        return self._send("POST", url, headers, json=document)

    def get(self, url: str, headers: Mapping[str, str | Secret] | None = None) -> HttpResponse:
        """Get the document at `url`, in the same way.

        Raises:
            NetworkError, ConfigError: as `post_form`.
        """
        return self._send("GET", url, headers or {})

    @hidden_locals()
    def _send(
        self, method: str, url: str, headers: Mapping[str, str | Secret], **content: Mapping[str, object]
    ) -> HttpResponse:
        deadline = self._monotonic() + self._timeout
        proxy = _proxy_for(url)
        attempt = _Attempt(method, url, content, headers, self._trust, proxy, lambda: deadline - self._monotonic())
        host = host_of(url)
        last: Failure | None = None
        retries = 0
        while True:
            connection = self._connection(attempt.left())
            answer = _within(attempt.left(), attempt, connection)
            if isinstance(answer, HttpResponse):
                logger.debug("%s %s: %d", method, host, answer.status)
                if (failure := judge(answer, url, self._now())) is None:
                    return answer
                answer = failure
            elif answer is not None and answer.retry and connection.was_stale:
                last = answer
                continue
            if answer is None or attempt.left() <= 0:
                raise self._deadline_error(host, answer or last)
            # A server that asks for one second still gets the longer pause of a later attempt.
            pause = max(answer.retry_after or 0, 2**retries * (0.5 + self._jitter() / 2))
            if retries == _RETRIES or not answer.retry or pause >= attempt.left():
                raise self._final_error(answer)
            self._sleep(pause)
            last = answer
            retries += 1

    def _connection(self, seconds: float) -> "Connection":
        """Return the connection that is being made, for the first request, or else a new one."""
        from hsm_signer.entra.connection import Connection

        ahead, self._ahead = self._ahead, None
        with contextlib.suppress(TimeoutError):
            if ahead is not None:
                return ahead.result(max(seconds, 0))
        return Connection(_MAXIMUM_BYTES)

    def _deadline_error(self, host: str, last: "Failure | None") -> NetworkError:
        seen = f" Last failure: {last.message}" if last else ""
        return NetworkError(
            f"{host} gave no complete answer within {self._timeout:g} seconds.{seen}",
            hint="Check the network and any proxy, or allow more seconds with --network-timeout.",
        )

    def _final_error(self, failure: "Failure") -> NetworkError:
        if not failure.retry_after:
            return NetworkError(failure.message, hint=failure.hint)
        when = datetime.fromtimestamp(self._now() + failure.retry_after, UTC)
        return NetworkError(
            f"{failure.message} It asks for no request before {when:%Y-%m-%d %H:%M:%S} UTC.",
            hint="Try again then, or wait longer for it with --network-timeout.",
        )


@dataclass(frozen=True)
class _Attempt:
    """One attempt, on a connection of its own."""

    method: str
    url: str
    content: Mapping[str, Any] = field(repr=False)
    headers: Mapping[str, str | Secret] = field(repr=False)
    trust: "ssl.SSLContext"
    proxy: str | None = field(repr=False)
    left: Callable[[], float]

    def run(self, connection: "Connection") -> "HttpResponse | Failure":
        from hsm_signer.entra.connection import TooMuch
        from hsm_signer.entra.httpx_import import httpx

        host = host_of(self.url)
        # The caller's deadline cuts an open connection, but not one that is being opened. These limits do, soon after,
        # and leave time for another address or attempt if packets to the first one are lost.
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
            # httpx has no argument for this; httpcore has (https://www.encode.io/httpcore/network-backends/).
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


_RETRIES = 3
_MAXIMUM_BYTES = MAXIMUM_BODY + 128 * 1024
"""The bytes that a connection may receive: the body, headers (httpcore reads up to 100 KiB) and interim responses."""


def _connect_ahead(url: str, trust: "ssl.SSLContext") -> "Future[Connection] | None":
    """Import what a request needs, and connect to where it will go, on a thread; None where none can be started."""
    future: Future[Connection] = Future()

    def work() -> None:
        with without_forks():
            from hsm_signer.entra.connection import Connection
            from hsm_signer.entra.httpx_import import httpx

            "".encode("idna")  # imports what resolves names

        connection = Connection(_MAXIMUM_BYTES)
        # Before others get the connection, so that they wait for it.
        with connection.busy:
            future.set_result(connection)
            with contextlib.suppress(Exception):  # the request will meet it, too, and explain it
                proxy = _proxy_for(url)
                target = httpx.URL(proxy or url)
                tls = trust if target.scheme == "https" and proxy is None else None
                port = target.port or {"https": 443}.get(target.scheme, 80)
                connection.connect_ahead(target.raw_host.decode("ascii"), port, tls)

    with contextlib.suppress(RuntimeError):
        threading.Thread(target=work, name="hsm-signer-connect", daemon=True).start()
        return future
    return None


def _within(seconds: float, attempt: _Attempt, connection: "Connection") -> "HttpResponse | Failure | None":
    """Return the result of an attempt, or None if it takes longer. Its connection is closed in both cases."""
    from hsm_signer.entra.connection import THREAD

    future: Future[HttpResponse | Failure] = Future()

    def work() -> None:
        try:
            future.set_result(attempt.run(connection))
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=work, name=THREAD, daemon=True).start()
        wait([future], timeout=max(seconds, 0))
    except RuntimeError:
        message = f"No thread could be started for the request to {host_of(attempt.url)}."
        raise NetworkError(message, hint=NO_THREAD_HINT) from None
    else:
        return future.result() if future.done() else None
    finally:
        connection.cut()


def _load_trust(ca_bundle: Path | None) -> "ssl.SSLContext":
    import ssl

    # Not create_default_context: it obeys SSLKEYLOGFILE, and would write our session keys to a file. Like it, this
    # verifies certificates and host names.
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.load_default_certs()
    if ca_bundle is not None:
        try:
            trust.load_verify_locations(cafile=require_trusted_path(ca_bundle, "CA bundle"))
        except OSError as error:
            # An ssl.SSLError is an OSError too, but its text is about OpenSSL's internals.
            reason = "has no certificate" if isinstance(error, ssl.SSLError) else f"cannot be read: {error.strerror}"
            raise ConfigError(
                f"The CA bundle {ca_bundle} {reason}.", hint="Give --ca-bundle a PEM file of certificates."
            ) from None
    return trust


def _proxy_for(url: str) -> str | None:
    """Return the URL of the proxy that the environment sets for `url`, or None. Loopback never has one."""
    from urllib.request import getproxies, proxy_bypass

    split = urlsplit(url)
    host = split.hostname or ""
    if is_loopback(host) or proxy_bypass(split.netloc):
        return None
    proxies = getproxies()
    proxy = proxies.get(split.scheme) or proxies.get("all")
    if not proxy:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    # The host first: urlsplit raises a ValueError for some malformed URLs.
    if not host_of(proxy) or urlsplit(proxy).scheme not in ("http", "https"):
        # Not shown: it may contain a password.
        raise ConfigError(
            f"The proxy in the environment for {host} is not an http or https URL.",
            hint="Set HTTPS_PROXY to a URL like http://proxy.example.com:3128, or set NO_PROXY to use none.",
        )
    return proxy
