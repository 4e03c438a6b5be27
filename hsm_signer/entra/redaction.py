"""What a server says of an error, made fit to be shown: one line, no secrets, and nothing that steers a terminal."""

import re


def without_tokens(text: str, *secrets: str) -> str:
    """Return `text` without what we sent and what else looks like a JWT, for servers echo what they get.

    What was sent is found also where the echo is wrapped, spaced, or escaped for a URL or for JSON.

    Args:
        secrets: what was sent: compact JWTs and access tokens.
    """
    windows = {secret[at : at + _TELLING] for secret in secrets for at in range(len(secret) - _TELLING + 1)}
    if windows:
        text = _without(text, windows)
    # A JWT begins with base64url of '{"'. The long run is a part of one, longer than any thumbprint in hexadecimal.
    return re.sub(r"eyJ[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*)*|[A-Za-z0-9_+/=-]{80,}", "[removed]", text)


_TELLING = 16
"""So many characters in a row are an echo, and no accident."""

# One unit of an echo: a character, or the escape of one in a URL (RFC 3986 section 2.1), in JSON (RFC 8259 section 7)
# or in HTML. Escapes of white space come between the characters of a wrapped JWT.
_UNIT = re.compile(r"%([0-9A-Fa-f]{2})|\\u00([0-9A-Fa-f]{2})|\\[bfnrt]|&#?\w{1,8};|(.)", re.DOTALL)
_OF_A_JWT = re.compile(r"[A-Za-z0-9._~+/=-]")


def _without(text: str, windows: set[str]) -> str:
    """Return `text` without the characters that stand in it as in one of `windows`, whatever stands between them."""
    units = []
    for match in _UNIT.finditer(text):
        escaped = match[1] or match[2]
        character = chr(int(escaped, 16)) if escaped else match[3]
        if character and _OF_A_JWT.match(character):
            units.append((character, match.span()))
    run = "".join(character for character, _ in units)
    kept, at = [], 0
    first = 0
    while first <= len(run) - _TELLING:
        if run[first : first + _TELLING] not in windows:
            first += 1
            continue
        last = first
        while run[last + 1 : last + 1 + _TELLING] in windows:
            last += 1
        kept += [text[at : units[first][1][0]], "[removed]"]
        first = last + _TELLING
        at = units[first - 1][1][1]
    return "".join([*kept, text[at:]])


def identifier(value: object) -> str | None:
    """Return `value` if it has the form of a correlation or trace id."""
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9-]{1,64}", value) else None


def printable(text: str, length: int) -> str:
    """Return `text` on one line, at most `length` characters of it, with nothing that could steer a terminal."""
    clean = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return clean if len(clean) <= length else clean[:length] + "…"
