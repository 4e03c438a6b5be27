"""Check and convert the value of one setting. Nothing here reads a file.

Every message begins with where the value comes from: "--lifetime", "HSM_SIGNER_KEY", "key in profile …".
"""

import difflib
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from hsm_signer.crypto import Algorithm
from hsm_signer.device.known_modules import KNOWN_MODULES
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError, UriError
from hsm_signer.system.environment import withhold

logger = logging.getLogger(__name__)

E = TypeVar("E", bound=StrEnum)

_FILE = "file:"
"""The beginning of a key setting or a PIN source that names a file."""

_DAY = 86400
"""Seconds."""

_LONGEST = 2048
"""Characters. No ID, host or scope is longer, and a longer one would make an assertion too long for its file."""

# The values of these are files or directories of SoftHSM, tpm2-pkcs11 and OpenSC.
_PATH_VARIABLES = frozenset({"SOFTHSM2_CONF", "TPM2_PKCS11_STORE", "OPENSC_CONF"})


@dataclass(frozen=True)
class Source:
    """Where a value comes from, for messages and relative paths.

    Attributes:
        name: "--lifetime", "HSM_SIGNER_LIFETIME", "lifetime in profile 'prod' of FILE".
        directory: relative paths are relative to it; None is the current directory.
        is_argument: whether it is on the command line, which other users of the machine can read.
    """

    name: str
    directory: Path | None = None
    is_argument: bool = False


@dataclass(frozen=True)
class KeySetting:
    """What the setting `key` names: keys, or the key file that names one.

    Attributes:
        uris: in order of preference; empty if `file` is set.
        file: the key file, which need not exist yet.
    """

    uris: tuple[Pkcs11Uri, ...] = ()
    file: Path | None = None


def read_text(value: object, source: Source) -> str:
    """Return a string that is sent to a server: it is UTF-8, and every character is visible."""
    text = _string(value, source)
    if not text.isprintable():
        raise ConfigError(
            f"{source.name} contains a character that cannot be displayed, or is not UTF-8.",
            hint="Type it again: copied text may contain invisible characters.",
        )
    if len(text) > _LONGEST:
        raise ConfigError(f"{source.name} has {len(text)} characters.", hint=f"Use at most {_LONGEST} characters.")
    return text


def read_texts(value: object, source: Source) -> tuple[str, ...]:
    """Return one or more strings that are sent to a server. They may be separated by spaces."""
    return tuple(read_text(text, source) for text in _strings(value, source))


def read_path(value: object, source: Source) -> Path:
    """Return a path; a relative one in a profile is relative to the profile's file."""
    text = str(value) if isinstance(value, Path) else _string(value, source)
    if "\0" in text:
        raise ConfigError(
            f"{source.name} must be a path, but contains a NUL character.", hint="Give the path of a file."
        )
    # If ~name has no home directory, expanduser returns it unchanged, and the message about the missing file shows it.
    return (source.directory or Path()) / os.path.expanduser(text)


def read_module(value: object, source: Source) -> Path:
    """Return the path or the name of a PKCS#11 module."""
    if isinstance(value, str) and value.strip() in KNOWN_MODULES:
        return Path(value.strip())
    path = read_path(value, source)
    # A word without a slash names an installed library, as for dlopen; anything else is a file, also ./FILE.
    if not isinstance(value, Path) and "/" not in str(value):
        return path
    return absolute(path, source.name)


def read_flag(value: object, source: Source) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise ConfigError(
            f"{source.name} must be true or false, but is {_kind(value)}.", hint="Write true or false, without quotes."
        )
    return value


def read_seconds(value: object, source: Source) -> float:
    """Return a time limit: seconds, up to a day."""
    number = _number(value)
    if not 0 < number <= _DAY:
        raise ConfigError(
            f"{source.name} must be a number of seconds, more than 0 and at most {_DAY}.", hint="For example 60."
        )
    return number


def whole_seconds(minimum: int, maximum: int, hint: str) -> Callable[[object, Source], int]:
    """Return a reader of whole seconds.

    Args:
        hint: for a number out of range.
    """

    def read(value: object, source: Source) -> int:
        number = _number(value)
        if not minimum <= number <= maximum or number != int(number):
            raise ConfigError(
                f"{source.name} must be a whole number of seconds, {minimum} to {maximum}.",
                hint=hint,
            )
        return int(number)

    return read


def one_of(choices: type[E]) -> Callable[[object, Source], E]:
    """Return a reader of one of the values of an enumeration, in upper or lower case."""

    def read(value: object, source: Source) -> E:
        text = _string(value, source)
        for choice in choices:
            if choice.value.lower() == text.lower():
                return choice
        raise ConfigError(
            f"{source.name} is {text!r}; it must be one of {', '.join(choices)}.",
            hint=nearest(text, list(choices)) or "Use one of these values, or omit the setting for the default.",
        )

    return read


def read_algorithm(value: object, source: Source) -> Algorithm | None:
    """Return an algorithm, or None for `auto`."""
    if isinstance(value, str) and value.strip().lower() == "auto":
        return None
    try:
        return one_of(Algorithm)(value, source)
    except ConfigError as error:
        raise ConfigError(error.message.removesuffix(".") + ", auto.", hint=error.hint) from None


