"""`BearerAuth` over real connections: it sends the token only to one API, and answers a claims challenge once."""

import base64
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import httpx
import pytest

from hsm_signer import HsmCredential
from hsm_signer.credential.httpx_auth import BearerAuth, find_claims_challenge
from hsm_signer.errors import ConfigError, NetworkError
from hsm_signer.testing import EntraEmulator, SoftHsm
from tests.support.names import GRAPH

CLAIMS = '{"access_token":{"nbf":{"essential":true,"value":"1700000000"}}}'
ENCODED = base64.b64encode(CLAIMS.encode()).decode()
CHALLENGE = f'Bearer realm="", error="insufficient_claims", claims="{ENCODED}"'
FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

Serve = Callable[..., int]


def unauthorized(*challenges: str) -> bytes:
    lines = "".join(f"WWW-Authenticate: {challenge}\r\n" for challenge in challenges)
    return f"HTTP/1.1 401 Unauthorized\r\n{lines}Content-Length: 0\r\nConnection: close\r\n\r\n".encode()


def redirect(to: str) -> bytes:
    return f"HTTP/1.1 307 Over there\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


def tokens(received: list[bytes]) -> list[str | None]:
    """Return the token of each received request, or None."""
    heads = [head.decode().lower().split("\r\n") for head, _, _ in (data.partition(b"\r\n\r\n") for data in received)]
    values = [[line.split(": ")[1] for line in head if line.startswith("authorization: ")] for head in heads]
    return [found[0].removeprefix("bearer ") if found else None for found in values]


@dataclass(frozen=True)
class Token:
    token: str


@dataclass
class Tokens:
    """A credential that numbers its tokens, and records what it was asked for."""

    asked: list[tuple[tuple[str, ...], str | None, bool]] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.ready.set()

    def get_token(self, *scopes: str, claims: str | None = None, enable_cae: bool = False) -> Token:
        self.asked.append((scopes, claims, enable_cae))
        assert self.ready.wait(10)
        return Token(f"token-{len(self.asked)}")


@pytest.fixture
def credential() -> Tokens:
    return Tokens()


@pytest.fixture
def client(credential: Tokens) -> Iterator[httpx.Client]:
    with httpx.Client(auth=BearerAuth(credential, GRAPH), trust_env=False) as client:
        yield client


@pytest.fixture
def entra() -> Iterator[EntraEmulator]:
    with EntraEmulator() as entra:
        yield entra


@pytest.fixture
def hsm_credential(entra: EntraEmulator) -> Iterator[HsmCredential]:
    with SoftHsm() as softhsm:
        key = softhsm.add_identity()
        assert key.certificate is not None
        entra.register("script", key.certificate, tenant="contoso.example")
        with HsmCredential(
            *("contoso.example", "script", f"{key.uri}?pin-value={softhsm.pin}"),
            module=softhsm.module,
            module_environment=softhsm.environment,
            pin_record=False,
            authority=entra.authority,
            ca_bundle=str(entra.ca_file),
        ) as credential:
            yield credential


def test_a_request_carries_the_token(
    client: httpx.Client, credential: Tokens, serve: Serve, received: list[bytes]
) -> None:
    assert client.get(f"http://127.0.0.1:{serve(FINE)}/users").status_code == 200
    assert tokens(received) == ["token-1"]
    assert credential.asked == [((GRAPH,), None, True)]


class TestChallenge:
    def test_a_challenge_is_answered_by_the_same_request_with_a_new_token(
        self, client: httpx.Client, credential: Tokens, serve: Serve, received: list[bytes]
    ) -> None:
        port = serve(unauthorized(CHALLENGE), FINE)
        assert client.post(f"http://127.0.0.1:{port}/users", json={"name": "a"}).status_code == 200
        assert tokens(received) == ["token-1", "token-2"]
        assert [data.partition(b"\r\n\r\n")[2] for data in received] == [b'{"name":"a"}'] * 2
        assert credential.asked[1] == ((GRAPH,), CLAIMS, True)

    def test_a_second_challenge_is_returned_to_the_caller(
        self, client: httpx.Client, serve: Serve, received: list[bytes]
    ) -> None:
        assert client.get(f"http://127.0.0.1:{serve(unauthorized(CHALLENGE))}/").status_code == 401
        assert tokens(received) == ["token-1", "token-2"]

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(unauthorized(), id="none"),
            pytest.param(unauthorized('Bearer error="invalid_token"'), id="another error"),
            pytest.param(unauthorized(CHALLENGE).replace(b"401", b"403"), id="another status"),
        ],
    )
    def test_any_other_challenge_is_returned_to_the_caller(
        self, client: httpx.Client, serve: Serve, received: list[bytes], answer: bytes
    ) -> None:
        assert client.get(f"http://127.0.0.1:{serve(answer)}/").is_client_error
        assert tokens(received) == ["token-1"]

    def test_a_challenge_to_a_body_that_cannot_be_read_twice_is_returned_to_the_caller(
        self, client: httpx.Client, serve: Serve, received: list[bytes]
    ) -> None:
        port = serve(unauthorized(CHALLENGE), FINE)
        assert client.post(f"http://127.0.0.1:{port}/", content=iter([b"once"])).status_code == 401
        assert tokens(received) == ["token-1"]

    def test_a_challenge_of_another_origin_after_a_redirect_is_returned_to_the_caller(
        self, client: httpx.Client, serve: Serve, received: list[bytes]
    ) -> None:
        elsewhere = f"http://127.0.0.1:{serve(unauthorized(CHALLENGE))}/"
        port = serve(redirect(elsewhere), FINE)
        assert client.get(f"http://127.0.0.1:{port}/", follow_redirects=True).status_code == 401
        assert tokens(received) == ["token-1", None]

    def test_a_challenge_is_answered_with_a_new_token_from_entra(
        self, entra: EntraEmulator, hsm_credential: HsmCredential, serve: Serve, received: list[bytes]
    ) -> None:
        auth = BearerAuth(hsm_credential, GRAPH)
        with httpx.Client(auth=auth, trust_env=False) as client:
            assert client.get(f"http://127.0.0.1:{serve(unauthorized(CHALLENGE), FINE)}/").status_code == 200
        first, second = (json.loads(request.form["claims"]) for request in entra.requests)
        assert first == {"access_token": {"xms_cc": {"values": ["CP1"]}}}
        assert second == {"access_token": {**first["access_token"], **json.loads(CLAIMS)["access_token"]}}
        assert len(set(tokens(received))) == 2


