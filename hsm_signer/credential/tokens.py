"""Get the access tokens of a profile: from memory, or from Entra in exchange for a new assertion.

    with Tokens(profile) as tokens:
        token = tokens.get(tokens.build_query(("https://graph.microsoft.com/.default",)))

A query is checked without the device and the network. The device is opened when the first assertion is needed.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self

from hsm_signer.config.profile import Profile
from hsm_signer.credential.cache import TokenCache
from hsm_signer.credential.client import resolve_client
from hsm_signer.credential.keys import Keys
from hsm_signer.credential.unregistered import with_certificate
from hsm_signer.device.access import UNATTENDED, Operator
from hsm_signer.entra.authority import Endpoint, resolve_endpoint
from hsm_signer.entra.scopes import check_scopes
from hsm_signer.entra.token import AccessToken, request_token, token_form
from hsm_signer.errors import ConfigError, EntraError
from hsm_signer.jwt.compact import parse_jwt
from hsm_signer.system.secret import Secret, hidden_locals
from hsm_signer.system.strict_json import parse_json

if TYPE_CHECKING:
    from hsm_signer.entra.http import HttpClient

logger = logging.getLogger(__name__)

ANY_TENANT = "*"
"""As an allowed tenant: any tenant."""

# The client capability "understands claims challenges", which requests continuous access evaluation.
_CAE_CLAIMS = {"access_token": {"xms_cc": {"values": ["CP1"]}}}


@dataclasses.dataclass(frozen=True)
class TokenQuery:
    """Which token is needed.

    Attributes:
        endpoint: the token endpoint of the tenant.
        scope: the `scope` parameter of the request.
        enable_cae: whether the token should support continuous access evaluation.
        claims: the claims challenge that the new token must meet, JSON, or None.
    """

    endpoint: Endpoint
    scope: str
    enable_cae: bool = False
    claims: str | None = None


class Tokens:
    """Gets access tokens for one client. Safe to use from several threads, and in a process forked from this one.

    A forked child keeps the tokens, but opens the device itself. If the parent has loaded the module, `isolated` must
    be true for that.

    A context manager: `close` logs out of the device.

    Args:
        profile: has a client ID, a key, and a tenant or what replaces one (see `require_settings`).
        operator: how to reach the person at the terminal.
        additionally_allowed_tenants: other tenants that queries may name; "*" allows any.
        isolated: open the device in a separate process, so that a hanging or crashing module does not affect this one.

    Attributes:
        client: the client of the tokens.
        keys: the keys of the profile.

    Raises:
        ConfigError: a setting is missing, malformed, or contradicts another.
    """

    def __init__(
        self,
        profile: Profile,
        operator: Operator = UNATTENDED,
        *,
        additionally_allowed_tenants: Iterable[str] = (),
        isolated: bool = False,
    ) -> None:
        self.client = resolve_client(profile, "key")
        self._profile = profile
        self._slow = operator.slow
        self._allowed = frozenset(tenant.lower() for tenant in additionally_allowed_tenants)
        self.keys = Keys(profile, self.client, operator, isolated=isolated)
        self._cache = TokenCache()
        self._http: HttpClient | None = None
        # Programs request the same few tokens again and again, and building a query takes longer than finding a token.
        self._cached_query = functools.lru_cache(maxsize=128)(self._new_query)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def build_query(
        self,
        scopes: tuple[str, ...],
        *,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
    ) -> TokenQuery:
        """Check the arguments, and return a query for a token.

        Args:
            scopes: one scope, such as ``https://graph.microsoft.com/.default``.
            claims: a claims challenge, JSON. A new token replaces the one in memory.
            tenant_id: another tenant, if that is allowed.
            enable_cae: request continuous access evaluation. Such tokens are cached separately.

        Raises:
            ScopeError: there is not exactly one scope, or it is malformed.
            ConfigError: the tenant is not allowed.
        """
        query = self._cached_query(scopes, tenant_id, enable_cae)
        return query if claims is None else dataclasses.replace(query, claims=claims)

    def get(self, query: TokenQuery) -> AccessToken:
        """Return the token for a query, from memory if there is one that does not expire soon. Signs at most once.

        Raises:
            HsmSignerError: as `assertion`; and NetworkError, EntraError from the token endpoint.
        """
        return self._cache.get(_unchallenged(query), lambda: self._request(query), query.claims)

    def submit(self, query: TokenQuery) -> "Future[AccessToken]":
        """Do what `get` does, but return at once."""
        return self._cache.submit(_unchallenged(query), lambda: self._request(query), query.claims)

    @hidden_locals()
    def assertion(self) -> str:
        """Return a new client assertion for this client's own token endpoint. The device signs once.

        Raises:
            DeviceError, DeviceTimeout: the device is missing or failed. The next call looks for it again.
            PinError: the PIN was refused or is not available. A wrong PIN is not sent again.
            KeyLookupError: the key or its certificate cannot be used.
        """
        return self._assertion(self.client.endpoint)

    def close(self) -> None:
        """Log out of the device. The next call opens it again."""
        self.keys.close()

    def _new_query(self, scopes: tuple[str, ...], tenant_id: str | None, enable_cae: bool) -> TokenQuery:
        endpoint = self._endpoint_of(tenant_id)
        return TokenQuery(endpoint, check_scopes(endpoint, scopes), enable_cae)

    def _endpoint_of(self, tenant: str | None) -> Endpoint:
        own = self.client.endpoint
        # AD FS has no tenants: like azure-identity, ignore the tenant in a service's challenge.
        if tenant is None or own.tenant == "adfs" or (own.tenant is not None and tenant.lower() == own.tenant.lower()):
            return own
        if not own.entra:
            raise ConfigError(
                f"This credential gets tokens only from {own.token_endpoint}, not for the tenant {tenant}.",
                hint="Create a credential for that tenant, without token_endpoint.",
            )
        if not self._allowed & {ANY_TENANT, tenant.lower()}:
            raise ConfigError(
                f"This credential is for the tenant {own.tenant}, not for {tenant}.",
                hint=f"Add {tenant} to additionally_allowed_tenants, or '*' to allow any tenant.",
            )
        return resolve_endpoint(tenant=tenant, authority=own.authority)

    def _assertion(self, endpoint: Endpoint) -> str:
        return self.keys.assertion(endpoint.audience, self._profile.lifetime)

    @hidden_locals()
    def _request(self, query: TokenQuery) -> AccessToken:
        claims = _merge_claims(query.claims, query.enable_cae)
        with self._client().connecting_to(query.endpoint.token_endpoint) as http:
            assertion = Secret(self._assertion(query.endpoint))
            form = token_form(client_id=self.client.client_id, scope=query.scope, assertion=assertion, claims=claims)
            logger.debug("exchanging the assertion at %s", query.endpoint.token_endpoint)
            try:
                return request_token(query.endpoint, form, http)
            except EntraError as error:
                signed = self.keys.find_certificate(parse_jwt(assertion.reveal()).header)
                if signed is None:
                    raise
                raise with_certificate(error, signed[1], self._profile, signed[0]) from None

    def _client(self) -> "HttpClient":
        from hsm_signer.entra.http import HttpClient

        # A new client has no open connection, so two threads may each create one.
        if self._http is None:
            self._http = HttpClient(
                timeout=self._profile.network_timeout, ca_bundle=self._profile.ca_bundle, slow=self._slow
            )
        return self._http


def _unchallenged(query: TokenQuery) -> TokenQuery:
    return query if query.claims is None else dataclasses.replace(query, claims=None)


def _merge_claims(claims: str | None, enable_cae: bool) -> str | None:
    if not enable_cae:
        return claims
    if claims is None:
        return json.dumps(_CAE_CLAIMS)
    try:
        document: dict[str, Any] = parse_json(claims)
        document.setdefault("access_token", {}).update(_CAE_CLAIMS["access_token"])
    except (ValueError, AttributeError):
        raise ConfigError(
            "The claims are not a JSON object.", hint="Pass the claims of the challenge unchanged."
        ) from None
    return json.dumps(document)
