"""Fixtures for tests of two capabilities together.

A separate SoftHSM for each test, behind the fault module, which counts the logins, and a PIN in a file; or an
application whose key can be replaced, and the command line with a profile that follows the key file.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.application import Application
from tests.support.faulty_module.control import FaultyModule
from tests.support.listener import Listener
from tests.support.names import CLIENT, TENANT
from tests.support.program import Program, program_with

_SET_PIN = """
import os, sys, pkcs11
token = pkcs11.lib(sys.argv[1]).get_token(token_label=sys.argv[2])
with token.open(rw=True, user_pin=os.environ["OLD_PIN"]) as session:
    session.set_pin(os.environ["OLD_PIN"], os.environ["NEW_PIN"])
"""


@dataclass
class Card:
    """A device, and the file that a program reads its PIN from.

    Attributes:
        faulty: the module that counts logins.
        file: of the PIN.
        pin: the right PIN.
    """

    softhsm: SoftHsm
    faulty: FaultyModule
    key: SoftHsmKey
    file: Path
    pin: str

    def change_pin(self, pin: str) -> None:
        """Change the PIN on the device, as its owner does with another program. The file is not changed."""
        subprocess.run(
            [sys.executable, "-c", _SET_PIN, self.softhsm.module, self.softhsm.label],
            env={**os.environ, **self.softhsm.environment, "OLD_PIN": self.pin, "NEW_PIN": pin},
            check=True,
            timeout=60,
        )
        self.pin = pin
        self.faulty.change_pin(pin)

    def write(self, pin: str) -> None:
        """Write a PIN into the file, which keeps its inode."""
        self.file.write_text(pin)
        self.file.chmod(0o600)

    @property
    def sent(self) -> list[bool]:
        """For each login, whether the PIN was right."""
        return [login.right for login in self.faulty.logins()]


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Card]:
    with SoftHsm(pin="11111111") as softhsm:
        key = softhsm.add_identity()
        with FaultyModule(softhsm.module, softhsm.environment, pin=softhsm.pin) as faulty:
            card = Card(softhsm, faulty, key, tmp_path / "pin", softhsm.pin)
            card.write(softhsm.pin)
            yield card


@pytest.fixture
def program(tmp_path: Path, application: Application, systemd: Listener) -> Program:
    """The command line, with a profile that follows the key file."""
    config = tmp_path / "config.toml"
    config.write_text(
        f"""[profile.default]
        tenant = "{TENANT}"
        client_id = "{CLIENT}"
        authority = "{application.entra.authority}"
        key = "file:{application.key_file}"
        module = "{application.softhsm.module}"
        pin_source = "env:DEVICE_PIN"
        """
    )
    return program_with(application.softhsm, tmp_path, HSM_SIGNER_CONFIG=str(config), **systemd.environment)
