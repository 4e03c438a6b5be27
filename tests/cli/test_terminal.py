"""What a person at a terminal sees and types: colour, and the question for the PIN."""

import os
import termios

import pytest

from tests.support.names import PIN, WRONG_PIN
from tests.support.program import Program, Settings, options
from tests.support.terminal import COLOUR, Terminal


def test_the_pin_is_asked_for_on_the_terminal_while_stdin_and_stdout_are_pipes(
    program: Program, signing: Settings, terminal: Terminal
) -> None:
    with program.start("assertion", *options(signing, pin_source=None), within=terminal.shell) as process:
        terminal.wait_for("PIN for office: ")
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
        assert terminal.seen == "PIN for office: \r\nit ended with 130\r\n"
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
        assert terminal.seen == "PIN for office: \r\nit ended with 4\r\n"
        terminal.type("\n")
        stdout, stderr = process.communicate(timeout=60)
    assert stdout == ""
    assert stderr.startswith("error: No PIN was entered.")
    # SoftHSM would remember a refused one, and say so now.
    assert program("assertion", *options(signing)).stderr == ""


def answer(program: Program, signing: Settings, terminal: Terminal, typed: str, *more: str, status: int) -> str:
    """Answer the question for the PIN, and return what stderr then says."""
    settings = options(signing, pin_source="prompt")
    with program.start(*more, "assertion", *settings, within=terminal.shell) as process:
        terminal.wait_for(": ")
        terminal.type(typed + "\n")
        terminal.wait_for(f"it ended with {status}")
        terminal.type("\n")
        return process.communicate(timeout=60)[1]


def test_after_a_wrong_pin_there_is_one_warning_and_a_way_out(
    program: Program, signing: Settings, terminal: Terminal
) -> None:
    said = answer(program, signing, terminal, WRONG_PIN, status=4)
    assert said.startswith("error: Wrong PIN for office. It was sent once and will not be sent again.\nhint: ")
    assert "SoftHSM never locks. Check the PIN" in said
    terminal.seen = ""
    assert answer(program, signing, terminal, PIN, status=0) == ""
    assert terminal.seen.lstrip().startswith("A wrong PIN was entered since the last login.\r\nPIN for office: ")


def test_with_v_the_question_names_the_device_in_full(program: Program, signing: Settings, terminal: Terminal) -> None:
    answer(program, signing, terminal, PIN, "-v", status=0)
    assert "PIN for 'office' (SoftHSM project, SoftHSM v2, " in terminal.seen


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


def on_a_terminal(program: Program, terminal: Terminal, *arguments: str) -> list[str]:
    """Return the lines that a command shows on a terminal as stderr."""
    with program.start(*arguments, environment={"NO_COLOR": "1"}, stderr=terminal.program_side) as process:
        process.communicate(timeout=60)
    os.write(terminal.program_side, b"the end")
    terminal.wait_for("the end")
    return terminal.seen.removesuffix("the end").splitlines()


def test_an_error_is_wrapped_at_words_to_the_width_of_the_terminal(program: Program, terminal: Terminal) -> None:
    piped = program("token", "--key", "pkcs11:token=x;wrong=1").stderr
    lines = on_a_terminal(program, terminal, "token", "--key", "pkcs11:token=x;wrong=1")
    assert max(map(len, lines)) <= 80
    assert len(lines) > len(piped.splitlines()) == 2
    assert " ".join(" ".join(lines).split()) == " ".join(piped.split())


def test_the_width_is_the_terminal_s_own(program: Program, terminal: Terminal) -> None:
    termios.tcsetwinsize(terminal.program_side, (24, 50))
    lines = on_a_terminal(program, terminal, "explain", "nonsense")
    assert max(map(len, lines)) <= 50
    assert all(line.startswith(("error: ", "hint: ", " ")) for line in lines)


def test_commands_are_not_wrapped_and_stand_on_lines_of_their_own(program: Program, terminal: Terminal) -> None:
    termios.tcsetwinsize(terminal.program_side, (24, 40))
    lines = on_a_terminal(program, terminal, "token")
    assert any(line.startswith("  --client-id ID ") and len(line) > 40 for line in lines)
