"""What a developer sees when a program ends with one of our errors."""

from pathlib import Path

import pytest

from hsm_signer.testing import SoftHsm
from tests.support.names import CLIENT, TENANT, WRONG_PIN
from tests.support.program import program_with

PROGRAM = """
from hsm_signer import HsmCredential

with HsmCredential("{tenant}", "{client}", "{key}", module="{module}", pin_source="env:DEVICE_PIN",
                   isolated={isolated}) as credential:
    credential.get_token("https://graph.microsoft.com/.default")
"""


@pytest.mark.parametrize("isolated", [False, True])
def test_a_traceback_ends_with_the_message_and_the_hint_and_shows_no_pin(isolated: bool, tmp_path: Path) -> None:
    with SoftHsm() as softhsm:
        key = softhsm.add_identity()
        code = PROGRAM.format(tenant=TENANT, client=CLIENT, key=key.uri, module=softhsm.module, isolated=isolated)
        program = program_with(softhsm, tmp_path, DEVICE_PIN=WRONG_PIN)
        result = program(python=("-c", code))
    _, name, end = result.stderr.partition("\nhsm_signer.errors.PinIncorrect: ")
    _, hint, *commands = end.splitlines()
    assert (result.status, bool(name)) == (1, True)
    assert hint.startswith("hint: ")
    assert all(command.startswith("  ") for command in commands)
    assert result.stderr.count("hint: ") == 1
    assert WRONG_PIN not in result.stderr


def test_the_command_line_shows_the_hint_once(tmp_path: Path) -> None:
    with SoftHsm() as softhsm:
        program = program_with(softhsm, tmp_path)
        result = program("token", "--tenant", TENANT, "--client-id", CLIENT)
    assert [line.partition(": ")[0] for line in result.stderr.splitlines() if line[0] != " "] == ["error", "hint"]
