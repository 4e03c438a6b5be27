"""`--help`, `--version` and usage errors; and what they, and the commands, do not load."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

import hsm_signer
from hsm_signer.cli.app import make_program
from tests.support.program import Program, Settings, options

ASSERTION = {
    "--tenant": ["HSM_SIGNER_TENANT", "AZURE_TENANT_ID"],
    "--client-id": ["HSM_SIGNER_CLIENT_ID", "AZURE_CLIENT_ID"],
    "--key": ["HSM_SIGNER_KEY"],
    "--module": ["HSM_SIGNER_MODULE"],
    "--pin-source": ["HSM_SIGNER_PIN_SOURCE"],
    "--certificate": ["HSM_SIGNER_CERTIFICATE"],
    "--algorithm": ["HSM_SIGNER_ALGORITHM"],
    "--thumbprint": ["HSM_SIGNER_THUMBPRINT"],
    "--send-chain": [],
    "--cloud": ["HSM_SIGNER_CLOUD"],
    "--authority": ["HSM_SIGNER_AUTHORITY", "AZURE_AUTHORITY_HOST"],
    "--token-endpoint": ["HSM_SIGNER_TOKEN_ENDPOINT"],
    "--audience": [],
    "--lifetime": [],
    "--device-timeout": ["HSM_SIGNER_DEVICE_TIMEOUT"],
    "--no-pin-record": [],
    "--allow-last-try": [],
    "--wait": [],
    "--output": [],
    "--output-file": [],
}
EXCHANGE = {
    "--scope": ["HSM_SIGNER_SCOPE"],
    "--ca-bundle": ["HSM_SIGNER_CA_BUNDLE"],
    "--network-timeout": ["HSM_SIGNER_NETWORK_TIMEOUT"],
}
ASSERTION_FILE: dict[str, list[str]] = {
    **{option: variables for option, variables in ASSERTION.items() if not option.startswith("--output")},
    "--interval": [],
    "--mode": [],
    "--group": [],
    "--once": [],
    "--print-env": [],
}
DEVICE = {
    option: ASSERTION[option]
    for option in (
        "--key",
        "--module",
        "--pin-source",
        "--device-timeout",
        "--no-pin-record",
        "--allow-last-try",
        "--wait",
    )
}
GENERATE: dict[str, list[str]] = {"--label": [], "--id": [], "--bits": [], "--always-authenticate": []}
DELETE: dict[str, list[str]] = {"--certificate": [], "--yes": []}
ISSUE: dict[str, list[str]] = {"--subject": [], "--algorithm": [], "--output": [], "--output-file": []}
CREATE: dict[str, list[str]] = {**ISSUE, "--days": [], "--no-store": [], "--replace": [], "--force": []}
IMPORT: dict[str, list[str]] = {"--replace": [], "--force": []}
EXPORT: dict[str, list[str]] = {"--form": [], "--output": [], "--output-file": []}
EXAMINE: dict[str, list[str]] = {
    option: variables for option, variables in (ASSERTION | EXCHANGE).items() if option != "--output-file"
}
GRAPH = {
    "--object-id": ["HSM_SIGNER_OBJECT_ID"],
    "--service-principal": [],
    "--graph": ["HSM_SIGNER_GRAPH"],
    "--grace": ["HSM_SIGNER_GRACE"],
}
ROTATE: dict[str, list[str]] = {
    "--current": [],
    "--next": [],
    "--bits": [],
    "--subject": [],
    "--days": [],
    "--delete-old-key": [],
    "--old-key-id": [],
    "--propagation-timeout": [],
    "--now": [],
    "--adopt": [],
    "--cancel": [],
    "--dry-run": [],
    "--check": [],
    "--warn-days": [],
}
LIST = {"--module": ["HSM_SIGNER_MODULE"], "--device-timeout": ["HSM_SIGNER_DEVICE_TIMEOUT"], "--output": []}
GLOBAL = {
    "--config": ["HSM_SIGNER_CONFIG"],
    "--profile": ["HSM_SIGNER_PROFILE"],
    "--verbose": [],
    "--log-format": [],
    "--version": [],
    "--install-completion": [],
    "--show-completion": [],
}
EMULATOR: dict[str, list[str]] = {
    "--certificate": [],
    "--tenant": [],
    "--client-id": [],
    "--resource": [],
    "--port": [],
    "--ca-file": [],
    "--plain-http": [],
    "--refuse-replay": [],
    "--output": [],
}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        pytest.param([], GLOBAL, id="hsm-signer"),
        pytest.param(["token"], ASSERTION | EXCHANGE, id="token"),
        pytest.param(["assertion"], ASSERTION, id="assertion"),
        pytest.param(["assertion-file"], ASSERTION_FILE, id="assertion-file"),
        pytest.param(["decode"], {"--output": []}, id="decode"),
        pytest.param(["verify"], {"--certificate": [], "--output": []}, id="verify"),
        pytest.param(["explain"], {"--output": []}, id="explain"),
        pytest.param(["key", "generate"], {**DEVICE, **GENERATE, "--output": []}, id="key generate"),
        pytest.param(["key", "list"], {**DEVICE, "--output": []}, id="key list"),
        pytest.param(["key", "delete"], {**DEVICE, **DELETE, "--output": []}, id="key delete"),
        pytest.param(["certificate", "create"], DEVICE | CREATE, id="certificate create"),
        pytest.param(["certificate", "request"], DEVICE | ISSUE, id="certificate request"),
        pytest.param(["certificate", "import"], {**DEVICE, **IMPORT, "--output": []}, id="certificate import"),
        pytest.param(["certificate", "export"], DEVICE | EXPORT, id="certificate export"),
        pytest.param(["certificate", "show"], {**DEVICE, "--output": []}, id="certificate show"),
        pytest.param(["rotate"], EXAMINE | GRAPH | ROTATE, id="rotate"),
        pytest.param(["device", "list"], LIST, id="device list"),
        pytest.param(["device", "show"], {**DEVICE, "--login": [], "--output": []}, id="device show"),
        pytest.param(["device", "forget-pin-failures"], {"--key": [], "--output": []}, id="device forget-pin-failures"),
        pytest.param(["doctor"], {**EXAMINE, "--offline": []}, id="doctor"),
        pytest.param(["emulator"], EMULATOR, id="emulator"),
    ],
)
def test_help_lists_every_option_with_its_variables(
    program: Program, command: list[str], expected: dict[str, list[str]]
) -> None:
    wide = {"COLUMNS": "400"}  # a line an option
    result = program(*command, "--help", environment=wide)
    assert (result.status, result.stderr) == (0, "")
    listed = dict(re.findall(r"│[ *]+(--[a-z-]+)(.*)", result.stdout))
    variables = {option: re.findall(r"\b(?:HSM_SIGNER|AZURE)_\w+", text) for option, text in listed.items()}
    assert variables == {**expected, "--help": []}


def test_help_lists_every_command(program: Program) -> None:
    commands = re.findall(r"│ ([a-z-]+)", program("-h").stdout.partition("Commands")[2])
    assert set(commands) == {
        *("token", "assertion", "decode", "verify", "explain", "device", "key", "certificate", "rotate"),
        *("init", "assertion-file", "doctor", "emulator"),
    }


def test_version_is_the_packages(program: Program) -> None:
    result = program("--version")
    assert (result.status, result.stdout) == (0, f"hsm-signer {hsm_signer.__version__}\n")


def test_without_a_command_the_help_is_shown_and_the_status_says_usage(program: Program) -> None:
    result = program()
    assert (result.status, result.stderr) == (2, "")
    assert "Usage: hsm-signer" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["tokn"], id="unknown command"),
        pytest.param(["decode", "--certificate", "x"], id="unknown option"),
        pytest.param(["token", "-o", "yaml"], id="unknown form"),
        pytest.param(["verify"], id="missing option"),
        pytest.param(["explain"], id="missing argument"),
    ],
)
def test_a_usage_error_is_explained(program: Program, arguments: list[str]) -> None:
    result = program(*arguments)
    assert (result.status, result.stdout) == (2, "")
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == ["error", "hint"]
    assert "--help" in result.stderr.splitlines()[1]


def test_a_usage_error_is_json_where_json_was_asked_for(program: Program) -> None:
    result = program("tokn", "-o", "json")
    assert (result.status, result.stdout) == (2, "")
    assert result.error["code"] == "usage"


# The program leaves by os._exit, past every hook: this shows what sys.modules holds at that moment.
SHOW_MODULES = """
import os, sys
leave = os._exit
os._exit = lambda status: (print("loaded", *sys.modules, flush=True), leave(status))
from hsm_signer.cli import main
main()
"""


def loaded(program: Program, *arguments: str) -> set[str]:
    """Return the modules that a run has loaded by its end."""
    result = program(*arguments, python=("-c", SHOW_MODULES))
    assert result.status == 0
    word, *modules = result.stdout.splitlines()[-1].split()
    assert word == "loaded"
    return set(modules)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_neither_pkcs11_nor_httpx(program: Program, option: str) -> None:
    modules = loaded(program, option)
    assert "hsm_signer.cli.app" in modules
    assert not modules & {"pkcs11", "httpx"}


def test_assertion_loads_no_httpx(program: Program, signing: Settings) -> None:
    modules = loaded(program, "assertion", *options(signing))
    assert "pkcs11" in modules
    assert "httpx" not in modules


def test_token_loads_httpx(program: Program, exchange: Settings) -> None:
    # So that the tests above would notice.
    assert "httpx" in loaded(program, "token", *options(exchange))


def test_token_does_not_load_the_command_line_of_httpx(program: Program, exchange: Settings) -> None:
    # Where click is installed, as here, httpx imports it by itself.
    modules = loaded(program, "token", *options(exchange))
    assert {"httpx._client", "httpx._main"} & modules == {"httpx._client"}
    assert "click" not in modules


def help_texts(path: list[str], command: Any) -> Iterator[tuple[list[str], str]]:
    """Yield the words that call each command that does something, and its help."""
    inner = getattr(command, "commands", {})
    if not inner:
        yield path, command.help
    for name, each in inner.items():
        yield from help_texts([*path, name], each)


HELP_TEXTS = list(help_texts([], typer.main.get_command(make_program([]))))


@pytest.mark.parametrize(("command", "text"), [pytest.param(*each, id=" ".join(each[0])) for each in HELP_TEXTS])
def test_each_command_has_an_example_that_is_valid(program: Program, command: list[str], text: str) -> None:
    examples = [line for line in text.splitlines() if re.search(r"\bhsm-signer (--|[a-z])", line)]
    assert examples
    for example in examples:
        words = shlex.split(re.sub(r'^eval "\$\((.*)\)"$', r"\1", example).partition(" < ")[0].rpartition("| ")[2])
        assert words[0] == "hsm-signer"
        assert [word for word in words if word in command] == command
        result = program(*words[1:], "--help")
        assert (result.status, result.stderr) == (0, "")
