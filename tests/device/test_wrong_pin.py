"""What a person reads after a wrong PIN, on each device; and the commands, run as they were printed."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import PinIncorrect, PinLocked
from tests.support.counted_pin import CountedPin
from tests.support.fixtures import Running
from tests.support.stacks import Stack
from tests.support.stacks.piv_card import PUK

NAMES = {
    "softhsm": "device tests",
    "tpm": "device tests",
    "ykcs11": "YubiKey PIV #12345678",
    "opensc": "virtual 9a",
}
# SoftHSM never locks, and its own tool could only delete the keys.
TOOLS = {"softhsm": None, "tpm": "tpm2_dictionarylockout", "ykcs11": "ykman", "opensc": "pkcs15-tool"}


@pytest.fixture(params=NAMES)
def stack(request: pytest.FixtureRequest, running: Running) -> Iterator[Stack]:
    stack = running(request.param)
    stack.reset()
    yield stack
    stack.reset()


def access_to(stack: Stack, pin: str) -> KeyAccess:
    return KeyAccess(
        uri=Pkcs11Uri.parse(stack.key.uri),
        pin=CountedPin(pin),
        module=stack.module,
        module_environment=stack.environment,
        allow_last_try=True,
    )


def wrong_pin(stack: Stack) -> PinIncorrect:
    with pytest.raises(PinIncorrect) as refused:
        open_device(access_to(stack, stack.wrong_pin))
    return refused.value


def run(stack: Stack, command: str) -> str:
    """Run a command as a shell would that knows where the stack's own TPM and reader are."""
    environment = {**os.environ, **stack.environment, "TPM2TOOLS_TCTI": stack.environment.get("TPM2_PKCS11_TCTI", "")}
    return subprocess.run(
        ["sh", "-ec", command], env=environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_a_wrong_pin_says_which_device_and_names_the_tool_that_helps(stack: Stack) -> None:
    refused = wrong_pin(stack)
    assert refused.message == f"Wrong PIN for {NAMES[stack.name]}. It was sent once and will not be sent again."
    assert refused.hint
    last = refused.commands[-1].split()[0] if refused.commands else None
    assert last == TOOLS[stack.name]


def test_the_last_try_is_announced_where_the_device_says_so(yubikey: Stack) -> None:
    messages = [wrong_pin(yubikey).message for _ in range(2)]
    assert ["One more wrong PIN locks the device." in message for message in messages] == [False, True]


def test_a_card_is_unblocked_by_the_command_that_is_printed(running: Running) -> None:
    card = running("opensc")
    card.reset()
    try:
        for _ in range(2):
            wrong_pin(card)
        with pytest.raises(PinLocked) as locked:
            open_device(access_to(card, card.wrong_pin))
        (command,) = locked.value.commands
        run(card, command.replace("--unblock-pin", f"--unblock-pin --puk {PUK} --new-pin 246810"))
        open_device(access_to(card, "246810")).close()
    finally:
        card.reset()


def test_a_tpm_shows_its_tries_and_gives_them_back_by_the_commands_that_are_printed(running: Running) -> None:
    tpm = running("tpm")
    tpm.reset()
    show, give_back = wrong_pin(tpm).commands
    assert "TPM2_PT_LOCKOUT_COUNTER: 0x1" in run(tpm, show)
    run(tpm, give_back)
    assert "TPM2_PT_LOCKOUT_COUNTER: 0x0" in run(tpm, show)
