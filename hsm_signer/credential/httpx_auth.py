"""Send a credential's tokens to one API, and to no other server, with `httpx.Auth`.

    graph = httpx.Client(auth=BearerAuth(credential, "https://graph.microsoft.com/.default"))
    users = graph.get("https://graph.microsoft.com/v1.0/users").json()

httpx calls an auth once for a request and its redirects, and removes the token from a redirect to another origin.
"""

import base64
import binascii
import inspect
import json
import re
import threading
from collections.abc import AsyncGenerator, Awaitable, Generator
from typing import Protocol

import anyio.to_thread
import httpx

from hsm_signer.entra.url import is_loopback
from hsm_signer.errors import ConfigError
from hsm_signer.system.secret import hidden_locals


class Token(Protocol):
    """The part of an access token that is sent."""

    @property
    def token(self) -> str:
        """The token itself."""


class TokenCredential(Protocol):
    """`HsmCredential`, `AsyncHsmCredential`, or any other credential for the Azure SDK."""

    def get_token(self, *scopes: str, claims: str | None = None, enable_cae: bool = False) -> Token | Awaitable[Token]:
        """Return a token for `scopes`, and a new one if there are `claims`."""


class BearerAuth(httpx.Auth):
    """Sends a credential's tokens to one API (RFC 6750 section 2.1), from `httpx.Client` and `httpx.AsyncClient`.

    The first request decides the API: after it, no token is sent to another scheme, host or port, because links in a
    response may lead anywhere. The tokens support continuous access evaluation, so Entra can revoke them at any time.
    The API then answers 401 with ``insufficient_claims``, and the request is sent once more with a token that meets
    those claims, unless its body is a stream, which cannot be read twice.

    Safe to use from several threads and tasks.

    Args:
        credential: returns the tokens, and caches them. An asynchronous client calls a synchronous credential in a
            thread; an asynchronous credential is for asynchronous clients only.
        scopes: as for `get_token`, such as ``https://graph.microsoft.com/.default``.

    Raises:
        ConfigError: during a request, if the URL is not https (plain http is allowed for loopback) or is another API's.
        HsmSignerError: during a request, the error of `get_token`.
    """

    def __init__(self, credential: TokenCredential, *scopes: str) -> None:
        self._credential = credential
        self._scopes = scopes
        self._origin: str | None = None
        self._lock = threading.Lock()

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request with a token, and again after a claims challenge."""
        # If the request fails, httpx closes this generator during the exception, whose frames contain the token.
        with hidden_locals():
            self._require_own_api(request.url)
            response = yield _with_token(request, self._get_token(None))
            if (claims := _claims_to_meet(request, response)) is not None:
                yield _with_token(request, self._get_token(claims))

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Do the same without blocking other tasks: a device may require a touch."""
        self._require_own_api(request.url)
        response = yield _with_token(request, await self._get_token_async(None))
        if (claims := _claims_to_meet(request, response)) is not None:
            yield _with_token(request, await self._get_token_async(claims))

    def _get_token(self, claims: str | None) -> str:
        token = self._ask(claims)
        if isinstance(token, Awaitable):
            raise TypeError("an asynchronous credential needs httpx.AsyncClient")
        return token.token

    async def _get_token_async(self, claims: str | None) -> str:
        if not inspect.iscoroutinefunction(self._credential.get_token):
            return await anyio.to_thread.run_sync(self._get_token, claims, abandon_on_cancel=True)
        token = self._ask(claims)
        return (await token if isinstance(token, Awaitable) else token).token

    def _ask(self, claims: str | None) -> Token | Awaitable[Token]:
        return self._credential.get_token(*self._scopes, claims=claims, enable_cae=True)

    def _require_own_api(self, url: httpx.URL) -> None:
        origin = _origin(url)
        if url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.host)):
            raise ConfigError(
                f"The address {origin} is not https. The token would be sent unencrypted.",
                hint="Use https. Plain http is for loopback addresses only.",
            )
        with self._lock:
            self._origin = self._origin or origin
        if origin != self._origin:
            raise ConfigError(
                f"This BearerAuth sends its tokens to {self._origin}, but the request is to {origin}.",
                hint="Create a BearerAuth for each API. If the request needs no token, send it with auth=None.",
            )


def find_claims_challenge(www_authenticate: str) -> str | None:
    """Return the claims that a new token must meet, from a claims challenge, or None if there is no such challenge.

    Args:
        www_authenticate: the header's value, with any number of challenges (RFC 9110 section 11.6.1); several headers
            are joined by commas.

    Returns:
        The claims as JSON, in the form that Entra's token endpoint takes
        (https://learn.microsoft.com/entra/identity-platform/claims-challenge).
    """
    for scheme, parameters in _challenges(www_authenticate):
        if scheme == "bearer" and parameters.get("error") == "insufficient_claims":
            return _decode_claims(parameters.get("claims", ""))
    return None


# RFC 9110 sections 5.6 and 11.2: elements between commas, each a scheme, a parameter, or a scheme and a parameter.
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'(?:[^"\\]|\\.)*'
_ELEMENT = re.compile(rf'(?:[^,"]|"{_QUOTED}")+')
_CHALLENGE = re.compile(
    rf'(?:(?P<scheme>{_NAME})(?:\s+(?![\s=])|$))?(?:(?P<name>{_NAME})\s*=\s*(?:"(?P<quoted>{_QUOTED})"|(?P<plain>{_NAME})))?'
)


def _challenges(header: str) -> list[tuple[str, dict[str, str]]]:
    """Return schemes and their parameters, names in lower case. Anything else, such as a token68, is ignored."""
    challenges: list[tuple[str, dict[str, str]]] = []
    for element in _ELEMENT.finditer(header):
        found = _CHALLENGE.fullmatch(element[0].strip())
        if found is None:
            continue
        if found["scheme"]:
            challenges.append((found["scheme"].lower(), {}))
        if found["name"] and challenges:
            value = found["plain"] or re.sub(r"\\(.)", r"\1", found["quoted"])
            challenges[-1][1].setdefault(found["name"].lower(), value)
    return challenges


def _decode_claims(text: str) -> str | None:
    # Entra pads and uses either alphabet.
    encoded = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        claims = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True).decode("utf-8")
        return claims if isinstance(json.loads(claims), dict) else None
    except (binascii.Error, ValueError, RecursionError):
        return None


def _claims_to_meet(request: httpx.Request, response: httpx.Response) -> str | None:
    if response.status_code != 401 or not isinstance(request.stream, httpx.ByteStream):
        return None
    # After a redirect, another server may have answered.
    if _origin(response.request.url) != _origin(request.url):
        return None
    return find_claims_challenge(", ".join(response.headers.get_list("www-authenticate")))


def _with_token(request: httpx.Request, token: str) -> httpx.Request:
    request.headers["Authorization"] = f"Bearer {token}"
    return request


def _origin(url: httpx.URL) -> str:
    """Return scheme, host and port (RFC 6454 section 4), without a user name and without a default port."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"
