"""What the doctor found, for people."""

import shutil
from collections.abc import Iterator
from typing import TextIO

from hsm_signer.cli.text.colour import paint
from hsm_signer.cli.text.layout import WIDTH, wrapped
from hsm_signer.doctor.verdicts import Verdict
from hsm_signer.system.display import displayable

_NAME, _STATUS = len("configuration") + 2, len("skipped") + 2
_FOR_COMMANDS = " " * 4
"""Before the commands if one of them is too long to stand under the detail."""
_COLOURS = {"ok": "32", "warning": "33", "failed": "31", "skipped": "2"}


def finding_lines(name: str, verdict: Verdict, stream: TextIO | None) -> Iterator[str]:
    """Return name, status and detail side by side, and the fix under the detail. Commands stand alone, in one piece.

    Args:
        stream: where they will be shown, which decides on colours.
    """
    indent = " " * (_NAME + _STATUS)
    width = min(shutil.get_terminal_size((WIDTH, 0)).columns, 120)
    detail = _wrap(verdict.detail, width - len(indent))
    status = paint(verdict.status, _COLOURS[verdict.status], stream) + " " * (_STATUS - len(verdict.status))
    yield f"{name:{_NAME}}{status}{detail[0]}"
    for line in detail[1:] + (_wrap(f"fix: {verdict.fix}", width - len(indent)) if verdict.fix else []):
        yield indent + line
    commands = [displayable(command) for command in verdict.commands]
    fits = all(len(indent + command) <= width for command in commands)
    for command in commands:
        yield (indent if fits else _FOR_COMMANDS) + command


def _wrap(text: str, width: int) -> list[str]:
    return wrapped(displayable(text), width=max(width, 20)) or [""]
