"""The token endpoint of a client, and the audience of its assertions. Pure.

>>> resolve_endpoint(tenant="contoso.onmicrosoft.com").token_endpoint
'https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/token'
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from hsm_signer.entra.clouds import AUTHORITIES, ENTRA_HOST, Cloud
from hsm_signer.entra.url import LABEL, origin_of, parse_url, with_scheme
from hsm_signer.errors import ConfigError


@dataclass(frozen=True)
class Endpoint:
    """Where an assertion is sent, and its audience.

    Args:
        token_endpoint: URL of the token endpoint.
        audience: the assertion's `aud`.
        authority: scheme, host and any port of the token endpoint.
        tenant: GUID or domain as the user gave it; None if the token endpoint does not need one.
        entra: False for a custom token endpoint. Its scopes may have any form.
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
    """Return the endpoint for these settings.

    Args:
        tenant: GUID or domain of the tenant, or `adfs`. Not needed with a token endpoint or a CIAM authority.
        cloud: the Microsoft cloud. It determines the login host, unless `authority` does.
        authority: the URL of the login host; https if it has no scheme.
        token_endpoint: full URL of any server that supports RFC 7523. It overrides tenant, cloud and authority.
        audience: the assertion's `aud`. Default: the token endpoint.

    Raises:
        ConfigError: a setting is missing, malformed or unsafe.
    """
    if token_endpoint is not None:
        split = parse_url(token_endpoint, "token endpoint")
        origin = origin_of(split)
        url = origin + (split.path or "/") + (f"?{split.query}" if split.query else "")
        return Endpoint(url, _check_audience(audience, url), origin, tenant, entra=False)

    split = parse_url(with_scheme(authority or AUTHORITIES[cloud]), "authority")
    origin = origin_of(split)
    if split.path.strip("/") or split.query:
        raise ConfigError(
            f"The authority has a path or a query: {authority!r}.",
            hint=f"Use --authority {origin}, and set the tenant with --tenant.",
        )
    name = _check_tenant(tenant, origin)
    if name == "adfs":
        if authority is None:
            raise ConfigError(
                "The tenant 'adfs' stands for your own AD FS server, but no authority is set.",
                hint="Set the server, for example --authority https://adfs.example.com",
            )
        url = f"{origin}/adfs/oauth2/token"
    else:
        url = f"{origin}/{name}/oauth2/v2.0/token"
    return Endpoint(url, _check_audience(audience, url), origin, name, entra=True)


def implied_tenant(authority: str) -> str | None:
    """Return the tenant in the host name of an authority, as with Entra External ID, or None.

    >>> implied_tenant("https://contoso.ciamlogin.com")
    'contoso.onmicrosoft.com'

    Raises:
        ConfigError: the authority is malformed or unsafe.
    """
    host = urlsplit(origin_of(parse_url(with_scheme(authority), "authority"))).hostname or ""
    return f"{host.removesuffix(_CIAM)}.onmicrosoft.com" if host.endswith(_CIAM) else None


# The audience of proofs for Graph's addKey and removeKey. No token endpoint accepts them:
# https://learn.microsoft.com/graph/application-rollkey-prooftoken
_PROOF_AUDIENCE = "00000002-0000-0000-c000-000000000000"
_GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_DOMAIN = re.compile(rf"(?=.{{1,253}}\Z){LABEL}(?:\.{LABEL})+")
_SHARED_TENANTS = {
    "common": "stands for every user's own tenant",
    "organizations": "stands for every user's own tenant",
    "consumers": "stands for personal Microsoft accounts",
}
_CIAM = ".ciamlogin.com"


def _check_tenant(tenant: str | None, origin: str) -> str:
    if not tenant:
        if implied := implied_tenant(origin):
            return implied
        raise ConfigError("No tenant is set.", hint="Set the tenant's GUID or domain: --tenant TENANT")
    name = tenant.lower()
    if reason := _SHARED_TENANTS.get(name):
        raise ConfigError(
            f"The tenant {tenant!r} {reason}. A program that signs in as itself must name one tenant.",
            hint='Set --tenant to the "Directory (tenant) ID" on the app\'s Overview page.',
        )
    if name == "adfs":
        return name
    if not (_GUID.fullmatch(tenant) or _DOMAIN.fullmatch(tenant)):
        raise ConfigError(
            f"The tenant {tenant!r} is neither a GUID nor a domain.",
            hint="Set --tenant to a value like 72f988bf-86f1-41af-91ab-2d7cd011db47 or contoso.onmicrosoft.com.",
        )
    return tenant


def _check_audience(audience: str | None, token_endpoint: str) -> str:
    """Return the audience. Refuse one with which another server could use the assertion at Entra."""
    if audience is None:
        return token_endpoint
    if not re.fullmatch(r"[\x21-\x7e]+", audience):
        raise ConfigError(
            f"The audience {audience!r} is empty, or contains a space or a character outside ASCII.",
            hint="Omit --audience, or set it to the URL that the server expects as aud.",
        )
    if _PROOF_AUDIENCE in unquote(audience).lower():
        raise ConfigError(
            f"The audience {_PROOF_AUDIENCE} is for proofs to Microsoft Graph only. Anyone who receives such an "
            "assertion could register their own key with the application.",
            hint="Omit --audience. rotate makes the proofs that it needs.",
        )
    destination = urlsplit(token_endpoint).hostname
    for match in ENTRA_HOST.finditer(unquote(audience).lower()):
        if match[0] != destination:
            raise ConfigError(
                f"The audience names {match[0]}, but the assertion is sent to {destination}, "
                "which could use it to sign in as your application.",
                hint="Omit --audience, or set it to the server that the assertion is sent to.",
            )
    return audience
