"""The JWT that `decode` and `verify` read: from the argument, or from stdin."""

import sys
from typing import Annotated

import typer

from hsm_signer.errors import ConfigError
from hsm_signer.jwt.compact import Jwt, parse_jwt

_MAXIMUM_TEXT = 1024 * 1024
"""Bytes read from stdin. The parser refuses what is cut off."""

JwtArgument = Annotated[
    str | None, typer.Argument(metavar="[JWT]", help="The JWT. Default: read it from stdin.", show_default=False)
]


def read_jwt(argument: str | None) -> Jwt:
    """Return the parsed JWT.

    Args:
        argument: the JWT itself; None or "-" for stdin.

    Raises:
        ConfigError: there is no JWT, or it cannot be parsed.
    """
    if argument not in (None, "-"):
        return parse_jwt(argument or "")
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError("There is no JWT to read.", hint="Give it as an argument, or pipe it to stdin.")
    return parse_jwt(sys.stdin.buffer.read(_MAXIMUM_TEXT).decode(errors="replace"))
