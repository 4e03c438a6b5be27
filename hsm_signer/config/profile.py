"""Combine options, variables and a TOML profile into one frozen `Profile`.

The first of these that has a setting wins: the option, its HSM_SIGNER variable, the profile in the file, the AZURE
variable, the default. So AZURE_CLIENT_ID in the environment does not change a profile that sets client_id.
"""

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hsm_signer.config.file import ProfileTable, base_directory, has_config_file, read_profile_table
from hsm_signer.config.keyfile import read_key_file
from hsm_signer.config.settings import (
    DEFAULT_DEVICE_TIMEOUT,
    DEFAULT_NETWORK_TIMEOUT,
    SETTINGS,
    Setting,
    missing,
)
from hsm_signer.config.values import KeySetting, Source, key_file_path
from hsm_signer.crypto import Algorithm
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.entra.authority import implied_tenant
from hsm_signer.entra.clouds import Cloud
from hsm_signer.errors import ConfigError
from hsm_signer.jwt.assertion import DEFAULT_LIFETIME, Thumbprint


@dataclass(frozen=True)
class Profile:
    """The values of all settings, for one run. None and empty mean not set.

    Attributes:
        key: URIs of the keys, the preferred one first.
        key_file: the key file that `key` was read from; None if the setting has URIs.
        pin_source: the text or list that `parse_pin_source` takes.
        algorithm: None means PS256 if the device supports it, else RS256.
        lifetime: lifetime of an assertion, in seconds.
        grace: seconds for which `rotate` leaves an old certificate registered; None derives them from the lifetime.
        device_timeout: seconds for one call into the device.
        network_timeout: seconds for one request, including retries.
        pin_record: whether unattended logins record refused PINs.
        state_directory: the directory of that record.
        configured_key_file: the key file that is configured, even if --key names another key for this run.
        command: the program and the options that chose this profile, for commands in hints.
        device_options: the options that chose the device, for the same commands.
        has_config_file: whether there is a configuration file. A program that reads none has its settings elsewhere.
    """

    tenant: str | None = None
    client_id: str | None = None
    scope: tuple[str, ...] = ()
    key: tuple[Pkcs11Uri, ...] = ()
    key_file: Path | None = None
    module: Path | None = None
    module_environment: Mapping[str, str] = field(default_factory=dict)
    pin_source: str | tuple[str, ...] | None = None
    certificate: Path | None = None
    algorithm: Algorithm | None = Algorithm.RS256
    thumbprint: Thumbprint | None = None
    send_chain: bool = False
    cloud: Cloud = Cloud.PUBLIC
    authority: str | None = None
    token_endpoint: str | None = None
    audience: str | None = None
    lifetime: int = DEFAULT_LIFETIME
    object_id: str | None = None
    service_principal: bool = False
    graph: str | None = None
    grace: int | None = None
    ca_bundle: Path | None = None
    device_timeout: float = DEFAULT_DEVICE_TIMEOUT
    network_timeout: float = DEFAULT_NETWORK_TIMEOUT
    allow_last_try: bool = False
    wait: bool = False
    pin_record: bool = True
    state_directory: Path = Path()
    configured_key_file: Path | None = None
    command: tuple[str, ...] = ("hsm-signer",)
    device_options: tuple[str, ...] = ()
    has_config_file: bool = True

    def command_line(self, *words: str) -> str:
        """Return a command that uses the same profile and device as this run, quoted for a shell."""
        return shlex.join([*self.command, *words, *self.device_options])


