"""Where an assertion goes, for whom it is made out, and which scopes may be asked for. Pure.

>>> resolve_endpoint(tenant="contoso.onmicrosoft.com").token_endpoint
'https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/token'
"""

import ipaddress
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

from hsm_signer.errors import ConfigError, ScopeError


class Cloud(StrEnum):
    """Microsoft's clouds. A tenant lives in exactly one."""

    PUBLIC = "public"
    USGOV = "usgov"
    CHINA = "china"


@dataclass(frozen=True)
class Endpoint:
    """Where an assertion is sent and whom it addresses.

    Args:
        token_endpoint: URL that the form is posted to.
        audience: the assertion's `aud`.
        authority: scheme, host and any port of the token endpoint.
        tenant: GUID or domain as it was given, or None where a token endpoint needs none.
        entra: False for a custom token endpoint, which may have scopes of any shape.
    """

    token_endpoint: str
    audience: str
    authority: str
    tenant: str | None
    entra: bool


def resolve_endpoint(
    *,
    tenant: str | None,
    cloud: Cloud = Cloud.PUBLIC,
    authority: str | None = None,
    token_endpoint: str | None = None,
    audience: str | None = None,
) -> Endpoint:
    """Return the endpoint that these settings name.

    Args:
        tenant: GUID or domain of the tenant, or `adfs`. Not needed with a token endpoint or a CIAM authority.
        cloud: whose authority is used where none is given.
        authority: another host than the cloud's; https is assumed where no scheme is given.
        token_endpoint: full URL of any server that speaks RFC 7523. It wins over tenant, cloud and authority.
        audience: the assertion's `aud`, where it is not the token endpoint.

    Raises:
        ConfigError: a setting is missing, malformed or unsafe.
    """
    if token_endpoint is not None:
        split = _split_url(token_endpoint, "token endpoint")
        origin = _origin(split, "token endpoint")
        url = origin + (split.path or "/") + (f"?{split.query}" if split.query else "")
        return Endpoint(url, _check_audience(audience, url), origin, tenant, entra=False)

    split = _split_url(_with_scheme(authority or _AUTHORITIES[cloud]), "authority")
    origin = _origin(split, "authority")
    if split.path.strip("/") or split.query:
        raise ConfigError(
            f"The authority has more than a host: {authority!r}.",
            hint=f"Give {origin} as the authority, and the tenant with --tenant.",
        )
    name = _tenant(tenant, origin)
    if name == "adfs":
        if authority is None:
            raise ConfigError(
                "The tenant 'adfs' means your own AD FS server, and no authority says where that is.",
                hint="Give the server with --authority, for example https://adfs.example.com.",
            )
        url = f"{origin}/adfs/oauth2/token"
    else:
        url = f"{origin}/{name}/oauth2/v2.0/token"
    return Endpoint(url, _check_audience(audience, url), origin, name, entra=True)


def implied_tenant(authority: str) -> str | None:
    """Return the tenant that the host of an authority is named after, as with Entra External ID, or None.

    >>> implied_tenant("https://contoso.ciamlogin.com")
    'contoso.onmicrosoft.com'

    Raises:
        ConfigError: the authority is malformed or unsafe.
    """
    host = urlsplit(_origin(_split_url(_with_scheme(authority), "authority"), "authority")).hostname or ""
    return f"{host.removesuffix(_CIAM)}.onmicrosoft.com" if host.endswith(_CIAM) else None


@dataclass(frozen=True)
class GraphService:
    """Microsoft Graph, of one cloud.

    Args:
        origin: scheme and host.
        scope: what a token for it is asked for.
    """

    origin: str
    scope: str


