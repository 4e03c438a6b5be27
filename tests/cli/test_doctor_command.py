"""`doctor` as a person and a script see it: a table that grows, one JSON document, and an exit status."""

import os
import re
import shlex
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import hsm_signer
from hsm_signer.device.uri import Pkcs11Uri
from tests.cli.conftest import key_uri
from tests.support.names import PIN, WRONG_PIN
from tests.support.program import Program, Settings, options
from tests.support.refusing_pcscd import refusing_clients
from tests.support.terminal import COLOUR, Terminal

PROBES = [
    "configuration",
    "module",
    "pcscd",
    "device",
    "pin",
    "login",
    "key",
    "protection",
    "mechanisms",
    "certificate",
    "signature",
    "clock",
    "openid",
    "token",
]
INDENT = 24


def table(stdout: str) -> dict[str, str]:
    """Return the status of each probe in a table, in its order."""
    return dict(re.findall(r"^([a-z]+) +(ok|warning|failed|skipped) ", stdout, re.MULTILINE))


def test_without_errors_it_exits_with_0_and_prints_a_row_for_each_probe(program: Program, exchange: Settings) -> None:
    result = program("doctor", *options(exchange))
    assert (result.status, result.stderr) == (0, "")
    rows = table(result.stdout)
    assert list(rows) == PROBES
    # The certificate of the tests is good for a month, and their module uses no readers.
    assert {rows[name] for name in PROBES if name not in ("certificate", "pcscd")} == {"ok"}


# What differs from one run to the next.
VARIABLE = "|".join(
    (
        r"https://127\.0\.0\.1:\d+",
        r"\S+\.so",
        r"\d\.\d+(?=, by)",
        r"\b[0-9a-f]{16}\b",
        r"\d{4}-\d\d-\d\d",
        r"[0-9A-F]{40}",
        r"\d\.\d\d s",
    )
)


