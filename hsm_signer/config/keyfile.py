"""The key file: it names the key that programs use. `rotate` replaces it while programs read it.

    {"key": "pkcs11:token=Office;id=%01"}

is a complete key file, and enough to start by hand. During a rotation it also names the next key and the retired ones.
A profile uses it with ``key = "file:PATH"``.
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

_MEMBERS = ("key", "registered", "key_id", "until", "delete")
_THUMBPRINTS = ("x5t", "x5t#S256")


@dataclass(frozen=True)
class KeyEntry:
    """One key, and the state of its certificate at Entra.

    Attributes:
        uri: where the key is.
        registered: whether its certificate is registered.
        key_id: ID of its key credential, needed to remove the certificate from Entra; None if unknown.
        thumbprints: of the certificate that `key_id` belongs to, as `thumbprints` returns them; empty if hsm-signer has
            not checked that they belong together, as in a file written by hand.
        until: for a retired key, epoch seconds: until then programs may hold an assertion that it signed, so it must
            stay registered; None if unknown.
        delete: for a retired key: whether to delete it from the device at the end of the rotation.
    """

    uri: Pkcs11Uri
    registered: bool = True
    key_id: str | None = None
    thumbprints: Mapping[str, str] = field(default_factory=dict)
    until: int | None = None
    delete: bool = False


@dataclass(frozen=True)
class KeyFile:
    """The content of a key file.

    Attributes:
        current: the key that programs use.
        next: the key that will replace it.
        retired: earlier keys that are not removed yet, the oldest first.
        object_id: object ID of the application; None if unknown.
    """

    current: KeyEntry
    next: KeyEntry | None = None
    retired: tuple[KeyEntry, ...] = ()
    object_id: str | None = None


def read_key_file(path: Path) -> KeyFile:
    """Read a key file. A relative PIN file in a URI is relative to the key file.

    Raises:
        ConfigError: it cannot be read, is malformed, contains a PIN, or other users can change it.
    """
    text, opened = read_trusted(path, "key file")
    directory = opened.parent
    try:
        document = parse_json(text)
        if unknown := document.keys() - {*_MEMBERS, *_THUMBPRINTS, "object_id", "next", "retired"}:
            raise _malformed(path, f"unknown member {min(unknown)!r}")
        next_entry = document.get("next")
        content = KeyFile(
            current=_key_entry(document, directory),
            next=None if next_entry is None else _key_entry(next_entry, directory),
            retired=tuple(_key_entry(entry, directory) for entry in document.get("retired", ())),
            object_id=_optional(str, document, "object_id"),
        )
    except UriError as error:
        raise _malformed(path, error.message.rstrip(".")) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise _malformed(path, "it is not JSON, or a value has the wrong type") from None
    if any(key is not None and key.uri.pin_value for key in (content.current, content.next, *content.retired)):
        raise ConfigError(
            f"The key file {path} contains a PIN (pin-value), and every user can read the file.",
            hint="Remove the PIN from the file, and use --pin-source. Then change the PIN.",
        )
    return content


def write_key_file(path: Path, content: KeyFile) -> None:
    """Write or replace a key file, atomically.

    Raises:
        ConfigError: other users can write in its directory.
        OutputError: it cannot be written. An earlier file is unchanged.
    """
    document = _document(content.current)
    if content.object_id is not None:
        document["object_id"] = content.object_id
    if content.next is not None:
        document["next"] = _document(content.next)
    if content.retired:
        document["retired"] = [_document(key) for key in content.retired]
    text = json.dumps(document, indent=2) + "\n"
    # Every user may read it, like a profile: the programs that use the key often run as other users than rotate.
    write_private(path, lambda: text, mode=0o644)


def lock_key_file(path: Path) -> int:
    """Lock a key file, so that only one rotation runs at a time.

    Returns:
        A descriptor, which holds the lock until it is closed.

    Raises:
        ConfigError: another process holds the lock.
        OutputError: the lock file cannot be created.
    """
    try:
        lock = path.with_name(f".{path.name}.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be replaced: {error.strerror}.",
            hint="Check that its directory exists, and that you may write there.",
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(
            f"Another hsm-signer rotate is running for {path}.", hint="Wait until it ends, then run the command again."
        ) from None
    return descriptor


def _key_entry(entry: Mapping[str, Any], directory: Path) -> KeyEntry:
    return KeyEntry(
        Pkcs11Uri.parse(entry["key"]).resolved_against(directory),
        _optional(bool, entry, "registered", True),
        _optional(str, entry, "key_id"),
        {name: _optional(str, entry, name) for name in _THUMBPRINTS if name in entry},
        None if entry.get("until") is None else _epoch_seconds(entry["until"]),
        _optional(bool, entry, "delete", False),
    )


def _optional(kind: type, entry: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Return a member or its default. Raise TypeError or ValueError if it has another type, or is not valid Unicode."""
    value = entry.get(name, default)
    if value is not default and not isinstance(value, kind):
        raise TypeError
    if isinstance(value, str):
        value.encode()  # raises UnicodeEncodeError, a ValueError, for a lone surrogate
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
    """Read a time with a zone (RFC 3339). Raise ValueError or TypeError for anything else."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return int(moment.timestamp())


def _malformed(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"{path} is not a valid key file: {reason}.",
        hint='The shortest key file is {"key": "pkcs11:token=Office;id=%01"}. hsm-signer rotate adds to it.',
    )
