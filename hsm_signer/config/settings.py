"""The table of settings: for each setting its names, its help, and the function that reads its value.

`profile` reads settings with this table, and the command line makes its options from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hsm_signer.config.values import (
    Source,
    one_of,
    read_algorithm,
    read_environment,
    read_flag,
    read_key,
    read_module,
    read_path,
    read_pin_source,
    read_seconds,
    read_text,
    read_texts,
    whole_seconds,
)
from hsm_signer.entra.clouds import Cloud
from hsm_signer.errors import ConfigError
from hsm_signer.jwt.assertion import DEFAULT_LIFETIME, FILE_LIFETIME, KEPT_BY_READERS, MAXIMUM_LIFETIME, Thumbprint

DEFAULT_DEVICE_TIMEOUT = 60.0
DEFAULT_NETWORK_TIMEOUT = 30.0
"""Seconds."""

MAXIMUM_GRACE = 30 * 86400
"""Seconds. A longer grace period is probably a typing error: no assertion lives longer than a day."""


@dataclass(frozen=True)
class Setting:
    """One setting: a row of the table.

    Attributes:
        name: of the key in a profile and of the `Profile` field; the option and the variable are named after it.
        read: returns the value of the field, or raises ConfigError.
        metavar: what the option's value looks like in help; None for a flag.
        help: what the setting is, and its default.
        panel: the section of the help that lists the option; None for a setting without an option.
        where_to_find: completes the hint "It is …", for a setting that commands require.
        has_variable: whether there is an HSM_SIGNER variable.
        azure: the Azure SDKs' variable for this setting, or None.
        azure_unless: another setting; if that one is set, `azure` is ignored.
        repeatable: whether the option may be given several times.
        in_profile: whether profiles may have it; some settings are for a single run only.
        negated: whether the option is a flag that switches the setting off.
    """

    name: str
    read: Callable[[Any, Source], Any]
    metavar: str | None = None
    help: str = ""
    panel: str | None = None
    where_to_find: str = ""
    has_variable: bool = True
    azure: str | None = None
    azure_unless: str | None = None
    repeatable: bool = False
    in_profile: bool = True
    negated: bool = False

    @property
    def option(self) -> str:
        """The option's name: "--client-id"."""
        return ("--no-" if self.negated else "--") + self.name.replace("_", "-")

    @property
    def variable(self) -> str | None:
        """The variable's name: "HSM_SIGNER_CLIENT_ID". A flag has none."""
        return f"HSM_SIGNER_{self.name.upper()}" if self.has_variable and self.metavar else None

    @property
    def label(self) -> str:
        """The name in a sentence: "client ID"."""
        return " ".join("ID" if word == "id" else word for word in self.name.split("_"))


