"""From options, environment and a TOML profile to one frozen `Profile`.

The first of these that has a setting wins: the option, its HSM_SIGNER variable, the profile, the AZURE variable, the
default. An ambient AZURE_CLIENT_ID therefore does not change a chosen profile. `settings` says what each is called.
"""

import contextlib
import logging
import os
import shlex
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hsm_signer.config.settings import BY_NAME, SETTINGS, Setting, Source, from_key_file, missing, nearest
from hsm_signer.crypto import Algorithm
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.entra.authority import Cloud
from hsm_signer.errors import ConfigError
from hsm_signer.jwt.assertion import DEFAULT_LIFETIME, Thumbprint
from hsm_signer.system.private_file import read_trusted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Profile:
    """Everything one run needs to know. None and empty mean: not set.

    Attributes:
        key: where the key is; several name devices in order of preference.
        key_file: the file that says so, and which `rotate` replaces; None where the profile does.
        pin_source: as `parse_pin_source` reads it.
        algorithm: None means PS256 where the device can, else RS256.
        lifetime: of an assertion, seconds.
        grace: seconds for which `rotate` leaves an old certificate registered; None lets the lifetime say.
        device_timeout: seconds for one call into the device.
        network_timeout: seconds for one exchange, retries included.
        pin_record: keep the record of refused PINs when nobody watches a login.
        state_directory: where that is kept.
        pin_directory: what a relative path in `pin_source` is relative to.
        known_key_file: the key file that the profile names, also where another key was given for this run.
        command: the program, with the options that chose this profile; for commands in hints.
        device_options: the options that were given to find the device; likewise.
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
    device_timeout: float = 60.0
    network_timeout: float = 30.0
    allow_last_try: bool = False
    wait: bool = False
    pin_record: bool = True
    state_directory: Path = Path()
    pin_directory: Path | None = None
    known_key_file: Path | None = None
    command: tuple[str, ...] = ("hsm-signer",)
    device_options: tuple[str, ...] = ()

    def command_line(self, *words: str) -> str:
        """Return a command that finds the same device as this run, as a shell takes it."""
        return shlex.join([*self.command, *words, *self.device_options])


def load_profile(
    options: Mapping[str, object],
    *,
    config: Path | None = None,
    name: str | None = None,
    environ: Mapping[str, str] | None = None,
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> Profile:
    """Put a profile together.

    Args:
        options: what was given on the command line or as arguments, by setting name; None means not given.
        config: the TOML file, else HSM_SIGNER_CONFIG, else the first of `default_config_files` that exists.
        name: the profile in it, else HSM_SIGNER_PROFILE, else "default", which need not be there.
        environ: os.environ when None.
        defaults: values of fields where nothing else says; those of `Profile` when left out.

    Raises:
        ConfigError: a value is malformed, a key unknown, or the file is missing, unreadable or not to be trusted.
    """
    environ = os.environ if environ is None else environ
    table, file_source = _read_profile(config, name, environ)
    chosen = {"--config": config, "--profile": name}
    words = [word for option, value in chosen.items() if value is not None for word in (option, str(value))]
    module = options.get("module")
    known = {
        "command": ("hsm-signer", *words),
        "device_options": () if module is None else ("--module", str(module)),
    }
    return _profile(
        lambda setting: _candidates(setting, options, environ, table, file_source), environ, {**known, **defaults}
    )


def profile_from_arguments(arguments: Mapping[str, object]) -> Profile:
    """Put a profile together from a program's own arguments, by setting name, and from nothing else.

    Raises:
        ConfigError: a value is malformed.
    """
    return _profile(lambda setting: [(arguments.get(setting.name), Source(setting.name))], os.environ)


def profile_from_environment(environ: Mapping[str, str] | None = None) -> Profile:
    """Put a profile together from the variables alone; no file is read.

    Args:
        environ: os.environ when None.

    Raises:
        ConfigError: a value is malformed.
    """
    environ = os.environ if environ is None else environ
    return _profile(lambda setting: _candidates(setting, {}, environ, {}, Source("no file")), environ)


def state_directory(environ: Mapping[str, str]) -> Path:
    """Return where state is kept: systemd's directory for the service, else the user's."""
    if environ.get("STATE_DIRECTORY"):
        # systemd.exec(5): several are separated by colons.
        return Path(environ["STATE_DIRECTORY"].split(":")[0])
    return _base_directory(environ, "XDG_STATE_HOME", ".local/state") / "hsm-signer"


def _profile(
    candidates: Callable[[Setting], Iterable[tuple[object, Source]]],
    environ: Mapping[str, str],
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> Profile:
    values: dict[str, Any] = {"state_directory": state_directory(environ), **defaults}
    for setting in SETTINGS:
        for found, source in candidates(setting):
            if found is not None:
                values[setting.name] = setting.read(found, source)
                if setting.name == "pin_source":
                    values["pin_directory"] = source.directory
                elif setting.name == "key":
                    values["key_file"] = from_key_file(found, source)
                break
    values["known_key_file"] = values.get("key_file") or _known_key_file(candidates(BY_NAME["key"]))
    return Profile(**values)


def _known_key_file(candidates: Iterable[tuple[object, Source]]) -> Path | None:
    for found, source in candidates:
        # What was not chosen need not be right.
        with contextlib.suppress(ConfigError):
            if found is not None and (file := from_key_file(found, source)):
                return file
    return None


def require_settings(profile: Profile, *names: str) -> None:
    """Make sure that a profile has settings.

    Args:
        names: of them. A tenant is not needed where an authority or a token endpoint is set.

    Raises:
        ConfigError: some are missing. It names all of them.
    """
    absent = [name for name in names if not _has(profile, name)]
    if absent:
        raise missing(*absent)
    if "key" in names and not profile.key:
        raise ConfigError(
            f"The key file {profile.key_file} does not exist.", hint="Create it with: rotate --current URI"
        )


def _has(profile: Profile, name: str) -> bool:
    match name:
        case "key":
            return bool(profile.key or profile.key_file)
        case "tenant":
            return any((profile.tenant, profile.authority, profile.token_endpoint))
    return bool(getattr(profile, name))


def default_config_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return where a configuration is looked for when none is named: the user's, then the machine's."""
    home = _base_directory(environ, "XDG_CONFIG_HOME", ".config")
    return home / "hsm-signer" / "config.toml", Path("/etc/hsm-signer/config.toml")


