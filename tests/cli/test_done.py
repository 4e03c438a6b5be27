"""A command that prints no result says on a terminal, or in the journal, what it did; elsewhere it is silent."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from hsm_signer.jwt.compact import parse_jwt
from tests.support.program import Program, Settings, options
from tests.support.terminal import Terminal

COMMANDS = {
    "token": ("token", "--output-file", "run/result"),
    "assertion": ("assertion", "--output-file", "run/result"),
    "assertion-file": ("assertion-file", "run/result", "--once"),
}
WROTE = {
    "token": "Wrote the access token to run/result. It is valid until ",
    "assertion": "Wrote the assertion to run/result. It is valid until ",
    "assertion-file": "Wrote an assertion to run/result. It is valid until ",
}


@pytest.fixture
def directory(program: Program) -> Path:
    directory = program.directory / "run"
    directory.mkdir(mode=0o700)
    return directory


def command(name: str, signing: Settings, exchange: Settings) -> Sequence[str]:
    return (*COMMANDS[name], *options(exchange if name == "token" else signing))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.usefixtures("directory")
def test_a_terminal_shows_what_was_written_and_until_when_it_is_valid(
    name: str, program: Program, signing: Settings, exchange: Settings, terminal: Terminal
) -> None:
    with program.start(*command(name, signing, exchange), stderr=terminal.program_side) as process:
        stdout, _ = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, "")
    terminal.wait_for(WROTE[name])
    terminal.wait_for(" UTC.\r\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_journal_gets_the_same_line_and_json_where_that_is_wanted(
    name: str, program: Program, signing: Settings, exchange: Settings, directory: Path
) -> None:
    journal = directory / "journal"
    descriptor = os.open(journal, os.O_CREAT | os.O_RDWR, 0o600)
    status = os.fstat(descriptor)
    environment = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    arguments = command(name, signing, exchange)
    for form in ((), ("--log-format", "json")):
        (directory / "result").unlink(missing_ok=True)
        with program.start(*form, *arguments, environment=environment, stderr=descriptor) as process:
            process.communicate(timeout=60)
    os.close(descriptor)
    text, as_json = [line for line in journal.read_text().splitlines() if "Wrote" in line]
    assert text.startswith(WROTE[name])
    assert json.loads(as_json)["message"].startswith(WROTE[name])
    assert (directory / "result").read_text() not in journal.read_text()


@pytest.mark.parametrize("name", ["token", "assertion"])
@pytest.mark.usefixtures("directory")
def test_elsewhere_only_v_says_it(name: str, program: Program, signing: Settings, exchange: Settings) -> None:
    arguments = command(name, signing, exchange)
    assert program(*arguments).stderr == ""
    assert WROTE[name] in program("-v", *arguments).stderr


def test_a_file_that_is_still_fresh_is_said_to_be(
    program: Program, signing: Settings, terminal: Terminal, directory: Path
) -> None:
    arguments = (*COMMANDS["assertion-file"], *options(signing))
    assert program(*arguments).status == 0
    expires = parse_jwt((directory / "result").read_text()).claims["exp"]
    with program.start(*arguments, stderr=terminal.program_side) as process:
        process.communicate(timeout=60)
    terminal.wait_for("The assertion in run/result is fresh: it is valid until ")
    assert parse_jwt((directory / "result").read_text()).claims["exp"] == expires
