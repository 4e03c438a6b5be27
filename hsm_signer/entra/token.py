"""Asking for an access token, and reading the answer (RFC 6749 section 4.4, RFC 7523 section 2.2)."""

import json
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hsm_signer.entra import aadsts
from hsm_signer.entra.authority import Endpoint
from hsm_signer.entra.redaction import identifier, printable, without_tokens
from hsm_signer.errors import EntraError, NetworkError
from hsm_signer.system.secret import Secret, hidden_locals, revealed

# A program that only signs must not pay for the client.
if TYPE_CHECKING:
    from hsm_signer.entra.http import HttpClient
    from hsm_signer.entra.http_answer import HttpResponse

BEARER = "Bearer"
"""The only token type we can use (RFC 6750)."""


@dataclass(frozen=True)
class AccessToken:
    """An access token and how long it is good.

    Args:
        token: the token itself; not in the repr.
        token_type: always `BEARER`.
        expires_in: seconds of life it had when it was asked for.
        expires_on: when it expires, in seconds since the epoch.
        refresh_on: when the server would like it replaced, in seconds since the epoch, or None.
        scope: the scope granted, or asked for where the server did not say.
    """

    token: str = field(repr=False)
    token_type: str
    expires_in: int
    expires_on: int
    refresh_on: int | None
    scope: str


def token_form(*, client_id: str, scope: str, assertion: Secret, claims: str | None = None) -> dict[str, str | Secret]:
    """Return the form of a client-credentials request.

    Args:
        client_id: application (client) id.
        scope: space-separated, as `check_scopes` returns it.
        assertion: the signed client assertion.
        claims: JSON of a claims request (OpenID Connect Core section 5.5), where one is needed.
    """
    form: dict[str, str | Secret] = {
        "grant_type": "client_credentials",
        "client_id": client_id,
        "scope": scope,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": assertion,
    }
    return form if claims is None else {**form, "claims": claims}


@hidden_locals()
def request_token(
    endpoint: Endpoint, form: Mapping[str, str | Secret], http: "HttpClient", *, now: Callable[[], float] = time.time
) -> AccessToken:
    """Exchange the assertion in `form` for an access token.

    Args:
        endpoint: where the form goes.
        form: what `token_form` returned.
        http: the client that posts it.
        now: seconds since the epoch. A token's life is counted from before it was asked for, never too long.

    Raises:
        EntraError: the server refused; with its error code, AADSTS number and correlation id.
        NetworkError: the server could not be reached, or its answer is no token response.
    """
    request_id = str(uuid.uuid4())
    headers = {"client-request-id": request_id, "return-client-request-id": "true"}
    asked = int(now())
    response = http.post_form(endpoint.token_endpoint, form, headers)
    document = _parse(response)
    host = urlsplit(endpoint.token_endpoint).netloc
    sent = revealed(form)
    if document is not None and isinstance(document.get("error"), str) and "access_token" not in document:
        raise _refusal(document, response, host, sent, request_id, now())
    if document is None or response.status != 200:
        raise _nonsense(response, host, "is no token response")
    return _access_token(document, response, host, sent["scope"], asked)


def _parse(response: "HttpResponse") -> dict[str, object] | None:
    try:
        document = json.loads(response.body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _access_token(
    document: Mapping[str, object], response: "HttpResponse", host: str, scope: str, asked: int
) -> AccessToken:
    token = document.get("access_token")
    # RFC 6749 appendix A.12, without the space: what cannot stand in a header is no bearer token.
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise _nonsense(response, host, "has no usable access_token")
    kind = document.get("token_type")
    if not isinstance(kind, str) or kind.lower() != BEARER.lower():
        raise _nonsense(response, host, "has a token_type other than Bearer")
    life = _seconds(document.get("expires_in"))
    if life is None:
        raise _nonsense(response, host, "has no usable expires_in")
    refresh = _seconds(document.get("refresh_in"))
    granted = document.get("scope")
    return AccessToken(
        token=token,
        token_type=BEARER,
        expires_in=life,
        expires_on=asked + life,
        refresh_on=None if refresh is None else asked + refresh,
        scope=granted if isinstance(granted, str) and granted else scope,
    )


def _seconds(value: object) -> int | None:
    # Old endpoints send numbers as strings. A bool is an int to Python, but not in JSON.
    if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9 else None


def _nonsense(response: "HttpResponse", host: str, complaint: str) -> NetworkError:
    kind = printable(response.headers.get("content-type", "no content type"), 80)
    return NetworkError(
        f"The answer of {host} {complaint} (status {response.status}, {kind}, {len(response.body)} bytes).",
        hint="Check --authority, --tenant and --token-endpoint, and whether a proxy or a login page answered instead.",
    )


def _refusal(
    document: Mapping[str, object],
    response: "HttpResponse",
    host: str,
    form: Mapping[str, str],
    request_id: str,
    now: float,
) -> EntraError:
    assertion = form["client_assertion"]
    error = printable(without_tokens(str(document["error"]), assertion), 80)
    number = _aadsts(document.get("error_codes"))
    description = _first_line(document.get("error_description"), assertion)
    return EntraError(
        f"{host} refused the request: {error}" + (f": {description}" if description else "."),
        hint=_RFC_6749_HINTS.get(error, _OTHER_HINT) if number is None else _hint(number, response, now),
        error=error,
        aadsts=number,
        correlation_id=identifier(document.get("correlation_id")) or request_id,
        trace_id=identifier(document.get("trace_id")),
    )


def _aadsts(codes: object) -> int | None:
    """Return the number that says most: old endpoints put a general one before the one that matters."""
    if not isinstance(codes, list):
        return None
    numbers = [code for code in codes if isinstance(code, int) and not isinstance(code, bool) and 0 < code < 10**9]
    return next((number for number in numbers if aadsts.lookup(number)), numbers[0] if numbers else None)


# RFC 6749 section 5.2: all that a server other than Entra need say.
_RFC_6749_HINTS = {
    "invalid_client": "Check that the server knows this client id, its certificate, and the audience it expects.",
    "invalid_scope": "Check --scope against what the server offers this client.",
    "unauthorized_client": "Ask whoever runs the server to allow this client the client_credentials grant.",
    "unsupported_grant_type": "The server must support client_credentials; check --token-endpoint.",
}
_OTHER_HINT = "Ask the operator of the server what this error means."


def _hint(number: int, response: "HttpResponse", now: float) -> str:
    known = aadsts.lookup(number)
    if known is None:
        return f"Microsoft explains it at https://login.microsoftonline.com/error?code={number}."
    from hsm_signer.entra.http_answer import parse_http_date

    if number == 700024 and (sent := parse_http_date(response.headers.get("date", ""))) is not None:
        return f"{_compare_clocks(round(now - sent))} {known.fix}"
    return known.fix


def _compare_clocks(ahead: int) -> str:
    # A Date header counts whole seconds, and the answer was on its way for a while.
    if abs(ahead) <= 5:
        return "This machine's clock agrees with the server's, so the assertion itself is too old or too new."
    return f"This machine's clock is {abs(ahead)} seconds {'ahead of' if ahead > 0 else 'behind'} the server's."


def _first_line(description: object, assertion: str) -> str:
    """Return the part of an error description that is for people."""
    if not isinstance(description, str):
        return ""
    # Entra appends its ids after a line break, and newer texts after a space; they are fields of their own.
    line = re.split(r"[\r\n]| Trace ID: ", description.strip(), maxsplit=1)[0]
    return printable(without_tokens(line, assertion), 300)
