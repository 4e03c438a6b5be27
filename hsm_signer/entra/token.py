"""Request an access token, and read the response (RFC 6749 section 4.4, RFC 7523 section 2.2)."""

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

# A program that only signs must not wait for the import of the HTTP client.
if TYPE_CHECKING:
    from hsm_signer.entra.http import HttpClient
    from hsm_signer.entra.http_answer import HttpResponse

_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"  # RFC 7523 section 2.2
BEARER = "Bearer"
"""The only token type that is supported (RFC 6750)."""


@dataclass(frozen=True)
class AccessToken:
    """An access token and its times.

    Args:
        token: the token itself; not in the repr.
        token_type: always `BEARER`.
        expires_in: its lifetime when it was requested, in seconds.
        expires_on: when it expires, in seconds since the epoch.
        refresh_on: when the server suggests to renew it, in seconds since the epoch, or None.
        scope: the scope that was granted, or the requested one if the server does not say.
    """

    token: str = field(repr=False)
    token_type: str
    expires_in: int
    expires_on: int
    refresh_on: int | None
    scope: str


def token_form(*, client_id: str, scope: str, assertion: Secret, claims: str | None = None) -> dict[str, str | Secret]:
    """Return the form of a client credentials request (RFC 6749 section 4.4.2, RFC 7523 section 2.2).

    Args:
        client_id: application (client) ID.
        scope: space-separated, as `check_scopes` returns it.
        assertion: the signed client assertion.
        claims: a claims request, JSON (OpenID Connect Core section 5.5), or None.
    """
    form: dict[str, str | Secret] = {
        "grant_type": "client_credentials",
        "client_id": client_id,
        "scope": scope,
        "client_assertion_type": _ASSERTION_TYPE,
        "client_assertion": assertion,
    }
    return form if claims is None else {**form, "claims": claims}


@hidden_locals()
def request_token(
    endpoint: Endpoint, form: Mapping[str, str | Secret], http: "HttpClient", *, now: Callable[[], float] = time.time
) -> AccessToken:
    """Exchange the assertion in `form` for an access token.

    Args:
        endpoint: receives the form.
        form: what `token_form` returned.
        http: posts it.
        now: the clock, epoch seconds. A token's lifetime is counted from before the request, so it is never too long.

    Raises:
        EntraError: the server refused. The error has its error code, AADSTS number and correlation ID.
        NetworkError: the server could not be reached, or its answer is not a token response.
    """
    request_id = str(uuid.uuid4())
    headers = {"client-request-id": request_id, "return-client-request-id": "true"}
    requested_at = int(now())
    response = http.post_form(endpoint.token_endpoint, form, headers)
    document = _parse(response)
    host = urlsplit(endpoint.token_endpoint).netloc
    sent = revealed(form)
    if document is not None and isinstance(document.get("error"), str) and "access_token" not in document:
        raise _refusal(document, response, host, sent, request_id, now())
    if document is None or response.status != 200:
        raise _unusable(response, host, "is not a token response")
    return _access_token(document, response, host, sent["scope"], requested_at)


def _parse(response: "HttpResponse") -> dict[str, object] | None:
    try:
        document = json.loads(response.body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _access_token(
    document: Mapping[str, object], response: "HttpResponse", host: str, scope: str, requested_at: int
) -> AccessToken:
    token = document.get("access_token")
    # RFC 6749 appendix A.12, without the space: a bearer token is sent in a header.
    if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
        raise _unusable(response, host, "has no usable access_token")
    kind = document.get("token_type")
    if not isinstance(kind, str) or kind.lower() != BEARER.lower():
        raise _unusable(response, host, "has a token_type other than Bearer")
    lifetime = _seconds(document.get("expires_in"))
    if lifetime is None:
        raise _unusable(response, host, "has no usable expires_in")
    refresh = _seconds(document.get("refresh_in"))
    granted = document.get("scope")
    return AccessToken(
        token=token,
        token_type=BEARER,
        expires_in=lifetime,
        expires_on=requested_at + lifetime,
        refresh_on=None if refresh is None else requested_at + refresh,
        scope=granted if isinstance(granted, str) and granted else scope,
    )


def _seconds(value: object) -> int | None:
    # Old endpoints send numbers as strings. A bool is an int in Python, but not in JSON.
    if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9 else None


def _unusable(response: "HttpResponse", host: str, complaint: str) -> NetworkError:
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
    """Return the most specific number: old endpoints put a general number before it."""
    if not isinstance(codes, list):
        return None
    numbers = [code for code in codes if isinstance(code, int) and not isinstance(code, bool) and 0 < code < 10**9]
    return next((number for number in numbers if aadsts.lookup(number)), numbers[0] if numbers else None)


# RFC 6749 section 5.2: a server other than Entra may say no more than this.
_RFC_6749_HINTS = {
    "invalid_client": "Check that the server knows this client ID and its certificate, and which audience it expects.",
    "invalid_scope": "Check --scope, and which scopes the server offers this client.",
    "unauthorized_client": "Ask the server's administrator to allow the client_credentials grant for this client.",
    "unsupported_grant_type": "Check --token-endpoint: the server must support client_credentials.",
}
_OTHER_HINT = "Ask the server's administrator what this error means."


def _hint(number: int, response: "HttpResponse", now: float) -> str:
    known = aadsts.lookup(number)
    if known is None:
        return f"Microsoft explains this error at https://login.microsoftonline.com/error?code={number}."
    from hsm_signer.entra.http_answer import parse_http_date

    if number == 700024 and (sent := parse_http_date(response.headers.get("date", ""))) is not None:
        return f"{_compare_clocks(round(now - sent))} {known.fix}"
    return known.fix


def _compare_clocks(ahead: int) -> str:
    # A Date header has whole seconds, and the response took a while to arrive.
    if abs(ahead) <= 5:
        return "This machine's clock is right, so the assertion itself is too old or too new."
    return f"This machine's clock is {abs(ahead)} seconds {'ahead of' if ahead > 0 else 'behind'} the server's."


def _first_line(description: object, assertion: str) -> str:
    """Return an error description without the IDs and the timestamp at its end."""
    if not isinstance(description, str):
        return ""
    # Entra appends IDs after a line break, or in newer texts after a space. The response has separate fields for them.
    line = re.split(r"[\r\n]| Trace ID: ", description.strip(), maxsplit=1)[0]
    return printable(without_tokens(line, assertion), 300)
