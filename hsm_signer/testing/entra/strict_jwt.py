"""Read a compact JWT, or JSON, strictly: only what RFC 7515, 7519 and 8259 allow.

Entra accepts padding, floats and strings, and JWT libraries accept repeated members. An emulator that accepted them
would hide mistakes. This module shares no code with what builds assertions.
"""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)


class Malformed(ValueError):
    """The text is not a compact JWT, or not a JSON object. The message says why, and never quotes the text."""


@dataclass(frozen=True)
class StrictJwt:
    """The two JSON objects of a compact JWT. The signature is not verified here."""

    header: dict[str, object]
    claims: dict[str, object]

    @classmethod
    def parse(cls, text: str) -> "StrictJwt":
        """Read a compact JWT (RFC 7519 section 7.2, RFC 7515 section 7.1).

        Raises:
            Malformed: it does not have three parts, or one is not base64url without padding, or header and claims are
                not JSON objects in UTF-8 with members that occur once.
        """
        parts = text.split(".")
        if len(parts) != 3:
            raise Malformed(f"it has {len(parts)} parts, but a signed JWT has 3")
        header, claims, signature = parts
        decode_base64url(signature, "the signature")
        return cls(_decode_object(header, "the header"), _decode_object(claims, "the claims"))


def decode_base64url(text: str, what: str) -> bytes:
    """Decode base64url without padding, in its one canonical form (RFC 7515 section 2, RFC 4648 section 3.5).

    Args:
        what: what the text is, for the message of the error.

    Raises:
        Malformed: padding, another alphabet, white space, an impossible length, or stray bits at the end.
    """
    if "=" in text:
        raise Malformed(f"{what} is padded with '=', which a JWT does not allow")
    if not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        raise Malformed(f"{what} is not base64url")
    value = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if base64.urlsafe_b64encode(value).rstrip(b"=") != text.encode("ascii"):
        raise Malformed(f"{what} has stray bits at its end")
    return value


def whole_seconds(value: object, what: str) -> int:
    """Return a time, which must be a JSON integer.

    RFC 7519 section 2 would allow fractions; Entra documents integers.

    Raises:
        Malformed: it is a fraction, a string, a boolean or anything else.
    """
    if type(value) is not int:  # for isinstance, true and false are integers
        raise Malformed(f"{what} is not an integer but a {_json_type(value)}")
    return value


def json_object(data: bytes, what: str) -> dict[str, object]:
    """Read a JSON object in UTF-8 whose members occur once (RFC 8259 sections 4 and 8.1).

    Args:
        what: what the object is, for the message of the error.

    Raises:
        Malformed: it is anything else.
    """

    def unique(members: Sequence[tuple[str, object]]) -> dict[str, object]:
        found = dict(members)
        if len(found) != len(members):
            raise Malformed(f"{what} names a member twice")
        return found

    def no_constant(_: str) -> NoReturn:
        raise Malformed(f"{what} contains NaN or Infinity, which JSON does not allow")

    try:
        value: object = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except Malformed:
        raise
    except (ValueError, RecursionError):
        # Without the cause: a JSON error contains the document, and with it the assertion.
        raise Malformed(f"{what} is not JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise Malformed(f"{what} is not a JSON object but a {_json_type(value)}")
    return value


def _decode_object(part: str, what: str) -> dict[str, object]:
    return json_object(decode_base64url(part, what), what)


def _json_type(value: object) -> str:
    names = {bool: "boolean", int: "number", float: "fraction", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")
