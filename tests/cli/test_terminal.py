"""What a person at a terminal sees and types: colour, and the question for the PIN."""

import os
import re
import select
import termios
from collections.abc import Iterator

import pytest

from tests.cli.conftest import PIN, Program, Settings, options

# A shell on a terminal of its own: it opens the terminal first, which then becomes its session's. While the program
# runs, stdin and stdout are whatever they were. Once it has ended, the shell waits: with it the terminal would go.
SHELL = (
    "trap : INT; exec 3<>\"$1\"; shift; "
    "\"$@\" 3>&-; status=$?; echo \"it ended with $status\" >&3; read -r answer <&3; exit $status"
)  # fmt: skip


class Terminal:
    """A terminal, from where the person sits."""

    def __init__(self) -> None:
        self._person, self.program_side = os.openpty()
        self.name = os.ttyname(self.program_side)
        self.seen = ""

    def close(self) -> None:
        os.close(self._person)
        os.close(self.program_side)

    def wait_for(self, text: str) -> None:
        while text not in self.seen:
            readable, _, _ = select.select([self._person], [], [], 20)
            assert readable, f"saw only {self.seen!r}"
            self.seen += os.read(self._person, 4096).decode()

    def type(self, text: str) -> None:
        os.write(self._person, text.encode())

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.program_side)[3] & termios.ECHO)

    @property
    def shell(self) -> tuple[str, ...]:
        """The command that runs another with this as its terminal."""
        return ("sh", "-c", SHELL, "sh", self.name)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_the_pin_is_asked_for_on_the_terminal_while_stdin_and_stdout_are_pipes(
    program: Program, signing: Settings, terminal: Terminal
) -> None:
    with program.start("assertion", *options(signing, pin_source=None), within=terminal.shell) as process:
        terminal.wait_for("PIN for 'office'")
        assert not terminal.echoes()
        terminal.type(PIN + "\n")
        terminal.wait_for("it ended with 0")
        assert terminal.echoes()
        terminal.type("\n")
        stdout, stderr = process.communicate(timeout=60)
    assert stdout.count(".") == 2
    assert stderr == ""
    assert PIN not in terminal.seen


def test_ctrl_c_at_the_question_ends_quietly_and_restores_the_terminal(
    program: Program, signing: Settings, terminal: Terminal
) -> None:
    settings = options(signing, pin_source="prompt")
    with program.start("assertion", *settings, "--output-file", "result", within=terminal.shell) as process:
        terminal.wait_for("PIN for")
        assert not terminal.echoes()
        terminal.type(PIN[:4] + "\x03")
        terminal.wait_for("it ended with 130")
        assert terminal.echoes()
        terminal.type("\n")
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130
    assert "Traceback" not in terminal.seen
    assert PIN[:4] not in terminal.seen
    assert os.listdir(program.directory) == []


@pytest.mark.parametrize("typed", ["\n", "\x04"], ids=["nothing", "end of file"])
def test_no_pin_typed_is_no_pin_sent(program: Program, signing: Settings, terminal: Terminal, typed: str) -> None:
    with program.start("assertion", *options(signing, pin_source=None), within=terminal.shell) as process:
        terminal.wait_for("PIN for")
        terminal.type(typed)
        terminal.wait_for("it ended with 4")
        terminal.type("\n")
        stdout, stderr = process.communicate(timeout=60)
    assert stdout == ""
    assert stderr.startswith("error: No PIN was entered.")
    # SoftHSM would remember a refused one, and say so now.
    assert program("assertion", *options(signing)).stderr == ""


COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7])(?:;\d+)*m")  # ECMA-48 section 8.3.117, and the bright ones


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)],
    ids=["ordinary", "NO_COLOR", "NO_COLOR but empty"],
)
def test_an_error_is_coloured_on_a_terminal_unless_no_color(
    program: Program, terminal: Terminal, environment: Settings, coloured: bool
) -> None:
    with program.start("explain", "nonsense", environment=environment, stderr=terminal.program_side) as process:
        process.communicate(timeout=60)
    terminal.wait_for("hint")
    assert bool(COLOUR.search(terminal.seen)) is coloured


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["ordinary", "NO_COLOR"]
)
def test_help_is_coloured_on_a_terminal_unless_no_color(
    program: Program, terminal: Terminal, environment: Settings, coloured: bool
) -> None:
    colourful = {"TERM": "xterm-256color", **environment}
    with program.start("explain", "--help", environment=colourful, stdout=terminal.program_side) as process:
        process.communicate(timeout=60)
    terminal.wait_for("Show this message")
    assert bool(COLOUR.search(terminal.seen)) is coloured


@pytest.mark.parametrize("arguments", [["--help"], ["explain", "nonsense"], ["explain", "700027"]])
def test_nothing_is_coloured_in_a_pipe(program: Program, arguments: list[str]) -> None:
    result = program(*arguments, environment={"TERM": "xterm-256color"})
    assert "\x1b" not in result.stdout + result.stderr
