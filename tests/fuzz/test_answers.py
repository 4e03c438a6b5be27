"""Any answer of a server or another process soon gives a value or one of our own errors.

Each `example` is an input that failed once, and was fixed.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from hsm_signer.cli.text.layout import to_json
from hsm_signer.credential.httpx_auth import find_claims_challenge
from hsm_signer.device import wire
from hsm_signer.device.inventory.facts import ModuleFacts
from hsm_signer.device.worker import messages
from hsm_signer.doctor.verdicts import judge_metadata
from hsm_signer.entra.authority import resolve_endpoint
from hsm_signer.entra.graph import Graph, Holder
from hsm_signer.entra.graph_service import resolve_graph
from hsm_signer.entra.http_answer import HttpResponse, judge, retry_after
from hsm_signer.entra.redaction import identifier, printable, without_tokens
from hsm_signer.entra.token import request_token, token_form
from hsm_signer.system.display import displayable
from hsm_signer.system.secret import Secret
from tests.fuzz.mutation import any_text, fuzz, mutated, mutated_text, only_errors_of_ours, with_odd_members

ENDPOINT = resolve_endpoint(tenant="contoso.example")
ASSERTION = "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"
GUID = "11111111-2222-4333-8444-555555555555"


class Answering:
    """Replaces the HTTP client, and gives the same answer to every request."""

    def __init__(self, response: HttpResponse) -> None:
        self._response = response

    def post_form(self, *request: object, **more: object) -> HttpResponse:
        return self._response

    post_json = get = post_form


ANSWERS: tuple[dict[str, Any], ...] = (
    {"token_type": "Bearer", "expires_in": 3599, "refresh_in": "1800", "access_token": "abc", "scope": "s"},
    {
        "error": "invalid_client",
        "error_description": "AADSTS700027: Client assertion contains an invalid signature. Trace ID: 1",
        "error_codes": [700027, 7000222],
        "trace_id": GUID,
        "correlation_id": GUID,
    },
    {"error": {"code": "Authorization_RequestDenied", "message": "No.", "innerError": {"request-id": GUID}}},
    {
        "id": GUID,
        "keyCredentials": [{"keyId": GUID, "customKeyIdentifier": "QUI=", "key": "QUI=", "endDateTime": "2026-01-31"}],
    },
    {"issuer": "https://login.example/x", "token_endpoint": "https://login.example/x/oauth2/v2.0/token"},
)
headers = st.dictionaries(
    st.sampled_from(["content-type", "date", "retry-after", "location"]),
    mutated_text("Sat, 31 Jan 2026 12:00:00 GMT", "Mon, 99 Foo 99999 99:99:99 +9999", "120", "https://[::1"),
)
bodies = st.sampled_from(ANSWERS).flatmap(with_odd_members) | mutated(*(json.dumps(each).encode() for each in ANSWERS))


@fuzz
@given(st.sampled_from([200, 400, 401, 418]), headers, bodies)
def test_any_answer_of_the_token_endpoint_gives_a_token_or_our_error(
    status: int, headers: Mapping[str, str], body: bytes
) -> None:
    client: Any = Answering(HttpResponse(status, headers, body))
    form: Any = token_form(client_id="id", scope="scope", assertion=Secret(ASSERTION))
    with only_errors_of_ours():
        token = request_token(ENDPOINT, form, client, now=lambda: 1.7e9)
        assert to_json({"scope": token.scope, "expires_on": token.expires_on})


@fuzz
@given(st.sampled_from([200, 201, 204, 400, 403, 404]), headers, bodies)
def test_any_answer_of_graph_gives_a_value_or_our_error(status: int, headers: Mapping[str, str], body: bytes) -> None:
    client: Any = Answering(HttpResponse(status, headers, body))
    graph = Graph(resolve_graph(ENDPOINT), GUID, Holder.APPLICATION, client, lambda: Secret("token"))
    for ask in (
        graph.registration,
        lambda: graph.add_key(b"der", Secret(ASSERTION)),
        lambda: graph.remove_key(GUID, Secret(ASSERTION)),
    ):
        with only_errors_of_ours():
            assert displayable(repr(ask())).isprintable()


@fuzz
@given(st.integers(100, 599), headers, bodies)
@example(302, {"location": "https://[::1"}, b"")
def test_any_http_answer_gives_a_printable_error_or_none(status: int, headers: Mapping[str, str], body: bytes) -> None:
    failure = judge(HttpResponse(status, headers, body), ENDPOINT.token_endpoint, 1.7e9)
    assert failure is None or failure.message.isprintable()
    assert 0 <= (retry_after(headers, 1.7e9) or 0) < 10**9
    assert judge_metadata(200, body, ENDPOINT).detail.isprintable()


@fuzz
@given(mutated_text(f"AADSTS7 {ASSERTION} Trace ID: {GUID}"))
def test_any_error_text_of_a_server_is_shown_safely(text: str) -> None:
    assert printable(without_tokens(text, ASSERTION), 80).isprintable()
    assert identifier(text) in (None, text)


@fuzz
@given(
    mutated_text('Bearer realm="", error="insufficient_claims", claims="eyJhY2Nlc3NfdG9rZW4iOnt9fQ==", PoP a="b\\"c"')
)
def test_any_challenge_of_an_api_is_parsed_or_ignored(header: str) -> None:
    assert isinstance(find_claims_challenge(header), str | None)


MESSAGES: tuple[Any, ...] = (
    messages.Sign,
    messages.ReadCertificate,
    messages.Calling,
    messages.Logged,
    messages.AskForPin,
    messages.PinAnswer,
    messages.Opened,
    messages.Done,
    messages.Failed,
    ModuleFacts,
)
FIELDS: dict[str, Any] = {
    "algorithm": "RS256",
    "message": "AA==",
    "what": "signing",
    "seconds": 1.5,
    "logger": "hsm_signer",
    "level": 30,
    "request": {"device": "d", "reason": "login", "warning": None, "last_try": False, "pad": False},
    "login": {"text": "1234", "identity": "i"},
    "identity": "i",
    "public_key": "ff:3",
    "algorithms": ["RS256"],
    "device": "d",
    "result": "AA==",
    "error": ["uri_error", {"message": "m", "hint": None, "position": 1}],
    "name": None,
    "path": "/m.so",
    "library": None,
    "devices": [],
    "problem": {"code": "c", "message": "m", "hint": None},
}


@fuzz
@given(
    st.sampled_from(MESSAGES),
    with_odd_members(FIELDS)
    | mutated(json.dumps(FIELDS).encode())
    | any_text.map(lambda text: text.encode(errors="replace")),
)
def test_any_message_of_another_process_is_read_or_refused(kind: Any, document: bytes) -> None:
    with suppress(wire.Malformed):
        plain = wire.parse(document)
        if isinstance(plain, dict):  # exactly the message's members, otherwise most inputs would fail for that reason
            plain = {name: value for name, value in plain.items() if name in wire._parameters(kind)}
        assert isinstance(wire.read(kind, plain), kind)
