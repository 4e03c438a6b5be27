"""A person sees for which server a request waits, and at which try, but only if that takes long."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from hsm_signer.entra.http import HttpClient
from hsm_signer.errors import NetworkError
from tests.entra.conftest import Clock

Serve = Callable[..., int]


class Shown:
    """What a person sees while a request waits, and what disappears again."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.shown: list[str] = []

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        assert self.shown == []
        self.seen.append(what)
        self.shown.append(what)
        yield
        self.shown.remove(what)


class TestLongWait:
    @pytest.fixture
    def shown(self) -> Shown:
        return Shown()

    @pytest.fixture
    def patient(self, clock: Clock, shown: Shown) -> HttpClient:
        return HttpClient(
            timeout=30, sleep=clock.sleep, monotonic=clock.monotonic, now=clock.now, jitter=lambda: 1, slow=shown
        )

    def test_names_the_server_and_disappears(self, serve: Serve, patient: HttpClient, shown: Shown) -> None:
        seen = threading.Event()

        def slow(connection: socket.socket, closing: threading.Event) -> None:
            while not (shown.shown or closing.wait(0.02)):
                pass
            seen.set()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        port = serve(slow)
        assert patient.get(f"http://127.0.0.1:{port}/").status == 200
        assert seen.is_set()
        assert (shown.seen, shown.shown) == ([f"waiting for 127.0.0.1:{port}"], [])

    def test_says_which_try_it_is(self, serve: Serve, patient: HttpClient, shown: Shown) -> None:
        busy = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
        port = serve(busy, busy, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        assert patient.get(f"http://127.0.0.1:{port}/").status == 200
        # The pauses are 1 s and 2 s: the second one lasts until 3 s after the start.
        assert (shown.seen, shown.shown) == ([f"waiting for 127.0.0.1:{port}, try 3 of 4"], [])

    def test_is_not_shown_if_it_is_short(self, serve: Serve, patient: HttpClient, shown: Shown) -> None:
        port = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        patient.get(f"http://127.0.0.1:{port}/")
        assert shown.seen == []

    def test_disappears_when_the_request_fails(self, serve: Serve, patient: HttpClient, shown: Shown) -> None:
        port = serve(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
        with pytest.raises(NetworkError):
            patient.get(f"http://127.0.0.1:{port}/")
        assert [text[-10:] for text in shown.seen] == ["try 3 of 4", "try 4 of 4"]
        assert shown.shown == []
