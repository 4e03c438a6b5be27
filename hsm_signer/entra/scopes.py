"""The scopes that a token may be requested for. Pure."""

import re
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from hsm_signer.entra.authority import Endpoint
from hsm_signer.errors import ScopeError


def check_scopes(endpoint: Endpoint, scopes: Sequence[str]) -> str:
    """Return the `scope` parameter of a request for `scopes`.

    For Entra's client-credentials grant a scope is `<resource>/.default`, and one request is for one resource.

    Raises:
        ScopeError: there is no scope, or the endpoint would refuse one.
    """
    if isinstance(scopes, str):
        raise TypeError("scopes is a sequence of strings, not one string")
    if not scopes:
        raise ScopeError(
            "No scope was given: what should the token be for?",
            hint="Give one with --scope, for example https://graph.microsoft.com/.default.",
        )
    for scope in scopes:
        # RFC 6749 section 3.3, scope-token.
        if not re.fullmatch(r"[\x21\x23-\x5b\x5d-\x7e]+", scope):
            raise ScopeError(
                f"The scope {scope!r} is empty or has a character that is not allowed in scopes.",
                hint="Give each scope on its own: --scope may be repeated.",
            )
        if endpoint.entra and not re.fullmatch(r".+/\.default", scope):
            raise ScopeError(
                f"The scope {scope!r} does not end in '/.default', which Entra requires for client credentials.",
                hint=f"Ask for {_suggest_scope(scope)}; the token contains all application permissions granted.",
            )
    distinct = list(dict.fromkeys(scopes))
    if endpoint.entra and len(distinct) > 1:
        raise ScopeError(
            f"The scopes name {len(distinct)} resources: {', '.join(distinct)}; an Entra token is for one only.",
            hint="Ask for one token for each resource.",
        )
    return " ".join(distinct)


def _suggest_scope(scope: str) -> str:
    with suppress(ValueError):  # malformed brackets in the host
        split = urlsplit(scope)
        if split.netloc:
            return f"{split.scheme}://{split.netloc}/.default"
    return f"{scope.rstrip('/')}/.default"
