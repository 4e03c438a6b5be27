"""HTTP responses, and explanations of failed attempts. Pure."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from hsm_signer.entra.url import host_of

# Slow imports are made where they are needed: a program that only signs must not wait for them.
if TYPE_CHECKING:
    from hsm_signer.entra.httpx_import import httpx


MAXIMUM_BODY = 1024 * 1024
"""Bytes; a token response is a few kilobytes."""


@dataclass(frozen=True)
class HttpResponse:
    """A response.

    Args:
        status: HTTP status, but not a redirect, 429 or 5xx: those are errors.
        headers: names are in lower case; not in the repr, because a server may echo the request.
        body: at most `MAXIMUM_BODY` bytes; not in the repr, because it may contain a token.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that a `Retry-After` header asks for, or None without a usable one (RFC 9110 section 10.2.3).

    A date is compared with the response's own `Date`, so that a wrong clock on this machine does not matter.
    """
    value = headers.get("retry-after", "").strip()
    # More digits (30 years) are a mistake, and would overflow a date.
    if re.fullmatch("[0-9]{1,9}", value):
        return float(value)
    if (when := parse_http_date(value)) is None:
        return None
    sent = parse_http_date(headers.get("date", ""))
    return min(max(when - (now if sent is None else sent), 0), 999_999_999)


def parse_http_date(text: str) -> float | None:
    """Return an HTTP-date as seconds since the epoch, or None for anything else (RFC 9110 section 5.6.7)."""
    from email.utils import parsedate_to_datetime

    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed. Message and hint contain nothing from the request."""

    message: str
    hint: str
    retry: bool = True
    retry_after: float | None = None


WRONG_SERVER = "Check --authority, --token-endpoint and any proxy: this seems to be another server."


_BROKEN = "Try again. If it keeps failing, look for a firewall or proxy that closes connections."


def judge(response: HttpResponse, url: str, now: float) -> Failure | None:
    """Return why a response is an error, or None if it is not."""
    status, host = response.status, host_of(url)
    if 300 <= status < 400:
        location, target = response.headers.get("location"), ""
        with suppress(ValueError):  # malformed brackets in the host
            # Only the host is shown: a server may echo the request in the rest.
            target = host_of(urljoin(url, location)) if location else ""
        return Failure(
            f"{host} answered {status}, a redirect to {target or 'nowhere'}. hsm-signer does not follow redirects.",
            WRONG_SERVER,
            retry=False,
        )
    if status == 429 or status >= 500:
        state = "is throttling" if status == 429 else "is unavailable"
        return Failure(
            f"{host} {state}: it answered {status}.", "Try again later.", retry_after=retry_after(response.headers, now)
        )
    return None


def explain(error: "httpx.HTTPError", host: str, proxy: str | None) -> Failure:
    """Explain a failed attempt by the types of the exceptions in its chain: their texts may contain secrets."""
    import socket
    import ssl

    from hsm_signer.entra.httpx_import import httpx

    way = f"{host} through the proxy {host_of(proxy)}" if proxy else host
    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Failure(
                f"The certificate of {way} is not trusted: {cause.verify_message}.",
                _certificate_hint(cause.verify_code),
                retry=False,
            )
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            reason = (cause.reason or "unknown reason").replace("_", " ").lower()
            return Failure(f"The TLS handshake with {way} failed: {reason}.", WRONG_SERVER, retry=False)
        if isinstance(cause, socket.gaierror):
            looked_for = host_of(proxy) if proxy else host
            return Failure(
                f"The name {looked_for} could not be resolved.", "Check its spelling and this machine's DNS."
            )
        if isinstance(cause, ConnectionRefusedError):
            return Failure(f"The connection to {way} was refused.", "Check the host, the port and any firewall.")
    if isinstance(error, httpx.ProxyError):
        # httpcore's text is the status of the proxy's answer to CONNECT.
        status = str(error)[:3] if re.match("[1-5][0-9]{2}", str(error)) else "no usable answer"
        return Failure(
            f"The proxy {host_of(proxy or '')} did not connect to {host}: {status}.",
            "Check HTTPS_PROXY and NO_PROXY, and whether the proxy requires a user name.",
            retry=not status.startswith("4"),
        )
    if isinstance(error, httpx.ConnectTimeout):
        return Failure(f"Connecting to {way} took too long.", "Check the network and any firewall or proxy.")
    if isinstance(error, httpx.RemoteProtocolError):
        return Failure(f"{way} closed the connection before its answer was complete, or sent invalid HTTP.", _BROKEN)
    reasons = [cause.strerror for cause in chain if isinstance(cause, OSError) and cause.strerror]
    return Failure(f"The connection to {way} was lost{f' ({reasons[-1]})' if reasons else ''}.", _BROKEN)


def _certificate_hint(verify_code: int) -> str:
    # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
    if verify_code in (9, 10):
        return "Check this machine's clock. If it is right, the server's certificate must be renewed."
    # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
    if verify_code in (62, 64):
        return "Use a host name that is in the server's certificate."
    return "If a private CA or an inspecting proxy issued it, add that CA's certificate with --ca-bundle FILE."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