_TABLE = (
    Setting(
        "tenant",
        read_text,
        "TENANT",
        panel="Assertion",
        help="ID (GUID) or domain of the tenant.",
        where_to_find='"Directory (tenant) ID" on the app\'s Overview page',
        azure="AZURE_TENANT_ID",
    ),
    Setting(
        "client_id",
        read_text,
        "ID",
        panel="Assertion",
        help="Application (client) ID of the app registration.",
        where_to_find='"Application (client) ID" on the app\'s Overview page',
        azure="AZURE_CLIENT_ID",
    ),
    Setting(
        "scope",
        read_texts,
        "SCOPE",
        panel="Exchange",
        help="API that the token is for, followed by /.default: https://graph.microsoft.com/.default.",
        where_to_find="the API that the token is for, for example https://graph.microsoft.com/.default",
        repeatable=True,
    ),
    Setting(
        "key",
        read_key,
        "URI",
        panel="Device",
        help="PKCS#11 URI of the key (RFC 7512), or file:PATH for a key file, which rotate updates. Repeat it to name "
        "keys on several devices, the preferred one first.",
        where_to_find="a PKCS#11 URI, as hsm-signer device list shows it",
        repeatable=True,
    ),
    Setting(
        "module",
        read_module,
        "FILE",
        panel="Device",
        help="PKCS#11 module: the path of the vendor's library, or a name: ykcs11, opensc, tpm2, softhsm2. Default: "
        "the one in the URI, else the one that shows the device.",
    ),
    Setting("module_environment", read_environment, help="Variables to set before the module is loaded."),
    Setting(
        "pin_source",
        read_pin_source,
        "SOURCE",
        panel="Device",
        help="Where the PIN comes from: prompt, file:PATH, env:NAME, fd:N, command:ARGV, credential:NAME, protected "
        "(the device's PIN pad), none. Default: the URI's pin-source, else prompt.",
    ),
    Setting(
        "certificate",
        read_path,
        "FILE",
        panel="Assertion",
        help="Certificate of the key, PEM or DER. Default: the one on the device with the key's CKA_ID.",
    ),
    Setting(
        "algorithm",
        read_algorithm,
        "NAME",
        panel="Assertion",
        help="Signature algorithm: RS256 (default), PS256, or auto: PS256 if the device can, else RS256.",
    ),
    Setting(
        "thumbprint",
        one_of(Thumbprint),
        "HASH",
        panel="Assertion",
        help="Hash that identifies the certificate: sha1 or sha256. Default: sha1 with RS256, sha256 with PS256.",
    ),
    Setting(
        "send_chain",
        read_flag,
        panel="Assertion",
        help="Send the certificate chain (x5c), for subject name and issuer authentication.",
    ),
    Setting(
        "cloud", one_of(Cloud), "CLOUD", panel="Assertion", help="Microsoft cloud: public (default), usgov or china."
    ),
    Setting(
        "authority",
        read_text,
        "URL",
        panel="Assertion",
        help="Login host, such as https://login.microsoftonline.us. Plain http on loopback only. Default: the cloud's.",
        azure="AZURE_AUTHORITY_HOST",
        azure_unless="cloud",
    ),
    Setting(
        "token_endpoint",
        read_text,
        "URL",
        panel="Assertion",
        help="Full URL of a token endpoint that supports RFC 7523. Default: the tenant's, at the authority.",
    ),
    Setting(
        "audience",
        read_text,
        "URL",
        panel="Assertion",
        help="Audience (aud) of the assertion. Default: the token endpoint.",
        has_variable=False,
    ),
    Setting(
        "lifetime",
        whole_seconds(1, MAXIMUM_LIFETIME, "For example 600."),
        "SECONDS",
        panel="Assertion",
        help=f"Lifetime of an assertion. Default: {DEFAULT_LIFETIME}, or {FILE_LIFETIME} for assertion-file.",
        has_variable=False,
    ),
    Setting(
        "object_id",
        read_text,
        "ID",
        panel="Graph",
        help="Object ID of the application in the directory, which is not its client ID.",
    ),
    Setting(
        "service_principal",
        read_flag,
        panel="Graph",
        help="Register keys with the service principal. Default: with the application.",
    ),
    Setting(
        "graph",
        read_text,
        "URL",
        panel="Graph",
        help="Microsoft Graph host, such as https://dod-graph.microsoft.us. Default: the cloud's.",
    ),
    Setting(
        "grace",
        whole_seconds(0, MAXIMUM_GRACE, "Omit it: the default follows from the lifetime of assertions."),
        "SECONDS",
        panel="Graph",
        help="How long the old certificate stays registered after the switch to the next key, for programs that still "
        f"use assertions made with it; 0 removes it at once. Default: the lifetime of assertions, at least "
        f"{FILE_LIFETIME}, plus {KEPT_BY_READERS}.",
    ),
    Setting("ca_bundle", read_path, "FILE", panel="Exchange", help="Extra CA certificates to trust (PEM)."),
    Setting(
        "device_timeout",
        read_seconds,
        "SECONDS",
        panel="Device",
        help=f"Time limit for one call into the device. Default: {DEFAULT_DEVICE_TIMEOUT:g}.",
    ),
    Setting(
        "network_timeout",
        read_seconds,
        "SECONDS",
        panel="Exchange",
        help=f"Time limit for one request, including retries. Default: {DEFAULT_NETWORK_TIMEOUT:g}.",
    ),
    Setting(
        "pin_record",
        read_flag,
        panel="Device",
        help="Log in unattended without recording refused PINs. The record keeps repeated runs from locking a device.",
        negated=True,
    ),
    Setting(
        "allow_last_try",
        read_flag,
        panel="Device",
        help="Log in even if a wrong PIN would lock the device.",
        in_profile=False,
    ),
    Setting("wait", read_flag, panel="Device", help="Wait until the device is plugged in.", in_profile=False),
)

SETTINGS: Mapping[str, Setting] = {setting.name: setting for setting in _TABLE}
"""The table, by name."""


def missing(*names: str) -> ConfigError:
    """Return the error for required settings that are not set. It says where to find each, and how to set it."""
    settings = [SETTINGS[name] for name in names]
    message = f"No {_listed([setting.label for setting in settings], 'or')} is set."
    if len(settings) == 1:
        (setting,) = settings
        ways = [_typed(setting), *filter(None, (setting.variable, setting.azure))]
        hint = f"It is {setting.where_to_find}: {', '.join(ways)}, or {setting.name} in a profile."
        return ConfigError(message, hint=hint)
    options = _listed([setting.option for setting in settings], "and")
    hint = f"Set them with {options}, in a profile, or in variables such as {settings[0].variable}."
    width = max(len(_typed(setting)) for setting in settings)
    commands = tuple(f"{_typed(setting):<{width}}  # {setting.where_to_find}" for setting in settings)
    return ConfigError(message, hint=hint, commands=commands)


def _typed(setting: Setting) -> str:
    return f"{setting.option} {setting.metavar}"


def _listed(words: list[str], conjunction: str) -> str:
    *most, last = words
    return f"{', '.join(most)} {conjunction} {last}" if most else last
