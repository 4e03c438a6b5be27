"""Tokens and refusals: against the emulator, and against servers that answer what no server should."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Protocol

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsm_signer.entra.authority import Endpoint, resolve_endpoint
from hsm_signer.entra.http import HttpClient
from hsm_signer.entra.token import AccessToken, request_token, token_form
from hsm_signer.errors import EntraError, HsmSignerError, NetworkError
from hsm_signer.system.secret import Secret, revealed
from hsm_signer.testing import (
    Disconnected,
    DripFeed,
    Endless,
    EntraEmulator,
    Html,
    NoAccessToken,
    Redirect,
    Refused,
    Slow,
    Throttled,
    Truncated,
    Unavailable,
)
from tests.support.names import GRAPH

Serve = Callable[..., int]
Form = dict[str, str | Secret]
Sign = Callable[[str, str], str]
TENANT = "72f988bf-86f1-41af-91ab-2d7cd011db47"
CLIENT = "11111111-2222-3333-4444-555555555555"
GOOD: dict[str, object] = {"token_type": "Bearer", "expires_in": 3599, "access_token": "abc.def"}


class Clock(Protocol):
    elapsed: float
    slept: list[float]

    def monotonic(self) -> float: ...
    def now(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


@pytest.fixture(scope="module")
def running() -> Iterator[EntraEmulator]:
    with EntraEmulator(refresh_in=1800) as emulator:
        yield emulator


@pytest.fixture
def entra(running: EntraEmulator, certificate: x509.Certificate) -> EntraEmulator:
    running.register(CLIENT, certificate.public_bytes(Encoding.PEM), tenant=TENANT)
    running.requests.clear()
    return running


@pytest.fixture
def endpoint(entra: EntraEmulator) -> Endpoint:
    return resolve_endpoint(tenant=TENANT, authority=entra.authority)


@pytest.fixture
def http(entra: EntraEmulator, clock: Clock) -> HttpClient:
    return HttpClient(timeout=30, ca_bundle=entra.ca_file, sleep=clock.sleep, monotonic=clock.monotonic, now=clock.now)


@pytest.fixture
def form(endpoint: Endpoint, sign: Sign) -> Form:
    return token_form(client_id=CLIENT, scope=GRAPH, assertion=Secret(sign(endpoint.audience, CLIENT)))


def refused(endpoint: Endpoint, form: Form, http: HttpClient) -> EntraError:
    with pytest.raises(EntraError) as caught:
        request_token(endpoint, form, http)
    return caught.value


# Against the emulator


def test_an_assertion_is_exchanged_for_a_token(endpoint: Endpoint, form: Form, http: HttpClient) -> None:
    token = request_token(endpoint, form, http, now=lambda: 1000.9)
    assert token == AccessToken(token.token, "Bearer", 3599, 1000 + 3599, 1000 + 1800, GRAPH)


def test_one_exchange_is_one_request(entra: EntraEmulator, endpoint: Endpoint, form: Form, http: HttpClient) -> None:
    request_token(endpoint, form, http)
    assert [request.status for request in entra.requests] == [200]


def test_a_request_has_an_id_of_its_own(entra: EntraEmulator, endpoint: Endpoint, form: Form, http: HttpClient) -> None:
    request_token(endpoint, form, http)
    request_token(endpoint, form, http)
    ids = {request.headers["client-request-id"] for request in entra.requests}
    assert len(ids) == 2
    assert all(re.fullmatch("[0-9a-f-]{36}", request_id) for request_id in ids)
    assert {request.headers["return-client-request-id"] for request in entra.requests} == {"true"}


def test_claims_are_passed_on(entra: EntraEmulator, endpoint: Endpoint, sign: Sign, http: HttpClient) -> None:
    claims = '{"access_token":{"xms_cc":{"values":["CP1"]}}}'
    assertion = sign(endpoint.audience, CLIENT)
    request_token(endpoint, token_form(client_id=CLIENT, scope=GRAPH, assertion=Secret(assertion), claims=claims), http)
    assert entra.requests[-1].form["claims"] == claims


def test_ad_fs_is_asked_at_its_own_path(
    entra: EntraEmulator, http: HttpClient, sign: Sign, certificate: x509.Certificate
) -> None:
    endpoint = resolve_endpoint(tenant="adfs", authority=entra.authority)
    refused(
        endpoint, token_form(client_id=CLIENT, scope=GRAPH, assertion=Secret(sign(endpoint.audience, CLIENT))), http
    )
    assert entra.requests[-1].tenant == "adfs"


def test_a_refusal_carries_number_and_error(endpoint: Endpoint, sign: Sign, http: HttpClient) -> None:
    assertion = sign("https://wrong.example", CLIENT)
    error = refused(endpoint, token_form(client_id=CLIENT, scope=GRAPH, assertion=Secret(assertion)), http)
    assert (error.aadsts, error.error) == (700023, "invalid_client")


def test_a_refusal_carries_the_ids_that_support_asks_for(
    entra: EntraEmulator, endpoint: Endpoint, form: Form, http: HttpClient
) -> None:
    entra.answer_next(Refused(53003, "access_denied", "Access has been blocked."))
    error = refused(endpoint, form, http)
    assert error.correlation_id == entra.requests[-1].headers["client-request-id"]
    assert error.trace_id


def test_a_refusal_explains_itself(entra: EntraEmulator, endpoint: Endpoint, form: Form, http: HttpClient) -> None:
    entra.answer_next(Refused(700016, "unauthorized_client", "Application was not found.", 400))
    assert "--client-id" in str(refused(endpoint, form, http).hint)


def test_the_hint_for_an_unknown_number_is_microsofts_page(
    entra: EntraEmulator, endpoint: Endpoint, form: Form, http: HttpClient
) -> None:
    entra.answer_next(Refused(999999, "invalid_request", "New."))
    assert "error?code=999999" in str(refused(endpoint, form, http).hint)


def test_the_message_is_entras_first_line(
    entra: EntraEmulator, endpoint: Endpoint, form: Form, http: HttpClient
) -> None:
    entra.answer_next(Refused(700016, "unauthorized_client", "Application was not found."))
    host = endpoint.authority.removeprefix("https://")
    assert refused(endpoint, form, http).message == (
        f"{host} refused the request: unauthorized_client: AADSTS700016: Application was not found."
    )


def test_a_refusal_is_not_retried(entra: EntraEmulator, endpoint: Endpoint, form: Form, http: HttpClient) -> None:
    entra.answer_next(Refused(700016, "unauthorized_client", "Application was not found."))
    refused(endpoint, form, http)
    assert len(entra.requests) == 1


@pytest.mark.parametrize(
    "trouble", [Throttled("3"), Unavailable(), Disconnected(), Truncated()], ids=lambda trouble: type(trouble).__name__
)
def test_a_retry_sends_the_same_assertion(
    entra: EntraEmulator,
    endpoint: Endpoint,
    form: Form,
    http: HttpClient,
    trouble: Throttled | Unavailable | Disconnected | Truncated,
) -> None:
    entra.answer_next(trouble)
    assert request_token(endpoint, form, http).token
    assert {request.form["client_assertion"] for request in entra.requests} == {revealed(form)["client_assertion"]}


def test_throttling_is_waited_out(
    entra: EntraEmulator, endpoint: Endpoint, form: Form, http: HttpClient, clock: Clock
) -> None:
    entra.answer_next(Throttled("13"))
    request_token(endpoint, form, http)
    assert clock.slept == [13.0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Endless(), "more than 1048576 bytes"),
        (Html(), r"is not a token response \(status 200, text/html"),
        (Html(status=403), r"is not a token response \(status 403, text/html"),
        (Redirect("https://evil.example/?x"), r"redirect to evil\.example\."),
        (NoAccessToken(), r"no usable access_token \(status 200, application/json"),
        (Throttled("3600"), "It accepts no request before"),
    ],
)
def test_an_unusable_answer_is_a_clear_error(
    entra: EntraEmulator,
    endpoint: Endpoint,
    form: Form,
    http: HttpClient,
    answer: Endless | Html | Redirect | NoAccessToken | Throttled,
    words: str,
) -> None:
    entra.answer_next(answer)
    with pytest.raises(NetworkError, match=words):
        request_token(endpoint, form, http)
    assert len(entra.requests) == 1


@pytest.mark.parametrize("answer", [Slow(5), DripFeed(0.01)])
def test_the_deadline_holds(entra: EntraEmulator, endpoint: Endpoint, form: Form, answer: Slow | DripFeed) -> None:
    entra.answer_next(answer)
    with pytest.raises(NetworkError, match="did not answer completely within 2 seconds"):
        request_token(endpoint, form, HttpClient(timeout=2, ca_bundle=entra.ca_file))


# Against servers that answer anything


def answer(document: object, status: int = 200, *headers: str) -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    lines = [f"HTTP/1.1 {status} x", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def exchange(
    port: int, assertion: str = "header.payload.signature", now: Callable[[], float] = lambda: 0.0
) -> AccessToken:
    endpoint = resolve_endpoint(tenant=None, token_endpoint=f"http://127.0.0.1:{port}/token")
    form = token_form(client_id=CLIENT, scope="read", assertion=Secret(assertion))
    return request_token(endpoint, form, HttpClient(timeout=5, sleep=lambda _: None), now=now)


def refusal(port: int, assertion: str = "header.payload.signature", now: float = 0) -> EntraError:
    with pytest.raises(EntraError) as caught:
        exchange(port, assertion, lambda: now)
    return caught.value


def test_a_token_is_not_in_the_repr(serve: Serve) -> None:
    assert "abc.def" not in repr(exchange(serve(answer(GOOD))))


def test_a_token_of_a_server_without_extras_has_no_refresh_time(serve: Serve) -> None:
    assert exchange(serve(answer(GOOD))) == AccessToken("abc.def", "Bearer", 3599, 3599, None, "read")


def test_a_granted_scope_replaces_the_one_asked_for(serve: Serve) -> None:
    assert exchange(serve(answer({**GOOD, "scope": "read list"}))).scope == "read list"


def test_expires_in_may_be_a_string(serve: Serve) -> None:
    assert exchange(serve(answer({**GOOD, "expires_in": "3599"}))).expires_in == 3599


def test_a_token_type_may_be_in_any_case(serve: Serve) -> None:
    assert exchange(serve(answer({**GOOD, "token_type": "bearer"}))).token_type == "Bearer"


def test_a_useless_refresh_time_is_ignored(serve: Serve) -> None:
    assert exchange(serve(answer({**GOOD, "refresh_in": "soon"}))).refresh_on is None


def test_a_life_is_counted_from_before_the_request(serve: Serve) -> None:
    ticks = iter([100.0, 200.0])
    assert exchange(serve(answer(GOOD)), now=lambda: next(ticks)).expires_on == 100 + 3599


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"access_token": None}, "access_token"),
        ({"access_token": ""}, "access_token"),
        ({"access_token": 5}, "access_token"),
        ({"access_token": "a\r\nX-Injected: 1"}, "access_token"),
        ({"access_token": "a b"}, "access_token"),
        ({"token_type": None}, "token_type"),
        ({"token_type": "mac"}, "token_type"),
        ({"token_type": ["Bearer"]}, "token_type"),
        ({"expires_in": None}, "expires_in"),
        ({"expires_in": "soon"}, "expires_in"),
        ({"expires_in": "-1"}, "expires_in"),
        ({"expires_in": 0}, "expires_in"),
        ({"expires_in": -5}, "expires_in"),
        ({"expires_in": True}, "expires_in"),
        ({"expires_in": 3599.5}, "expires_in"),
        ({"expires_in": 10**300}, "expires_in"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(serve: Serve, changes: dict[str, object], words: str) -> None:
    with pytest.raises(NetworkError, match=f"no usable {words}|{words} other than Bearer"):
        exchange(serve(answer({**GOOD, **changes})))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"text"',
        b"null",
        b'{"access_token": "abc',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"expires_in": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "list", "string", "null", "cut off", "no text", "deep", "long number"],
)
def test_the_error_for_a_body_that_is_not_a_json_object_does_not_show_it(serve: Serve, body: bytes) -> None:
    expected = rf"is not a token response \(status 200, application/json, {len(body)} bytes\)"
    with pytest.raises(NetworkError, match=expected):
        exchange(serve(answer(body)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    document=st.dictionaries(
        st.sampled_from(["access_token", "token_type", "expires_in", "refresh_in", "scope", "error", "error_codes",
                         "error_description", "correlation_id", "trace_id"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.integers()),
    ),
    status=st.sampled_from([200, 201, 400, 401, 404]),
)  # fmt: skip
def test_whatever_a_server_answers_is_a_token_or_a_known_error(
    serve: Serve, document: dict[str, object], status: int
) -> None:
    with suppress(EntraError, NetworkError):
        assert exchange(serve(answer(document, status))).expires_in > 0


def test_a_server_that_knows_only_rfc_6749_is_understood(serve: Serve) -> None:
    error = refusal(serve(answer({"error": "invalid_client"}, 401)))
    assert (error.error, error.aadsts, error.trace_id) == ("invalid_client", None, None)


def test_a_server_without_numbers_still_gets_a_hint(serve: Serve) -> None:
    assert "--scope" in str(refusal(serve(answer({"error": "invalid_scope"}, 400))).hint)


def test_a_number_in_the_description_decides_nothing(serve: Serve) -> None:
    document = {"error": "invalid_client", "error_description": "AADSTS700027: no"}
    assert refusal(serve(answer(document, 401))).aadsts is None


def test_the_most_specific_number_is_used(serve: Serve) -> None:
    document = {"error": "invalid_client", "error_codes": [70002, 700024]}
    assert refusal(serve(answer(document, 401))).aadsts == 700024


def test_a_token_beside_an_error_status_is_not_used(serve: Serve) -> None:
    with pytest.raises(NetworkError, match="status 401"):
        exchange(serve(answer(GOOD, 401)))


def test_an_error_beside_a_good_status_is_a_refusal(serve: Serve) -> None:
    assert refusal(serve(answer({"error": "bad_verification"}, 200))).error == "bad_verification"


def test_without_a_correlation_id_the_request_id_is_reported(serve: Serve, received: list[bytes]) -> None:
    error = refusal(serve(answer({"error": "invalid_client", "correlation_id": "\x1b[31m"}, 401)))
    assert f"client-request-id: {error.correlation_id}\r\n".encode() in received[0]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (1_700_000_412, "412 seconds ahead of the server's"),
        (1_699_999_000, "1000 seconds behind the server's"),
        (1_700_000_002, "clock is right"),
    ],
)
def test_a_time_refusal_compares_the_clocks(serve: Serve, now: float, words: str) -> None:
    document = {"error": "invalid_client", "error_codes": [700024]}
    port = serve(answer(document, 401, "Date: Tue, 14 Nov 2023 22:13:20 GMT"))
    assert words in str(refusal(port, now=now).hint)


def test_a_time_refusal_without_a_date_still_has_its_hint(serve: Serve) -> None:
    document = {"error": "invalid_client", "error_codes": [700024]}
    assert "clock" in str(refusal(serve(answer(document, 401, "Date: yesterday"))).hint)


ASSERTION = "eyJhbGciOiJQUzI1NiJ9.eyJhdWQiOiJ4In0AAAA." + "c2VjcmV0" * 43


@pytest.mark.parametrize(
    "echo",
    [
        ASSERTION,
        ASSERTION.partition(".")[2],
        ASSERTION.rpartition(".")[2],
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbm90aGVyIn0.",
        ASSERTION[: len(ASSERTION) // 2],
    ],
    ids=["whole", "payload and signature", "signature", "another", "half"],
)
@pytest.mark.parametrize("field", ["error", "error_description"])
def test_an_echoed_assertion_is_removed(serve: Serve, echo: str, field: str) -> None:
    document = {"error": "invalid_client", field: f"Bad assertion {echo}"}
    error = refusal(serve(answer(document, 400)), ASSERTION)
    assert "Bad assertion [removed]" in error.message
    assert not re.search("eyJ|c2VjcmV0", f"{error.message} {error.error} {error.hint}")


def test_a_message_cannot_steer_a_terminal(serve: Serve) -> None:
    document = {"error": "x\x1b[2J", "error_description": "a\x1b]0;t\x07b\u202ec\u009bd\x00e\ud800f"}
    assert refusal(serve(answer(document, 400))).message.isprintable()


def test_a_message_is_bounded(serve: Serve) -> None:
    document = {"error": "e " * 10_000, "error_description": "d " * 10_000}
    assert len(refusal(serve(answer(document, 400))).message) < 500


def test_no_error_of_an_exchange_holds_the_answers_body(serve: Serve) -> None:
    with pytest.raises(HsmSignerError) as caught:
        exchange(serve(answer({"access_token": "very-secret", "token_type": "mac"})))
    assert "very-secret" not in f"{caught.value.message} {caught.value.hint}"
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


@pytest.mark.parametrize("module", ["authority", "aadsts", "token", "http"])
def test_importing_the_exchange_loads_no_http_library(module: str) -> None:
    code = f"import sys, hsm_signer.entra.{module}; print(sorted({{'httpx', 'pkcs11', 'ssl'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
