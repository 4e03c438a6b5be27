"""Parse JSON from outside strictly, so that the value can be shown and written again."""

import json
import math
from contextlib import suppress
from typing import Any

_MAXIMUM_DEPTH = 64
_MAXIMUM_DIGITS = 309
"""As many as the largest IEEE 754 number has. RFC 8259 section 6: programs may read larger numbers differently."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON (RFC 8259) without NaN and infinity, without duplicate names in an object, not nested too deeply.

    Raises:
        ValueError: it is not such JSON. Neither this exception nor its cause contains the text.
    """
    with suppress(ValueError, RecursionError):
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite, parse_int=_bounded
        )
        if not _is_deep(value):
            return value
    raise ValueError("not JSON that can be used")


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(_MAXIMUM_DEPTH):
        if not level:
            return False
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
        ]
    return bool(level)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name appears twice in an object, so two readers may see different values")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError("a number is too large")
    return number


def _bounded(digits: str) -> int:
    if len(digits) > _MAXIMUM_DIGITS + 1:  # a sign
        raise ValueError("a number is too large")
    return int(digits)