def resolve_graph(endpoint: Endpoint, graph: str | None = None) -> GraphService:
    """Return the Microsoft Graph in which the applications of an authority are registered.

    A token for Graph is worth much, so it is sent to Microsoft's own hosts only; or, where the authority is none of
    Microsoft's, to that authority's host, which gave the token.
    https://learn.microsoft.com/graph/deployments

    Args:
        endpoint: where tokens come from.
        graph: another of Microsoft's Graph hosts, which the US government's L5 (DoD) needs.

    Raises:
        ConfigError: there is no Graph for this endpoint, or `graph` is none of Microsoft's.
    """
    if not endpoint.entra or endpoint.tenant == "adfs":
        raise ConfigError(
            f"Applications of {endpoint.authority} are not registered in Microsoft Graph.",
            hint="Replace the certificate there with the server's own means.",
        )
    if graph is not None:
        origin = _origin(_split_url(_with_scheme(graph), "Graph host"), "Graph host")
        if origin not in (*_GRAPHS.values(), _GRAPH_OF_DOD, endpoint.authority):
            raise ConfigError(
                f"{origin} is none of Microsoft Graph's hosts, and would be sent a token that opens Graph.",
                hint=f"Graph is at {', '.join((*_GRAPHS.values(), _GRAPH_OF_DOD))}.",
            )
    else:
        cloud = next((cloud for cloud, authority in _AUTHORITIES.items() if authority == endpoint.authority), None)
        known = cloud or (Cloud.PUBLIC if _ENTRA_HOST.search(endpoint.authority) else None)
        origin = _GRAPHS[known] if known else endpoint.authority
    return GraphService(origin, f"{_GRAPHS[Cloud.PUBLIC] if origin == endpoint.authority else origin}/.default")


def check_scopes(endpoint: Endpoint, scopes: Sequence[str]) -> str:
    """Return the `scope` parameter of a request for `scopes`.

    For Entra's client-credentials grant a scope is `<resource>/.default`, and one request is for one resource.

    Raises:
        ScopeError: there is no scope, or one that this endpoint would refuse.
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
                f"The scope {scope!r} is empty or has a character that no scope may have.",
                hint="Give each scope on its own: --scope may be repeated.",
            )
        if endpoint.entra and not re.fullmatch(r".+/\.default", scope):
            raise ScopeError(
                f"The scope {scope!r} does not end in '/.default', as Entra demands of client credentials.",
                hint=f"Ask for {_suggest_scope(scope)}; the token then carries every application permission granted.",
            )
    distinct = list(dict.fromkeys(scopes))
    if endpoint.entra and len(distinct) > 1:
        raise ScopeError(
            f"The scopes name {len(distinct)} resources: {', '.join(distinct)}; an Entra token is for one.",
            hint="Ask for one token for each resource.",
        )
    return " ".join(distinct)


def is_loopback(host: str) -> bool:
    """Tell whether `host`, a name or an address without a port, is this machine: localhost, 127.0.0.0/8 or ::1."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


_AUTHORITIES = {
    Cloud.PUBLIC: "https://login.microsoftonline.com",
    Cloud.USGOV: "https://login.microsoftonline.us",
    Cloud.CHINA: "https://login.partner.microsoftonline.cn",
}
_GRAPHS = {
    Cloud.PUBLIC: "https://graph.microsoft.com",
    Cloud.USGOV: "https://graph.microsoft.us",
    Cloud.CHINA: "https://microsoftgraph.chinacloudapi.cn",
}
_GRAPH_OF_DOD = "https://dod-graph.microsoft.us"
# Hosts at which Entra takes assertions or which its issuers are named after, today's and yesterday's. Looked for
# anywhere in an audience, so that no odd spelling of a URL hides one.
_ENTRA_HOST = re.compile(
    r"(?<![a-z0-9_-])(?:"
    r"(?:[a-z0-9-]+\.)*microsoftonline(?:-p)?\.(?:com|us|cn|de|net)"
    r"|(?:[a-z0-9-]+\.)*ciamlogin\.com"
    r"|(?:[a-z0-9-]+\.)*login\.microsoft\.com"
    r"|(?:[a-z0-9-]+\.)*(?:login|sts)\.(?:windows\.net|chinacloudapi\.cn)"
    r"|(?:[a-z0-9-]+\.)*(?:(?:[a-z0-9]+-)*graph\.(?:windows\.net|microsoft\.(?:com|us))|microsoftgraph\.chinacloudapi\.cn)"
    r")(?![a-z0-9_-])"
)
# Of the JWT by which a key proves itself to addKey and removeKey, to Graph and to no token endpoint:
# https://learn.microsoft.com/graph/application-rollkey-prooftoken
_PROOF_AUDIENCE = "00000002-0000-0000-c000-000000000000"
_GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_DOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})+")
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_SHARED_TENANTS = {
    "common": "stands for every user's own tenant",
    "organizations": "stands for every user's own tenant",
    "consumers": "stands for personal Microsoft accounts",
}
_CIAM = ".ciamlogin.com"


