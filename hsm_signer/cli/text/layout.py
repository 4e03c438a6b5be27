"""Lines of 80 columns for people, and JSON for programs; pure.

Long text is wrapped, never cut. A URI or a thumbprint stays on one line, so that it can be copied.
"""

import json
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from hsm_signer.system.display import displayable

WIDTH = 80
_LABEL = 10


def row(indent: int, label: str, *values: str) -> Iterator[str]:
    """Return the lines of a label and its values. Each value begins a line, and is wrapped under itself."""
    before, under = f"{' ' * indent}{label:{_LABEL}}", " " * (indent + _LABEL)
    for value in map(displayable, values):
        if max(map(len, value.split()), default=0) > WIDTH - len(under):
            # A word is too long for the line: it stays whole, and begins further left.
            yield before.rstrip()
            before = under = " " * (indent + 2)
        yield from wrapped(value, before, under)
        before = under


def uri_line(indent: int, uri: str) -> Iterator[str]:
    """Return the line of a URI: alone, quoted for a shell, and in one piece."""
    yield f"{' ' * indent}{displayable(shlex.quote(uri))}"


def commands(indent: int, lines: Iterable[str]) -> Iterator[str]:
    """Return the lines of commands, each alone and in one piece."""
    for line in lines:
        yield f"{' ' * (indent + 2)}{displayable(line)}"


def heading(indent: int, title: str, rest: str) -> Iterator[str]:
    """Return title and rest on one line if they fit, else on two."""
    line = f"{' ' * indent}{displayable(title)}  {displayable(rest)}".rstrip()
    if len(line) <= WIDTH:
        yield line
        return
    under = " " * (indent + 2)
    yield from wrapped(displayable(title), " " * indent, under)
    yield from wrapped(displayable(rest), under, under)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows as lines, every column but the last aligned. Values are made displayable, and are not wrapped."""
    cells = [tuple(map(displayable, row)) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, [*widths[:-1], 0])).rstrip() for row in cells)


def wrapped(text: str, before: str = "", under: str = "", width: int = WIDTH) -> list[str]:
    """Return `text` as lines.

    Args:
        before: begins the first line.
        under: begins the other lines.
        width: longest line, in characters.
    """
    return textwrap.wrap(
        text, width, initial_indent=before, subsequent_indent=under, break_long_words=False, break_on_hyphens=False
    )


def utc(seconds: float) -> str:
    """Return a time as "2026-01-31 23:59:59 UTC".

    Args:
        seconds: since the epoch.
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def days_in_words(days: int) -> str:
    """Return "1 day", "2 days"."""
    return f"{days} day{'' if days == 1 else 's'}"


def validity_in_words(not_before: datetime, not_after: datetime, days_left: int) -> str:
    """Return the validity of a certificate, and how much of it is left."""
    left = "EXPIRED" if days_left < 0 else f"{days_in_words(days_left)} left"
    return f"{not_before:%Y-%m-%d} to {not_after:%Y-%m-%d}, {left}"


def to_json(value: object) -> str:
    """Return `value` as JSON, in ASCII, so that nothing in it controls a terminal."""
    return json.dumps(value, indent=2)
