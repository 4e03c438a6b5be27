"""A profile that is being written: what is known of it, from where, and what the file will have."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hsm_signer.config.edit import ProfilePlace, Value, profile_place
from hsm_signer.config.file import ProfileTable, read_profile_table
from hsm_signer.config.profile import Profile, draft_profile
from hsm_signer.config.settings import SETTINGS
from hsm_signer.config.values import KeySetting, Source, absolute
from hsm_signer.errors import ConfigError

SUGGESTIONS = ("tenant", "client_id")
"""Settings whose AZURE variable is only a suggestion here: it may be meant for another program."""


@dataclass(frozen=True)
class Draft:
    """What is known of a profile before anything is asked.

    Attributes:
        place: where it is, or will be.
        given: the settings that were given as options, as they were typed.
        table: what the file has. Empty if there is none, or if it is to be replaced.
        profile: what all this adds up to.
        suggestions: values of `SUGGESTIONS` to offer.
        replace: whether a profile of this name, if there is one, is replaced as a whole.
    """

    place: ProfilePlace
    given: Mapping[str, object]
    table: ProfileTable
    profile: Profile
    suggestions: Mapping[str, str]
    replace: bool = False

    @property
    def exists(self) -> bool:
        """Whether the profile is continued."""
        return bool(self.table.values)

    def conflicts(self) -> list[str]:
        """Return the settings that options give another value than the profile has."""
        return [
            name
            for name, value in self.given.items()
            if name in self.table.values and not self._agrees(name, value, self.table.values[name])
        ]

    def _agrees(self, name: str, given: object, written: object) -> bool:
        setting, source = SETTINGS[name], self.table.source(name)
        ours = setting.read(_stored(name, given), Source(setting.option))
        theirs = setting.read(written, source)
        if isinstance(ours, KeySetting) and isinstance(theirs, KeySetting) and len(ours.uris) == len(theirs.uris) == 1:
            # What is written names the key and its device in full.
            given_parts, written_parts = vars(ours.uris[0]), vars(theirs.uris[0])
            return all(part in (None, (), written_parts[name]) for name, part in given_parts.items())
        return bool(ours == theirs)

    def values(self) -> dict[str, Value]:
        """Return what to write before anything is asked. Paths do not depend on the current directory."""
        kept = dict(self.table.values) if self.replace else {}
        given = {
            name: _stored(name, value)
            for name, value in self.given.items()
            # The module is named by the URI of the key, which the set-up writes.
            if SETTINGS[name].in_profile
            and name not in ("key", "module")
            # Where the profile is only added to, it has no other value.
            and (self.replace or name not in self.table.values)
        }
        return {**kept, **given}  # type: ignore[dict-item]  # read from TOML, and checked


def read_draft(
    given: Mapping[str, object],
    config: Path | None,
    name: str | None,
    *,
    replace: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Draft:
    """Return what is known of a profile, which need not exist.

    Args:
        given: the options, by setting name; None means not given.
        config, name, environ: as for `load_profile`.
        replace: whether to ignore a profile that exists.

    Raises:
        ConfigError: a value is malformed, or the file cannot be read.
    """
    environ = os.environ if environ is None else environ
    options = {setting: value for setting, value in given.items() if value is not None}
    place = profile_place(config, name, environ)
    # A file that will not be read any more has nothing to continue.
    is_new = replace or place.hides is not None
    table = ProfileTable() if is_new else read_profile_table(config, name, environ, must_exist=False)
    suggested = {setting: SETTINGS[setting].azure or "" for setting in SUGGESTIONS}
    quiet = {variable: text for variable, text in environ.items() if variable not in suggested.values()}
    return Draft(
        place=place,
        given=options,
        table=table,
        profile=draft_profile(options, table, quiet),
        suggestions={setting: environ[variable] for setting, variable in suggested.items() if environ.get(variable)},
        replace=replace,
    )


def overwriting(draft: Draft) -> Draft:
    """Return the draft of a profile that keeps what it has, except where an option says otherwise."""
    return dataclasses.replace(draft, replace=True)


def conflict_error(draft: Draft) -> ConfigError:
    """Return the error for options that contradict the profile."""
    options = ", ".join(SETTINGS[name].option for name in draft.conflicts())
    return ConfigError(
        f"In {draft.table.name}, {options} has another value.",
        hint="Leave the option out to keep the profile's value, add --replace to write the profile again, or name a "
        "new one with --profile.",
    )


def _stored(name: str, value: object) -> Value:
    match value:
        case bool():
            return value
        case list() | tuple():
            return value[0] if len(value) == 1 else [str(each) for each in value]
    text = str(value)
    if name in ("certificate", "ca_bundle"):
        return str(absolute(Path(os.path.expanduser(text)), SETTINGS[name].option))
    if name == "pin_source" and text.startswith("file:") and not text.startswith("file:/"):
        return f"file:{absolute(Path(text.removeprefix('file:')), SETTINGS[name].option)}"
    return float(text) if name in ("device_timeout", "network_timeout", "lifetime", "grace") else text
