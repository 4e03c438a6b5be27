"""Real servers on loopback, a clock that no test waits for, and an assertion made without our own code."""

import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc import jwt
from joserfc.jwk import RSAKey
from joserfc.util import urlsafe_b64encode

from tests.support.certificates import make_certificate

Behaviour = Callable[[socket.socket, threading.Event], None]


@dataclass
class Clock:
    """Time that passes only when somebody sleeps."""

    elapsed: float = 0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.elapsed

    def now(self) -> float:
        return 1_700_000_000 + self.elapsed

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.elapsed += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def received() -> list[bytes]:
    """Every request that a server of `serve` got, as it came over the wire."""
    return []


@pytest.fixture
def serve(received: list[bytes]) -> Iterator[Callable[..., int]]:
    """Start a server that gives these answers, one a connection and the last for ever, and return its port.

    An answer is the bytes to send, or a function of the connection and of the event that ends the test.
    """
    closing = threading.Event()
    with ExitStack() as stack:

        def start(*answers: bytes | Behaviour, tls: ssl.SSLContext | None = None) -> int:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def accept() -> None:
                count = 0
                while not closing.is_set():
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    answer = answers[min(count, len(answers) - 1)]
                    count += 1
                    handler = threading.Thread(target=converse, args=(connection, answer), daemon=True)
                    handler.start()
                    stack.callback(handler.join, 5)

            def converse(connection: socket.socket, answer: bytes | Behaviour) -> None:
                # The client may hang up at any time; that is what some tests are about.
                with suppress(OSError), connection:
                    stream = tls.wrap_socket(connection, server_side=True) if tls else connection
                    with stream:
                        stream.settimeout(5)
                        received.append(_read_request(stream))
                        if callable(answer):
                            answer(stream, closing)
                        else:
                            stream.sendall(answer)

            acceptor = threading.Thread(target=accept, daemon=True)
            acceptor.start()

            def stop() -> None:
                listener.shutdown(socket.SHUT_RDWR)
                acceptor.join(5)

            stack.callback(stop)
            return int(listener.getsockname()[1])

        yield start
        closing.set()


def _read_request(stream: socket.socket) -> bytes:
    data = stream.recv(65536)
    # As web servers do, answer at once to a TLS handshake that comes in where plain HTTP is spoken.
    while data[:1] != b"\x16" and b"\r\n\r\n" not in data and (chunk := stream.recv(65536)):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while lengths and len(body) < int(lengths[0]) and (chunk := stream.recv(65536)):
        body += chunk
    if b"transfer-encoding: chunked" in head.lower():
        while not body.endswith(b"0\r\n\r\n") and (chunk := stream.recv(65536)):
            body += chunk
    return head + b"\r\n\r\n" + body


@pytest.fixture(scope="session")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="session")
def certificate(key: rsa.RSAPrivateKey) -> x509.Certificate:
    return make_certificate(key)


@pytest.fixture
def sign(key: rsa.RSAPrivateKey, certificate: x509.Certificate) -> Callable[..., str]:
    """Return an assertion for an audience by a client id, good for ten minutes from now on."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    thumbprint = urlsafe_b64encode(certificate.fingerprint(hashes.SHA256())).decode()

    def assertion(audience: str, client_id: str) -> str:
        now = int(time.time())
        claims: dict[str, str | int] = {
            "aud": audience,
            "iss": client_id,
            "sub": client_id,
            "jti": str(uuid.uuid4()),
            "nbf": now,
            "iat": now,
            "exp": now + 600,
        }
        header = {"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint}
        return jwt.encode(header, claims, RSAKey.import_key(pem), algorithms=["PS256"])

    return assertion
