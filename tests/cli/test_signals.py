"""Signals while the program waits for a person or a program: the terminal echoes again, and no file is left."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.names import PIN
from tests.support.processes import wait_until_gone
from tests.support.program import Program, Settings, options
from tests.support.terminal import SHELL, Terminal

# As SHELL, but it outlives what is sent to the whole foreground group.
SHELL_THAT_STAYS = SHELL.replace("trap : INT", "trap : INT QUIT HUP")
# As an interactive shell: what it runs is in a group of its own, can be stopped, and is continued after a line.
SHELL_WITH_JOBS = (
    'exec 3<>"$1"; shift; set -m; '
    '"$@" 3>&-; echo "it stopped with $?" >&3; read -r answer <&3; '
    'fg >&3; status=$?; echo "it ended with $status" >&3; read -r answer <&3; exit $status'
)
COMMANDS = [("assertion", "--output-file", "run/result"), ("assertion-file", "run/result", "--once")]
# No shell in between: the program itself is told that the terminal was closed.
ALONE = 'exec 3<>"$1"; shift; exec "$@" 3>&-'


def on(terminal: Terminal, shell: str) -> tuple[str, ...]:
    """The command that runs another on a terminal."""
    return ("sh", "-c", shell, "sh", terminal.name)


def child_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGHUP, 129), (signal.SIGQUIT, 131), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
@pytest.mark.parametrize("command", COMMANDS, ids=["itself", "for a worker"])
def test_at_the_question_for_the_pin(
    command: tuple[str, ...],
    number: signal.Signals,
    status: int,
    program: Program,
    signing: Settings,
    terminal: Terminal,
) -> None:
    (program.directory / "run").mkdir(mode=0o700)
    settings = options(signing, pin_source="prompt")
    with program.start(*command, *settings, within=on(terminal, SHELL_THAT_STAYS)) as process:
        terminal.wait_for("PIN for")
        assert not terminal.echoes()
        terminal.type(PIN[:4])
        time.sleep(0.2)  # the kernel hands on what is typed at its leisure, and echoes it then or not
        os.kill(child_of(process.pid), number)
        terminal.wait_for(f"it ended with {status}")
        assert terminal.echoes()
        terminal.type("\n")
        stdout, stderr = process.communicate(timeout=60)
    assert stdout == ""
    assert "error" not in stderr
    assert "Traceback" not in terminal.seen + stderr
    assert PIN[:4] not in terminal.seen
    assert os.listdir(program.directory / "run") == []


@pytest.mark.parametrize(("typed", "status"), [("\x03", 130), ("\x1c", 131)], ids=["Ctrl-C", "Ctrl-backslash"])
def test_keyboard_signals_reach_the_worker_too_and_print_nothing(
    typed: str, status: int, program: Program, signing: Settings, terminal: Terminal
) -> None:
    (program.directory / "run").mkdir(mode=0o700)
    settings = options(signing, pin_source="prompt")
    command = ("assertion-file", "run/assertion", "--once", *settings)
    with program.start(*command, within=on(terminal, SHELL_THAT_STAYS)) as process:
        terminal.wait_for("PIN for")
        terminal.type(typed)
        terminal.wait_for(f"it ended with {status}")
        assert terminal.echoes()
        terminal.type("\n")
        _, stderr = process.communicate(timeout=60)
    assert "error" not in stderr


def test_a_terminal_that_is_closed_at_the_question_ends_the_program(
    program: Program, signing: Settings, terminal: Terminal
) -> None:
    (program.directory / "run").mkdir(mode=0o700)
    command = ("assertion", *options(signing, pin_source="prompt"), "--output-file", "run/result")
    with program.start(*command, within=on(terminal, ALONE)) as process:
        terminal.wait_for("PIN for")
        terminal.close()
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (129, "", "")
    assert os.listdir(program.directory / "run") == []


@pytest.mark.parametrize("command", COMMANDS, ids=["itself", "for a worker"])
def test_ctrl_z_gives_the_terminal_back_and_the_question_is_asked_again(
    command: tuple[str, ...], program: Program, signing: Settings, terminal: Terminal
) -> None:
    (program.directory / "run").mkdir(mode=0o700)
    settings = options(signing, pin_source="prompt")
    with program.start(*command, *settings, within=on(terminal, SHELL_WITH_JOBS)) as process:
        terminal.wait_for("PIN for")
        assert not terminal.echoes()
        terminal.type(PIN[:4] + "\x1a")
        terminal.wait_for(f"it stopped with {128 + signal.SIGTSTP}")
        assert terminal.echoes()
        terminal.seen = ""
        terminal.type("\n")
        terminal.wait_for("PIN for")
        assert not terminal.echoes()
        terminal.type(PIN + "\n")
        terminal.wait_for("it ended with 0")
        assert terminal.echoes()
        terminal.type("\n")
        process.communicate(timeout=60)
    assert (program.directory / "run" / "result").read_text().count(".") == 2
    assert PIN[:4] not in terminal.seen


def test_one_that_was_stopped_at_the_question_can_be_ended(
    program: Program, signing: Settings, terminal: Terminal
) -> None:
    settings = options(signing, pin_source="prompt")
    with program.start("assertion", *settings, within=on(terminal, SHELL_WITH_JOBS)) as process:
        terminal.wait_for("PIN for")
        terminal.type("\x1a")
        terminal.wait_for("it stopped with")
        pid = child_of(process.pid)
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)
        wait_until_gone(pid)
        assert terminal.echoes()
        terminal.type("\n")
        terminal.wait_for("it ended with")  # the shell has the status it saw last
        terminal.type("\n")
        process.communicate(timeout=60)


def test_a_hangup_that_is_ignored_stays_ignored(program: Program, signing: Settings, terminal: Terminal) -> None:
    shell = SHELL_THAT_STAYS.replace('"$@"', "(trap '' HUP; exec \"$@\")")
    with program.start("assertion", *options(signing, pin_source="prompt"), within=on(terminal, shell)) as process:
        terminal.wait_for("PIN for")
        os.kill(child_of(process.pid), signal.SIGHUP)
        terminal.type(PIN + "\n")
        terminal.wait_for("it ended with 0")
        terminal.type("\n")
        assert process.communicate(timeout=60)[0].count(".") == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGHUP, 129), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_while_a_command_gives_the_pin(
    number: signal.Signals, status: int, program: Program, signing: Settings
) -> None:
    (program.directory / "run").mkdir(mode=0o700)
    script = program.directory / "give-pin"
    script.write_text("#!/bin/sh\necho $$ > pid.new; mv pid.new pid; exec sleep 600\n")
    script.chmod(0o700)
    settings = options(signing, pin_source=f"command:{script}")
    with program.start("assertion", *settings, "--output-file", "run/result") as process:
        pid = program.directory / "pid"
        deadline = time.monotonic() + 60
        while not pid.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (status, "", "")
    wait_until_gone(int(pid.read_text()))
    assert os.listdir(program.directory / "run") == []
