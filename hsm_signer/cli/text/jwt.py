"""A JWT as a table: its header and claims, with times in words; pure."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from hsm_signer.cli.text.layout import table
from hsm_signer.jwt.compact import Jwt

_TIMES = ("nbf", "iat", "exp", "auth_time")


def jwt_text(jwt: Jwt, now: float) -> str:
    """Return the header and the claims of a JWT as a table, without its signature.

    Args:
        now: epoch seconds; times in the JWT are shown relative to it.
    """
    header = [("header", name, value) for name, value in _rows(jwt.header, now)]
    claims = [("claims", name, value) for name, value in _rows(jwt.claims, now)]
    return table(header + claims)


def _rows(values: Mapping[str, Any], now: float) -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if name in _TIMES and type(value) in (int, float):
            yield name, f"{value}  {_in_words(value, now)}"
        elif name == "x5c" and isinstance(value, list):
            yield name, f"{len(value)} certificate{'s' if len(value) != 1 else ''}"
        else:
            yield name, value if isinstance(value, str) else repr(value)


def _in_words(moment: float, now: float) -> str:
    try:
        shown = datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "not a valid time"
    distance = round(moment - now)
    if distance == 0:
        return f"{shown}, now"
    return f"{shown}, in {_duration(distance)}" if distance > 0 else f"{shown}, {_duration(-distance)} ago"


def _duration(seconds: int) -> str:
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}s"
    return f"{seconds} second{'s' if seconds != 1 else ''}"
