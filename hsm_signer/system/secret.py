"""What keeps secrets out of error reports: a string that no repr shows, and exceptions without local variables.

sentry-sdk with its defaults, rich, cgitb and the standard library's traceback (``capture_locals``) show the local
variables of every frame that an exception passed through. Our own frames hold a `Secret`; the frames of the libraries
that are given it in clear are emptied.
"""

import contextlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any


class Secret:
    """A string that shows itself only to `reveal`: not a str, because reporters show those without asking their repr.

    Args:
        text: an assertion, a proof, a token, a PIN.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the string, to be handed to the last call that needs it and nowhere else."""
        return self._text

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


def revealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with its secrets in clear."""
    return {name: value.reveal() if isinstance(value, Secret) else value for name, value in values.items()}


@contextlib.contextmanager
def hidden_locals() -> Iterator[None]:
    """Empty the frames of what fails inside, and of its causes: a traceback still shows where, but no variables.

    As a decorator it empties the function's own frame as well; else the frame that enters this keeps its variables.
    """
    # What the caller is handling is the context of ours, and none of our business.
    handled = sys.exception()
    try:
        yield
    except BaseException as error:
        _empty_frames(error, handled)
        raise


def _empty_frames(error: BaseException, handled: BaseException | None) -> None:
    seen = {id(handled)}
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        # Those that are still running are left alone.
        traceback.clear_frames(one.__traceback__)
        # The context as well where it is suppressed: not everybody who shows exceptions minds that.
        pending += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions
