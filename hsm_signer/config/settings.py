"""The table of settings: what each is called everywhere, and how its value is read.

`config` puts profiles together from it, and the command line makes its options from it.
"""

import difflib
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from hsm_signer.config.keyfile import KEY_FILE, read_key_file
from hsm_signer.crypto import Algorithm
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.entra.authority import Cloud
from hsm_signer.errors import ConfigError, UriError
from hsm_signer.jwt.assertion import DEFAULT_LIFETIME, FILE_LIFETIME, KEPT_BY_READERS, MAXIMUM_LIFETIME, Thumbprint
from hsm_signer.system.environment import withhold

logger = logging.getLogger(__name__)

E = TypeVar("E", bound=StrEnum)

MAXIMUM_GRACE = 30 * 86400
"""Seconds. Longer is a mistake in the number: no assertion lives longer than a day."""


@dataclass(frozen=True)
class Source:
    """Where a value was found, for messages and relative paths.

    Attributes:
        name: "--lifetime", "HSM_SIGNER_LIFETIME", "lifetime in profile 'prod' of FILE".
        directory: what relative paths are relative to; None is the current directory.
        is_argument: whether other users of the machine can read it in the list of processes.
    """

    name: str
    directory: Path | None = None
    is_argument: bool = False


@dataclass(frozen=True)
class Setting:
    """One setting, under all its names.

    Attributes:
        name: of the profile key and the `Profile` field.
        help: what it means, in a line.
        read: turns what was found into the value of the field.
        metavar: what the option's value looks like in help; None for a flag.
        variable: the HSM_SIGNER variable, or None.
        azure: the variable the Azure SDKs share, or None.
        azure_unless: the setting that says the same in other words; where it is given, `azure` is not looked at.
        repeatable: whether the option may be given several times.
        panel: of the help where its option stands; None: it is for profiles only.
        in_profile: whether there is a profile key; some settings are for a single run only.
        negated: whether the option, a flag, switches the setting off.
    """

    name: str
    panel: str | None
    help: str
    read: Callable[[Any, Source], Any]
    metavar: str | None = None
    variable: str | None = None
    azure: str | None = None
    azure_unless: str | None = None
    repeatable: bool = False
    in_profile: bool = True
    negated: bool = False

    @property
    def flag(self) -> str:
        """The option's name."""
        return ("--no-" if self.negated else "--") + self.name.replace("_", "-")


def _text(value: object, source: Source) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(
            f"{source.name} must be a string, but is {_kind(value)}.", hint="Give a value, in a profile in quotes."
        )
    return value.strip()


_LONGEST = 2048
"""No id, host or scope is as long as that. An assertion with more could not be read back from its file."""


def _plain(value: object, source: Source) -> str:
    """Read a text that is sent to servers: no octets that are not UTF-8, and nothing that cannot be seen."""
    text = _text(value, source)
    if not text.isprintable():
        raise ConfigError(
            f"{source.name} holds a character that cannot be displayed, or is not UTF-8.",
            hint="Type it again: copied text may contain invisible characters.",
        )
    if len(text) > _LONGEST:
        raise ConfigError(f"{source.name} has {len(text)} characters.", hint=f"{_LONGEST} are allowed at most.")
    return text


def _plain_texts(value: object, source: Source) -> tuple[str, ...]:
    return tuple(_plain(text, source) for text in _texts(value, source))


def _texts(value: object, source: Source) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.split())
    if isinstance(value, list | tuple):
        return tuple(_text(item, source) for item in value)
    raise ConfigError(
        f"{source.name} must be a string or a list of strings, but is {_kind(value)}.",
        hint='Write it in quotes: "VALUE", or several as ["FIRST", "SECOND"].',
    )


def _path(value: object, source: Source) -> Path:
    text = str(value) if isinstance(value, Path) else _text(value, source)
    if "\0" in text:
        raise ConfigError(f"{source.name} must be a path, but holds a NUL character.", hint="Give the path of a file.")
    # os.path: it leaves a home directory nobody knows as it is, and the message that the file is missing shows it.
    return (source.directory or Path()) / os.path.expanduser(text)


