"""Any value of an option, a variable or a profile gets a result or an explanation: status 70 is for bugs only.

The commands run in this process, on a real device and against the emulator, as `run` is called by the program itself.
"""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer.core
import typer.main

from hsm_signer.cli.app import make_program, run
from hsm_signer.cli.commands import emulator
from hsm_signer.config.settings import SETTINGS, Setting
from hsm_signer.testing import EntraEmulator, SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.names import PIN
from tests.support.program import Program, Settings, options

HOSTILE = (
    " ",
    "-1",
    "0",
    "99999999999999999999",
    "1e400",
    "inf",
    "nan",
    "é",
    "\udcff",  # what Python makes of a byte that is not UTF-8
    "\x1b[31m\r\n\x7f",
    "\u202e\u2028",
    "%00%ff",
    "/",
    ".",
    "..",
    "file:",
    "pkcs11:object=%00",
    "file:" + "x" * 5000,
    "https://[",
    "http://\udcff",
    "CN=\udcff",
    "x" * 100_000,
)

# In a profile there can be what neither arguments nor variables can hold, and values of other types.
HOSTILE_TOML = (
    *(json.dumps(text, ensure_ascii=False) for text in ("", "-1", "é", "/", "file:", "https://[", "x" * 100_000)),
    '"\\u0000"',
    '"a\\u0000b"',
    '["\\u0000"]',
    '["file:\\u0000"]',
    '"\\u001b[31m"',
    "0",
    "-1",
    "99999999999999999999999",
    "1.5",
    "inf",
    "-inf",
    "nan",
    "true",
    "false",
    "[]",
    "[[]]",
    "[1]",
    "{}",
    '{ "" = "a" }',
    '{ "A=B" = "a" }',
    '{ "A\\u0000" = "a" }',
    '{ A = "\\u0000" }',
    "{ A = 1 }",
    f'{{ A = "{"x" * 100_000}" }}',
    "1979-05-27T07:32:00Z",
)


Run = Callable[[list[str]], tuple[int, str]]