class TestElsewhere:
    @pytest.mark.parametrize("url", ["http://graph.microsoft.com/", "http://127.0.0.1.example/", "ftp://127.0.0.1/"])
    def test_plain_http_gets_no_token(self, client: httpx.Client, credential: Tokens, url: str) -> None:
        with pytest.raises(ConfigError, match="not https"):
            client.get(url)
        assert credential.asked == []

    def test_a_redirect_to_another_origin_carries_no_token(
        self, client: httpx.Client, serve: Serve, received: list[bytes]
    ) -> None:
        port = serve(redirect(f"http://127.0.0.1:{serve(FINE)}/"))
        assert client.get(f"http://127.0.0.1:{port}/", follow_redirects=True).status_code == 200
        assert tokens(received) == ["token-1", None]

    def test_a_redirect_within_the_api_carries_the_token(
        self, client: httpx.Client, serve: Serve, received: list[bytes]
    ) -> None:
        port = serve(redirect("/elsewhere"), FINE)
        assert client.get(f"http://127.0.0.1:{port}/", follow_redirects=True).status_code == 200
        assert tokens(received) == ["token-1", "token-1"]

    def test_a_link_to_another_api_is_refused(self, client: httpx.Client, serve: Serve, received: list[bytes]) -> None:
        client.get(f"http://127.0.0.1:{serve(FINE)}/")
        with pytest.raises(ConfigError, match="BearerAuth sends its tokens to"):
            client.get(f"http://127.0.0.1:{serve(FINE)}/")
        assert len(received) == 1

    def test_following_a_redirect_to_another_api_by_hand_is_refused(
        self, client: httpx.Client, serve: Serve, received: list[bytes]
    ) -> None:
        port = serve(redirect(f"http://127.0.0.1:{serve(FINE)}/"))
        following = client.get(f"http://127.0.0.1:{port}/").next_request
        assert following is not None
        with pytest.raises(ConfigError, match="BearerAuth sends its tokens to"):
            client.send(following)
        assert tokens(received) == ["token-1"]

    def test_a_request_without_auth_may_go_anywhere(
        self, client: httpx.Client, serve: Serve, received: list[bytes]
    ) -> None:
        client.get(f"http://127.0.0.1:{serve(FINE)}/")
        client.get(f"http://127.0.0.1:{serve(FINE)}/", auth=None)
        assert tokens(received) == ["token-1", None]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
