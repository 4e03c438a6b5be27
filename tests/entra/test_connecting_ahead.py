"""The connection to the token endpoint is made while the device signs."""

import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import trustme

from hsm_signer.entra import connection as connections
from hsm_signer.entra.http import HttpClient
from hsm_signer.errors import NetworkError
from tests.entra.conftest import Clock

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
FORM = {"client_assertion": "x"}


class Server:
    """A server that says what happens on its connections, as ``events``: connected, request, closed, each with the
    connection's number.

    Args:
        close: the number of a connection that it closes instead of reading a request.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, close: int | None = None) -> None:
        self.events: queue.Queue[tuple[str, int]] = queue.Queue()
        self._tls, self._close = tls, close
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def seen(self) -> list[tuple[str, int]]:
        """Return what has happened by now, and was not returned before."""
        return [self.events.get_nowait() for _ in range(self.events.qsize())]

    def wait_for(self, event: str, number: int) -> None:
        while self.events.get(timeout=20) != (event, number):
            pass

    def _accept(self) -> None:
        number = 0
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                number += 1
                threading.Thread(target=self._converse, args=(connection, number), daemon=True).start()

    def _converse(self, connection: socket.socket, number: int) -> None:
        with suppress(OSError), connection:
            connection.settimeout(20)
            stream = self._tls.wrap_socket(connection, server_side=True) if self._tls else connection
            self.events.put(("connected", number))
            with stream:
                while number != self._close and (data := stream.recv(65536)):
                    if b"\r\n\r\n" in data:
                        self.events.put(("request", number))
                        stream.sendall(OK)
        self.events.put(("closed", number))


Serve = Callable[..., Server]


@pytest.fixture
def server() -> Iterator[Server]:
    with closing(Server()) as server:
        yield server


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Server]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with closing(Server(tls)) as server:
        yield server


def test_it_is_there_before_the_request(server: Server) -> None:
    url = f"http://127.0.0.1:{server.port}/"
    with HttpClient(timeout=20).connecting_to(url) as http:
        server.wait_for("connected", 1)
        assert http.post_form(url, FORM, {}).status == 200
        server.wait_for("request", 1)
    server.wait_for("closed", 1)
    assert server.seen() == []


def test_the_handshake_is_made_before_the_request(secure: Server, authority: trustme.CA, tmp_path: Path) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    url = f"https://127.0.0.1:{secure.port}/"
    with HttpClient(timeout=20, ca_bundle=tmp_path / "ca.pem").connecting_to(url) as http:
        secure.wait_for("connected", 1)
        assert http.post_form(url, FORM, {}).status == 200
        secure.wait_for("request", 1)
    secure.wait_for("closed", 1)
    assert secure.seen() == []


def test_a_request_that_comes_sooner_waits_for_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve, resolving = socket.getaddrinfo, threading.Event()

    def slow(*arguments: object, **options: object) -> object:
        resolving.wait(20)
        return resolve(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    url = f"http://127.0.0.1:{server.port}/"
    with HttpClient(timeout=20).connecting_to(url) as http:
        threading.Timer(0.2, resolving.set).start()
        assert http.post_form(url, FORM, {}).status == 200
    server.wait_for("closed", 1)
    assert server.seen() == []


def test_it_serves_one_request_only(server: Server) -> None:
    url = f"http://127.0.0.1:{server.port}/"
    with HttpClient(timeout=20).connecting_to(url) as http:
        http.post_form(url, FORM, {})
        http.post_form(url, FORM, {})
    server.wait_for("request", 2)


def test_it_is_closed_where_no_request_comes(server: Server) -> None:
    class Refused(Exception):
        pass

    def refused_by_the_device() -> None:
        with HttpClient(timeout=20).connecting_to(f"http://127.0.0.1:{server.port}/"):
            server.wait_for("connected", 1)
            raise Refused

    with pytest.raises(Refused):
        refused_by_the_device()
    server.wait_for("closed", 1)
    assert server.seen() == []


def test_one_that_the_server_has_closed_is_replaced_at_once(clock: Clock) -> None:
    with closing(Server(close=1)) as server:
        url = f"http://127.0.0.1:{server.port}/"
        http = HttpClient(timeout=20, sleep=clock.sleep, monotonic=clock.monotonic)
        with http.connecting_to(url) as ahead:
            server.wait_for("closed", 1)
            assert ahead.post_form(url, FORM, {}).status == 200
        server.wait_for("request", 2)
    assert clock.slept == []


def test_one_that_was_unused_for_long_is_replaced(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_KEPT_OPEN", 0)
    url = f"http://127.0.0.1:{server.port}/"
    with HttpClient(timeout=20).connecting_to(url) as http:
        server.wait_for("connected", 1)
        assert http.post_form(url, FORM, {}).status == 200
    server.wait_for("request", 2)


def test_one_to_elsewhere_is_not_used(server: Server) -> None:
    with closing(Server()) as other, HttpClient(timeout=20).connecting_to(f"http://127.0.0.1:{other.port}/") as http:
        assert http.post_form(f"http://127.0.0.1:{server.port}/", FORM, {}).status == 200
        server.wait_for("request", 1)
        assert ("request", 1) not in other.seen()


def test_what_keeps_it_from_being_made_is_explained_by_the_request(secure: Server) -> None:
    url = f"https://127.0.0.1:{secure.port}/"
    with (
        pytest.raises(NetworkError, match="is not trusted"),
        HttpClient(timeout=20).connecting_to(url) as http,
    ):
        http.post_form(url, FORM, {})


def test_the_deadline_holds_while_it_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()

    def hang(*_arguments: object, **_options: object) -> object:
        never.wait(20)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        with (
            pytest.raises(NetworkError, match=r"did not answer completely within 0\.2 seconds"),
            HttpClient(timeout=0.2).connecting_to("https://login.example.com/") as http,
        ):
            http.post_form("https://login.example.com/", FORM, {})
    finally:
        never.set()


def test_through_a_proxy_the_proxy_is_connected_to(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.port}")
    with HttpClient(timeout=20).connecting_to("http://login.example.com/") as http:
        server.wait_for("connected", 1)
        assert http.post_form("http://login.example.com/", FORM, {}).status == 200
        server.wait_for("request", 1)


def test_without_a_thread_for_it_the_request_connects(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "hsm-signer-connect":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    url = f"http://127.0.0.1:{server.port}/"
    with HttpClient(timeout=20).connecting_to(url) as http:
        assert http.post_form(url, FORM, {}).status == 200
