"""`init` for scripts, and what it leaves behind, whatever happens."""

import stat
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from hsm_signer.testing import EntraEmulator, SoftHsm
from tests.support.names import CLIENT, PIN, TENANT, VAULT, WRONG_PIN
from tests.support.program import Program, Result, Settings, options, program_with
from tests.support.terminal import Terminal


@pytest.fixture
def device() -> Iterator[SoftHsm]:
    """A device with nothing on it."""
    with SoftHsm(label="office", pin=PIN) as device:
        yield device


@pytest.fixture(scope="module", autouse=True)
def _no_wrong_pin_is_left() -> None:
    """Each test has a device of its own."""


@pytest.fixture
def program(tmp_path: Path, device: SoftHsm) -> Program:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    return replace(program_with(device, home), directory=work)


@pytest.fixture
def answers(entra: EntraEmulator, device: SoftHsm) -> Settings:
    """Every answer that a script must give, for the emulator."""
    return {
        "tenant": TENANT,
        "client_id": CLIENT,
        "module": str(device.module),
        "pin_source": "env:DEVICE_PIN",
        "authority": entra.authority,
        "ca_bundle": str(entra.ca_file),
    }


def file(program: Program) -> Path:
    return program.home / ".config/hsm-signer/config.toml"


def profile(program: Program, name: str = "default") -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(file(program).read_text())["profile"][name]
    return table


def set_up(program: Program, answers: Settings, *more: str) -> Result:
    return program("init", "--yes", *options(answers), *more)


def test_a_script_needs_one_command_and_a_registration(
    program: Program, answers: Settings, entra: EntraEmulator
) -> None:
    first = set_up(program, answers, "--label", "app", "--scope", VAULT)
    assert (first.status, first.stdout) == (0, "default\n"), first.stderr
    pem = file(program).with_name("default.pem")
    for way in (f"--cert @{pem} --append", "Upload certificate", "hsm-signer certificate export --form graph"):
        assert way in first.stderr
    assert first.stderr.endswith("Once the certificate is registered, run: hsm-signer doctor\n")
    entra.register(CLIENT, pem.read_bytes(), tenant=TENANT)
    again = program("init", "--yes")
    assert (again.status, again.stdout) == (0, "default\n"), again.stderr
    assert again.stderr.endswith("Ready. Get a token with: hsm-signer token\n")
    assert program("token").status == 0
    assert (profile(program)["scope"], profile(program)["pin_source"]) == (VAULT, "env:DEVICE_PIN")


def test_a_second_run_changes_nothing(program: Program, answers: Settings, device: SoftHsm) -> None:
    set_up(program, answers, "--offline")
    before = file(program).read_bytes()
    again = set_up(program, answers, "--offline")
    assert again.status == 0, again.stderr
    assert file(program).read_bytes() == before
    listed = program("key", "list", "-o", "json", *options({"pin_source": "env:DEVICE_PIN"}))
    assert len(listed.json["keys"]) == 1


def test_the_file_is_private_and_keeps_what_it_has(program: Program, answers: Settings) -> None:
    set_up(program, answers, "--offline")
    assert stat.S_IMODE(file(program).stat().st_mode) == 0o600
    ours = file(program).read_text()
    file(program).write_text(f"# ours\n{ours}")
    assert set_up(program, answers, "--offline", "--profile", "second").stdout == "second\n"
    assert file(program).read_text().startswith(f"# ours\n{ours}\n[profile.second]\n")


def test_a_profile_is_not_overwritten_unless_told(program: Program, answers: Settings) -> None:
    set_up(program, answers, "--offline")
    before = file(program).read_bytes()
    other = {**answers, "tenant": "fabrikam.example"}
    refused = set_up(program, other, "--offline")
    assert (refused.status, refused.stdout) == (2, "")
    assert "--tenant has another value" in refused.stderr
    assert "--replace" in refused.stderr
    assert file(program).read_bytes() == before
    assert set_up(program, other, "--offline", "--replace").status == 0
    assert profile(program)["tenant"] == "fabrikam.example"


