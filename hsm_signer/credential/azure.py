"""Credentials for the clients of the Azure SDKs, and for your own programs.

    with HsmCredential("contoso.onmicrosoft.com", client_id, "pkcs11:token=Office;id=%01", pin_source="env:PIN") as me:
        token = me.get_token("https://graph.microsoft.com/.default")

They implement azure-core's protocols (`TokenCredential`, `SupportsTokenInfo`), but do not need azure-core.
"""

import functools
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Self, TypedDict, Unpack, cast

from hsm_signer.config.profile import Profile, load_profile, profile_from_arguments, profile_from_environment
from hsm_signer.credential.tokens import TokenQuery, Tokens
from hsm_signer.device.access import Operator
from hsm_signer.device.pin.pin import PinSource
from hsm_signer.entra.token import AccessToken

if TYPE_CHECKING:
    from azure.core import credentials as azure


class Options(TypedDict, total=False):
    """Keyword arguments of the constructor and of the class methods that make a credential.

    Keys:
        prompt: asks a person for the PIN if no other source is set.
        additionally_allowed_tenants: other tenants that ``tenant_id`` of `get_token` may name; "*" allows any.
        isolated: open the device in a separate process, so that a hanging or crashing module does not affect this one.
            A forked child can then open the device too.
    """

    prompt: PinSource | None
    additionally_allowed_tenants: Sequence[str]
    isolated: bool


class ProfileKeywords(TypedDict, total=False):
    """The settings of a profile, as keywords. They mean the same as the command-line options with these names."""

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


class Credential:
    """The base of the synchronous and the asynchronous credential.

    Args:
        tenant_id: GUID or domain of the tenant.
        client_id: application (client) ID of the app registration.
        key: PKCS#11 URI of the key, or several URIs in order of preference.
        prompt, additionally_allowed_tenants, isolated: see `Options`.
        settings: see `ProfileKeywords`.

    Raises:
        ConfigError: a setting is missing, malformed, or contradicts another.
    """

    _tokens: Tokens

    def __init__(
        self,
        tenant_id: str,
        client_id: str,
        key: str | Sequence[str],
        *,
        prompt: PinSource | None = None,
        additionally_allowed_tenants: Sequence[str] = (),
        isolated: bool = False,
        **settings: Unpack[ProfileKeywords],
    ) -> None:
        profile = profile_from_arguments({"tenant": tenant_id, "client_id": client_id, "key": key, **settings})
        self._tokens = _tokens(profile, prompt, additionally_allowed_tenants, isolated)

    @classmethod
    def from_profile(cls, name: str, *, config: str | Path | None = None, **options: Unpack[Options]) -> Self:
        """Return the credential for a profile, as the command line reads it with ``--profile``.

        Args:
            name: NAME of the table ``[profile.NAME]``. HSM_SIGNER variables override the profile.
            config: the TOML file. None: HSM_SIGNER_CONFIG, else the default files.
            options: see `Options`.

        Raises:
            ConfigError: there is no such profile or file, or another user could change it; or as the constructor.
        """
        profile = load_profile({}, config=None if config is None else Path(config), name=name)
        return cls._with(_tokens(profile, **options))

    @classmethod
    def from_environment(cls, **options: Unpack[Options]) -> Self:
        """Return the credential for the HSM_SIGNER and AZURE variables. The former win. No configuration file is read.

        Args:
            options: see `Options`.

        Raises:
            ConfigError: as the constructor.
        """
        return cls._with(_tokens(profile_from_environment(), **options))

    @classmethod
    def _with(cls, tokens: Tokens) -> Self:
        credential = cls.__new__(cls)
        credential._tokens = tokens
        return credential


def _tokens(
    profile: Profile,
    prompt: PinSource | None = None,
    additionally_allowed_tenants: Sequence[str] = (),
    isolated: bool = False,
) -> Tokens:
    return Tokens(
        profile,
        Operator(prompt=prompt),
        additionally_allowed_tenants=additionally_allowed_tenants,
        isolated=isolated,
    )


class HsmCredential(Credential):
    """Gets access tokens for one client, whose key is in a PKCS#11 device. See `Credential` for the arguments.

    Pass it to any client of the Azure SDK for Python, or call `get_token` yourself. Safe to use from several threads,
    and, with `isolated`, in forked children. A context manager: `close` logs out of the device.

    It raises this package's own errors, also inside an SDK. They end a chain of credentials: after a wrong PIN, the
    program must not continue with another identity.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()

    def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        **kwargs: object,
    ) -> "azure.AccessToken":
        """Return an access token, from memory if there is one that does not expire soon.

        Args:
            scopes: one scope, such as ``https://graph.microsoft.com/.default``.
            claims: a claims challenge, JSON. A new token replaces the one in memory.
            tenant_id: another tenant, if `additionally_allowed_tenants` allows it.
            enable_cae: request a token that supports continuous access evaluation. It is cached separately.
            kwargs: ignored; newer SDKs may pass more.

        Returns:
            azure-core's ``AccessToken`` if azure-core is installed. Otherwise `hsm_signer.AccessToken`, which has the
            same attributes and more. Its ``expires_on`` is in epoch seconds.

        Raises:
            ScopeError: there is not exactly one scope, or it is malformed. It is also a ValueError.
            ConfigError: the tenant is not allowed.
            HsmSignerError: as `assertion`; and NetworkError, EntraError from the token endpoint.
        """
        query = self._tokens.build_query(scopes, claims=claims, tenant_id=tenant_id, enable_cae=enable_cae)
        return as_access_token(self._tokens.get(query))

    def get_token_info(
        self, *scopes: str, options: "azure.TokenRequestOptions | None" = None
    ) -> "azure.AccessTokenInfo":
        """Return an access token with its type and the time at which Entra suggests to renew it.

        Args:
            scopes: as for `get_token`.
            options: ``claims``, ``tenant_id`` and ``enable_cae`` as for `get_token`; unknown ones are ignored.

        Returns:
            azure-core's ``AccessTokenInfo`` if azure-core is installed, otherwise `hsm_signer.AccessToken`.

        Raises:
            HsmSignerError: as `get_token`.
        """
        return as_access_token_info(self._tokens.get(query_from_options(self._tokens, scopes, options)))

    def assertion(self, context: object = None) -> str:
        """Return a new client assertion that other programs can exchange. The device signs once.

        A callback for MSAL (``client_credential={"client_assertion": credential.assertion}``) and for azure-identity
        (``ClientAssertionCredential(tenant_id, client_id, credential.assertion)``).

        Args:
            context: MSAL passes it to callbacks; ignored. The assertion is for this credential's own client and token
                endpoint.

        Raises:
            DeviceError, DeviceTimeout: the device is missing or failed. The next call looks for it again.
            PinError: the PIN was refused or is not available. A wrong PIN is not sent again.
            KeyLookupError: the key or its certificate cannot be used.
        """
        return self._tokens.assertion()

    def close(self) -> None:
        """Log out of the device. The next call opens it again."""
        self._tokens.close()


def query_from_options(
    tokens: Tokens, scopes: tuple[str, ...], options: "azure.TokenRequestOptions | None"
) -> TokenQuery:
    """Return the query for a call of ``get_token_info``."""
    known = options or {}
    return tokens.build_query(
        scopes,
        claims=known.get("claims"),
        tenant_id=known.get("tenant_id"),
        enable_cae=known.get("enable_cae", False),
    )


def as_access_token(token: AccessToken) -> "azure.AccessToken":
    """Return a token as azure-core's ``AccessToken``, or unchanged without azure-core."""
    classes = _azure_classes()
    return cast("azure.AccessToken", classes.AccessToken(token.token, token.expires_on) if classes else token)


def as_access_token_info(token: AccessToken) -> "azure.AccessTokenInfo":
    """Return a token as azure-core's ``AccessTokenInfo``, or unchanged without azure-core."""
    if (classes := _azure_classes()) is None:
        return cast("azure.AccessTokenInfo", token)
    info: azure.AccessTokenInfo = classes.AccessTokenInfo(
        token.token, token.expires_on, token_type=token.token_type, refresh_on=token.refresh_on
    )
    return info


@functools.cache
def _azure_classes() -> ModuleType | None:
    # Imported only when there is a token: loading it takes as long as loading this whole package.
    try:
        return importlib.import_module("azure.core.credentials")
    except ImportError:
        return None