def test_the_example_in_the_readme_is_what_the_command_prints(program: Program, exchange: Settings) -> None:
    readme = (Path(hsm_signer.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- doctor.*?```console\n\$ hsm-signer doctor\n(.*?)```", readme, re.DOTALL)
    assert block
    shown = program("doctor", *options(exchange)).stdout
    # Where lines break depends on the length of what varies.
    written, real = (" ".join(re.sub(VARIABLE, "X", text).split()) for text in (block[1], shown))
    assert written == real


def test_the_table_fits_80_columns_and_has_the_fix_under_the_detail(program: Program, exchange: Settings) -> None:
    lines = program("doctor", *options(exchange, key=key_uri("nothing"))).stdout.splitlines()
    text = [line for line in lines if not line.startswith("    --key ")]
    for line in text:
        assert len(line) <= 80 or " " not in line[INDENT:], line
        assert line[:INDENT].strip() == "" or line[:INDENT].split()[0] in PROBES
    (row,) = (index for index, line in enumerate(lines) if line.startswith("key "))
    fixes = [line for line in lines[row + 1 :] if line.startswith(f"{' ' * INDENT}fix: ")]
    assert fixes[0] == f"{' ' * INDENT}fix: Use one of these:"
    under = lines[lines.index(fixes[0]) + 1 :]
    listed = [shlex.split(line) for line in under[: under.index(next(line for line in under if "--key" not in line))]]
    assert {Pkcs11Uri.parse(uri).object for _, uri in listed} >= {"good", "bare", "expired"}


def test_rows_that_wait_for_the_same_one_are_one_row(program: Program, exchange: Settings) -> None:
    stdout = program("doctor", *options(exchange, key=key_uri("nothing"))).stdout
    assert list(table(stdout)) == [*PROBES[: PROBES.index("protection")], "clock", "openid", "protection"]
    waiting = "protection, mechanisms, certificate, signature, token"
    assert f"Not checked because key failed: {waiting}." in " ".join(stdout.split())


def test_a_narrow_terminal_is_filled_and_not_exceeded(program: Program, signing: Settings) -> None:
    stdout = program("doctor", "--offline", *options(signing), environment={"COLUMNS": "60"}).stdout
    assert all(len(line) <= 60 or " " not in line[INDENT:] for line in stdout.splitlines())


def test_json_is_one_document(program: Program, exchange: Settings) -> None:
    result = program("doctor", *options(exchange), "-o", "json")
    assert (result.status, result.stderr) == (0, "")
    document = result.json
    assert document["healthy"] is True
    assert [finding["name"] for finding in document["findings"]] == PROBES
    assert all(set(finding) == {"name", "status", "detail", "fix"} for finding in document["findings"])


@pytest.mark.parametrize("form", [[], ["-o", "json"]], ids=["text", "json"])
def test_a_failure_exits_with_1_and_prints_no_error(program: Program, exchange: Settings, form: list[str]) -> None:
    result = program("doctor", *options(exchange, module="/nowhere.so"), *form)
    assert (result.status, result.stderr) == (1, "")
    if form:
        assert result.json["healthy"] is False
        assert next(found for found in result.json["findings"] if found["name"] == "module")["fix"]
    else:
        assert table(result.stdout)["module"] == "failed"


def test_a_wrong_pin_is_a_finding_and_shown_nowhere(program: Program, signing: Settings) -> None:
    settings = ("--offline", *options(signing))
    wrong = program("doctor", *settings, environment={"DEVICE_PIN": WRONG_PIN})
    assert wrong.status == 1
    assert table(wrong.stdout)["login"] == "failed"
    # Unattended, it is not presented a second time by a second process either.
    again = program("doctor", *settings, environment={"DEVICE_PIN": WRONG_PIN})
    assert "It was not sent again." in " ".join(again.stdout.split())
    for result in (wrong, again):
        assert WRONG_PIN not in result.stdout + result.stderr
    assert program("device", "forget-pin-failures").status == 0
    # SoftHSM remembers a wrong PIN until a right one comes.
    assert program("doctor", *settings).status == 0


def test_neither_pin_nor_token_nor_assertion_is_shown(program: Program, exchange: Settings) -> None:
    result = program("-v", "doctor", *options(exchange))
    assert table(result.stdout)["token"] == "ok"
    assert PIN not in result.stdout + result.stderr
    assert "eyJ" not in result.stdout + result.stderr


def test_findings_are_shown_before_the_pin_prompt(program: Program, signing: Settings, terminal: Terminal) -> None:
    arguments = ("doctor", "--offline", *options(signing, pin_source="prompt"))
    with program.start(*arguments, within=terminal.shell) as process:
        terminal.wait_for("PIN for office: ")
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        assert list(table(os.read(process.stdout.fileno(), 65536).decode())) == PROBES[: PROBES.index("login")]
        os.set_blocking(process.stdout.fileno(), True)
        terminal.type(PIN + "\n")
        terminal.wait_for("it ended with 0")
        terminal.type("\n")
        stdout, _ = process.communicate(timeout=60)
    assert list(table(stdout)) == PROBES[PROBES.index("login") :]
    assert terminal.seen.count("PIN for") == 1


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_status_is_coloured_on_a_terminal_unless_no_color(
    program: Program, terminal: Terminal, environment: Settings, coloured: bool
) -> None:
    # Little is set, so that all is said at once, and fits what a terminal holds back.
    arguments = ("doctor", "--key", "pkcs11:", "--module", "/nowhere.so")
    with program.start(*arguments, environment=environment, stdout=terminal.program_side) as process:
        process.communicate(timeout=60)
    terminal.wait_for("token.")
    assert bool(COLOUR.search(terminal.seen)) is coloured


def test_nothing_is_coloured_in_a_pipe(program: Program) -> None:
    assert "\x1b" not in program("doctor", environment={"TERM": "xterm-256color"}).stdout


def test_a_reader_that_closes_the_pipe_is_no_error(program: Program, signing: Settings) -> None:
    with program.start("doctor", "--offline", *options(signing)) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(60) == 0


def test_a_malformed_setting_is_refused_as_everywhere(program: Program) -> None:
    result = program("doctor", "--lifetime", "soon")
    assert (result.status, result.stdout) == (2, "")


def test_help_lists_its_options(program: Program) -> None:
    listed = re.findall(r"│[ *]+(--[a-z-]+)", program("doctor", "--help", environment={"COLUMNS": "400"}).stdout)
    assert {"--offline", "--output", "--key", "--tenant", "--scope", "--ca-bundle"} <= set(listed)
    assert "--output-file" not in listed


class TestPcscd:
    """In a process that has loaded the PC/SC library, as modules for smart cards do."""

    @pytest.fixture
    def socket_path(self, tmp_path: Path) -> Path:
        return tmp_path / "pcscd.comm"

    @pytest.fixture
    def finding(self, program: Program, signing: Settings, socket_path: Path) -> Callable[[], Mapping[str, str]]:
        def finding() -> Mapping[str, str]:
            environment = {"LD_PRELOAD": "libpcsclite.so.1", "PCSCLITE_CSOCK_NAME": str(socket_path)}
            result = program("doctor", "--offline", *options(signing), "-o", "json", environment=environment)
            findings = {found["name"]: found for found in result.json["findings"]}
            others = {found["status"] for name, found in findings.items() if name not in ("pcscd", "certificate")}
            assert others == {"ok", "skipped"}
            assert result.status == 1
            found: Mapping[str, str] = findings["pcscd"]
            return found

        return finding

    def test_one_that_is_not_running(self, finding: Callable[[], Mapping[str, str]], socket_path: Path) -> None:
        found = finding()
        assert (found["status"], found["detail"]) == ("failed", f"pcscd is not running: {socket_path} does not exist.")
        assert "systemctl enable --now pcscd.socket" in found["fix"]

    def test_one_that_has_died(self, finding: Callable[[], Mapping[str, str]], socket_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(socket_path))
        found = finding()
        assert found["status"] == "failed"
        assert "does not answer" in found["detail"]

    def test_one_that_refuses_this_user(self, finding: Callable[[], Mapping[str, str]], socket_path: Path) -> None:
        with refusing_clients(socket_path):
            found = finding()
        assert found["status"] == "failed"
        assert "refuses this user" in found["detail"]
        assert "polkit rule" in found["fix"]