def _module(value: object, source: Source) -> Path:
    path = _path(value, source)
    # A word without a slash names an installed library, as for dlopen; anything else is a file, also ./FILE.
    if not isinstance(value, Path) and "/" not in str(value):
        return path
    return absolute(path, source.name)


def _flag(value: object, source: Source) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(
            f"{source.name} must be true or false, but is {_kind(value)}.", hint="Write true or false, without quotes."
        )
    return value


def _seconds(value: object, source: Source) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]  # judged below
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number <= 86400:
        raise ConfigError(
            f"{source.name} must be a number of seconds, more than 0 and at most 86400.", hint="For example 60."
        )
    return number


def _lifetime(value: object, source: Source) -> int:
    number = _seconds(value, source)
    if number != int(number):
        raise ConfigError(
            f"{source.name} must be a whole number of seconds, 1 to {MAXIMUM_LIFETIME}.", hint="For example 600."
        )
    return int(number)


def _grace(value: object, source: Source) -> int:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]  # judged below
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= MAXIMUM_GRACE or number != int(number):
        raise ConfigError(
            f"{source.name} must be a whole number of seconds, 0 to {MAXIMUM_GRACE}.",
            hint="Best leave it out: the default follows from the lifetime of assertions.",
        )
    return int(number)


def _one_of(choices: type[E]) -> Callable[[object, Source], E]:
    def read(value: object, source: Source) -> E:
        text = _text(value, source)
        for choice in choices:
            if choice.value.lower() == text.lower():
                return choice
        raise ConfigError(
            f"{source.name} is {text!r}; it must be one of {', '.join(choices)}.", hint=nearest(text, list(choices))
        )

    return read


def _algorithm(value: object, source: Source) -> Algorithm | None:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return None
    try:
        return _one_of(Algorithm)(value, source)
    except ConfigError as error:
        raise ConfigError(error.message.removesuffix(".") + ", auto.", hint=error.hint) from None


def from_key_file(value: object, source: Source) -> Path | None:
    """Return the file that ``file:PATH`` names, or None for URIs."""
    texts = _texts(value, source)
    if not any(text.startswith(KEY_FILE) for text in texts):
        return None
    if len(texts) > 1:
        raise ConfigError(
            f"{source.name} names a key file beside other keys.",
            hint="A key file stands alone: it says which key it is.",
        )
    return _path(texts[0].removeprefix(KEY_FILE), source)


def _uris(value: object, source: Source) -> tuple[Pkcs11Uri, ...]:
    if file := from_key_file(value, source):
        # One that is not there yet is for `rotate` to begin.
        return (read_key_file(file).current.uri,) if os.path.exists(file) else ()
    return tuple(_uri(text, source) for text in _texts(value, source))


def _uri(text: str, source: Source) -> Pkcs11Uri:
    try:
        uri = Pkcs11Uri.parse(text)
    except UriError as error:
        hint = error.hint or "It looks like pkcs11:token=Office;id=%01 (RFC 7512)."
        raise UriError(f"{source.name}: {error.message}", hint=hint, position=error.position) from None
    if uri.pin_value is not None:
        if source.is_argument:
            raise ConfigError(
                f"{source.name} holds a PIN (pin-value), which every user of this machine could read.",
                hint="Take it out, and use --pin-source. If it was used like this before, change the PIN.",
            )
        logger.warning("%s holds a PIN in clear (pin-value); a --pin-source is safer", source.name)
        withhold(source.name)
    _withhold_variable(uri.pin_source or "")
    return uri.beside(source.directory) if source.directory else uri


def _pin_source(value: object, source: Source) -> str | tuple[str, ...]:
    if isinstance(value, list):
        return _texts(value, source)
    text = _text(value, source)
    _withhold_variable(text)
    return text


def _withhold_variable(pin_source: str) -> None:
    """Keep the variable that a PIN source may be from programs that we start before the source is made, if ever."""
    kind, _, name = pin_source.partition(":")
    if kind == "env":
        withhold(name)


def _environment(value: object, source: Source) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ConfigError(
            f"{source.name} must be a table of strings, but is {_kind(value)}.",
            hint='Write it as { SOFTHSM2_CONF = "/etc/softhsm2.conf" }.',
        )
    for name, text in value.items():
        # environ(7): the name ends at the first =, the value at the first NUL.
        if not name or "=" in name or "\0" in name + text:
            raise ConfigError(
                f"{source.name} has {name!r}, which cannot be a variable.",
                hint="A name is not empty and holds no =, and neither it nor its value holds a NUL character.",
            )
    return {name: _beside(name, text, source) for name, text in value.items()}


