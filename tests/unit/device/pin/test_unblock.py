"""After a wrong PIN a person is told what to do on this very device, by commands of its own tool."""

import shlex
from dataclasses import replace

import pytest

from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.pin.unblock import pin_tool


def device(label: str, manufacturer: str, model: str, serial: str, *, slot: str = "", library: str = "") -> DeviceInfo:
    return DeviceInfo(label, manufacturer, model, serial, 0, slot, "", library, "", (1, 0))


YUBIKEY = device("YubiKey PIV #12345678", "Yubico (www.yubico.com)", "YubiKey YK5", "12345678")
PIV_BY_OPENSC = device("CN=x", "piv_II", "PKCS#15 emulated", "d5cb8b60", slot="Gemalto (00) 01")
CARD_BY_OPENSC = device("card", "D-Trust", "PKCS#15", "1", slot="Reader 0", library="OpenSC Project")
TPM = device("app", "IBM", "SW   TPM", "0000000000000000", slot="app", library="tpm2-software.github.io")
SOFTHSM = device("two words", "SoftHSM project", "SoftHSM v2", "6e382c1a675254f4")
UNKNOWN = device("office", "ACME", "HSM 9", "1")


@pytest.mark.parametrize(
    ("known", "commands"),
    [
        (
            YUBIKEY,
            ["ykman --device 12345678 piv info", "ykman --device 12345678 piv access unblock-pin"],
        ),
        (PIV_BY_OPENSC, ["pkcs15-tool --reader 'Gemalto (00) 01' --unblock-pin"]),
        (CARD_BY_OPENSC, ["pkcs15-tool --reader 'Reader 0' --unblock-pin"]),
        (TPM, ["tpm2_getcap properties-variable | grep LOCKOUT", "tpm2_dictionarylockout --clear-lockout"]),
        (SOFTHSM, []),
        (UNKNOWN, []),
    ],
    ids=["ykcs11", "PIV by OpenSC", "OpenSC", "TPM", "SoftHSM", "another"],
)
def test_the_commands_are_of_the_tool_for_this_device(known: DeviceInfo, commands: list[str]) -> None:
    shown = [command.split("  #")[0].rstrip() for command in pin_tool(known).commands]
    assert shown == commands


@pytest.mark.parametrize("known", [YUBIKEY, PIV_BY_OPENSC, TPM], ids=str)
def test_a_comment_says_what_each_command_is_for(known: DeviceInfo) -> None:
    for command in pin_tool(known).commands:
        assert len(shlex.split(command, comments=True)) < len(shlex.split(command))


def test_a_serial_that_ykman_would_not_take_is_left_out() -> None:
    odd = device("YubiKey PIV", "Yubico (www.yubico.com)", "YubiKey", "; reboot")
    assert pin_tool(odd).commands[0].startswith("ykman piv info ")


def test_the_name_of_a_reader_cannot_add_a_command() -> None:
    (command,) = pin_tool(replace(CARD_BY_OPENSC, slot_description="x'; rm -rf ~; '")).commands
    assert shlex.split(command, comments=True)[2] == "x'; rm -rf ~; '"
