"""Changes the configuration file: adds a profile, adds keys to one, or replaces one. The rest stays byte for byte.

The text is edited line by line and then read as TOML. If it does not say exactly what it should, nothing is written.
"""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hsm_signer.config.file import config_files, profile_name
from hsm_signer.config.values import absolute
from hsm_signer.errors import ConfigError
from hsm_signer.system.private_file import unwritable, write_private
from hsm_signer.system.trusted_path import make_private_directory, read_trusted

Value = str | bool | int | float | list[str] | Mapping[str, str]
"""What a key of a profile can have."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")  # TOML v1.0.0, "Keys"
_HEADER = re.compile(r"\s*\[")
_LITTLE_ACCESS = 0o600


@dataclass(frozen=True)
class ProfilePlace:
    """Where a profile is, or will be.

    Attributes:
        file: the configuration file, which need not exist.
        name: of the profile.
        hides: a file that will not be read any more once `file` exists; or None.
    """

    file: Path
    name: str
    hides: Path | None = None

    def beside(self, suffix: str) -> Path:
        """Return the path of a file of this profile, in the same directory."""
        return self.file.with_name(re.sub(r"[^\w.-]", "-", self.name) + suffix)


def profile_place(config: Path | None, name: str | None, environ: Mapping[str, str]) -> ProfilePlace:
    """Return where to write a profile: the file that is read, unless only another user may write it.

    Args:
        config, name: as for `read_profile_table`.
    """
    candidates = config_files(config, environ)
    chosen = profile_name(name, environ) or "default"
    existing = next((path for path in candidates if os.path.exists(path)), candidates[0])
    if existing != candidates[0] and not os.access(existing.parent, os.W_OK):
        return ProfilePlace(absolute(candidates[0], "--config"), chosen, hides=existing)
    return ProfilePlace(absolute(existing, "--config"), chosen)


def write_profile(place: ProfilePlace, values: Mapping[str, Value], *, replace: bool) -> None:
    """Add keys to a profile, or make it. The file is replaced atomically; a new one gets mode 0600.

    Args:
        replace: whether the profile is to have these values alone. Else it keeps the keys that it has.

    Raises:
        ConfigError: the file is not TOML, is written in a way that cannot be edited, or others can change it.
        OutputError: it cannot be written. An earlier file is unchanged.
    """
    try:
        make_private_directory(place.file.parent, "configuration directory")
    except OSError as error:
        raise unwritable(place.file, error) from None
    if not os.path.exists(place.file):
        write_private(place.file, lambda: edited("", place, values, replace=replace).encode(), mode=_LITTLE_ACCESS)
        return
    _, opened = read_trusted(place.file, "configuration")
    mode = opened.stat().st_mode & 0o777
    # Read at the last moment, so that a change made while questions were answered is kept.
    write_private(
        opened,
        lambda: edited(_decoded(opened), place, values, replace=replace).encode(),
        mode=mode,
    )


def edited(text: str, place: ProfilePlace, values: Mapping[str, Value], *, replace: bool) -> str:
    """Return the text of a configuration file with a profile changed as for `write_profile`; pure.

    Raises:
        ConfigError: it is not TOML, or is written in a way that cannot be edited.
    """
    before = _parsed(text, place)
    found = before.get("profile")
    profiles = found if isinstance(found, dict) else {}
    exists, old = place.name in profiles, profiles.get(place.name, {})
    wanted = dict(values) if replace else {**old, **values}
    header = f"[profile.{_key(place.name)}]"
    lines = [f"{_key(name)} = {toml_value(value)}" for name, value in values.items()]
    if replace and exists:
        after = _with_table_replaced(text, place.name, [header, *lines])
    elif exists:
        after = _with_lines_added(text, place.name, lines)
    else:
        gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
        after = text + gap + "\n".join([header, *lines]) + "\n"
    if not _says(after, {**before, "profile": {**profiles, place.name: wanted}}):
        error = ConfigError(
            f"{place.file} is written in a way that cannot be edited here, so nothing was written.",
            hint=f"Edit it yourself. The profile {place.name!r} needs:",
        )
        error.commands = (header, *lines)
        raise error
    return after


def toml_value(value: Value) -> str:
    """Write a value as TOML."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(int(value)) if float(value).is_integer() else repr(float(value))
        case str():
            return _string(value)
        case list():
            return f"[{', '.join(map(_string, value))}]"
    return "{ " + ", ".join(f"{_key(name)} = {_string(text)}" for name, text in value.items()) + " }"


def _string(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{text!r} cannot be written to the configuration file: it is not UTF-8.", hint="Give it as UTF-8."
        ) from None
    # A JSON string is a TOML basic string, but for DEL (TOML v1.0.0, "String").
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _string(name)


def _decoded(file: Path) -> str:
    content, _ = read_trusted(file, "configuration")
    try:
        return content.decode()
    except ValueError:
        raise ConfigError(f"{file} is not UTF-8.", hint="TOML files are.") from None


def _parsed(text: str, place: ProfilePlace) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place.file} is not TOML: {error}.", hint="Fix it, then run the command again.") from None


def _says(text: str, wanted: Mapping[str, object]) -> bool:
    try:
        return tomllib.loads(text) == wanted
    except (ValueError, RecursionError):
        return False


def _with_lines_added(text: str, name: str, lines: list[str]) -> str:
    """Add lines below the header of a table, where they belong to it whatever follows."""
    return "".join(
        part + (_ending(part) + _joined(lines, part) if _opens(part, name) == [name] else "")
        for part in text.splitlines(keepends=True)
    )


def _with_table_replaced(text: str, name: str, lines: list[str]) -> str:
    """Put lines in the place of a table and its sub-tables. What stands before the next header stays before it."""
    kept: list[str] = []
    held: list[str] = []
    inside = replaced = False
    for part in text.splitlines(keepends=True):
        if _HEADER.match(part):
            path = _opens(part, name)
            if path:
                inside = True
                held.clear()
                if not replaced:
                    kept.append(_joined(lines, part))
                    replaced = True
                continue
            kept += held if inside else []
            inside = False
            held.clear()
        if not inside:
            kept.append(part)
        elif not part.strip() or part.lstrip().startswith("#"):
            held.append(part)
        else:
            held.clear()
    return "".join([*kept, *held])


def _opens(line: str, name: str) -> list[str]:
    """Return the path below `profile` of the table that a header opens, if it is that of profile `name`; else []."""
    if not _HEADER.match(line):
        return []
    try:
        document: object = tomllib.loads(line)
    except ValueError:
        return []
    path: list[str] = []
    while isinstance(document, dict) and len(document) == 1:
        ((key, document),) = document.items()
        path.append(key)
    return path[1:] if path[:2] == ["profile", name] else []


def _joined(lines: list[str], like: str) -> str:
    newline = "\r\n" if like.endswith("\r\n") else "\n"
    return "".join(line + newline for line in lines)


def _ending(line: str) -> str:
    return "" if line.endswith("\n") else "\n"