def _tenant(tenant: str | None, origin: str) -> str:
    if not tenant:
        if implied := implied_tenant(origin):
            return implied
        raise ConfigError("No tenant was given.", hint="Give its GUID or domain with --tenant.")
    name = tenant.lower()
    if reason := _SHARED_TENANTS.get(name):
        raise ConfigError(
            f"The tenant {tenant!r} {reason}; a program that proves its own identity must name one tenant.",
            hint="Give the tenant's GUID or domain; the portal shows it beside the app registration.",
        )
    if name == "adfs":
        return name
    if not (_GUID.fullmatch(tenant) or _DOMAIN.fullmatch(tenant)):
        raise ConfigError(
            f"The tenant {tenant!r} is neither a GUID nor a domain.",
            hint="A tenant looks like 72f988bf-86f1-41af-91ab-2d7cd011db47 or contoso.onmicrosoft.com.",
        )
    return tenant


def _with_scheme(authority: str) -> str:
    # The SDKs let AZURE_AUTHORITY_HOST come as a bare host.
    return authority if "://" in authority else f"https://{authority}"


def _split_url(text: str, what: str) -> SplitResult:
    # urlsplit quietly drops tabs and newlines, and clients disagree on backslashes: refuse them before it sees them.
    if not re.fullmatch(r"[\x21-\x5b\x5d-\x7e]+", text):
        _refuse_url(text, what, "has a space, a backslash, or a character outside ASCII")
    try:
        split = urlsplit(text)
        port = split.port
    except ValueError:
        _refuse_url(text, what, "cannot be parsed")
    if split.username is not None:
        # Not shown: there may be a password in it.
        raise ConfigError(f"The {what} has a user name in it.", hint="Leave out everything before the @.")
    if "#" in text:
        _refuse_url(text, what, "has a fragment")
    if split.scheme not in ("https", "http"):
        _refuse_url(text, what, "is not an https URL")
    host = split.hostname or ""
    if port == 0 or not (_HOST.fullmatch(host.removesuffix(".")) or _is_address(host)):
        _refuse_url(text, what, "has no usable host name or port")
    if split.scheme == "http" and not is_loopback(host):
        raise ConfigError(
            f"The {what} is plain http, to {host}; the assertion and the token would cross the network in the clear.",
            hint="Use https. Plain http is for loopback addresses only.",
        )
    return split


def _refuse_url(text: str, what: str, reason: str) -> NoReturn:
    raise ConfigError(f"The {what} {reason}: {text!r}.", hint="It looks like https://login.example.com.")


def _origin(split: SplitResult, what: str) -> str:
    host = (split.hostname or "").removesuffix(".")
    port = split.port
    shown = f"[{host}]" if ":" in host else host
    # The audience is compared as a string, so a default port must not appear in it.
    if port is None or port == {"https": 443, "http": 80}[split.scheme]:
        return f"{split.scheme}://{shown}"
    return f"{split.scheme}://{shown}:{port}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host


def _check_audience(audience: str | None, token_endpoint: str) -> str:
    """Return the audience, having made sure that nobody but Entra gets an assertion that Entra accepts."""
    if audience is None:
        return token_endpoint
    if not re.fullmatch(r"[\x21-\x7e]+", audience):
        raise ConfigError(
            f"The audience {audience!r} is empty or has a space or a character outside ASCII.",
            hint="Leave --audience out, or give the URL that the server expects as aud.",
        )
    if _PROOF_AUDIENCE in unquote(audience).lower():
        raise ConfigError(
            f"The audience {_PROOF_AUDIENCE} is for proofs to Microsoft Graph only. Anyone who receives such an "
            "assertion could register a key of their own with the application.",
            hint="Leave --audience out: rotate makes the proofs it needs.",
        )
    destination = urlsplit(token_endpoint).hostname
    for match in _ENTRA_HOST.finditer(unquote(audience).lower()):
        if match[0] != destination:
            raise ConfigError(
                f"The audience names {match[0]}, but the assertion is sent to {destination}, "
                "which could use it there in your name.",
                hint="Leave --audience out, or name the server that the assertion is sent to.",
            )
    return audience


def _suggest_scope(scope: str) -> str:
    with suppress(ValueError):  # of an address in brackets that is none
        split = urlsplit(scope)
        if split.netloc:
            return f"{split.scheme}://{split.netloc}/.default"
    return f"{scope.rstrip('/')}/.default"
