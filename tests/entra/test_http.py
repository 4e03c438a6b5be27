"""The HTTP client with real sockets: deadline, retries, limits, TLS, proxies, and secrets that must not leak."""

import logging
import os
import select
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Protocol

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer import __version__
from hsm_signer.entra.http import HttpClient
from hsm_signer.entra.http_answer import MAXIMUM_BODY, HttpResponse, parse_http_date, retry_after
from hsm_signer.errors import ConfigError, NetworkError

Serve = Callable[..., int]
Behaviour = Callable[[socket.socket, threading.Event], None]
SECRET = "eyJhbGciOiJQUzI1NiJ9.eyJhdWQiOiJ4In0.c2VjcmV0LXNpZ25hdHVyZQ"
FORM = {"client_assertion": SECRET, "scope": "a b/.default"}
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Clock(Protocol):
    slept: list[float]

    def monotonic(self) -> float: ...
    def now(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


def status(code: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {code} x", "Content-Length: 0", *headers, "", ""]).encode()


def hang_up(connection: socket.socket, closing: threading.Event) -> None:
    """Close without an answer."""


def stay_silent(connection: socket.socket, closing: threading.Event) -> None:
    closing.wait()


def dripping(head: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def drip(connection: socket.socket, closing: threading.Event) -> None:
        connection.sendall(head)
        while not closing.wait(0.01):
            connection.sendall(b"x")

    return drip


def post(url: str, *, timeout: float = 5, ca_bundle: Path | None = None) -> HttpResponse:
    return HttpClient(timeout=timeout, ca_bundle=ca_bundle).post_form(url, FORM, {"client-request-id": "1"})


def post_on(clock: Clock, port: int, *, timeout: float = 30) -> HttpResponse:
    http = HttpClient(timeout=timeout, sleep=clock.sleep, monotonic=clock.monotonic, now=clock.now, jitter=lambda: 1.0)
    return http.post_form(f"http://127.0.0.1:{port}/token", FORM, {})


def failure_on(clock: Clock, port: int, *, timeout: float = 30) -> NetworkError:
    with pytest.raises(NetworkError) as caught:
        post_on(clock, port, timeout=timeout)
    return caught.value


# What is sent, what comes back


def test_the_form_is_posted_url_encoded(serve: Serve, received: list[bytes]) -> None:
    post(f"http://127.0.0.1:{serve(OK)}/token")
    assert received[0].endswith(f"client_assertion={SECRET}&scope=a+b%2F.default".encode())


def test_the_request_names_this_program(serve: Serve, received: list[bytes]) -> None:
    post(f"http://127.0.0.1:{serve(OK)}/token")
    assert f"user-agent: hsm-signer/{__version__}\r\n".encode() in received[0].lower()


def test_the_callers_headers_are_sent(serve: Serve, received: list[bytes]) -> None:
    post(f"http://127.0.0.1:{serve(OK)}/token")
    assert b"client-request-id: 1\r\n" in received[0]


def test_an_answer_has_status_headers_and_body(serve: Serve) -> None:
    answer = post(f"http://127.0.0.1:{serve(OK)}/token")
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "application/json", b"{}")


@pytest.mark.parametrize("code", [400, 401, 404])
def test_a_4xx_is_returned_without_a_retry(serve: Serve, received: list[bytes], code: int) -> None:
    assert (post(f"http://127.0.0.1:{serve(status(code))}/").status, len(received)) == (code, 1)


def test_a_repr_does_not_show_the_body() -> None:
    assert SECRET not in repr(HttpResponse(200, {}, SECRET.encode()))


def test_a_redirect_is_not_followed(serve: Serve, received: list[bytes]) -> None:
    port = serve(status(302, "Location: https://user@evil.example/steal?x=1"))
    with pytest.raises(NetworkError, match=r"answered 302, a redirect to evil\.example\."):
        post(f"http://127.0.0.1:{port}/")
    assert len(received) == 1


def test_a_redirect_within_the_host_is_not_followed_either(serve: Serve) -> None:
    port = serve(status(308, "Location: /elsewhere"))
    with pytest.raises(NetworkError, match=rf"redirect to 127\.0\.0\.1:{port}\."):
        post(f"http://127.0.0.1:{port}/")


def test_a_redirect_without_a_target_is_an_error(serve: Serve) -> None:
    with pytest.raises(NetworkError, match="redirect to nowhere"):
        post(f"http://127.0.0.1:{serve(status(307))}/")


def test_a_body_at_the_limit_is_read(serve: Serve) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {MAXIMUM_BODY}\r\n\r\n".encode()
    assert len(post(f"http://127.0.0.1:{serve(head + bytes(MAXIMUM_BODY))}/").body) == MAXIMUM_BODY


def test_an_endless_body_is_cut_off_at_the_limit(serve: Serve, received: list[bytes]) -> None:
    def pour(connection: socket.socket, closing: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not closing.is_set():
            connection.sendall(bytes(65536))

    with pytest.raises(NetworkError, match="more than 1048576 bytes"):
        post(f"http://127.0.0.1:{serve(pour)}/")
    assert len(received) == 1


# The deadline


def overrun(url: str, seconds: float = 0.3, *, ca_bundle: Path | None = None) -> float:
    """Return how long it took until the deadline ended it."""
    start = time.monotonic()
    with pytest.raises(NetworkError, match=f"did not answer completely within {seconds:g} seconds"):
        post(url, timeout=seconds, ca_bundle=ca_bundle)
    return time.monotonic() - start


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(stay_silent, id="silence"),
        pytest.param(dripping(b"HTTP/1.1 200 OK\r\nX: "), id="headers byte by byte"),
        pytest.param(dripping(b"HTTP/1.1 200 OK\r\n\r\n"), id="body byte by byte"),
    ],
)
def test_the_deadline_holds_whatever_the_server_does(
    serve: Serve, behaviour: Callable[[socket.socket, threading.Event], None]
) -> None:
    assert 0.3 <= overrun(f"http://127.0.0.1:{serve(behaviour)}/") < 4


def test_the_deadline_holds_during_a_tls_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert 0.3 <= overrun(f"https://127.0.0.1:{listener.getsockname()[1]}/") < 4


@contextmanager
def dropping_connections() -> Iterator[int]:
    """Return a port to which no connection comes about."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as waiting:
        for _ in range(8):  # more than the backlog holds: Linux then drops what asks for a connection
            filler = waiting.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield int(listener.getsockname()[1])


def test_the_deadline_holds_while_connecting() -> None:
    with dropping_connections() as port:
        assert 0.3 <= overrun(f"http://127.0.0.1:{port}/") < 4


def test_the_deadline_holds_while_names_do_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: resolver.wait(5) and [])
    try:
        assert 0.3 <= overrun("https://login.example.com/") < 4
    finally:
        resolver.set()


EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


def pouring_interim_responses(connection: socket.socket, closing: threading.Event) -> None:
    while not closing.is_set():
        connection.sendall(EARLY_HINTS * 1000)


def dripping_interim_responses(connection: socket.socket, closing: threading.Event) -> None:
    while not closing.wait(0.01):
        connection.sendall(EARLY_HINTS)


def until_the_client_hangs_up(connection: socket.socket, closing: threading.Event) -> None:
    connection.settimeout(60)
    connection.recv(1)


def attempts_and_sockets() -> tuple[int, int]:
    """Count the running attempts, and the sockets of this process, which is client and server."""
    files = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that lists them
            files.append(os.readlink(f"/proc/self/fd/{name}"))
    attempts = [thread for thread in threading.enumerate() if thread.name == "hsm-signer-http"]
    return len(attempts), sum(file.startswith("socket:") for file in files)


def within_a_while(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Check that the block leaves no thread and no socket, on either side of a connection."""
    assert within_a_while(lambda: attempts_and_sockets()[0] == 0)  # of tests before this one
    before = attempts_and_sockets()[1]
    yield
    assert within_a_while(lambda: attempts_and_sockets()[0] == 0)
    assert within_a_while(lambda: attempts_and_sockets()[1] <= before)


SLOW = [
    pytest.param(until_the_client_hangs_up, id="silence"),
    pytest.param(dripping(b"HTTP/1.1 200 OK\r\nX: "), id="headers byte by byte"),
    pytest.param(dripping(b"HTTP/1.1 200 OK\r\n\r\n"), id="body byte by byte"),
    pytest.param(dripping_interim_responses, id="interim responses"),
]


@pytest.mark.parametrize("behaviour", SLOW)
def test_the_deadline_ends_the_thread_and_the_connection(serve: Serve, behaviour: Behaviour) -> None:
    port = serve(behaviour)
    with nothing_left_behind():
        overrun(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("behaviour", SLOW)
def test_the_deadline_ends_the_thread_and_the_connection_below_tls(
    serve: Serve, authority: trustme.CA, ca_file: Path, behaviour: Behaviour
) -> None:
    port = serve(behaviour, tls=tls_for(authority, "127.0.0.1"))
    with nothing_left_behind():
        overrun(f"https://127.0.0.1:{port}/", ca_bundle=ca_file)


@pytest.mark.parametrize("behaviour", SLOW)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_deadline_ends_the_thread_and_the_connection_through_a_proxy(
    serve: Serve,
    authority: trustme.CA,
    ca_file: Path,
    behaviour: Behaviour,
    scheme: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = serve(behaviour, tls=tls_for(authority, "login.example.com"))
    proxy = serve(tunnel_to(target), tls=tls_for(authority, "127.0.0.1") if scheme == "https" else None)
    monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://127.0.0.1:{proxy}")
    with nothing_left_behind():
        overrun("https://login.example.com/", ca_bundle=ca_file)


def test_the_deadline_ends_the_thread_while_a_proxy_drips(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{serve(dripping(b'HTTP/1.1 200 OK' + b'X: '))}")
    with nothing_left_behind():
        overrun("https://login.example.com/")


def test_the_deadline_ends_the_thread_during_a_tls_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, nothing_left_behind():
        overrun(f"https://127.0.0.1:{listener.getsockname()[1]}/")


def test_the_deadline_ends_the_thread_while_no_address_of_many_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with dropping_connections() as port:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        real = socket.getaddrinfo

        def resolve(host: str, *rest: Any, **named: Any) -> Any:
            return found * 100 if host == "login.example.com" else real(host, *rest, **named)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with nothing_left_behind():
            overrun(f"https://login.example.com:{port}/")


def test_endless_interim_responses_are_cut_off(serve: Serve, received: list[bytes]) -> None:
    port = serve(pouring_interim_responses)
    with nothing_left_behind(), pytest.raises(NetworkError, match="sent more than"):
        post(f"http://127.0.0.1:{port}/", timeout=60)
    assert len(received) == 1


def test_an_answer_after_some_interim_responses_is_read(serve: Serve) -> None:
    assert post(f"http://127.0.0.1:{serve(EARLY_HINTS * 10 + OK)}/").body == b"{}"


def test_an_interrupt_ends_the_wait(serve: Serve) -> None:
    main = threading.main_thread().ident
    assert main is not None
    port = serve(until_the_client_hangs_up)
    timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
    with nothing_left_behind():
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            post(f"http://127.0.0.1:{port}/", timeout=60)


def test_the_error_for_the_deadline_names_the_last_failure(serve: Serve) -> None:
    http = HttpClient(timeout=2, sleep=lambda _: None, jitter=lambda: 0.0)
    with pytest.raises(NetworkError, match=r"within 2 seconds\. Last failure: .* answered 503"):
        http.post_form(f"http://127.0.0.1:{serve(status(503), stay_silent)}/", FORM, {})


# Getting a document


def test_a_get_sends_only_the_url_and_our_headers(serve: Serve, received: list[bytes]) -> None:
    answer = HttpClient(timeout=5).get(f"http://127.0.0.1:{serve(OK)}/metadata")
    assert (answer.status, answer.body) == (200, b"{}")
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"GET /metadata HTTP/1.1\r\n")
    assert b"content-length" not in head.lower()
    assert body == b""


def test_a_get_is_retried(serve: Serve, clock: Clock) -> None:
    http = HttpClient(timeout=30, sleep=clock.sleep, monotonic=clock.monotonic, now=clock.now, jitter=lambda: 1.0)
    assert http.get(f"http://127.0.0.1:{serve(status(503), hang_up, OK)}/").status == 200
    assert clock.slept == [1.0, 2.0]


def test_a_get_does_not_follow_a_redirect(serve: Serve, received: list[bytes]) -> None:
    port = serve(status(302, "Location: https://evil.example/"))
    with pytest.raises(NetworkError, match=r"redirect to evil\.example\. hsm-signer does not follow redirects"):
        HttpClient(timeout=5).get(f"http://127.0.0.1:{port}/")
    assert len(received) == 1


# Trying again


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(status(429), id="429"),
        pytest.param(status(500), id="500"),
        pytest.param(status(503), id="503"),
        pytest.param(hang_up, id="closed without an answer"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", id="truncated"),
        pytest.param(b"ICY 200\r\n\r\n", id="not HTTP"),
    ],
)
def test_a_temporary_failure_is_retried(serve: Serve, clock: Clock, trouble: bytes) -> None:
    assert post_on(clock, serve(trouble, OK)).status == 200


def test_a_retry_sends_the_same_form(serve: Serve, clock: Clock, received: list[bytes]) -> None:
    post_on(clock, serve(status(503), OK))
    assert received[0] == received[1]


def test_pauses_grow(serve: Serve, clock: Clock) -> None:
    failure_on(clock, serve(status(503)))
    assert clock.slept == [1.0, 2.0, 4.0]


def test_jitter_shortens_a_pause_by_up_to_half(serve: Serve, clock: Clock) -> None:
    http = HttpClient(timeout=30, sleep=clock.sleep, monotonic=clock.monotonic, now=clock.now, jitter=lambda: 0.0)
    http.post_form(f"http://127.0.0.1:{serve(status(503), OK)}/", FORM, {})
    assert clock.slept == [0.5]


def test_there_are_four_attempts(serve: Serve, clock: Clock, received: list[bytes]) -> None:
    failure_on(clock, serve(status(503)))
    assert len(received) == 4


def test_the_error_names_the_last_failure(serve: Serve, clock: Clock) -> None:
    assert "answered 502" in failure_on(clock, serve(status(500), status(500), status(500), status(502))).message


def test_a_retry_after_in_seconds_is_obeyed(serve: Serve, clock: Clock) -> None:
    post_on(clock, serve(status(429, "Retry-After: 7"), OK))
    assert clock.slept == [7.0]


def test_a_retry_after_as_a_date_is_relative_to_the_servers_clock(serve: Serve, clock: Clock) -> None:
    date = "Date: Mon, 01 Jan 2024 00:00:00 GMT"
    post_on(clock, serve(status(503, date, "Retry-After: Mon, 01 Jan 2024 00:00:09 GMT"), OK))
    assert clock.slept == [9.0]


def test_a_retry_after_of_zero_still_backs_off(serve: Serve, clock: Clock) -> None:
    post_on(clock, serve(status(503, "Retry-After: 0"), OK))
    assert clock.slept == [1.0]


def test_a_retry_after_beyond_the_deadline_fails_at_once(serve: Serve, clock: Clock, received: list[bytes]) -> None:
    failure_on(clock, serve(status(429, "Retry-After: 60")))
    assert (clock.slept, len(received)) == ([], 1)


def test_a_retry_after_beyond_the_deadline_tells_when_to_try_again(serve: Serve, clock: Clock) -> None:
    assert "before 2023-11-14 22:14:20 UTC" in failure_on(clock, serve(status(429, "Retry-After: 60"))).message


def test_a_backoff_beyond_the_deadline_is_an_error_at_once(serve: Serve, clock: Clock) -> None:
    failure_on(clock, serve(status(503)), timeout=0.5)
    assert clock.slept == []


def test_all_pauses_share_one_deadline(serve: Serve, clock: Clock) -> None:
    failure_on(clock, serve(status(503, "Retry-After: 12")), timeout=30)
    assert clock.slept == [12.0, 12.0]


def test_an_absurd_retry_after_does_not_overflow(serve: Serve, clock: Clock) -> None:
    date = "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT"
    assert "429" in failure_on(clock, serve(status(429, date))).message


@given(text=st.text() | st.from_regex(r"[0-9]{1,30}", fullmatch=True))
def test_any_retry_after_is_parsed_or_ignored(text: str) -> None:
    wait = retry_after({"retry-after": text}, 0)
    assert wait is None or 0 <= wait < 10**9


@given(st.datetimes(datetime(1900, 1, 1), datetime(9999, 12, 30), timezones=st.just(UTC)))
def test_every_http_date_is_read(date: datetime) -> None:
    whole = date.replace(microsecond=0)
    assert parse_http_date(format_datetime(whole, usegmt=True)) == whole.timestamp()


def test_a_retry_after_in_the_past_is_no_pause() -> None:
    past = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    assert retry_after({"retry-after": past}, time.time()) == 0


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def tls_for(authority: trustme.CA, name: str, *, expired: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    until = datetime.now(UTC) - timedelta(days=1) if expired else None
    authority.issue_cert(name, not_after=until).configure_cert(context)
    return context


def test_a_ca_bundle_is_trusted(serve: Serve, authority: trustme.CA, ca_file: Path) -> None:
    port = serve(OK, tls=tls_for(authority, "127.0.0.1"))
    assert post(f"https://127.0.0.1:{port}/", ca_bundle=ca_file).status == 200


def test_an_unknown_ca_is_not_trusted_and_the_hint_names_the_option(serve: Serve, authority: trustme.CA) -> None:
    port = serve(OK, tls=tls_for(authority, "127.0.0.1"))
    with pytest.raises(NetworkError, match="is not trusted") as caught:
        post(f"https://127.0.0.1:{port}/")
    assert "--ca-bundle" in str(caught.value.hint)


def test_no_tls_secrets_are_written_even_if_the_environment_says_so(
    serve: Serve, authority: trustme.CA, ca_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    port = serve(OK, tls=tls_for(authority, "127.0.0.1"))
    assert post(f"https://127.0.0.1:{port}/", ca_bundle=ca_file).status == 200
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["another.example", "127.0.0.2"])
def test_the_name_is_verified_with_the_authorities_of_the_environment_too(
    serve: Serve, authority: trustme.CA, ca_file: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL reads SSL_CERT_FILE in place of the system's authorities."""
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    assert post(f"https://127.0.0.1:{serve(OK, tls=tls_for(authority, '127.0.0.1'))}/").status == 200
    with pytest.raises(NetworkError, match="not trusted"):
        post(f"https://127.0.0.1:{serve(OK, tls=tls_for(authority, name))}/")


def test_an_untrusted_server_gets_no_request(serve: Serve, authority: trustme.CA, received: list[bytes]) -> None:
    with pytest.raises(NetworkError):
        post(f"https://127.0.0.1:{serve(OK, tls=tls_for(authority, '127.0.0.1'))}/")
    assert received == []


def test_a_certificate_for_another_name_is_refused(serve: Serve, authority: trustme.CA, ca_file: Path) -> None:
    port = serve(OK, tls=tls_for(authority, "other.example"))
    with pytest.raises(NetworkError, match="not trusted") as caught:
        post(f"https://127.0.0.1:{port}/", ca_bundle=ca_file)
    assert "host name" in str(caught.value.hint)


def test_an_expired_certificate_points_to_the_clock(serve: Serve, authority: trustme.CA, ca_file: Path) -> None:
    port = serve(OK, tls=tls_for(authority, "127.0.0.1", expired=True))
    with pytest.raises(NetworkError, match="expired") as caught:
        post(f"https://127.0.0.1:{port}/", ca_bundle=ca_file)
    assert "clock" in str(caught.value.hint)


def test_a_server_without_tls_has_its_own_message(serve: Serve) -> None:
    with pytest.raises(NetworkError, match="The TLS handshake with"):
        post(f"https://127.0.0.1:{serve(OK)}/")


def test_a_ca_bundle_that_another_user_could_replace_is_refused(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=f"Other users could replace the CA bundle {bundle}"):
        HttpClient(timeout=1, ca_bundle=bundle)


def test_a_missing_ca_bundle_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        HttpClient(timeout=1, ca_bundle=tmp_path / "none.pem")


@pytest.mark.parametrize("content", ["", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_ca_bundle_without_certificates_is_a_configuration_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ca.pem"
    path.write_text(content)
    with pytest.raises(ConfigError, match="has no certificate"):
        HttpClient(timeout=1, ca_bundle=path)


def test_a_directory_is_not_a_ca_bundle(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="CA bundle"):
        HttpClient(timeout=1, ca_bundle=tmp_path)


# Connections that do not come about


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as bound:  # bound and not listening: nobody else can take it, and it refuses
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


@pytest.mark.usefixtures("no_more_threads")
def test_without_a_thread_for_the_request_the_hint_names_the_limits(closed_port: int) -> None:
    with pytest.raises(NetworkError) as caught:
        post(f"http://127.0.0.1:{closed_port}/token")
    assert caught.value.message == f"No thread could be started for the request to 127.0.0.1:{closed_port}."
    assert "ulimit -u" in str(caught.value.hint)


def test_a_refused_connection_has_its_own_message(clock: Clock, closed_port: int) -> None:
    assert "was refused" in failure_on(clock, closed_port).message


def test_a_refused_connection_is_retried(clock: Clock, closed_port: int) -> None:
    failure_on(clock, closed_port)
    assert len(clock.slept) == 3


def test_a_name_that_does_not_resolve_has_its_own_message(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    http = HttpClient(timeout=30, sleep=clock.sleep, monotonic=clock.monotonic)
    with pytest.raises(NetworkError, match=r"The name login\.example\.com could not be resolved"):
        http.post_form("https://login.example.com/", FORM, {})


# Proxies


def tunnel_to(target: int) -> Callable[[socket.socket, threading.Event], None]:
    """Answer CONNECT as a proxy does, but connect every name to this port."""

    def tunnel(connection: socket.socket, closing: threading.Event) -> None:
        # In one thread: a TLS connection may not be read and written by two at a time.
        with socket.create_connection(("127.0.0.1", target), timeout=5) as onward:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            other = {connection: onward, onward: connection}
            while not closing.is_set():
                waiting = isinstance(connection, ssl.SSLSocket) and connection.pending() > 0
                for source in [connection] if waiting else select.select(list(other), [], [], 5)[0]:
                    if not (data := source.recv(65536)):
                        return
                    other[source].sendall(data)

    return tunnel


def test_a_proxy_of_the_environment_is_used(
    serve: Serve, authority: trustme.CA, ca_file: Path, received: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = serve(OK, tls=tls_for(authority, "login.example.com"))
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{serve(tunnel_to(target))}")
    assert post("https://login.example.com/token", ca_bundle=ca_file).status == 200
    assert received[0].startswith(b"CONNECT login.example.com:443 ")


def test_a_proxy_reached_over_tls_is_verified_with_the_ca_bundle(
    serve: Serve, authority: trustme.CA, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = serve(OK, tls=tls_for(authority, "login.example.com"))
    proxy = serve(tunnel_to(target), tls=tls_for(authority, "127.0.0.1"))
    monkeypatch.setenv("HTTPS_PROXY", f"https://127.0.0.1:{proxy}")
    assert post("https://login.example.com/token", ca_bundle=ca_file).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_never_reached_through_a_proxy(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, closed_port: int, host: str
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port}")
    assert post(f"http://{host}:{serve(OK)}/").status == 200


def test_no_proxy_is_obeyed(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def record(host: object, *_: object, **__: object) -> list[object]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", record)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("NO_PROXY", ".example.com")
    with pytest.raises(NetworkError):
        HttpClient(timeout=5, sleep=lambda _: None).post_form("https://login.example.com/", FORM, {})
    assert set(asked) == {"login.example.com"}


def test_a_proxy_that_refuses_has_its_own_message(
    serve: Serve, received: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = serve(status(407))
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:hunter2@127.0.0.1:{port}")
    with pytest.raises(NetworkError, match=f"The proxy 127.0.0.1:{port} did not connect to login.example.com: 407"):
        post("https://login.example.com/token")
    assert len(received) == 1


def test_an_unreachable_proxy_is_named(clock: Clock, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{closed_port}")
    http = HttpClient(timeout=30, sleep=clock.sleep, monotonic=clock.monotonic)
    with pytest.raises(NetworkError, match=f"through the proxy 127.0.0.1:{closed_port} was refused"):
        http.post_form("https://login.example.com/", FORM, {})


@pytest.mark.parametrize(
    "proxy", ["socks5://u:hunter2@127.0.0.1:1", "http://", "http://u:hunter2@h:port", "http://u:hunter2@[::1"]
)
def test_an_unusable_proxy_is_a_configuration_error_without_its_password(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigError, match="proxy") as caught:
        post("https://login.example.com/")
    assert "hunter2" not in f"{caught.value.message} {caught.value.hint}"


# What must not leak


@pytest.mark.parametrize("answer", [status(503), status(302), hang_up, b"nonsense\r\n\r\n"])
def test_no_exception_contains_the_assertion(
    serve: Serve, clock: Clock, answer: bytes | Callable[[socket.socket, threading.Event], None]
) -> None:
    error = failure_on(clock, serve(answer))
    assert (error.__cause__, error.__context__) == (None, None)
    assert SECRET not in f"{error.message} {error.hint}"


def test_no_log_contains_the_assertion(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        post(f"http://127.0.0.1:{serve(OK)}/")
    assert caplog.records
    assert SECRET not in caplog.text