# What these name is a file or a directory of SoftHSM, tpm2-pkcs11 or OpenSC.
_PATHS = frozenset({"SOFTHSM2_CONF", "TPM2_PKCS11_STORE", "OPENSC_CONF"})


def _beside(name: str, text: str, source: Source) -> str:
    """Return the value of a variable; where it is a relative path, relative to the profile."""
    is_path = text.startswith(("./", "../")) or (name in _PATHS and bool(text))
    return str(source.directory / text) if is_path and source.directory else text


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "tenant", "Assertion", "Tenant: a GUID or a domain.", _plain, "TENANT", "HSM_SIGNER_TENANT", "AZURE_TENANT_ID"
    ),
    Setting(
        "client_id",
        "Assertion",
        "Client id of the app registration.",
        _plain,
        "ID",
        "HSM_SIGNER_CLIENT_ID",
        "AZURE_CLIENT_ID",
    ),
    Setting(
        "scope",
        "Exchange",
        "What the token is for, as in https://graph.microsoft.com/.default.",
        _plain_texts,
        "SCOPE",
        "HSM_SIGNER_SCOPE",
        repeatable=True,
    ),
    Setting(
        "key",
        "Device",
        "Where the key is: a PKCS#11 URI (RFC 7512), or file:PATH for the file that rotate keeps. Several URIs name "
        "devices in order of preference.",
        _uris,
        "URI",
        "HSM_SIGNER_KEY",
        repeatable=True,
    ),
    Setting(
        "module",
        "Device",
        "PKCS#11 module. Default: the URI's, else p11-kit's proxy.",
        _module,
        "FILE",
        "HSM_SIGNER_MODULE",
    ),
    Setting("module_environment", None, "Variables set before the module loads.", _environment),
    Setting(
        "pin_source",
        "Device",
        "Where the PIN comes from: prompt, file:PATH, env:NAME, fd:N, command:ARGV, credential:NAME, protected "
        "(PIN pad), none. Default: the URI's pin-source, else prompt.",
        _pin_source,
        "SOURCE",
        "HSM_SIGNER_PIN_SOURCE",
    ),
    Setting(
        "certificate",
        "Assertion",
        "Certificate of the key, PEM or DER. Default: the one on the device with the key's CKA_ID.",
        _path,
        "FILE",
        "HSM_SIGNER_CERTIFICATE",
    ),
    Setting(
        "algorithm",
        "Assertion",
        "RS256 (default), PS256, or auto: PS256 where the device can.",
        _algorithm,
        "NAME",
        "HSM_SIGNER_ALGORITHM",
    ),
    Setting(
        "thumbprint",
        "Assertion",
        "sha1 or sha256; follows the algorithm.",
        _one_of(Thumbprint),
        "HASH",
        "HSM_SIGNER_THUMBPRINT",
    ),
    Setting(
        "send_chain", "Assertion", "Send the certificate chain (x5c), for subject name + issuer authentication.", _flag
    ),
    Setting("cloud", "Assertion", "public (default), usgov, china.", _one_of(Cloud), "CLOUD", "HSM_SIGNER_CLOUD"),
    Setting(
        "authority",
        "Assertion",
        "Another authority host, https; plain http only to loopback.",
        _plain,
        "URL",
        "HSM_SIGNER_AUTHORITY",
        "AZURE_AUTHORITY_HOST",
        azure_unless="cloud",
    ),
    Setting(
        "token_endpoint",
        "Assertion",
        "Full URL of any token endpoint that speaks RFC 7523.",
        _plain,
        "URL",
        "HSM_SIGNER_TOKEN_ENDPOINT",
    ),
    Setting("audience", "Assertion", "aud of the assertion, where it differs from the token endpoint.", _plain, "URL"),
    Setting(
        "lifetime",
        "Assertion",
        f"Lifetime of an assertion. Default: {DEFAULT_LIFETIME}; of one that is kept in a file 3600.",
        _lifetime,
        "SECONDS",
    ),
    Setting(
        "object_id",
        "Graph",
        "Object id of the application in the directory, which is not its client id.",
        _plain,
        "ID",
        "HSM_SIGNER_OBJECT_ID",
    ),
    Setting("service_principal", "Graph", "The keys are the service principal's, not the application's.", _flag),
    Setting(
        "graph",
        "Graph",
        "Another of Microsoft Graph's hosts: https://dod-graph.microsoft.us. Default: the cloud's.",
        _plain,
        "URL",
        "HSM_SIGNER_GRAPH",
    ),
    Setting(
        "grace",
        "Graph",
        "How long the old certificate stays registered after the switch to the next key, for assertions that are still "
        f"in use; 0 removes it at once. Default: the lifetime of assertions, or {FILE_LIFETIME} where that is longer, "
        f"and {KEPT_BY_READERS} more.",
        _grace,
        "SECONDS",
        "HSM_SIGNER_GRACE",
    ),
    Setting("ca_bundle", "Exchange", "More trust for TLS, beside the system's.", _path, "FILE", "HSM_SIGNER_CA_BUNDLE"),
    Setting(
        "device_timeout",
        "Device",
        "For one call into the device. Default: 60.",
        _seconds,
        "SECONDS",
        "HSM_SIGNER_DEVICE_TIMEOUT",
    ),
    Setting(
        "network_timeout",
        "Exchange",
        "For one exchange, retries included. Default: 30.",
        _seconds,
        "SECONDS",
        "HSM_SIGNER_NETWORK_TIMEOUT",
    ),
    Setting(
        "pin_record",
        "Device",
        "Log in unattended without the record of refused PINs, which keeps repeated runs from locking a device.",
        _flag,
        negated=True,
    ),
    Setting("allow_last_try", "Device", "Log in even if a wrong PIN would lock the device.", _flag, in_profile=False),
    Setting("wait", "Device", "Wait for the device to be plugged in.", _flag, in_profile=False),
)


