"""Read a setting, or the `pin-source` of a URI, as a PIN source."""

import functools
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote_to_bytes

from hsm_signer.device.pin.pin import PinSource
from hsm_signer.device.pin.sources import (
    CHOICES,
    NO_LOGIN,
    PROTECTED,
    CommandPin,
    DescriptorPin,
    EnvironmentPin,
    FilePin,
    SystemdCredentialPin,
)
from hsm_signer.errors import ConfigError, PinUnavailable


def parse_pin_source(
    text: str | Sequence[str],
    *,
    prompt: PinSource | None,
    environ: Mapping[str, str] = os.environ,
) -> PinSource:
    """Return the source that a setting, or the `pin-source` of a URI, names. Opens nothing yet.

    Args:
        text: one of
            `prompt`, `protected`, `none`;
            `file:PATH`, as it stands, or a bare absolute path;
            `file:///PATH`, percent-encoded (RFC 7512 section 2.4, RFC 8089);
            `env:NAME`; `fd:NUMBER`; `credential:NAME`;
            `command:ARGV`, split as a POSIX shell would, but run without one.
            A list (in a profile) is always a command: the absolute program, then its arguments.
        prompt: the source for `prompt`, or None if nobody can be asked.
        environ: the environment that `env:` and `credential:` read.

    Raises:
        ConfigError: it is not a source. The message does not quote the text: it may be a PIN given by mistake.
        PinUnavailable: it is `prompt`, and nobody can be asked.
    """
    if not isinstance(text, str):
        return CommandPin(tuple(text))
    kind, colon, value = text.partition(":")
    if "\0" in text:
        raise ConfigError("The PIN source contains a NUL character.", hint=CHOICES)
    match kind, colon:
        case "prompt", "":
            if prompt is None:
                raise PinUnavailable("The PIN source is prompt, but nobody can be asked here.", hint=CHOICES)
            return prompt
        case "protected", "":
            return PROTECTED
        case "none", "":
            return NO_LOGIN
        case "file", ":":
            return FilePin(_path(value))
        case "env", ":":
            return EnvironmentPin(value, environ)
        case "fd", ":" if re.fullmatch("[0-9]{1,6}", value):
            return _descriptor(int(value))
        case "command", ":":
            return CommandPin(_split(value))
        case "credential", ":":
            return SystemdCredentialPin(value, environ)
    if text.startswith("/"):
        return FilePin(Path(text))
    raise ConfigError("Unknown PIN source.", hint=CHOICES)


@functools.cache
def _descriptor(number: int) -> "DescriptorPin":
    """Return the same source for the same number: after it was read, the number may belong to another file."""
    return DescriptorPin(number)


def _path(value: str) -> Path:
    with suppress(UnicodeEncodeError):  # a lone surrogate: no file has that name
        name = os.fsencode(value)
        if name.startswith(b"//"):
            host, slash, path = name[2:].partition(b"/")
            if host not in (b"", b"localhost"):
                raise ConfigError("The PIN file is on another host.", hint="Write file:///PATH, with three slashes.")
            name = unquote_to_bytes(slash + path)
        if name and b"\0" not in name:
            return Path(os.fsdecode(name))
    raise ConfigError("The PIN source file: does not name a file.", hint="Write file:PATH.")


def _split(command: str) -> tuple[str, ...]:
    with suppress(ValueError):
        return tuple(shlex.split(command))
    raise ConfigError(
        "The quotes in the PIN source command: are not balanced.",
        hint='Write each argument as in a shell, or in a profile as a list: ["/usr/bin/pass", "show", "card"].',
    )
