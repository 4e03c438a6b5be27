"""Entra's error numbers (AADSTS): parse one, look up its explanation, and decide whether the error lasts. Pure."""

import functools
import re
from typing import TYPE_CHECKING

from hsm_signer.errors import ConfigError, EntraError

if TYPE_CHECKING:
    from hsm_signer.entra.aadsts_table import AadstsError

# RFC 6749 section 5.2: what other servers than Entra say about the scope and the client's rights. Not invalid_client:
# they also use it for the assertion.
_LASTING_ERRORS = frozenset({"invalid_scope", "unauthorized_client", "unsupported_grant_type"})


def lookup(code: int) -> "AadstsError | None":
    """Return the explanation of AADSTS `code`, or None."""
    return _by_code().get(code)


@functools.cache
def _by_code() -> "dict[int, AadstsError]":
    from hsm_signer.entra.aadsts_table import TABLE  # long, and needed only when Entra refuses

    return {entry.code: entry for entry in TABLE}


def is_lasting(refusal: EntraError) -> bool:
    """Return whether another request within a minute would be refused for the same reason."""
    if refusal.aadsts is None:
        return refusal.error in _LASTING_ERRORS
    known = lookup(refusal.aadsts)
    return known is not None and known.lasting


def parse_code(text: str) -> int:
    """Return the number in `AADSTS700027`, `700027`, or a whole message that begins with one of them.

    Raises:
        ConfigError: the text does not begin with such a number.
    """
    match = re.fullmatch(r"(?:AADSTS\s?)?([0-9]{4,9})(?:[^0-9A-Z_].*)?", text.strip(), re.IGNORECASE | re.DOTALL)
    if match is None:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise ConfigError(
            f"{shown!r} is not an Entra error number.",
            hint="Write it as AADSTS700027 or 700027. Entra's message begins with it.",
        )
    return int(match[1])
