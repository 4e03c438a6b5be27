"""Who answers the questions of a guided command: a person at the terminal, `--yes`, or nobody."""

from collections.abc import Sequence
from typing import NoReturn

import typer

from hsm_signer.cli.output import print_note
from hsm_signer.cli.terminal import ask_line, has_terminal
from hsm_signer.config.settings import missing
from hsm_signer.errors import ConfigError
from hsm_signer.setup.guide import Check, Guide


def guide(*, yes: bool) -> Guide:
    """Return who answers.

    Args:
        yes: whether defaults are taken and nothing is asked.
    """
    if yes:
        return Defaults()
    return Person() if has_terminal() else Nobody()


class Person:
    """Asks on the terminal. Ctrl-D ends the command, as Ctrl-C does."""

    def ask(self, setting: str, question: str, *, default: str | None, check: Check) -> str:
        """Ask until the answer passes the check."""
        while True:
            answer = _typed(f"{question}{'' if default is None else f' [{default}]'}: ") or default
            if answer is None:
                continue
            try:
                return check(answer)
            except ConfigError as error:
                print_note(f"{error.message} {error.hint or ''}".rstrip())

    def choose(self, question: str, choices: Sequence[str], *, option: str, default: int | None = 0) -> int:
        """Show a numbered list, and ask until the answer is a number of it."""
        print_note(question)
        for number, choice in enumerate(choices, 1):
            print_note(f"  {number}  {choice}")
        start = default or 0
        while True:
            answer = _typed(f"Number [{start + 1}]: ")
            if not answer:
                return start
            if answer.isascii() and answer.isdigit() and 1 <= int(answer) <= len(choices):
                return int(answer) - 1
            print_note(f"Type a number from 1 to {len(choices)}.")

    def confirm(self, question: str, *, option: str, default: bool = True, assumed: bool = True) -> bool:
        """Ask until the answer is yes or no."""
        while True:
            answer = _typed(f"{question} [{'Y/n' if default else 'y/N'}] ").lower()
            if not answer:
                return default
            if answer in ("y", "yes", "n", "no"):
                return answer.startswith("y")

    def wait_for_person(self, instruction: str, commands: Sequence[str]) -> bool:
        """Show the commands, and return at Enter."""
        print_note("\n".join([instruction, *(f"  {command}" for command in commands)]))
        _typed("Then press Enter to look again. ")
        return True

    def tell(self, text: str) -> None:
        """Show a line on stderr."""
        print_note(text)


class Nobody:
    """Answers no question: the error says which option would have."""

    def ask(self, setting: str, question: str, *, default: str | None, check: Check) -> str:
        """Raise the error for a setting that is missing."""
        raise missing(setting)

    def choose(self, question: str, choices: Sequence[str], *, option: str, default: int | None = 0) -> int:
        """Raise the error, with the choices."""
        _unanswered(f"{question} There are {len(choices)}: {'; '.join(choices)}", option)

    def confirm(self, question: str, *, option: str, default: bool = True, assumed: bool = True) -> bool:
        """Raise the error."""
        _unanswered(question, f"{option}, or --yes")

    def wait_for_person(self, instruction: str, commands: Sequence[str]) -> bool:
        """Return False: nobody can be told."""
        return False

    def tell(self, text: str) -> None:
        """Show a line on stderr."""
        print_note(text)


class Defaults(Nobody):
    """`--yes`: takes every default. What has none needs an option."""

    def ask(self, setting: str, question: str, *, default: str | None, check: Check) -> str:
        """Return the default."""
        return super().ask(setting, question, default=default, check=check) if default is None else check(default)

    def choose(self, question: str, choices: Sequence[str], *, option: str, default: int | None = 0) -> int:
        """Return the default. Without one, the choice is not to be guessed."""
        return super().choose(question, choices, option=option) if default is None else default

    def confirm(self, question: str, *, option: str, default: bool = True, assumed: bool = True) -> bool:
        """Return what --yes stands for here."""
        return assumed


def _typed(question: str) -> str:
    answer = ask_line(question)
    if answer is None:
        raise typer.Abort
    return answer


def _unanswered(question: str, option: str) -> NoReturn:
    raise ConfigError(f"{question} Nobody can be asked: there is no terminal.", hint=f"Answer with {option}.")
