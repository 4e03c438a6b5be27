"""Post forms and JSON and get documents over verified TLS, within a deadline, with retries."""

import contextlib
import copy
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from hsm_signer.entra.http_answer import Failure, HttpResponse, judge
from hsm_signer.entra.http_attempt import MAXIMUM_BYTES, Attempt, connect_ahead, run_within
from hsm_signer.entra.route import load_trust, proxy_for
from hsm_signer.entra.url import host_of
from hsm_signer.entra.waiting import Slow, Waiting, log_waiting
from hsm_signer.errors import NetworkError
from hsm_signer.system.secret import Secret, hidden_locals

# Slow imports are made where they are needed: a program that only signs must not wait for them.
if TYPE_CHECKING:
    from hsm_signer.entra.connection import Connection

logger = logging.getLogger(__name__)


class HttpClient:
    """Posts forms and JSON, and gets documents. No connection stays open after a call, so there is nothing to close.

    `connecting_to` connects in the background while the caller does something else.

    Args:
        timeout: seconds for one request, with all its attempts and pauses.
        ca_bundle: PEM file of extra CA certificates to trust. Verification cannot be turned off.
        sleep: waits for that many seconds.
        monotonic: seconds on a clock that is never set.
        now: seconds since the epoch.
        jitter: returns a random number from 0 up to 1.
        slow: shows that a request takes long, and for which server and at which try.

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
        slow: Slow = log_waiting,
    ) -> None:
        self._timeout = timeout
        self._trust = load_trust(ca_bundle)
        self._sleep = sleep
        self._monotonic = monotonic
        self._now = now
        self._jitter = jitter
        self._slow = slow
        self._ahead: Future[Connection] | None = None

    @contextlib.contextmanager
    def connecting_to(self, url: str) -> Iterator[Self]:
        """Start connecting to `url` in the background, and yield a client whose first request uses that connection.

        Resolving the name, connecting and the TLS handshake take three round trips or more. A device can sign
        meanwhile. At the end of the `with`, an unused connection is closed.
        """
        client = copy.copy(self)
        client._ahead = ahead = connect_ahead(url, self._trust)
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
        """Post `document` to `url` as JSON, with retries as `post_form`. The server may process it more than once.

        Args:
            document: its members may be a `Secret`, but nested members may not.

        Raises:
            NetworkError, ConfigError: as `post_form`.
        """
        return self._send("POST", url, headers, json=document)

    def get(self, url: str, headers: Mapping[str, str | Secret] | None = None) -> HttpResponse:
        """Get the document at `url`, with retries as `post_form`.

        Raises:
            NetworkError, ConfigError: as `post_form`.
        """
        return self._send("GET", url, headers or {})

    @hidden_locals()
    def _send(
        self, method: str, url: str, headers: Mapping[str, str | Secret], **content: Mapping[str, object]
    ) -> HttpResponse:
        deadline = self._monotonic() + self._timeout
        proxy = proxy_for(url)
        attempt = Attempt(method, url, content, headers, self._trust, proxy, lambda: deadline - self._monotonic())
        host = host_of(url)
        with Waiting(self._slow, host, 1 + _RETRIES, self._monotonic) as waiting:
            return self._send_until(attempt, host, waiting)

    def _send_until(self, attempt: Attempt, host: str, waiting: Waiting) -> HttpResponse:
        """Send a request until there is a usable response, or no time or try is left."""
        last: Failure | None = None
        retries = 0
        while True:
            connection = self._connection(attempt.left())
            started = self._monotonic()
            answer = run_within(attempt.left(), attempt, connection, waiting)
            if isinstance(answer, HttpResponse):
                logger.debug("%s %s: %d in %.2f s", attempt.method, host, answer.status, self._monotonic() - started)
                if (failure := judge(answer, attempt.url, self._now())) is None:
                    return answer
                answer = failure
            elif answer is not None and answer.retry and connection.was_stale:
                last = answer
                continue
            if answer is None or attempt.left() <= 0:
                raise self._deadline_error(host, answer or last)
            # If the server asks for a shorter pause than this attempt's own, the longer one counts.
            pause = max(answer.retry_after or 0, 2**retries * (0.5 + self._jitter() / 2))
            if retries == _RETRIES or not answer.retry or pause >= attempt.left():
                raise self._final_error(answer)
            retries += 1
            logger.debug("%s Try %d of %d in %.1f s.", answer.message, 1 + retries, 1 + _RETRIES, pause)
            waiting.try_again(pause)
            self._sleep(pause)
            last = answer

    def _connection(self, seconds: float) -> "Connection":
        """Return the connection made ahead for the first request, or a new one."""
        from hsm_signer.entra.connection import Connection

        ahead, self._ahead = self._ahead, None
        with contextlib.suppress(TimeoutError):
            if ahead is not None:
                return ahead.result(max(seconds, 0))
        return Connection(MAXIMUM_BYTES)

    def _deadline_error(self, host: str, last: "Failure | None") -> NetworkError:
        seen = f" Last failure: {last.message}" if last else ""
        return NetworkError(
            f"{host} did not answer completely within {self._timeout:g} seconds.{seen}",
            hint="Check the network and any proxy, or set a longer --network-timeout.",
        )

    def _final_error(self, failure: "Failure") -> NetworkError:
        if not failure.retry_after:
            return NetworkError(failure.message, hint=failure.hint)
        when = datetime.fromtimestamp(self._now() + failure.retry_after, UTC)
        return NetworkError(
            f"{failure.message} It accepts no request before {when:%Y-%m-%d %H:%M:%S} UTC.",
            hint="Try again after that, or set a longer --network-timeout to wait for it.",
        )


_RETRIES = 3
