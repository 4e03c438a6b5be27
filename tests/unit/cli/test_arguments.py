"""Global options before the command, after it, and what only looks like one."""

from itertools import permutations

import pytest
import typer.main

from hsm_signer.cli.app import GLOBAL_OPTIONS, make_program
from hsm_signer.cli.arguments import find_command, global_options_first, options_with_values

PROGRAM = typer.main.get_command(make_program([]))
THAT_END_THE_PROGRAM = {"--version", "--install-completion", "--show-completion"}


def test_those_known_before_a_command_is_made_are_the_programs() -> None:
    known = options_with_values(PROGRAM)
    assert GLOBAL_OPTIONS == {name: known[name] for name in known.keys() - THAT_END_THE_PROGRAM}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("token --profile prod", "--profile prod token"),
        ("token --profile=prod -v", "--profile=prod -v token"),
        ("token -v --scope x --config file --log-format json", "-v --config file --log-format json token --scope x"),
        ("key generate --label a --profile prod", "--profile prod key generate --label a"),
        ("key --profile prod generate", "--profile prod key generate"),
        ("--profile prod token -v", "--profile prod -v token"),
        ("token", "token"),
        ("", ""),
    ],
)
def test_global_options_go_before_the_command(arguments: str, expected: str) -> None:
    assert global_options_first(arguments.split(), PROGRAM) == expected.split()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param("key generate --label --profile --id 01", id="the value of another option"),
        pytest.param("key generate --label -v", id="the value of the last option"),
        pytest.param("decode -- -v", id="after --"),
        pytest.param("decode -- --profile prod", id="after -- with its value"),
        pytest.param("token --unknown -x", id="an unknown option"),
        pytest.param("tokn", id="an unknown command"),
    ],
)
def test_what_is_no_global_option_stays(arguments: str) -> None:
    assert global_options_first(arguments.split(), PROGRAM) == arguments.split()


def test_the_order_of_the_arguments_does_not_matter() -> None:
    groups = ["token --scope x", "--profile prod", "-v"]
    moved = {tuple(sorted(global_options_first(" ".join(each).split(), PROGRAM)[:3])) for each in permutations(groups)}
    assert moved == {("--profile", "-v", "prod")}


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("token -v", "token"),
        ("--profile token key", "key"),
        ("-v --profile=x key", "key"),
        ("--profile", None),
        ("--help", None),
        ("", None),
    ],
)
def test_the_command_is_the_first_argument_that_belongs_to_no_global_option(
    arguments: str, command: str | None
) -> None:
    assert find_command(arguments.split(), GLOBAL_OPTIONS) == command
