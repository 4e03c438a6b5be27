"""Scripted answers: errors and failures of Entra and Graph that a test asks for.

Each is a frozen dataclass that describes the answer to one request. `EntraEmulator.answer_next` and `answer_next_graph`
take them, and a `Script` sends them. Those that violate HTTP are written to the connection's transport, past uvicorn.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from hsm_signer.testing.entra.loopback import TRANSPORT
from hsm_signer.testing.entra.request_log import note_status


@dataclass(frozen=True)
class Throttled:
    """429 with the service's message. `retry_after` is the header: seconds, an HTTP date, or None to leave it out."""

    retry_after: str | None


@dataclass(frozen=True)
class Unavailable:
    """503 with the service's message. `retry_after` as for `Throttled`."""

    retry_after: str | None = None


@dataclass(frozen=True)
class Slow:
    """The ordinary answer, decided and sent after `seconds`."""

    seconds: float


@dataclass(frozen=True)
class DripFeed:
    """The ordinary answer, headers and body byte by byte, `interval` seconds apart."""

    interval: float = 0.05


@dataclass(frozen=True)
class Truncated:
    """A body shorter than its Content-Length, after which the connection closes."""


@dataclass(frozen=True)
class Endless:
    """A body without end, sent as fast as the client reads it."""


@dataclass(frozen=True)
class Html:
    """An HTML page, as a captive portal or a proxy sends it."""

    status: int = 200


@dataclass(frozen=True)
class Redirect:
    """A redirect to `location`."""

    location: str
    status: int = 302


@dataclass(frozen=True)
class NoAccessToken:
    """A successful answer that lacks the token."""


@dataclass(frozen=True)
class Refused:
    """Any error document of Entra's. `description` is the part between the number and the IDs."""

    aadsts: int
    error: str
    description: str
    status: int = 400


@dataclass(frozen=True)
class Disconnected:
    """No answer: the connection is closed."""


Misbehaviour = Slow | DripFeed | Truncated | Endless | Html | Redirect | Disconnected
"""Answers that any service can give."""

Answer = Misbehaviour | Throttled | Unavailable | NoAccessToken | Refused
"""Answers that the token endpoint can give."""

Worded = TypeVar("Worded")
"""Answers that are a document of the service, with its own message."""


class Recorded(Protocol):
    """A request, and the status of its answer."""

    status: int | None


class Script(Generic[Worded]):
    """The answers to the next requests to a service. After them, it answers as usual."""

    def __init__(self) -> None:
        self._answers: deque[Misbehaviour | Worded] = deque()

    def extend(self, answers: tuple[Misbehaviour | Worded, ...]) -> None:
        """Add answers to the end of the queue: one for each request."""
        self._answers.extend(answers)

    async def answer(
        self,
        received: Recorded,
        ordinary: Callable[[], Response],
        document: Callable[[Worded], Response],
        stopping: asyncio.Event,
    ) -> Response:
        """Return the response to a request, and record its status. A connection that is closed has none.

        Args:
            ordinary: makes the answer if nothing is scripted.
            document: makes a document of this service.
            stopping: set when the server stops; ends every wait.
        """
        if not self._answers:
            response = ordinary()
        else:
            response = await _play(self._answers.popleft(), ordinary, document, stopping)
        if not isinstance(response, _Broken):
            received.status = response.status_code
        return response


async def _play(
    answer: Misbehaviour | Worded,
    ordinary: Callable[[], Response],
    document: Callable[[Worded], Response],
    stopping: asyncio.Event,
) -> Response:
    match answer:
        case Slow(seconds):
            await _pause(seconds, stopping)
            return ordinary()
        case DripFeed(interval):
            return _DripFeed(ordinary(), interval, stopping)
        case Truncated():
            return _Truncated()
        case Endless():
            return _Endless(stopping)
        case Html(status):
            return HTMLResponse("<!DOCTYPE html><title>Sign in</title><p>Sign in to this network.", status)
        case Redirect(location, status):
            return RedirectResponse(location, status)
        case Disconnected():
            return _Broken()
        case _:
            return document(answer)


async def _pause(seconds: float, stopping: asyncio.Event) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)


def _transport(scope: Scope) -> asyncio.Transport:
    transport = scope["extensions"][TRANSPORT]
    assert isinstance(transport, asyncio.Transport)  # noqa: S101 - narrows the type only
    return transport


async def _gone(receive: Receive) -> None:
    # uvicorn reports an application that returns before its answer is complete, unless the client has disconnected.
    while (await receive())["type"] != "http.disconnect":
        pass


class _Broken(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _transport(scope).abort()
        await _gone(receive)


class _Truncated(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = _transport(scope)
        note_status(scope, self.status_code)
        self.headers["Content-Length"] = "4096"
        transport.write(_head(self) + b'{"token_type":"Bearer","expires_in":3599,')
        transport.close()
        await _gone(receive)


class _DripFeed(Response):
    def __init__(self, response: Response, interval: float, stopping: asyncio.Event) -> None:
        super().__init__(status_code=response.status_code)
        self._wire = _head(response) + bytes(response.body)
        self._interval, self._stopping = interval, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = _transport(scope)
        note_status(scope, self.status_code)
        for octet in self._wire:
            await _pause(self._interval, self._stopping)
            if transport.is_closing():
                break
            transport.write(bytes([octet]))
        transport.close()
        await _gone(receive)


class _Endless(Response):
    def __init__(self, stopping: asyncio.Event) -> None:
        super().__init__(media_type="application/json")
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = _transport(scope)
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while not transport.is_closing() and not self._stopping.is_set():
            await send({"type": "http.response.body", "body": b" " * 16384, "more_body": True})
            await asyncio.sleep(0)  # for a client that reads fast, send never waits
        transport.abort()
        await _gone(receive)


def _head(response: Response) -> bytes:
    lines = [b"HTTP/1.1 %d Scripted" % response.status_code, b"Connection: close"]
    lines += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join([*lines, b"", b""])