def read_key(value: object, source: Source) -> KeySetting:
    """Return the URIs, or the path of the key file; the file itself is not read."""
    if file := key_file_path(value, source):
        return KeySetting(file=file)
    return KeySetting(tuple(_uri(text, source) for text in _strings(value, source)))


def key_file_path(value: object, source: Source) -> Path | None:
    """Return the path of the key file that the setting `key` names, or None for URIs."""
    texts = _strings(value, source)
    if not any(text.startswith(_FILE) for text in texts):
        return None
    if len(texts) > 1:
        raise ConfigError(
            f"{source.name} names a key file and other keys.",
            hint="Give only the key file: it names the key to use.",
        )
    return read_path(texts[0].removeprefix(_FILE), source)


def read_pin_source(value: object, source: Source) -> str | tuple[str, ...]:
    """Return the text or list for `parse_pin_source`. A relative PIN file in a profile is relative to the profile."""
    if isinstance(value, list):
        return _strings(value, source)
    text = _string(value, source)
    _withhold_variable(text)
    path = text.removeprefix(_FILE)
    is_relative = text.startswith(_FILE) and path != "" and not path.startswith("/")
    return f"{_FILE}{source.directory / path}" if is_relative and source.directory else text


def read_environment(value: object, source: Source) -> dict[str, str]:
    """Return environment variables. Relative paths in them are relative to the profile's file."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ConfigError(
            f"{source.name} must be a table of strings, but is {_kind(value)}.",
            hint='Write it as { SOFTHSM2_CONF = "/etc/softhsm2.conf" }.',
        )
    for name, text in value.items():
        # environ(7): the name ends at the first =, the value at the first NUL.
        if not name or "=" in name or "\0" in name + text:
            raise ConfigError(
                f"{source.name} has {name!r}, which cannot be an environment variable.",
                hint="The name must not be empty or contain =. The name and the value must not contain NUL characters.",
            )
    return {name: _variable(name, text, source) for name, text in value.items()}


def absolute(path: Path, name: str) -> Path:
    """Return a path that does not depend on the current directory.

    Args:
        name: the name of the option, for messages.

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
    """Return the value of an option that is not a setting, and is sent to a server.

    Raises:
        ConfigError: it is empty, is not UTF-8, or contains an invisible character.
    """
    return read_text(text, Source(option))


def seconds_argument(seconds: float, option: str) -> float:
    """Return how long to wait, from an option that is not a setting.

    Raises:
        ConfigError: it is negative, more than a day, or not a number.
    """
    if not 0 <= seconds <= _DAY:
        raise ConfigError(f"{option} is {seconds:g}.", hint=f"Give a number of seconds from 0 to {_DAY}.")
    return seconds


def uri_argument(text: str, option: str) -> Pkcs11Uri:
    """Return the PKCS#11 URI of an option that is not a setting.

    Raises:
        ConfigError: it is malformed, or contains a PIN.
    """
    return _uri(text, Source(option, is_argument=True))


def nearest(text: str, names: list[str]) -> str | None:
    """Return a hint that suggests the most similar name, or None if none is similar."""
    found = difflib.get_close_matches(text, names, n=1)
    return f"Did you mean {found[0]}?" if found else None


def _string(value: object, source: Source) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(
            f"{source.name} must be a string, but is {_kind(value)}.", hint="Give a value; in a profile, in quotes."
        )
    return value.strip()


def _strings(value: object, source: Source) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.split())
    if isinstance(value, list | tuple):
        return tuple(_string(item, source) for item in value)
    raise ConfigError(
        f"{source.name} must be a string or a list of strings, but is {_kind(value)}.",
        hint='Write it in quotes: "VALUE", or several as ["FIRST", "SECOND"].',
    )


def _kind(value: object) -> str:
    return "empty" if isinstance(value, str) and not value.strip() else f"of type {type(value).__name__}"


def _number(value: object) -> float:
    """Return a number, or NaN for anything else: no comparison with NaN is true."""
    try:
        return math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]  # a TypeError is caught
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _uri(text: str, source: Source) -> Pkcs11Uri:
    try:
        uri = Pkcs11Uri.parse(text)
    except UriError as error:
        raise UriError(f"{source.name}: {error.message}", hint=error.hint, position=error.position) from None
    if uri.pin_value is not None:
        if source.is_argument:
            raise ConfigError(
                f"{source.name} contains a PIN (pin-value), which every user of this machine could read.",
                hint="Remove it, and use --pin-source. If you have run such a command before, change the PIN.",
            )
        logger.warning("%s contains a PIN in clear text (pin-value). Use --pin-source instead.", source.name)
        withhold(source.name)
    _withhold_variable(uri.pin_source or "")
    return uri.resolved_against(source.directory) if source.directory else uri


def _withhold_variable(pin_source: str) -> None:
    """Keep the variable that holds the PIN from programs that we start, even if the PIN is never read."""
    kind, _, name = pin_source.partition(":")
    if kind == "env":
        withhold(name)


def _variable(name: str, text: str, source: Source) -> str:
    is_path = text.startswith(("./", "../")) or (name in _PATH_VARIABLES and bool(text))
    return str(source.directory / text) if is_path and source.directory else text
