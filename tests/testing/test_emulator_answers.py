"""Scripted answers: each misbehaviour as a client sees it."""

import json
import ssl
import threading
from collections.abc import Iterator

import httpx
import pytest

from hsm_signer.testing import (
    Answer,
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

ORDINARY = 90002
"""The ordinary answer to an empty form for a tenant that is not registered."""


@pytest.fixture(params=[True, False], ids=["https", "http"])
def entra(request: pytest.FixtureRequest) -> Iterator[EntraEmulator]:
    with EntraEmulator(https=request.param) as emulator:
        yield emulator


@pytest.fixture
def http(entra: EntraEmulator) -> Iterator[httpx.Client]:
    with _client(entra) as client:
        yield client


def _client(entra: EntraEmulator) -> httpx.Client:
    trust = ssl.create_default_context(cafile=entra.ca_file) if entra.ca_file else True
    return httpx.Client(verify=trust, timeout=10, base_url=f"{entra.authority}/contoso.com/oauth2/v2.0/")


def _number(response: httpx.Response) -> int:
    (number,) = response.json()["error_codes"]
    assert isinstance(number, int)
    return number


@pytest.mark.parametrize("retry_after", ["7", "Fri, 15 Jan 2027 08:00:00 GMT", None])
def test_throttled_is_a_429_with_retry_after(entra: EntraEmulator, http: httpx.Client, retry_after: str | None) -> None:
    entra.answer_next(Throttled(retry_after))
    response = http.post("token", data={})
    assert (response.status_code, _number(response)) == (429, 90055)
    assert response.headers.get("retry-after") == retry_after


@pytest.mark.parametrize("retry_after", ["7", None])
def test_unavailable_is_a_503_with_retry_after(
    entra: EntraEmulator, http: httpx.Client, retry_after: str | None
) -> None:
    entra.answer_next(Unavailable(retry_after))
    response = http.post("token", data={})
    assert (response.status_code, response.headers.get("retry-after")) == (503, retry_after)


def test_slow_lets_a_client_time_out(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.answer_next(Slow(3600))
    with pytest.raises(httpx.ReadTimeout):
        http.post("token", data={}, timeout=2)


def test_slow_sends_the_ordinary_answer_in_the_end(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.answer_next(Slow(0.01))
    assert _number(http.post("token", data={})) == ORDINARY


def test_a_drip_feed_lets_a_client_time_out_in_the_headers(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.answer_next(DripFeed(3600))
    with pytest.raises(httpx.ReadTimeout):
        http.post("token", data={}, timeout=2)


def test_a_drip_feed_sends_the_ordinary_answer_in_the_end(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.answer_next(DripFeed(0))
    response = http.post("token", data={})
    assert (response.status_code, _number(response)) == (400, ORDINARY)


def test_truncated_ends_before_its_content_length(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.answer_next(Truncated())
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        http.post("token", data={})


def test_endless_sends_a_body_without_end(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.answer_next(Endless())
    received = 0
    with http.stream("POST", "token", data={}) as response:
        for chunk in response.iter_raw():
            received += len(chunk)
            if received > 2_000_000:
                break
    assert received > 2_000_000


def test_html_is_a_success_that_is_no_json(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.answer_next(Html())
    response = http.post("token", data={})
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    with pytest.raises(json.JSONDecodeError):
        response.json()


def test_redirect_has_a_location(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.answer_next(Redirect("https://elsewhere.example/token"))
    response = http.post("token", data={})
    assert (response.status_code, response.headers["location"]) == (302, "https://elsewhere.example/token")


def test_no_access_token_is_a_success_without_a_token(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.answer_next(NoAccessToken())
    response = http.post("token", data={})
    assert response.status_code == 200
    assert response.json() == {"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599}


def test_refused_is_any_error_document(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.answer_next(Refused(53003, "interaction_required", "Access has been blocked."))
    response = http.post("token", data={})
    assert (response.status_code, _number(response)) == (400, 53003)
    assert response.json()["error"] == "interaction_required"
    assert response.json()["error_description"].startswith("AADSTS53003: Access has been blocked. Trace ID: ")


def test_disconnected_closes_the_connection_without_an_answer(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.answer_next(Disconnected())
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        http.post("token", data={})
    assert [request.status for request in entra.requests] == [None]


@pytest.mark.parametrize("breaking", [Truncated(), Disconnected()])
def test_the_same_client_is_served_after_a_broken_answer(
    entra: EntraEmulator, http: httpx.Client, breaking: Answer
) -> None:
    entra.answer_next(breaking)
    with pytest.raises(httpx.TransportError):
        http.post("token", data={})
    assert _number(http.post("token", data={})) == ORDINARY


def test_scripted_answers_come_in_order_and_then_ordinary_ones(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.answer_next(Throttled("1"), Unavailable())
    entra.answer_next(Html(502))
    assert [http.post("token", data={}).status_code for _ in range(4)] == [429, 503, 502, 400]
    assert [request.status for request in entra.requests] == [429, 503, 502, 400]


def test_only_token_requests_get_scripted_answers(entra: EntraEmulator, http: httpx.Client) -> None:
    entra.answer_next(Unavailable())
    http.get(f"{entra.authority}/contoso.com/discovery/v2.0/keys")
    assert http.post("token", data={}).status_code == 503


@pytest.mark.timeout(30)
@pytest.mark.parametrize("answer", [Slow(3600), Endless(), DripFeed(3600)], ids=lambda answer: type(answer).__name__)
def test_stop_does_not_wait_for_an_answer_in_flight(entra: EntraEmulator, answer: Answer) -> None:
    entra.answer_next(answer)

    def ask() -> None:
        with _client(entra) as client, pytest.raises(httpx.TransportError):
            client.post("token", data={}, timeout=None)

    thread = threading.Thread(target=ask)
    thread.start()
    with _client(entra) as client:
        while not entra.requests:
            client.get(entra.authority)
    entra.stop()
    thread.join()
