"""The command that forgets refused PINs works for whoever reads it."""

from pathlib import Path

import pytest

from hsm_signer.device.pin.forget_command import format_forget_command

STATE = Path("/var/lib/hsm-signer")


@pytest.mark.parametrize(
    ("user", "is_reader", "command"),
    [
        ("svc", False, "sudo -u svc STATE_DIRECTORY=/var/lib/hsm-signer hsm-signer device forget-pin-failures"),
        ("root", False, "sudo STATE_DIRECTORY=/var/lib/hsm-signer hsm-signer device forget-pin-failures"),
        ("svc", True, "hsm-signer device forget-pin-failures"),
    ],
)
def test_it_has_the_user_and_the_state_directory_if_another_user_reads_it(
    user: str, is_reader: bool, command: str
) -> None:
    assert format_forget_command(STATE, user, is_reader=is_reader) == command


def test_a_directory_is_quoted() -> None:
    command = format_forget_command(Path("/home/a b/x"), "svc", is_reader=False)
    assert "'STATE_DIRECTORY=/home/a b/x'" in command