def load_profile(
    options: Mapping[str, object],
    *,
    config: Path | None = None,
    name: str | None = None,
    environ: Mapping[str, str] | None = None,
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> Profile:
    """Combine options, variables and the configuration file into a profile.

    Args:
        options: values from the command line or from arguments, by setting name; None means not given.
        config: the TOML file. None: HSM_SIGNER_CONFIG, else the first of `default_config_files` that exists.
        name: the profile in the file. None: HSM_SIGNER_PROFILE, else "default", which need not exist.
        environ: the environment variables. None: os.environ.
        defaults: values for fields that are set nowhere, instead of the defaults of `Profile`.

    Raises:
        ConfigError: a value is malformed, a key is unknown, or the file is missing, unreadable, or other users can
            change it.
    """
    environ = os.environ if environ is None else environ
    places = _Places(options, environ, read_profile_table(config, name, environ))
    chosen = {"--config": config, "--profile": name}
    words = [word for option, value in chosen.items() if value is not None for word in (option, str(value))]
    module = options.get("module")
    known = {
        "command": ("hsm-signer", *words),
        "device_options": () if module is None else ("--module", str(module)),
        "has_config_file": has_config_file(config, environ),
    }
    return _profile(places.find, environ, {**known, **defaults})


def draft_profile(options: Mapping[str, object], table: ProfileTable, environ: Mapping[str, str]) -> Profile:
    """Return what is known of a profile that need not exist yet.

    Args:
        options: as for `load_profile`.
        table: what the configuration file has of it so far.

    Raises:
        ConfigError: a value is malformed.
    """
    return _profile(_Places(options, environ, table).find, environ)


def profile_from_arguments(arguments: Mapping[str, object]) -> Profile:
    """Make a profile from a program's own arguments. Variables and files are ignored.

    Args:
        arguments: values by setting name; None means not given.

    Raises:
        ConfigError: a value is malformed.
    """

    def find(setting: Setting) -> Iterator[_Found]:
        if (value := arguments.get(setting.name)) is not None:
            yield value, Source(setting.name)

    return _profile(find, os.environ)


def profile_from_environment(environ: Mapping[str, str] | None = None) -> Profile:
    """Make a profile from the environment variables alone. No configuration file is read.

    Args:
        environ: the environment variables. None: os.environ.

    Raises:
        ConfigError: a value is malformed.
    """
    environ = os.environ if environ is None else environ
    return _profile(_Places({}, environ, ProfileTable()).find, environ)


def require_settings(profile: Profile, *names: str) -> None:
    """Check that settings are set. A token endpoint, or an authority that implies a tenant, replaces the tenant.

    Args:
        names: the names of the settings.

    Raises:
        ConfigError: some are missing, and the message names all of them; or the authority is malformed.
    """
    if absent := missing_settings(profile, *names):
        error = missing(*absent)
        if "key" in absent and not profile.has_config_file:
            error.hint = f"Nothing is set up yet. The first command below is a guide. {error.hint}"
            error.commands = (profile.command_line("init"), *error.commands)
        raise error
    if "key" in names and not profile.key:
        raise ConfigError(
            f"The key file {profile.key_file} does not exist.", hint="Create it with: hsm-signer rotate --adopt URI"
        )


def missing_settings(profile: Profile, *names: str) -> list[str]:
    """Return which of these settings a profile does not have. What replaces the tenant counts as the tenant."""
    return [name for name in names if not _has(profile, name)]


def state_directory(environ: Mapping[str, str]) -> Path:
    """Return the directory for state: the one that systemd made for the service, else the user's."""
    if environ.get("STATE_DIRECTORY"):
        # systemd.exec(5): several are separated by colons.
        return Path(environ["STATE_DIRECTORY"].split(":")[0])
    return base_directory(environ, "XDG_STATE_HOME", ".local/state") / "hsm-signer"


_Found = tuple[object, Source]


@dataclass(frozen=True)
class _Places:
    """The places where a setting may have a value."""

    options: Mapping[str, object]
    environ: Mapping[str, str]
    table: ProfileTable

    def find(self, setting: Setting) -> Iterator[_Found]:
        """Yield every value of a setting, the one that wins first."""
        if (option := self.options.get(setting.name)) is not None:
            yield option, Source(setting.option, is_argument=True)
        yield from self._variable(setting.variable)
        if setting.name in self.table.values:
            yield self.table.values[setting.name], self.table.source(setting.name)
        if setting.azure_unless is None or not any(self.find(SETTINGS[setting.azure_unless])):
            yield from self._variable(setting.azure)

    def _variable(self, name: str | None) -> Iterator[_Found]:
        if name and (text := self.environ.get(name)):
            yield text, Source(name)


def _profile(
    find: Callable[[Setting], Iterator[_Found]],
    environ: Mapping[str, str],
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> Profile:
    values: dict[str, Any] = {"state_directory": state_directory(environ), **defaults}
    for setting in SETTINGS.values():
        if found := next(find(setting), None):
            values[setting.name] = setting.read(*found)
    key: KeySetting = values.pop("key", KeySetting())
    return Profile(
        **values,
        key=key.uris if key.file is None else _current_key(key.file),
        key_file=key.file,
        configured_key_file=_configured_key_file(find),
    )


def _current_key(file: Path) -> tuple[Pkcs11Uri, ...]:
    # A key file that does not exist yet: `rotate` creates it.
    return (read_key_file(file).current.uri,) if os.path.exists(file) else ()


def _configured_key_file(find: Callable[[Setting], Iterator[_Found]]) -> Path | None:
    for value, source in find(SETTINGS["key"]):
        # A value that does not win may be malformed.
        with contextlib.suppress(ConfigError):
            if file := key_file_path(value, source):
                return file
    return None


def _has(profile: Profile, name: str) -> bool:
    match name:
        case "key":
            return bool(profile.key or profile.key_file)
        case "tenant":
            return bool(
                profile.tenant or profile.token_endpoint or (profile.authority and implied_tenant(profile.authority))
            )
    return bool(getattr(profile, name))
