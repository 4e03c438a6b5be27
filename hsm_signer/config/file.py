"""Find the configuration file (TOML), check that other users cannot change it, and read a profile from it."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hsm_signer.config.settings import SETTINGS
from hsm_signer.config.values import Source, nearest
from hsm_signer.errors import ConfigError
from hsm_signer.system.trusted_path import read_trusted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProfileTable:
    """The table of one profile, as it is in the file. Empty if there is no file or no such profile.

    Attributes:
        values: by name of the setting; not checked yet.
        name: "profile 'prod' of FILE", for messages.
        directory: the directory of the file.
    """

    values: Mapping[str, object] = field(default_factory=dict)
    name: str = "no profile"
    directory: Path | None = None

    def source(self, setting: str) -> Source:
        """Return where the value of a setting comes from."""
        return Source(f"{setting} in {self.name}", self.directory)


def read_profile_table(
    config: Path | None, name: str | None, environ: Mapping[str, str], *, must_exist: bool = True
) -> ProfileTable:
    """Read a profile from the configuration file.

    Args:
        config: the file. None: HSM_SIGNER_CONFIG, else the first of `default_config_files` that exists.
        name: the name of the profile. None: HSM_SIGNER_PROFILE, else "default", which need not exist.
        environ: the environment variables.
        must_exist: whether a file or profile that is named must exist. If not, the table is empty without it.

    Raises:
        ConfigError: the file or the profile does not exist, is malformed, or can be changed by other users.
    """
    wanted = profile_name(name, environ)
    candidates = config_files(config, environ)
    existing = [path for path in candidates if os.path.exists(path)]
    # One that is named is read even if it does not exist, for the message.
    file = next(iter(existing), candidates[0] if len(candidates) == 1 and must_exist else None)
    if file is None:
        if wanted and must_exist:
            raise ConfigError(
                f"No configuration file for profile {wanted!r}. Looked for {', '.join(map(str, candidates))}.",
                hint="Create one of these files, or name another with --config FILE.",
            )
        logger.debug("no configuration file: looked for %s", ", ".join(map(str, candidates)))
        return ProfileTable()
    document, opened = _load_toml(file)
    profiles = _profiles(file, document)
    chosen = wanted or "default"
    if chosen not in profiles:
        if must_exist and (wanted or not profiles):
            raise ConfigError(
                f"{file} has no profile {chosen!r}. It has {', '.join(sorted(profiles)) or 'none'}.",
                hint=nearest(chosen, list(profiles)) or f"Add a table [profile.{chosen}].",
            )
        return ProfileTable()
    table = ProfileTable(profiles[chosen], f"profile {chosen!r} of {file}", opened.parent)
    logger.debug("%s", table.name)
    known = [setting.name for setting in SETTINGS.values() if setting.in_profile]
    for key in table.values:
        if key not in known:
            raise ConfigError(
                f"Unknown key {key!r} in {table.name}.",
                hint=nearest(key, known) or f"Known keys: {', '.join(known)}.",
            )
    return table


def profile_name(name: str | None, environ: Mapping[str, str]) -> str | None:
    """Return the name of the profile that is asked for, or None."""
    return name or environ.get("HSM_SIGNER_PROFILE") or None


def config_files(config: Path | None, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the file that is named, else where it may be."""
    named = config or (Path(environ["HSM_SIGNER_CONFIG"]) if environ.get("HSM_SIGNER_CONFIG") else None)
    return (named,) if named else default_config_files(environ)


def has_config_file(config: Path | None, environ: Mapping[str, str]) -> bool:
    """Return whether there is a configuration file to read."""
    return any(os.path.exists(path) for path in config_files(config, environ))


def default_config_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return where the configuration file may be: the user's, then the machine's."""
    user = base_directory(environ, "XDG_CONFIG_HOME", ".config")
    return user / "hsm-signer" / "config.toml", Path("/etc/hsm-signer/config.toml")


def base_directory(environ: Mapping[str, str], variable: str, default: str) -> Path:
    """Return a directory of the XDG Base Directory Specification. As it requires, relative paths are ignored.

    Args:
        variable: the variable that names the directory.
        default: the directory if the variable is not set, relative to the home directory.
    """
    named = Path(environ.get(variable, ""))
    # A user without a home directory, as in containers, gets /~/…: absolute, and it does not exist.
    return named if named.is_absolute() else Path("/", os.path.expanduser(f"~/{default}"))


def _load_toml(file: Path) -> tuple[Mapping[str, object], Path]:
    """Return the content of a file, and the file's path without symbolic links."""
    import tomllib  # 5 ms, which a program without a configuration file need not spend

    content, opened = read_trusted(file, "configuration")
    try:
        return tomllib.loads(content.decode()), opened
    except (ValueError, RecursionError) as error:  # ValueError also for an integer with too many digits for Python
        raise ConfigError(f"{file} is not TOML: {error}.", hint="See the example in the README.") from None


def _profiles(file: Path, document: Mapping[str, object]) -> Mapping[str, Mapping[str, object]]:
    for key, value in document.items():
        if key != "profile":
            name = key if isinstance(value, dict) else "default"
            raise ConfigError(
                f"Unknown table or key {key!r} in {file}.",
                hint=nearest(key, ["profile"])
                or f"Profiles are tables named [profile.NAME], such as [profile.{name}].",
            )
    profiles = document.get("profile", {})
    if not isinstance(profiles, dict) or not all(isinstance(table, dict) for table in profiles.values()):
        raise ConfigError(
            f"In {file}, profile is not a table of profiles.", hint="Begin each profile with a line [profile.NAME]."
        )
    return profiles
