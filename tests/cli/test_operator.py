"""What is asked of, and shown to, the person at the terminal while a device wants something."""

import pytest
from pkcs11 import TokenFlag

from tests.support.faulty_module.control import FaultyModule
from tests.support.names import PIN
from tests.support.program import Program, Settings, options
from tests.support.terminal import Terminal


def arguments(signing: Settings, faulty: FaultyModule, *more: str) -> list[str]:
    return ["assertion", *options(signing, module=str(faulty.path)), *more]


class TestLastTry:
    @pytest.fixture(autouse=True)
    def _one_try_left(self, faulty: FaultyModule) -> None:
        faulty.flags(set=TokenFlag.USER_PIN_FINAL_TRY)

    def test_is_refused_without_the_option(self, program: Program, signing: Settings, faulty: FaultyModule) -> None:
        result = program(*arguments(signing, faulty))
        assert result.status == 4
        assert "--allow-last-try" in result.stderr
        assert faulty.calls("C_Login") == 0

    def test_with_the_option_it_is_taken_if_there_is_no_terminal(
        self, program: Program, signing: Settings, faulty: FaultyModule
    ) -> None:
        assert program(*arguments(signing, faulty, "--allow-last-try")).status == 0

    @pytest.mark.parametrize(("answer", "status", "logins"), [("yes", 0, 1), ("y", 4, 0), ("", 4, 0)])
    def test_a_terminal_is_asked_for_confirmation(
        self,
        program: Program,
        signing: Settings,
        faulty: FaultyModule,
        terminal: Terminal,
        answer: str,
        status: int,
        logins: int,
    ) -> None:
        command = arguments(signing, faulty, "--allow-last-try")
        with program.start(*command, within=terminal.shell) as process:
            terminal.wait_for("Type yes to continue")
            terminal.type(answer + "\n")
            terminal.wait_for(f"it ended with {status}")
            terminal.type("\n")
            _, stderr = process.communicate(timeout=60)
        assert faulty.calls("C_Login") == logins
        assert "warning" not in stderr

    @pytest.mark.parametrize(("typed", "status"), [("\x03", 130), ("\x04", 4)], ids=["Ctrl-C", "Ctrl-D"])
    def test_leaves_the_line_of_the_question(
        self, program: Program, signing: Settings, faulty: FaultyModule, terminal: Terminal, typed: str, status: int
    ) -> None:
        command = arguments(signing, faulty, "--allow-last-try")
        with program.start(*command, within=terminal.shell) as process:
            terminal.wait_for("Type yes to continue: ")
            terminal.type(typed)
            terminal.wait_for(f"\r\nit ended with {status}")
            terminal.type("\n")
            process.communicate(timeout=60)

    def test_is_asked_about_without_a_second_warning(
        self, program: Program, signing: Settings, faulty: FaultyModule, terminal: Terminal
    ) -> None:
        command = ["assertion", *options(signing, module=str(faulty.path), pin_source=None), "--allow-last-try"]
        with program.start(*command, within=terminal.shell) as process:
            terminal.wait_for("Type yes to continue: ")
            terminal.type("yes\n")
            terminal.wait_for("PIN for ")
            terminal.type(PIN + "\n")
            terminal.wait_for("it ended with 0")
            terminal.type("\n")
            _, stderr = process.communicate(timeout=60)
        assert (terminal.seen + stderr).count("locks") == 1


def test_a_device_is_waited_for_on_request(program: Program, signing: Settings, faulty: FaultyModule) -> None:
    faulty.absent(True)
    with program.start(*arguments(signing, faulty, "--wait")) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Waiting for the device.")
        faulty.absent(False)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout.count("."), stderr) == (0, 2, "")


@pytest.mark.parametrize(
    "command",
    [
        "device show",
        "doctor --offline",
        "key list",
        "key generate --label awaited --key pkcs11:token=office",
        "certificate show",
        "certificate export",
        "certificate request --subject CN=awaited",
        "certificate create --subject CN=awaited --no-store",
    ],
)
def test_every_command_that_opens_a_device_can_wait_for_it(
    program: Program, signing: Settings, faulty: FaultyModule, command: str
) -> None:
    faulty.absent(True)
    words = command.split()
    of_the_device = {name: value for name, value in signing.items() if name in ("key", "module", "pin_source")}
    settings = signing if words[0] == "doctor" else of_the_device
    if "--key" in words:
        settings = {name: value for name, value in settings.items() if name != "key"}
    with program.start(*words, *options(settings, module=str(faulty.path)), "--wait") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Waiting for the device.")
        faulty.absent(False)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
