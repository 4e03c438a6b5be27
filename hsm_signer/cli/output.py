"""Where results and errors go: results to stdout or atomically to a file, notes and errors to stderr."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TextIO

from hsm_signer.cli.text.colour import paint
from hsm_signer.cli.text.layout import to_json, wrapped
from hsm_signer.errors import EntraError, HsmSignerError, OutputError
from hsm_signer.system.display import displayable, displayable_lines
from hsm_signer.system.private_file import replacing, unwritable

_COLUMNS, _NARROWEST = 80, 40


class Output(StrEnum):
    """Text for people, or JSON for programs."""

    TEXT = "text"
    JSON = "json"


class ReaderGone(Exception):
    """The program that reads our stdout has closed it. This is no error, and needs no message."""


class Write(Protocol):
    """Writes the result, once."""

    def __call__(self, result: str | bytes) -> None:
        """Write `result`."""
        ...


def print_result(result: str | bytes, *, styled: bool = False) -> None:
    """Write a result to stdout: text, made displayable, and a newline, or octets as they are.

    Args:
        styled: the text is displayable already, and has colours of ours.

    Raises:
        OutputError: it cannot be written.
        ReaderGone: the reader has closed the pipe.
    """
    stream = _stdout()
    try:
        if isinstance(result, bytes):
            stream.buffer.write(result)
        else:
            stream.write((result if styled else displayable_lines(result)) + "\n")
        stream.flush()
    except BrokenPipeError:
        # What is still buffered must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise ReaderGone from None
    except OSError as error:
        raise OutputError(
            f"The result could not be written to stdout: {error.strerror}.", hint="Is a disk full?"
        ) from None


def print_json(value: object) -> None:
    """Write a result as one JSON document."""
    print_result(to_json(value))


def print_as(output: Output, document: object, text: str) -> None:
    """Write a result in the form that --output asks for: `document` as JSON, or `text`."""
    print_result(to_json(document) if output is Output.JSON else text)


@contextlib.contextmanager
def result_writer(file: Path | None) -> Iterator[Write]:
    """Check that a result can be written before work, or a touch, is spent on it; then write it.

    Args:
        file: None for stdout. The file appears when the result is complete, with mode 0600 and without a newline at the
            end, because SDKs post the text of an assertion file unchanged.

    Raises:
        OutputError: it cannot be written. An older file is unchanged.
    """
    if file is None:
        _stdout()
        yield print_result
        return
    try:
        with replacing(file) as stream:

            def write(result: str | bytes) -> None:
                stream.write(result if isinstance(result, bytes) else result.encode())

            yield write
    except OSError as error:
        raise unwritable(file, error) from None


def print_note(text: str, *, styled: bool = False) -> None:
    """Write lines for people, made displayable, to stderr."""
    sys.stderr.write((text if styled else displayable_lines(text)) + "\n")
    sys.stderr.flush()


def sentences(text: str, label: str = "") -> list[str]:
    """Return text for stderr as lines, wrapped at words if it is a terminal. A log keeps it on one line.

    Args:
        text: is made displayable.
        label: what it begins with; the next lines are indented by as much.
    """
    width = _columns(sys.stderr)
    if width is None:
        return [label + displayable(text)]
    return wrapped(displayable(text), label, " " * len(label), width) or [label]


def print_error(error: HsmSignerError, *, as_json: bool) -> None:
    """Print an error on stderr: what happened, and how to fix it. Commands stand on lines of their own, unwrapped."""
    entra = error if isinstance(error, EntraError) else None
    aadsts, correlation_id = (entra.aadsts, entra.correlation_id) if entra else (None, None)
    if as_json:
        document: dict[str, object] = {
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "aadsts": aadsts,
            "correlation_id": correlation_id,
        }
        if error.commands:
            document["commands"] = error.commands
        text = json.dumps({"error": document})
    else:
        lines = _labelled("error", "31", error.message)
        if error.hint:
            lines += _labelled("hint", "36", error.hint)
        lines += [f"  {displayable(command)}" for command in error.commands]
        if correlation_id:
            lines.append(f"correlation id: {correlation_id}")
        text = "\n".join(lines)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _labelled(label: str, colour: str, text: str) -> list[str]:
    first, *rest = sentences(text, f"{label}: ")
    return [paint(label, colour, sys.stderr) + first.removeprefix(label), *rest]


def _columns(stream: TextIO | None) -> int | None:
    """Return the width of a terminal; None if it is another kind of file."""
    try:
        if stream is None or not stream.isatty():
            return None
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return None
    # A terminal whose size nobody has set reports 0.
    return max(columns or _COLUMNS, _NARROWEST)


def _stdout() -> TextIO:
    if sys.stdout is None:
        raise OutputError(
            "stdout is closed, so the result cannot be written.", hint="Use --output-file, or leave stdout open."
        )
    return sys.stdout
