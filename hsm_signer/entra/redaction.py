"""Make a server's error texts safe to show: one line, no secrets, no control characters."""

import re


def without_tokens(text: str, *secrets: str) -> str:
    """Return `text` without the secrets, and without anything else that looks like a JWT: servers may echo requests.

    This also finds secrets that are wrapped, spaced, or escaped for a URL, JSON or HTML.

    Args:
        secrets: the compact JWTs and access tokens in the request.
    """
    windows = {secret[at : at + _ECHO_LENGTH] for secret in secrets for at in range(len(secret) - _ECHO_LENGTH + 1)}
    if windows:
        text = _remove_echoes(text, windows)
    # A JWT begins with the base64url of '{"'. A long run is part of one: it is longer than any hexadecimal thumbprint.
    return re.sub(r"eyJ[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*)*|[A-Za-z0-9_+/=-]{80,}", "[removed]", text)


_ECHO_LENGTH = 16
"""So many equal characters in a row are an echo, not a coincidence."""

# One unit of an echo: a character, or its escape in a URL (RFC 3986 section 2.1), in JSON (RFC 8259 section 7) or in
# HTML. A wrapped JWT has escaped white space between its characters.
_UNIT = re.compile(r"%([0-9A-Fa-f]{2})|\\u00([0-9A-Fa-f]{2})|\\[bfnrt]|&#?\w{1,8};|(.)", re.DOTALL)
_JWT_CHARACTER = re.compile(r"[A-Za-z0-9._~+/=-]")


def _remove_echoes(text: str, windows: set[str]) -> str:
    """Return `text` without the runs of JWT characters that are in `windows`, whatever else is between them."""
    units = []
    for match in _UNIT.finditer(text):
        escaped = match[1] or match[2]
        character = chr(int(escaped, 16)) if escaped else match[3]
        if character and _JWT_CHARACTER.match(character):
            units.append((character, match.span()))
    run = "".join(character for character, _ in units)
    kept, at = [], 0
    first = 0
    while first <= len(run) - _ECHO_LENGTH:
        if run[first : first + _ECHO_LENGTH] not in windows:
            first += 1
            continue
        last = first
        while run[last + 1 : last + 1 + _ECHO_LENGTH] in windows:
            last += 1
        kept += [text[at : units[first][1][0]], "[removed]"]
        first = last + _ECHO_LENGTH
        at = units[first - 1][1][1]
    return "".join([*kept, text[at:]])


def identifier(value: object) -> str | None:
    """Return `value` if it looks like a correlation or trace ID, else None."""
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9-]{1,64}", value) else None


def printable(text: str, length: int) -> str:
    """Return at most `length` characters of `text` on one line, without control characters."""
    clean = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return clean if len(clean) <= length else clean[:length] + "…"
