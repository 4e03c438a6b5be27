"""Colour, on terminals only."""

import os
from typing import TextIO


def paint(text: str, code: str, stream: TextIO | None) -> str:
    """Return `text` in a colour if `stream` is a terminal and NO_COLOR is not set.

    Args:
        code: the colour, by ECMA-48 section 8.3.117.
    """
    colourful = stream is not None and stream.isatty() and not os.environ.get("NO_COLOR")
    return f"\x1b[{code}m{text}\x1b[0m" if colourful else text
