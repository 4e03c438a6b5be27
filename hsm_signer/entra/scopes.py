"""Check the scopes of a token request. Pure."""

import re
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from hsm_signer.entra.authority import Endpoint
from hsm_signer.errors import ScopeError


def check_scopes(endpoint: Endpoint, scopes: Sequence[str]) -> str:
    """Return the `scope` parameter of a request for `scopes`.

    For Entra's client credentials grant, a scope is `<resource>/.default`, and one request is for one resource.
    https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow

    Args:
        endpoint: the endpoint that receives the request.
        scopes: one scope for Entra; any number for a custom token endpoint.

    Returns:
        The scopes, separated by spaces (RFC 6749 section 3.3).

    Raises:
        ScopeError: there is no scope, or the endpoint would refuse one.
    """
    if isinstance(scopes, str):
        raise TypeError("scopes is a sequence of strings, not one string")
    if not scopes:
        raise ScopeError(
            "No scope is set.",
            hint="Set the API that the token is for, for example --scope https://graph.microsoft.com/.default",
        )
    for scope in scopes:
        # RFC 6749 section 3.3, scope-token.
        if not re.fullmatch(r"[\x21\x23-\x5b\x5d-\x7e]+", scope):
            raise ScopeError(
                f"The scope {scope!r} is empty or has a character that is not allowed in scopes.",
                hint="Give each scope with a separate --scope.",
            )
        if endpoint.entra and not re.fullmatch(r".+/\.default", scope):
            raise ScopeError(
                f"The scope {scope!r} does not end in '/.default', which Entra requires for client credentials.",
                hint=f"Use {_suggest_scope(scope)}. The token contains all granted application permissions.",
            )
    distinct = list(dict.fromkeys(scopes))
    if endpoint.entra and len(distinct) > 1:
        raise ScopeError(
            f"The scopes name {len(distinct)} resources: {', '.join(distinct)}. An Entra token is for only one.",
            hint="Request one token for each resource.",
        )
    return " ".join(distinct)


def _suggest_scope(scope: str) -> str:
    with suppress(ValueError):  # malformed brackets in the host
        split = urlsplit(scope)
        if split.netloc:
            return f"{split.scheme}://{split.netloc}/.default"
    return f"{scope.rstrip('/')}/.default"
