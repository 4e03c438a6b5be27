"""What a server says of an error, made fit to be shown: one line, no secrets, and nothing that steers a terminal."""

import re


def without_tokens(text: str, *secrets: str) -> str:
    """Return `text` without what we sent and what else looks like a JWT, for servers echo what they get.

    Args:
        secrets: compact JWTs that were sent.
    """
    for part in (piece for secret in secrets for piece in (secret, *secret.split("."))):
        if len(part) >= 16:
            text = text.replace(part, "[removed]")
    # A JWT begins with base64url of '{"'. The long run is a part of one, longer than any thumbprint in hexadecimal.
    return re.sub(r"eyJ[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*)*|[A-Za-z0-9_+/=-]{80,}", "[removed]", text)


def identifier(value: object) -> str | None:
    """Return `value` if it has the form of a correlation or trace id."""
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9-]{1,64}", value) else None


def printable(text: str, length: int) -> str:
    """Return `text` on one line, at most `length` characters of it, with nothing that could steer a terminal."""
    clean = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return clean if len(clean) <= length else clean[:length] + "…"