def test_without_a_terminal_and_without_yes_the_missing_options_are_named(program: Program) -> None:
    result = program("init")
    assert (result.status, result.stdout) == (2, "")
    lines = [line.split()[0] for line in result.stderr.splitlines() if line.startswith("  --")]
    assert lines == ["--tenant", "--client-id", "--scope"]
    assert not file(program).exists()


def test_yes_guesses_no_device(program: Program, answers: Settings, device: SoftHsm) -> None:
    device.add_token("spare")
    result = set_up(program, answers)
    assert result.status == 2
    assert "office" in result.stderr
    assert "spare" in result.stderr
    assert "--key URI" in result.stderr
    assert set_up(program, answers, "--offline", "--key", "pkcs11:token=spare").status == 0
    assert "token=spare" in profile(program)["key"]


def test_yes_guesses_no_key(program: Program, answers: Settings, device: SoftHsm) -> None:
    device.add_identity("one", b"\x01")
    two = device.add_identity("two", b"\x02")
    result = set_up(program, answers)
    assert result.status == 2
    assert "one (id 01" in result.stderr
    assert set_up(program, answers, "--offline", "--key", two.uri).status == 0
    assert "object=two" in profile(program)["key"]


def test_a_key_without_a_certificate_is_used_and_none_is_generated(
    program: Program, answers: Settings, device: SoftHsm
) -> None:
    device.add_key("left over", b"\x07")
    result = set_up(program, answers, "--offline", "--subject", "CN=app,O=Contoso")
    assert result.status == 0, result.stderr
    assert "object=left%20over" in profile(program)["key"]
    pem = file(program).with_name("default.pem").read_bytes()
    assert x509.load_pem_x509_certificate(pem).subject.rfc4514_string() == "CN=app,O=Contoso"


def test_a_certificate_file_is_taken(program: Program, answers: Settings, device: SoftHsm) -> None:
    key = device.add_key("app", b"\x01")
    (program.directory / "app.der").write_bytes(device.issue_certificate(key.public_key))
    result = set_up(program, answers, "--offline", "--certificate", "app.der")
    assert result.status == 0, result.stderr
    assert profile(program)["certificate"] == str(program.directory / "app.der")
    assert program("assertion").status == 0


def test_the_certificate_of_another_key_is_refused_and_nothing_is_written(
    program: Program, answers: Settings, device: SoftHsm
) -> None:
    device.add_key("app", b"\x01")
    other = device.add_identity("other", b"\x02")
    assert other.certificate is not None
    (program.directory / "other.der").write_bytes(other.certificate)
    result = set_up(program, answers, "--label", "app", "--certificate", "other.der")
    assert (result.status, result.stdout) == (5, "")
    assert not file(program).exists()


def test_what_the_module_needs_from_the_environment_is_written(
    program: Program, answers: Settings, device: SoftHsm
) -> None:
    set_up(program, answers, "--offline")
    assert profile(program)["module_environment"] == device.environment
    assert program("assertion", environment={"SOFTHSM2_CONF": ""}).status == 0


def test_a_wrong_pin_is_sent_once_and_nothing_is_written(program: Program, answers: Settings) -> None:
    result = program("init", "--yes", *options(answers), environment={"DEVICE_PIN": WRONG_PIN})
    assert (result.status, result.stdout) == (4, "")
    assert not file(program).exists()


