"""Every text on the device attacks the terminal: no command lets its control characters reach one."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FaultyModule
from tests.support.names import PIN, WRONG_PIN
from tests.support.program import Program, Settings, options
from tests.support.terminal import Terminal

# A window's title, a forged line, a colour by C1, a change of direction, a line separator, a deletion, half a
# character. Fields of 16 octets hold the first line of it, those of 32 the second one too.
HOSTILE = (
    b"\x1b]0;own\x07\nerror:"
    b" forged \xc2\x9b31m\xe2\x80\xae"
    b"\xe2\x80\xa8\x7f\r\x08\xff\xe2\x81\xa6\x1b[2J"
)  # fmt: skip
CLEAR_LINE = "\r\x1b[K"  # ours, when a cue is taken away


@dataclass(frozen=True)
class Hostile:
    """The device, and the settings that lead to it."""

    program: Program
    settings: Settings

    def arguments(self, command: str, **changes: str | None) -> list[str]:
        return [*command.split(), *options(self.settings, **changes)]


@pytest.fixture(scope="module")
def module(softhsm: SoftHsm, good: SoftHsmKey) -> Iterator[FaultyModule]:
    with FaultyModule(softhsm.module, softhsm.environment, pin=PIN) as module:
        module.text(HOSTILE)
        yield module


@pytest.fixture(scope="module")
def slots(softhsm: SoftHsm) -> dict[str, int]:
    """The slots by their labels, which do not tell them apart any more."""
    listing = subprocess.run(
        ["softhsm2-util", "--show-slots"],
        env={**os.environ, **softhsm.environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {
        label.strip(): int(slot) for slot, label in re.findall(r"^Slot (\d+)$.*?Label:([^\n]*)", listing, re.M | re.S)
    }


@pytest.fixture
def hostile(program: Program, signing: Settings, module: FaultyModule, slots: dict[str, int]) -> Hostile:
    here = {"module": str(module.path), "key": f"pkcs11:slot-id={slots['office']};id=%01"}
    return Hostile(program, {**signing, **here})


def assert_fit(output: str) -> None:
    for line in output.split("\n"):
        assert line.isprintable(), repr(line)
        assert not line.startswith(("error: forged", "forged", " forged"))


def on_a_terminal(
    hostile: Hostile, terminal: Terminal, arguments: list[str], pin: str | None = None
) -> tuple[int, str]:
    """Run with everything on one terminal; return the status and what it showed."""
    side = terminal.program_side
    environment = {"NO_COLOR": "1", "TERM": "xterm"}
    with hostile.program.start(
        *arguments, within=terminal.shell, stdout=side, stderr=side, environment=environment
    ) as process:
        if pin is not None:
            terminal.wait_for("PIN for")
            terminal.type(pin + "\n")
        terminal.wait_for("it ended with ")
        terminal.type("\n")
        process.wait(60)
    return process.returncode, terminal.seen.replace(CLEAR_LINE, "").replace("\r\n", "\n")


# What shows text of the device: as a result, in an error, a warning, a log line, or a question.
SHOWING: dict[str, tuple[int, dict[str, str | None]]] = {
    "device list": (0, {}),
    "device show": (0, {}),
    "device show --login": (0, {}),
    "key list": (0, {}),
    "certificate show": (0, {}),
    "certificate request --subject CN=x": (0, {}),
    "certificate create --subject CN=x": (5, {}),
    "assertion": (0, {}),
    "assertion --no-pin-record": (3, {"key": "pkcs11:"}),
    "assertion --pin-source none": (5, {"pin_source": None}),
    "token": (2, {}),
    "doctor --offline": (0, {}),
    "assertion-file --once kept": (0, {}),
    "rotate": (2, {}),
    "key delete": (2, {}),
}


def for_the_command(arguments: list[str]) -> list[str]:
    """Leave out the options that a command does not have."""
    match arguments[0]:
        case "device" if arguments[1] == "list":
            keep = {"--module"}
        case "device" | "key" | "certificate":
            keep = {"--module", "--key", "--pin-source"}
        case _:
            return arguments
    kept, words = [], iter(arguments)
    for word in words:
        if word in ("--tenant", "--client-id", "--module", "--key", "--pin-source") and word not in keep:
            next(words)
        else:
            kept.append(word)
    return kept


@pytest.mark.parametrize("command", SHOWING)
@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_hostile_comes_through_a_pipe(hostile: Hostile, command: str, form: str) -> None:
    status, changes = SHOWING[command]
    arguments = for_the_command(hostile.arguments(command, **changes))
    if form == "json":
        if command.startswith("assertion-file"):
            arguments = ["--log-format", "json", *arguments]
        else:
            arguments += ["-o", "json"]
    result = hostile.program(*arguments)
    assert result.status == status, result.stderr
    assert_fit(result.stdout)
    assert_fit(result.stderr)


@pytest.mark.parametrize("command", [command for command in SHOWING if command != "key delete"])  # that one asks
def test_nothing_hostile_reaches_a_terminal(hostile: Hostile, terminal: Terminal, command: str) -> None:
    status, changes = SHOWING[command]
    ended, seen = on_a_terminal(hostile, terminal, for_the_command(hostile.arguments(command, **changes)))
    assert ended == status, seen
    assert_fit(seen)


def test_the_pin_prompt_shows_no_control_characters(hostile: Hostile, terminal: Terminal) -> None:
    ended, seen = on_a_terminal(hostile, terminal, hostile.arguments("assertion", pin_source="prompt"), pin=PIN)
    assert ended == 0
    assert r"PIN for \x1b]0;own\x07\nerror: forged" in seen
    assert_fit(seen)


def test_json_keeps_what_the_device_said(hostile: Hostile) -> None:
    arguments = for_the_command(hostile.arguments("device show --login"))
    result = hostile.program(*arguments, "-o", "json")
    (device,) = result.json["devices"]
    assert device["info"]["label"] == HOSTILE[:32].decode(errors="replace")
    assert {key["label"] for key in device["contents"]["keys"]} == {HOSTILE.decode(errors="replace")}
    assert result.stdout.isascii()


def test_the_uris_of_hostile_keys_are_found_when_pasted(hostile: Hostile) -> None:
    listing = hostile.program(*for_the_command(hostile.arguments("key list")), "-o", "json")
    uris = [key["uri"] for key in listing.json["keys"] if key["id"] == "01"]
    assert uris
    for uri in uris:
        assert hostile.program(*hostile.arguments("assertion", key=uri)).status == 0


def test_the_life_of_a_key_on_a_hostile_device(
    hostile: Hostile, softhsm: SoftHsm, slots: dict[str, int], terminal: Terminal
) -> None:
    settings = {**hostile.settings, "key": f"pkcs11:slot-id={slots['spare']}"}
    spare = Hostile(hostile.program, settings)
    # It is honest while the key is made: a new key is looked up by its label.
    honest = for_the_command(spare.arguments("key generate --label fresh --id aa", module=str(softhsm.module)))
    assert spare.program(*honest).status == 0
    settings["key"] += ";id=%aa"
    runs = [
        spare.program(*for_the_command(spare.arguments(command)))
        for command in (
            "certificate create --subject CN=fresh",
            "certificate export --output-file fresh.pem",
            "certificate import --replace fresh.pem",
        )
    ]
    with spare.program.start(
        *for_the_command(spare.arguments("key delete --certificate")),
        within=terminal.shell,
        stdout=terminal.program_side,
    ) as process:
        terminal.wait_for("of the key: ")
        terminal.type("aa\n")
        terminal.wait_for("it ended with 0")
        terminal.type("\n")
        process.communicate(timeout=60)
    assert_fit(terminal.seen.replace(CLEAR_LINE, "").replace("\r\n", "\n"))
    for run in runs:
        assert run.status == 0, run.stderr
        assert_fit(run.stdout)
        assert_fit(run.stderr)


def test_a_refused_pin_and_forgetting_it(hostile: Hostile, slots: dict[str, int]) -> None:
    spare = {"key": f"pkcs11:slot-id={slots['spare']}"}
    refused = hostile.program(*hostile.arguments("assertion", **spare), environment={"DEVICE_PIN": WRONG_PIN})
    assert refused.status == 4
    before = refused.again()
    forgotten = hostile.program("device", "forget-pin-failures")
    assert forgotten.stdout.startswith(r"Forgot the refused PINs of '\x1b]0;own\x07\nerror: forged")
    for run in (refused, before, forgotten):
        assert_fit(run.stdout)
        assert_fit(run.stderr)


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_of_a_hostile_device(hostile: Hostile, form: str) -> None:
    result = hostile.program("-v", "--log-format", form, *hostile.arguments("assertion"))
    opened = next(line for line in result.stderr.splitlines() if "opened" in line)
    assert r"\x1b]0;own\x07" in (json.loads(opened)["message"] if form == "json" else opened)
    assert_fit(result.stderr)


def test_the_name_of_a_file_forges_no_line(program: Program) -> None:
    name = "x\n\x1b[31merror: forged\u202e"
    for arguments in (
        ["--config", name, "assertion"],
        ["certificate", "show", name],
        ["verify", "--certificate", name],
    ):
        result = program(*arguments)
        assert r"\x1b[31merror: forged\u202e" in result.stderr
        assert_fit(result.stderr)


def test_the_registration_steps_show_no_control_characters(hostile: Hostile) -> None:
    name = "x\n\x1b[31merror: forged.pem"
    arguments = for_the_command(hostile.arguments("certificate export"))
    result = hostile.program(*arguments, "--output-file", name)
    assert result.status == 0
    assert Path(hostile.program.directory, name).exists()
    assert_fit(result.stderr)
