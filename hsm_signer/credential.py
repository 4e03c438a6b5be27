"""The credential: an identity, an endpoint and a token cache behind one small interface.

    with HsmCredential("contoso.onmicrosoft.com", client_id, "pkcs11:token=Office;id=%01", pin_source="env:PIN") as me:
        token = me.get_token("https://graph.microsoft.com/.default")

Nothing is opened before the first assertion is needed.
"""

import dataclasses
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from hsm_signer.assertion import Thumbprint
from hsm_signer.cache import TokenCache
from hsm_signer.config import Profile, missing, profile_from_arguments
from hsm_signer.crypto import Algorithm
from hsm_signer.device.pin import PinSource
from hsm_signer.entra.authority import Endpoint, check_scopes, resolve_endpoint
from hsm_signer.entra.token import AccessToken, request_token, token_form
from hsm_signer.errors import ConfigError
from hsm_signer.identity import NOBODY, Keys, Operator

if TYPE_CHECKING:
    from hsm_signer.entra.http import HttpClient

# The client capability "understands claims challenges", which asks for continuous access evaluation.
_CAE_CLAIMS = {"access_token": {"xms_cc": {"values": ["CP1"]}}}


class Settings(TypedDict, total=False):
    """What `HsmCredential` takes by keyword: the settings of a profile, read the same way."""

    module: str | Path
    module_environment: Mapping[str, str]
    pin_source: str | Sequence[str]
    pin_record: bool
    certificate: str | Path
    algorithm: str
    thumbprint: str
    send_chain: bool
    cloud: str
    authority: str
    token_endpoint: str
    audience: str
    lifetime: int
    ca_bundle: str | Path
    device_timeout: float
    network_timeout: float
    allow_last_try: bool


class HsmCredential:
    """Gets access tokens for one client, proving its identity with a key in a PKCS#11 device.

    Safe to use from several threads. A context manager: `close` logs out of the device.

    Args:
        tenant_id: GUID or domain.
        client_id: of the app registration.
        key: PKCS#11 URI, or several in order of preference.
        prompt: asks a person for the PIN, where no other source is set; None when nobody can be asked.
        settings: see `Settings`; they mean what the command line's options of the same names mean.

    Raises:
        ConfigError: a setting is missing, malformed, or contradicts another.
    """

    def __init__(
        self,
        tenant_id: str,
        client_id: str,
        key: str | Sequence[str],
        *,
        prompt: PinSource | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        arguments = {"tenant": tenant_id, "client_id": client_id, "key": key, **settings}
        self._set_up(profile_from_arguments(arguments), Operator(prompt=prompt))

    @classmethod
    def from_profile(cls, profile: Profile, *, operator: Operator = NOBODY) -> Self:
        """Return the credential that `profile` describes.

        Args:
            operator: who can be asked and told.

        Raises:
            ConfigError: as the constructor.
        """
        credential = cls.__new__(cls)
        credential._set_up(profile, operator)
        return credential

    def _set_up(self, profile: Profile, operator: Operator) -> None:
        for name in ("client_id", "key"):
            if not getattr(profile, name):
                raise missing(name)
        if profile.tenant is None and profile.token_endpoint is None and profile.authority is None:
            raise missing("tenant")
        self.endpoint: Endpoint = resolve_endpoint(
            tenant=profile.tenant,
            cloud=profile.cloud,
            authority=profile.authority,
            token_endpoint=profile.token_endpoint,
            audience=profile.audience,
        )
        self.profile = _for_adfs(profile) if self.endpoint.tenant == "adfs" else profile
        self._keys = Keys(self.profile, operator)
        self._cache = TokenCache()
        self._lock = threading.Lock()
        self._http: HttpClient | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        **kwargs: object,
    ) -> AccessToken:
        """Return an access token, from the cache where it has a good one.

        Args:
            scopes: what the token is for: one resource, as in ``https://graph.microsoft.com/.default``.
            claims: JSON of a claims challenge; the cache is then passed over.
            tenant_id: must be this credential's own tenant, or None.
            enable_cae: ask for a token that is subject to continuous access evaluation; cached apart.
            kwargs: what newer SDKs may pass; ignored.

        Raises:
            HsmSignerError: as `assertion`; and NetworkError, EntraError from the token endpoint.
        """
        if tenant_id is not None and tenant_id != self.endpoint.tenant:
            raise ConfigError(
                f"This credential is for the tenant {self.endpoint.tenant}, and a token for {tenant_id} was asked for.",
                hint="Make a credential for that tenant.",
            )
        scope = check_scopes(self.endpoint, scopes)
        wanted = _merge_claims(claims, enable_cae)
        if claims is None:
            return self._cache.get((scope, enable_cae), lambda: self._request(scope, wanted))
        token = self._request(scope, wanted)
        self._cache.put((scope, enable_cae), token)
        return token

    def assertion(self) -> str:
        """Return a fresh client assertion, made out to this credential's token endpoint. The device signs once.

        Raises:
            DeviceError, DeviceTimeout: the device is not there, or failed. The next call looks it up afresh.
            PinError: it wants a PIN that it did not get. A refused PIN is not presented again.
            KeyLookupError: the key or its certificate cannot be used.
        """
        return self._keys.assertion(self.endpoint.audience, self.profile.lifetime)

    def close(self) -> None:
        """Log out of the device and drop connections. The next call opens them anew."""
        self._keys.close()
        with self._lock:
            http, self._http = self._http, None
        if http is not None:
            http.close()

    def _request(self, scope: str, claims: str | None) -> AccessToken:
        form = token_form(
            client_id=self.profile.client_id or "", scope=scope, assertion=self.assertion(), claims=claims
        )
        return request_token(self.endpoint, form, self._client())

    def _client(self) -> "HttpClient":
        from hsm_signer.entra.http import HttpClient

        with self._lock:
            if self._http is None:
                self._http = HttpClient(timeout=self.profile.network_timeout, ca_bundle=self.profile.ca_bundle)
            return self._http


def _for_adfs(profile: Profile) -> Profile:
    """Return the profile AD FS can work with: it knows RS256 with ``x5t`` only."""
    if profile.algorithm is Algorithm.PS256 or profile.thumbprint is Thumbprint.SHA256:
        raise ConfigError(
            "AD FS accepts neither PS256 nor SHA-256 thumbprints.", hint="Use --algorithm RS256 --thumbprint sha1."
        )
    return dataclasses.replace(profile, algorithm=Algorithm.RS256)


def _merge_claims(claims: str | None, enable_cae: bool) -> str | None:
    if not enable_cae:
        return claims
    if claims is None:
        return json.dumps(_CAE_CLAIMS)
    try:
        document: dict[str, Any] = json.loads(claims)
        document.setdefault("access_token", {}).update(_CAE_CLAIMS["access_token"])
    except (ValueError, AttributeError):
        raise ConfigError(
            "The claims are not a JSON object.", hint="Pass the challenge's claims as they came."
        ) from None
    return json.dumps(document)