BY_NAME = {setting.name: setting for setting in SETTINGS}


def absolute(path: Path, name: str) -> Path:
    """Return a path that does not depend on the current directory.

    Args:
        name: of the option, for messages.

    Raises:
        ConfigError: it is relative, and the current directory was deleted.
    """
    try:
        return path.absolute()
    except FileNotFoundError:
        raise ConfigError(
            f"{name} is relative to the current directory, which does not exist.", hint="Give an absolute path."
        ) from None


def text_argument(text: str, option: str) -> str:
    """Read a text for a server that a command takes beside the settings.

    Raises:
        ConfigError: it is empty, is not UTF-8, or holds what nobody can see.
    """
    return _plain(text, Source(option))


def seconds_argument(seconds: float, option: str) -> float:
    """Read for how long to wait, where a command takes it beside the settings.

    Raises:
        ConfigError: it is not a number of seconds, such as inf, or more than a day.
    """
    if not 0 <= seconds <= 86400:
        raise ConfigError(f"{option} is {seconds:g}.", hint="Give a number of seconds from 0 to 86400.")
    return seconds


def uri_argument(text: str, option: str) -> Pkcs11Uri:
    """Read a PKCS#11 URI that a command takes beside the settings.

    Raises:
        ConfigError: it is malformed, or holds a PIN.
    """
    return _uri(text, Source(option, is_argument=True))


def missing(*names: str) -> ConfigError:
    """Return the error for settings that are needed and were not given. It names all of them."""
    absent = [name.replace("_", " ") for name in names]
    listed = " and ".join(filter(None, [", ".join(absent[:-1]), absent[-1]]))
    return ConfigError(f"Not set: {listed}.", hint=" ".join(f"Give {_ways(BY_NAME[name])}." for name in names))


def _ways(setting: Setting) -> str:
    ways = [setting.flag, *filter(None, (setting.variable, setting.azure)), f"{setting.name} in a profile"]
    return f"{', '.join(ways[:-1])} or {ways[-1]}"


def _kind(value: object) -> str:
    return "empty" if isinstance(value, str) and not value.strip() else f"of type {type(value).__name__}"


def nearest(text: str, names: list[str]) -> str | None:
    found = difflib.get_close_matches(text, names, n=1)
    return f"Did you mean {found[0]}?" if found else None
