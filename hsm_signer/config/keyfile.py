"""The key file: which key a program uses today, in a file that `rotate` replaces while programs read it.

    {"key": "pkcs11:token=Office;id=%01"}

is one, and is how to begin by hand. What else stands in it is a rotation under way: the key that is to come, and those
that have had their day. A profile follows it with ``key = "file:PATH"``.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError, OutputError, UriError
from hsm_signer.system.private_file import write_private
from hsm_signer.system.strict_json import parse_json
from hsm_signer.system.trusted_path import read_trusted

_OF_A_KEY = ("key", "registered", "key_id", "until", "delete")
_THUMBPRINTS = ("x5t", "x5t#S256")


@dataclass(frozen=True)
class KeyEntry:
    """A key, and what became of its certificate at Entra.

    Attributes:
        uri: of the key.
        registered: whether Entra knows its certificate.
        key_id: of the key credential, by which it is removed; None where it is not known.
        thumbprints: of the certificate that `key_id` is the credential of, as `thumbprints` returns them; empty where
            nobody has compared the two, as in a file written by hand.
        until: of a retired key, epoch seconds: until when somebody may hold an assertion that it signed, so that it
            must stay registered; None where that is not known.
        delete: of a retired key: whether it is to be deleted from the device at the end.
    """

    uri: Pkcs11Uri
    registered: bool = True
    key_id: str | None = None
    thumbprints: Mapping[str, str] = field(default_factory=dict)
    until: int | None = None
    delete: bool = False


@dataclass(frozen=True)
class KeyFile:
    """What a key file says.

    Attributes:
        current: the key to use.
        next: the one that is to follow it.
        retired: those that are to be taken away, the oldest first.
        object_id: of the application, once it was found out.
    """

    current: KeyEntry
    next: KeyEntry | None = None
    retired: tuple[KeyEntry, ...] = ()
    object_id: str | None = None


def read_key_file(path: Path) -> KeyFile:
    """Read a key file. A relative PIN file in a URI is relative to the key file.

    Raises:
        ConfigError: it cannot be read, is not one, or others can write it.
    """
    text, opened = read_trusted(path, "key file")
    directory = opened.parent
    try:
        document = parse_json(text)
        if unknown := document.keys() - {*_OF_A_KEY, *_THUMBPRINTS, "object_id", "next", "retired"}:
            raise _damaged(path, f"it has an unknown member {min(unknown)!r}")
        following = document.get("next")
        content = KeyFile(
            current=_filed_key(document, directory),
            next=None if following is None else _filed_key(following, directory),
            retired=tuple(_filed_key(entry, directory) for entry in document.get("retired", ())),
            object_id=_optional(str, document, "object_id"),
        )
    except UriError as error:
        raise _damaged(path, error.message.rstrip(".")) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise _damaged(path, "it is not the JSON that it should be") from None
    if any(key is not None and key.uri.pin_value for key in (content.current, content.next, *content.retired)):
        raise ConfigError(
            f"The key file {path} holds a PIN (pin-value), and everybody may read it.",
            hint="Take it out, and use --pin-source. Then change the PIN.",
        )
    return content


def write_key_file(path: Path, content: KeyFile) -> None:
    """Replace a key file.

    Raises:
        ConfigError: others can write in its directory.
        OutputError: it cannot be written. What was there before is unchanged.
    """
    document = _document(content.current)
    if content.object_id is not None:
        document["object_id"] = content.object_id
    if content.next is not None:
        document["next"] = _document(content.next)
    if content.retired:
        document["retired"] = [_document(key) for key in content.retired]
    text = json.dumps(document, indent=2) + "\n"
    # For all to read, as a profile is: programs that use the key are often other users than the one who rotates it.
    write_private(path, lambda: text, mode=0o644)


def lock_key_file(path: Path) -> int:
    """Return a descriptor that holds the lock of a key file, for one rotation at a time, until it is closed.

    Raises:
        ConfigError: another process holds it.
        OutputError: there cannot be one.
    """
    try:
        lock = path.with_name(f".{path.name}.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be replaced: {error.strerror}.", hint="Its directory must be there, and yours to write in."
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"Another rotate is at work on {path}.", hint="Wait for its end.") from None
    return descriptor


def _filed_key(entry: Mapping[str, Any], directory: Path) -> KeyEntry:
    return KeyEntry(
        Pkcs11Uri.parse(entry["key"]).beside(directory),
        _optional(bool, entry, "registered", True),
        _optional(str, entry, "key_id"),
        {name: _optional(str, entry, name) for name in _THUMBPRINTS if name in entry},
        None if entry.get("until") is None else _epoch_seconds(entry["until"]),
        _optional(bool, entry, "delete", False),
    )


def _optional(kind: type, entry: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Return a member, which must be of that type where there is one; raise TypeError or ValueError when it is not."""
    value = entry.get(name, default)
    if value is not default and not isinstance(value, kind):
        raise TypeError
    if isinstance(value, str):
        value.encode()  # raises UnicodeEncodeError for half a character
    return value


def _document(key: KeyEntry) -> dict[str, Any]:
    document: dict[str, Any] = {"key": str(key.uri)}
    if not key.registered:
        document["registered"] = False
    if key.key_id is not None:
        document["key_id"] = key.key_id
    document.update(key.thumbprints)
    if key.until is not None:
        document["until"] = datetime.fromtimestamp(key.until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if key.delete:
        document["delete"] = True
    return document


def _epoch_seconds(text: str) -> int:
    """Read a time with its zone (RFC 3339); raise ValueError or TypeError where it is none."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return int(moment.timestamp())


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"{path} is no key file: {reason}.",
        hint='It begins as {"key": "pkcs11:token=Office;id=%01"}, and rotate keeps it.',
    )
