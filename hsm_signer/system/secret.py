"""Keep secrets out of error reports: a string that no repr shows, and exceptions without local variables.

sentry-sdk with its defaults, rich, cgitb and the standard library's traceback (``capture_locals``) show the local
variables of every frame that an exception passed through. Our own frames hold a `Secret`; the frames of libraries that
receive it in clear are emptied.
"""

import contextlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any


class Secret:
    """A string that only `reveal` shows. It is not a str, because reporters show those without calling repr.

    Args:
        text: an assertion, a proof, a token, a PIN.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the string. Pass it only to the call that needs it in clear."""
        return self._text

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


def revealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a mapping with its secrets in clear."""
    return {name: value.reveal() if isinstance(value, Secret) else value for name, value in values.items()}


@contextlib.contextmanager
def hidden_locals() -> Iterator[None]:
    """Clear the local variables of every frame that an exception passes through inside, and of its causes.

    A traceback still shows where it failed. As a decorator, this clears the function's own frame too; in a `with`
    statement, the frame around it keeps its variables.
    """
    # An exception that the caller is handling is the context of ours. It is left alone.
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
        # Frames that are still running keep their variables.
        traceback.clear_frames(one.__traceback__)
        # Also a suppressed context: some programs that show exceptions ignore that it is suppressed.
        pending += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions
