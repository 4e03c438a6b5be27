"""What the set-up needs of the one who answers its questions: a person, or `--yes`."""

from collections.abc import Callable, Sequence
from typing import Protocol

Check = Callable[[str], str]
"""Returns the answer as it is used, or raises a ConfigError that says what is wrong with it."""


class Guide(Protocol):
    """Answers questions, and shows what is done."""

    def ask(self, setting: str, question: str, *, default: str | None, check: Check) -> str:
        """Return a value.

        Args:
            setting: its name in the table of settings.
            question: without a question mark or a colon.
            default: the answer to Enter; None requires an answer.
            check: of the answer.

        Raises:
            ConfigError: nobody answers, and there is no default.
        """

    def choose(self, question: str, choices: Sequence[str], *, option: str, default: int | None = 0) -> int:
        """Return the index of a choice.

        Args:
            option: the option that would have answered: "--key URI".
            default: the answer to Enter, and the one of `--yes`; None requires an answer.

        Raises:
            ConfigError: nobody answers.
        """

    def confirm(self, question: str, *, option: str, default: bool = True, assumed: bool = True) -> bool:
        """Return whether the answer is yes.

        Args:
            option: the option that would have answered.
            default: the answer to Enter.
            assumed: the answer of `--yes`.

        Raises:
            ConfigError: nobody answers.
        """

    def wait_for_person(self, instruction: str, commands: Sequence[str]) -> bool:
        """Show commands that somebody else must run. Return True once they have, or False if nobody can.

        Args:
            instruction: one sentence.
            commands: each stands on its own line.
        """

    def tell(self, text: str) -> None:
        """Show a line."""
