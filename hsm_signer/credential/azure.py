"""Credentials in the shape of the Azure SDKs: for their clients, and for programs of your own.

    with HsmCredential("contoso.onmicrosoft.com", client_id, "pkcs11:token=Office;id=%01", pin_source="env:PIN") as me:
        token = me.get_token("https://graph.microsoft.com/.default")

They follow the protocols of azure-core (`TokenCredential`, `SupportsTokenInfo`) in structure, and need nothing of it.
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
    """What a credential takes by keyword however it is made.

    Keys:
        prompt: asks a person for the PIN, where no other source is set.
        additionally_allowed_tenants: those besides its own that ``tenant_id`` may name; "*" is any.
        isolated: have a process of its own serve the device, which may hang or crash alone, and which a forked child
            can have as well.
    """

    prompt: PinSource | None
    additionally_allowed_tenants: Sequence[str]
    isolated: bool


class ProfileKeywords(TypedDict, total=False):
    """The settings of a profile, as keywords; they mean what the command line's options of the same names mean."""

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
    """How credentials are made, synchronous and asynchronous ones alike.

    Args:
        tenant_id: GUID or domain.
        client_id: of the app registration.
        key: PKCS#11 URI, or several in order of preference.
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
        """Return the credential that a profile describes, as the command line reads it with ``--profile``.

        Args:
            name: of the table ``[profile.NAME]``. An HSM_SIGNER variable that is set wins over what is written there.
            config: the TOML file; HSM_SIGNER_CONFIG and the usual places when None.
            options: see `Options`.

        Raises:
            ConfigError: there is no such profile or file, or it is not to be trusted; or as the constructor.
        """
        profile = load_profile({}, config=None if config is None else Path(config), name=name)
        return cls._with(_tokens(profile, **options))

    @classmethod
    def from_environment(cls, **options: Unpack[Options]) -> Self:
        """Return the credential that the HSM_SIGNER variables, and then the AZURE ones, describe. No file is read.

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
    """Gets access tokens for one client, proving its identity with a key in a PKCS#11 device. Made as `Credential` is.

    Hand it to any client of the Azure SDK for Python, or ask it for tokens yourself. Safe to use from several threads,
    and, with `isolated`, in forked children. A context manager: `close` logs out of the device.

    Errors are this package's own, also inside an SDK: a chain of credentials ends with one, for a refused PIN is no
    reason to act as somebody else.
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
        """Return an access token, from memory where there is a good one.

        Args:
            scopes: what the token is for: one resource, as in ``https://graph.microsoft.com/.default``.
            claims: JSON of a claims challenge; what is in memory is then passed over, and replaced.
            tenant_id: another tenant than its own, if `additionally_allowed_tenants` has it.
            enable_cae: ask for a token that is subject to continuous access evaluation; kept apart.
            kwargs: what newer SDKs may pass; ignored.

        Returns:
            azure-core's ``AccessToken`` where azure-core is installed, else `hsm_signer.AccessToken`, which has all
            of its attributes.

        Raises:
            ScopeError: there is not exactly one scope, or it is malformed; a ValueError too.
            ConfigError: the tenant is not allowed.
            HsmSignerError: as `assertion`; and NetworkError, EntraError from the token endpoint.
        """
        query = self._tokens.build_query(scopes, claims=claims, tenant_id=tenant_id, enable_cae=enable_cae)
        return as_access_token(self._tokens.get(query))

    def get_token_info(
        self, *scopes: str, options: "azure.TokenRequestOptions | None" = None
    ) -> "azure.AccessTokenInfo":
        """Return an access token with its type, and with the time at which Entra would like it renewed.

        Args:
            scopes: as for `get_token`.
            options: ``claims``, ``tenant_id`` and ``enable_cae`` as there; unknown ones are ignored.

        Returns:
            azure-core's ``AccessTokenInfo``, else `hsm_signer.AccessToken`, as there.

        Raises:
            HsmSignerError: as `get_token`.
        """
        return as_access_token_info(self._tokens.get(query_from_options(self._tokens, scopes, options)))

    def assertion(self, context: object = None) -> str:
        """Return a fresh client assertion for other programs to exchange. The device signs once.

        A callback for MSAL (``client_credential={"client_assertion": credential.assertion}``) and for azure-identity
        (``ClientAssertionCredential(tenant_id, client_id, credential.assertion)``).

        Args:
            context: what MSAL tells callbacks that want it; not needed, for the assertion is made out to this
                credential's own token endpoint, in its own client's name.

        Raises:
            DeviceError, DeviceTimeout: the device is not there, or failed. The next call looks it up afresh.
            PinError: it wants a PIN that it did not get. A refused PIN is not presented again.
            KeyLookupError: the key or its certificate cannot be used.
        """
        return self._tokens.assertion()

    def close(self) -> None:
        """Log out of the device. The next call opens it anew."""
        self._tokens.close()


def query_from_options(
    tokens: Tokens, scopes: tuple[str, ...], options: "azure.TokenRequestOptions | None"
) -> TokenQuery:
    """Return which token a call of ``get_token_info`` is for."""
    known = options or {}
    return tokens.build_query(
        scopes,
        claims=known.get("claims"),
        tenant_id=known.get("tenant_id"),
        enable_cae=known.get("enable_cae", False),
    )


def as_access_token(token: AccessToken) -> "azure.AccessToken":
    """Return a token as azure-core's class, or as it is where there is no azure-core."""
    classes = _azure_classes()
    return cast("azure.AccessToken", classes.AccessToken(token.token, token.expires_on) if classes else token)


def as_access_token_info(token: AccessToken) -> "azure.AccessTokenInfo":
    """Return a token as azure-core's other class, or as it is where there is no azure-core."""
    if (classes := _azure_classes()) is None:
        return cast("azure.AccessTokenInfo", token)
    info: azure.AccessTokenInfo = classes.AccessTokenInfo(
        token.token, token.expires_on, token_type=token.token_type, refresh_on=token.refresh_on
    )
    return info


@functools.cache
def _azure_classes() -> ModuleType | None:
    # Not before a token is there: it takes as long to load as all of ours.
    try:
        return importlib.import_module("azure.core.credentials")
    except ImportError:
        return None