def _base_directory(environ: Mapping[str, str], variable: str, in_home: str) -> Path:
    """Return a directory of the XDG Base Directory Specification, which has relative paths ignored."""
    named = Path(environ.get(variable, ""))
    return named if named.is_absolute() else _in_home(in_home)


def _in_home(path: str) -> Path:
    # A user without a home directory, as containers have, gets /~/…: absolute, and not there.
    return Path("/", os.path.expanduser(f"~/{path}"))


def _candidates(
    setting: Setting,
    options: Mapping[str, object],
    environ: Mapping[str, str],
    table: Mapping[str, object],
    file_source: Source,
) -> Iterator[tuple[object, Source]]:
    yield options.get(setting.name), Source(setting.flag, is_argument=True)
    if setting.variable:
        yield environ.get(setting.variable) or None, Source(setting.variable)
    in_file = Source(f"{setting.name} in {file_source.name}", file_source.directory)
    yield table.get(setting.name), in_file
    other = BY_NAME[setting.azure_unless] if setting.azure_unless else None
    if other and any(found is not None for found, _ in _candidates(other, options, environ, table, file_source)):
        return
    if setting.azure:
        yield environ.get(setting.azure) or None, Source(setting.azure)


def _read_profile(
    config: Path | None, name: str | None, environ: Mapping[str, str]
) -> tuple[Mapping[str, object], Source]:
    wanted = name or environ.get("HSM_SIGNER_PROFILE") or None
    named = config or (Path(environ["HSM_SIGNER_CONFIG"]) if environ.get("HSM_SIGNER_CONFIG") else None)
    candidates = (named,) if named else default_config_files(environ)
    file = named or next((path for path in candidates if os.path.exists(path)), None)
    if file is None:
        if wanted:
            raise ConfigError(
                f"There is no configuration for profile {wanted!r}: looked for {', '.join(map(str, candidates))}.",
                hint="Write one, or name it with --config.",
            )
        return {}, Source("no file")
    document, opened = _load_toml(file)
    profiles = _profiles(file, document)
    chosen = wanted or "default"
    if chosen not in profiles:
        if wanted or not profiles:
            raise ConfigError(
                f"{file} has no profile {chosen!r}; it has {', '.join(sorted(profiles)) or 'none'}.",
                hint=nearest(chosen, list(profiles)) or f"Add a table [profile.{chosen}].",
            )
        return {}, Source("no profile")
    source = Source(f"profile {chosen!r} of {file}", opened.parent)
    table = profiles[chosen]
    known = [setting.name for setting in SETTINGS if setting.in_profile]
    for key in table:
        if key not in known:
            raise ConfigError(
                f"Unknown key {key!r} in {source.name}.",
                hint=nearest(key, known) or f"Known keys: {', '.join(known)}.",
            )
    return table, source


def _profiles(file: Path, document: Mapping[str, object]) -> Mapping[str, Mapping[str, object]]:
    for key, value in document.items():
        if key != "profile":
            name = key if isinstance(value, dict) else "default"
            raise ConfigError(
                f"Unknown table or key {key!r} in {file}.",
                hint=nearest(key, ["profile"]) or f"Profiles are tables of the form [profile.NAME]: [profile.{name}]?",
            )
    profiles = document.get("profile", {})
    if not isinstance(profiles, dict) or not all(isinstance(table, dict) for table in profiles.values()):
        raise ConfigError(f"In {file}, profile is not a table of profiles.", hint="Write [profile.NAME].")
    return profiles


def _load_toml(file: Path) -> tuple[Mapping[str, object], Path]:
    content, opened = read_trusted(file, "configuration")
    try:
        return tomllib.loads(content.decode()), opened
    except (ValueError, RecursionError) as error:  # also of integers that are longer than Python reads
        raise ConfigError(f"{file} is not TOML: {error}.", hint="See the example in the README.") from None
