"""Understanding what is at hand, without a device or a network: `decode`, `verify`, `explain`."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from hsm_signer.cli.options import Output, OutputOption, read_certificate_file
from hsm_signer.cli.output import print_json, print_result
from hsm_signer.entra.aadsts import lookup, parse_code
from hsm_signer.errors import ConfigError
from hsm_signer.jwt.compact import Jwt, parse_jwt
from hsm_signer.jwt.verification import check_assertion
from hsm_signer.system.display import displayable
from hsm_signer.x509.certificate import parse_certificates

_TIMES = ("nbf", "iat", "exp", "auth_time")
_MAXIMUM_TEXT = 1024 * 1024

JwtArgument = Annotated[
    str | None, typer.Argument(metavar="[JWT]", help="Default: read from stdin.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (decode, verify, explain):
        app.command()(command)


def decode(jwt: JwtArgument = None, output: OutputOption = Output.TEXT) -> None:
    """Show header and claims of a JWT, with its times in words. Checks nothing, and never shows the signature."""
    parsed = _read_jwt(jwt)
    if output is Output.JSON:
        print_json({"header": parsed.header, "claims": parsed.claims})
        return
    now = time.time()
    rows = [("header", *row) for row in _rows(parsed.header, now)] + [
        ("claims", *row) for row in _rows(parsed.claims, now)
    ]
    print_result(_table(rows))


def verify(
    certificate: Annotated[Path, typer.Option(help="Certificate, PEM or DER.", metavar="FILE", show_default=False)],
    jwt: JwtArgument = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check an assertion's signature, thumbprint and times offline. Exits 0 when all holds, 1 when not."""
    first = parse_certificates(read_certificate_file(certificate), str(certificate))[0]
    checks = check_assertion(_read_jwt(jwt), first, time.time())
    holds = all(check.holds for check in checks)
    if output is Output.JSON:
        print_json({"holds": holds, "checks": [asdict(check) for check in checks]})
    else:
        print_result(_table([("ok" if check.holds else "FAILED", check.name, check.detail) for check in checks]))
    raise typer.Exit(0 if holds else 1)


def explain(
    code: Annotated[str, typer.Argument(metavar="AADSTS…", help="As in AADSTS700027.", show_default=False)],
    output: OutputOption = Output.TEXT,
) -> None:
    """Say what an Entra error means, what usually causes it, and how to mend it."""
    number = parse_code(code)
    known = lookup(number)
    reference = f"https://login.microsoftonline.com/error?code={number}"
    if output is Output.JSON:
        explanation = {name: getattr(known, name, None) for name in ("meaning", "cause", "fix")}
        print_json({"code": number, "known": known is not None, **explanation, "reference": reference})
    elif known is None:
        print_result(f"AADSTS{number} is not among the errors explained here. Microsoft explains it at\n{reference}")
    else:
        rows = [(f"AADSTS{number}", known.meaning), ("cause", known.cause), ("fix", known.fix), ("more", reference)]
        print_result(_table(rows))


def _read_jwt(argument: str | None) -> Jwt:
    if argument not in (None, "-"):
        return parse_jwt(argument or "")
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError("There is no JWT to read.", hint="Give it as an argument, or pipe it to stdin.")
    return parse_jwt(sys.stdin.buffer.read(_MAXIMUM_TEXT).decode(errors="replace"))  # the parser refuses the rest


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
        return "no time that a calendar has"
    distance = round(moment - now)
    if distance == 0:
        return f"{shown}, now"
    return f"{shown}, in {_duration(distance)}" if distance > 0 else f"{shown}, {_duration(-distance)} ago"


def _duration(seconds: int) -> str:
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}s"
    return f"{seconds} second{'s' if seconds != 1 else ''}"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Align every column but the last. What a JWT holds may not steer the terminal."""
    cells = [tuple(map(displayable, row)) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, [*widths[:-1], 0])).rstrip() for row in cells)
