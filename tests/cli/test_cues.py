"""On a terminal, a person is told to touch or to wait; elsewhere the log says so."""

from collections.abc import Sequence

import pytest

from tests.support.faulty_module.control import FaultyModule
from tests.support.program import Program, Settings, options
from tests.support.terminal import Terminal

COMMANDS = [
    ("assertion",),
    ("assertion-file", "run/assertion", "--once"),
    ("doctor", "--offline"),
]
TOUCH = "Touch the device if it blinks"


@pytest.fixture
def settings(signing: Settings, faulty: FaultyModule, program: Program) -> list[str]:
    (program.directory / "run").mkdir(mode=0o700)
    return options(signing, module=str(faulty.path))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("call", "said"), [("C_Login", "Still logging in…"), ("C_SignInit", f"{TOUCH}…")], ids=["login", "signature"]
)
def test_a_terminal_shows_the_cue_until_the_call_returns(
    command: Sequence[str],
    call: str,
    said: str,
    program: Program,
    settings: list[str],
    faulty: FaultyModule,
    terminal: Terminal,
) -> None:
    faulty.rule(call, hang=float("inf"))
    with program.start(*command, *settings, stderr=terminal.program_side) as process:
        terminal.wait_for(said)
        faulty.clear()
        terminal.wait_for("\x1b[K")
        stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said not in stdout
    assert f"warning: {said[:-1]}" not in terminal.seen


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_without_a_terminal_only_the_log_says_to_touch(
    command: Sequence[str], program: Program, settings: list[str], faulty: FaultyModule
) -> None:
    faulty.rule("C_SignInit", hang=1.5, times=1)
    quiet = program(*command, *settings)
    faulty.rule("C_SignInit", hang=1.5, times=1)
    (program.directory / "run" / "assertion").unlink(missing_ok=True)
    talkative = program("-v", *command, *settings)
    assert (quiet.status, talkative.status) == (0, 0)
    assert [line for line in quiet.stderr.splitlines() if not line.startswith("hsm-signer: warning: run is not")] == []
    assert f"hsm-signer: info: {TOUCH}.\n" in talkative.stderr