class TestAtATerminal:
    @pytest.fixture(autouse=True)
    def _key(self, device: SoftHsm) -> None:
        device.add_identity("app", b"\x01")

    @pytest.mark.parametrize("last", ["Directory (tenant) ID", "Application (client) ID", "Scope", "PIN for"])
    @pytest.mark.parametrize(("typed", "what"), [("\x03", "ctrl-c"), ("\x04", "ctrl-d")], ids=["ctrl-c", "ctrl-d"])
    def test_it_can_be_left_at_any_question(
        self, program: Program, device: SoftHsm, terminal: Terminal, last: str, typed: str, what: str
    ) -> None:
        arguments = ["init", "--module", str(device.module)]
        with program.start(*arguments, within=terminal.shell, stderr=terminal.program_side) as process:
            for question, answer in {
                "Directory (tenant) ID": TENANT,
                "Application (client) ID": CLIENT,
                "Scope": "",
            }.items():
                if question == last:
                    break
                terminal.wait_for(question)
                terminal.type(answer + "\n")
            terminal.wait_for(last)
            terminal.type(typed)
            terminal.wait_for("it ended with ")
            terminal.type("\n")
            stdout, _ = process.communicate(timeout=60)
        # Ctrl-D instead of a PIN is no PIN, for every command.
        assert process.returncode == (4 if (what, last) == ("ctrl-d", "PIN for") else 130)
        assert stdout == ""
        assert process.returncode == 4 or "Stopped. To continue, run the command again." in terminal.seen
        assert not file(program).exists()

    def test_what_cannot_be_right_is_asked_again(self, program: Program, answers: Settings, terminal: Terminal) -> None:
        given = {name: value for name, value in answers.items() if name not in ("tenant", "client_id")}
        with program.start(
            "init", "--offline", *options(given), within=terminal.shell, stderr=terminal.program_side
        ) as process:
            for question, wrong, right in [
                ("Directory (tenant) ID", "common", TENANT),
                ("Application (client) ID", "my app", CLIENT),
            ]:
                terminal.wait_for(question)
                terminal.type(f"{wrong}\n")
                terminal.seen = ""
                terminal.wait_for(f"{question}")
                terminal.type(f"{right}\n")
            terminal.wait_for("Scope")
            terminal.type("https://vault.azure.net/.default\n")
            terminal.wait_for("it ended with 0")
            terminal.type("\n")
            process.communicate(timeout=60)
        assert (profile(program)["tenant"], profile(program)["client_id"]) == (TENANT, CLIENT)

    def test_a_variable_of_azure_is_a_suggestion(self, program: Program, answers: Settings, terminal: Terminal) -> None:
        given = {name: value for name, value in answers.items() if name != "tenant"}
        environment = {"AZURE_TENANT_ID": "fabrikam.example"}
        with program.start(
            *("init", "--offline", *options(given)),
            environment=environment,
            within=terminal.shell,
            stderr=terminal.program_side,
        ) as process:
            terminal.wait_for("[fabrikam.example]: ")
            terminal.type(f"{TENANT}\n")
            terminal.wait_for("Scope")
            terminal.type("\n")
            terminal.wait_for("it ended with 0")
            terminal.type("\n")
            process.communicate(timeout=60)
        assert profile(program)["tenant"] == TENANT


def test_a_key_that_is_named_in_short_is_the_one_that_is_written_in_full(
    program: Program, answers: Settings, device: SoftHsm
) -> None:
    device.add_identity("app", b"\x01")
    for key in ("pkcs11:token=office", "pkcs11:token=office;object=app"):
        assert set_up(program, answers, "--offline", "--key", key).status == 0
    other = set_up(program, answers, "--offline", "--key", "pkcs11:token=office;object=other")
    assert other.status == 2
    assert "--key has another value" in other.stderr


def test_a_relative_path_is_the_same_path_in_the_next_run(program: Program, answers: Settings, device: SoftHsm) -> None:
    key = device.add_key("app", b"\x01")
    (program.directory / "app.der").write_bytes(device.issue_certificate(key.public_key))
    for _ in range(2):
        result = set_up(program, answers, "--offline", "--certificate", "app.der")
        assert result.status == 0, result.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"tenant": "common"}, "common"), ({"client_id": "x"}, "not a GUID")],
)
def test_a_tenant_or_client_that_cannot_be_right_is_refused_before_a_device_is_looked_for(
    program: Program, changes: dict[str, str], said: str
) -> None:
    given = {"tenant": TENANT, "client_id": CLIENT, "key": "pkcs11:token=nowhere", **changes}
    result = program("init", "--yes", *options(given))
    assert (result.status, result.stdout) == (2, "")
    assert said in result.stderr