class TestAsync:
    def test_a_challenge_is_answered(
        self, credential: Tokens, serve: Serve, received: list[bytes], backend: str
    ) -> None:
        port = serve(unauthorized(CHALLENGE), FINE)

        async def main() -> int:
            async with httpx.AsyncClient(auth=BearerAuth(credential, GRAPH), trust_env=False) as client:
                return (await client.get(f"http://127.0.0.1:{port}/")).status_code

        assert anyio.run(main, backend=backend) == 200
        assert tokens(received) == ["token-1", "token-2"]
        assert [claims for _, claims, _ in credential.asked] == [None, CLAIMS]

    def test_an_asynchronous_credential_is_awaited(
        self, credential: Tokens, serve: Serve, received: list[bytes], backend: str
    ) -> None:
        class AsyncTokens:
            async def get_token(self, *scopes: str, claims: str | None = None, enable_cae: bool = False) -> Token:
                await anyio.lowlevel.checkpoint()
                return credential.get_token(*scopes, claims=claims, enable_cae=enable_cae)

        port = serve(unauthorized(CHALLENGE), FINE)

        async def main() -> int:
            async with httpx.AsyncClient(auth=BearerAuth(AsyncTokens(), GRAPH), trust_env=False) as client:
                return (await client.get(f"http://127.0.0.1:{port}/")).status_code

        assert anyio.run(main, backend=backend) == 200
        assert tokens(received) == ["token-1", "token-2"]

    def test_a_body_that_cannot_be_read_twice_is_not_sent_twice(
        self, credential: Tokens, serve: Serve, received: list[bytes], backend: str
    ) -> None:
        port = serve(unauthorized(CHALLENGE), FINE)

        async def once() -> AsyncIterator[bytes]:
            yield b"once"

        async def main() -> int:
            async with httpx.AsyncClient(auth=BearerAuth(credential, GRAPH), trust_env=False) as client:
                return (await client.post(f"http://127.0.0.1:{port}/", content=once())).status_code

        assert anyio.run(main, backend=backend) == 401

    def test_other_tasks_run_during_the_wait_for_a_token(self, credential: Tokens, serve: Serve, backend: str) -> None:
        credential.ready.clear()
        port = serve(FINE)

        async def main() -> int:
            async with httpx.AsyncClient(auth=BearerAuth(credential, GRAPH), trust_env=False) as client:
                async with anyio.create_task_group() as tasks:
                    # Only this task lets the credential continue.
                    tasks.start_soon(anyio.to_thread.run_sync, credential.ready.set)
                    response = await client.get(f"http://127.0.0.1:{port}/")
                return response.status_code

        assert anyio.run(main, backend=backend) == 200

    def test_the_wait_for_a_token_can_be_cancelled(self, credential: Tokens, backend: str) -> None:
        credential.ready.clear()

        async def main() -> bool:
            async with httpx.AsyncClient(auth=BearerAuth(credential, GRAPH), trust_env=False) as client:
                with anyio.move_on_after(0.05) as scope:
                    await client.get("http://127.0.0.1:1/")
                return scope.cancelled_caught

        try:
            assert anyio.run(main, backend=backend)
        finally:
            credential.ready.set()


def test_an_error_of_the_credential_reaches_the_caller(serve: Serve, received: list[bytes]) -> None:
    class Down(Tokens):
        def get_token(self, *scopes: str, claims: str | None = None, enable_cae: bool = False) -> Token:
            raise NetworkError("The endpoint is down.")

    port = serve(FINE)
    with httpx.Client(auth=BearerAuth(Down(), GRAPH), trust_env=False) as client, pytest.raises(NetworkError):
        client.get(f"http://127.0.0.1:{port}/")
    assert received == []


OTHERS = '{"?":"ÿþ","a":"~~>>"}'  # contains both characters in which the two base64 alphabets differ
URLSAFE = base64.urlsafe_b64encode(OTHERS.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        pytest.param(CHALLENGE, CLAIMS, id="as documented"),
        pytest.param(f'bearer ERROR=insufficient_claims,Claims="{ENCODED}"', CLAIMS, id="other case, no quotes"),
        pytest.param(f'Bearer error = "insufficient_claims" , claims= "{ENCODED}"', CLAIMS, id="spaces"),
        pytest.param(f'Negotiate, NTLM TlRMTVNTUAAB==, {CHALLENGE}, Basic realm="a"', CLAIMS, id="among others"),
        pytest.param(f'Bearer error="invalid_token", {CHALLENGE}', CLAIMS, id="the second bearer challenge"),
        pytest.param(f'Basic realm="a, Bearer error=\\"x\\"", {CHALLENGE}', CLAIMS, id="after a quoted challenge"),
        pytest.param(f'Bearer error="insufficient_claims", claims="{URLSAFE}"', OTHERS, id="base64url without padding"),
        pytest.param("", None, id="empty"),
        pytest.param("Bearer", None, id="a scheme alone"),
        pytest.param(f'Basic realm="x, {CHALLENGE.replace(chr(34), "")}"', None, id="quoted as a whole"),
        pytest.param(f'PoP error="insufficient_claims", claims="{ENCODED}"', None, id="another scheme"),
        pytest.param(
            f'Bearer error="insufficient_claims", PoP claims="{ENCODED}"', None, id="claims of another challenge"
        ),
        pytest.param('Bearer error="insufficient_claims"', None, id="no claims"),
        pytest.param('Bearer error="insufficient_claims", claims="%%%"', None, id="no base64"),
        pytest.param('Bearer error="insufficient_claims", claims="/////w=="', None, id="no text"),
        pytest.param('Bearer error="insufficient_claims", claims="WzFd"', None, id="no object"),
        pytest.param(f'Bearer error="insufficient_claims", claims="{ENCODED}', None, id="no closing quote"),
    ],
)
def test_a_claims_challenge_is_found_among_other_challenges(header: str, claims: str | None) -> None:
    assert find_claims_challenge(header) == claims