@pytest.fixture
def run_here(softhsm: SoftHsm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, and return its status and what it said on stderr."""
    for name in [name for name in os.environ if name.startswith(("HSM_SIGNER_", "AZURE_"))]:
        monkeypatch.delenv(name)
    for name, value in {**softhsm.environment, "DEVICE_PIN": PIN}.items():
        monkeypatch.setenv(name, value)
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    monkeypatch.chdir(work)

    def call(arguments: list[str]) -> tuple[int, str]:
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", None)
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            status = run(arguments)
        err.flush()
        return status, err.buffer.getvalue().decode()

    return call


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def commands() -> dict[str, typer.core.TyperCommand]:
    """Return every command by its full name."""
    found = {}
    for name, command in typer.main.get_command(make_program([])).commands.items():  # type: ignore[attr-defined]
        for sub, inner in getattr(command, "commands", {"": command}).items():
            found[f"{name} {sub}".strip()] = inner
    return found


COMMANDS = commands()

Base = dict[str, list[str]]


@pytest.fixture
def base(
    run_here: object,
    exchange: Settings,
    certificate: Path,
    good: SoftHsmKey,
    softhsm: SoftHsm,
    entra: EntraEmulator,
    jwt: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Base:
    """Arguments with which each command succeeds; one with an argument has it last."""
    # It runs until it is interrupted; this is the interrupt.
    monkeypatch.setattr(emulator, "threading", SimpleNamespace(Event=lambda: SimpleNamespace(wait=interrupted)))
    signing = {name: value for name, value in exchange.items() if name not in ("authority", "ca_bundle", "scope")}
    device = {name: exchange[name] for name in ("key", "module", "pin_source")}
    Path("key.json").write_text(json.dumps({"key": good.uri}))
    return {
        "token": options(exchange),
        "assertion": options(signing),
        "assertion-file": [*options(signing), "--once", "assertion"],
        "decode": [jwt],
        "verify": ["--certificate", str(certificate), jwt],
        "explain": ["700016"],
        "device list": ["--module", str(softhsm.module)],
        "device show": options(device),
        "device forget-pin-failures": [],
        "key generate": options({**device, "label": "new", "bits": "2048"}),
        "key list": options(device),
        "key delete": [*options({**device, "key": "pkcs11:token=office;object=absent"}), "--yes"],
        "certificate create": [*options(device), "--subject", "CN=a", "--no-store"],
        "certificate request": [*options(device), "--subject", "CN=a"],
        "certificate import": [*options(device), "--replace", str(certificate)],
        "certificate export": options(device),
        "certificate show": options(device),
        "rotate": [*options({**exchange, "key": "file:key.json", "graph": entra.graph}), "--dry-run"],
        "doctor": [*options(signing), "--offline"],
        "init": ["--config", "config.toml", *options(signing), "--offline", "--yes"],
        "emulator": ["--certificate", str(certificate), "--plain-http"],
    }


# Read alike by another command, where it neither leaves this machine nor takes long.
ELSEWHERE = {("token", "authority"), ("rotate", "authority"), ("doctor", "authority"), ("key generate", "label")}

# The settings have one table, whose readers the first two try in full. For others a few values stand for all.
IN_FULL = ("assertion", "rotate")
FEW = ("\udcff", "inf", "x" * 100_000)


def values(command: str, parameter: str) -> tuple[str, ...]:
    if (command, parameter) in ELSEWHERE:
        return ()
    shared = parameter in SETTINGS
    # Each run of these starts a process, or a server.
    slow = command in ("assertion-file", "emulator")
    return FEW if (shared and command not in IN_FULL) or slow else HOSTILE


def explained(status: int, told: str) -> bool:
    return status in (0, 1, 2, 3, 4, 5, 6, 7, 8, 74, 130) and "Traceback" not in told


@pytest.mark.parametrize("name", COMMANDS)
def test_no_value_of_an_option_or_argument_is_called_a_bug(name: str, run_here: Run, base: Base) -> None:
    for parameter in COMMANDS[name].params:
        if getattr(parameter, "is_flag", False):
            continue
        for value in values(name, parameter.name or ""):
            if parameter.param_type_name == "argument":
                arguments = [*base[name][:-1], "--", value]
            else:
                arguments = [*base[name], f"{parameter.opts[0]}={value}"]
            status, told = run_here([*name.split(), *arguments])
            assert explained(status, told), (parameter.name, value[:30], told)


@pytest.mark.parametrize(
    "setting", [setting for setting in SETTINGS.values() if setting.in_profile], ids=lambda each: each.name
)
def test_no_value_in_a_profile_is_called_a_bug(setting: Setting, run_here: Run, base: Base, exchange: Settings) -> None:
    # What the profile does not say is said by variables: options would win.
    told_otherwise = {name: value for name, value in exchange.items() if name not in (setting.name, "authority")}
    lines = [f"{name} = {json.dumps(value)}" for name, value in told_otherwise.items()]
    for value in HOSTILE_TOML:
        Path("config.toml").write_text("\n".join(["[profile.default]", *lines, f"{setting.name} = {value}"]))
        status, told = run_here(["--config", "config.toml", "assertion"])
        assert explained(status, told), (value[:30], told)


@pytest.mark.parametrize("variable", [each.variable for each in SETTINGS.values() if each.variable])
def test_no_value_of_a_variable_is_called_a_bug(
    variable: str, run_here: Run, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    option = "--" + variable.removeprefix("HSM_SIGNER_").lower().replace("_", "-")
    arguments = base["assertion"]
    if option in arguments:
        at = arguments.index(option)
        arguments = arguments[:at] + arguments[at + 2 :]
    for value in HOSTILE:
        monkeypatch.setenv(variable, value)
        status, told = run_here(["assertion", *arguments])
        assert explained(status, told), (value[:30], told)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_calls_a_directory_that_was_deleted_a_bug(name: str, run_here: Run, base: Base) -> None:
    gone = Path("gone").absolute()
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    for more in ([], ["--print-env"] if name == "assertion-file" else [], ["--check"] if name == "rotate" else []):
        status, told = run_here([*name.split(), *base[name][:-1], *more, *base[name][-1:]])
        assert explained(status, told), told


@pytest.mark.parametrize("seconds", ["inf", "nan", "1e400", "-1", "86401"])
def test_how_long_to_wait_for_entra_is_a_number_of_seconds(seconds: str, run_here: Run, base: Base) -> None:
    # Read before anything is done: it is needed after the certificate was added.
    status, told = run_here(["rotate", *base["rotate"], f"--propagation-timeout={seconds}"])
    assert status == 2
    assert "--propagation-timeout" in told


@pytest.mark.parametrize("group", ["99999999999999", "4294967295", "nobody-of-this-name", "\udcff", "-1"])
def test_an_impossible_group_is_refused_before_anything_is_signed(group: str, run_here: Run, base: Base) -> None:
    arguments = [*base["assertion-file"][:-1], f"--group={group}", "assertion"]
    status, told = run_here(["assertion-file", *arguments])
    assert status == 2
    assert "There is no group" in told


@pytest.mark.parametrize("option", ["--client-id", "--output-file", "--config"])
def test_bytes_that_are_not_utf_8_are_no_bug_in_a_real_process_either(
    program: Program, signing: Settings, option: str
) -> None:
    result = program("assertion", *options(signing), option, os.fsdecode(b"a\xff"))
    assert explained(result.status, result.stderr), result.stderr


def test_a_bug_of_ours_says_where_it_is_and_shows_no_values(program: Program, signing: Settings) -> None:
    # Python itself is broken for the program: a module of the standard library that cannot do what it promises.
    broken = program.directory / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import secrets\ndef fail(*_): raise RuntimeError('the PIN is " + PIN + "')\nimport uuid\nuuid.uuid4 = fail\n"
    )
    path = f"{broken}:{program.environment['PYTHONPATH']}"
    result = program("assertion", *options(signing), "-o", "json", environment={"PYTHONPATH": path})
    assert result.status == 70
    assert result.error["code"] == "internal_error"
    assert "RuntimeError at " in result.error["message"]
    assert "report" in result.error["hint"]
    assert PIN not in result.stderr
    assert result.stdout == ""
