"""A virtual YubiKey: one PIV card in one reader, through ykcs11 and through OpenSC.

Debian packages: pcscd, vsmartcard-vpcd, ykcs11 and opensc-pkcs11. Root only has to be able to become the user nobody;
for an ordinary user /run/pcscd must exist, which it does wherever systemd holds pcscd's socket.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from hsm_signer.device.module_search import find_module
from hsm_signer.device.uri import Pkcs11Uri

from . import StackKey
from .piv_reader import SOCKET

_ROOT = Path(__file__).parents[3]


class PivStack:
    """The card through one of the modules. Both modules share one card: a change to it shows through the other too.

    `reset` also plugs the card in. The third wrong PIN locks it.
    """

    def __init__(self, card: "VirtualYubiKey", name: str, module: str, token: str) -> None:
        self.name = name
        self.module = find_module(None, Pkcs11Uri(module_name=module))
        self.environment: Mapping[str, str] = card.environment
        self.pin = card.pin
        self.wrong_pin = "654321"
        self.has_pss = True
        self.locks = True
        ordinary, always = card.certificates
        self.key = _stack_key(Pkcs11Uri(token=token, id=b"\x01"), ordinary)
        self.always_authenticate_key: StackKey | None = _stack_key(Pkcs11Uri(token=token, id=b"\x02"), always)
        self._card = card

    def unplug(self) -> None:
        """Unplug the card, even during a signature; return when pcscd has noticed."""
        self._card.order("unplug")

    def plug(self) -> None:
        """Plug it in; return when pcscd has noticed."""
        self._card.order("plug")

    def presented(self) -> int:
        """Return how many PINs were sent to the card since `reset`: in logins of both kinds, right or wrong."""
        presented: int = self._card.order("presented")
        return presented

    def touch(self, required: bool) -> None:
        """Make every signature wait for a touch; or touch the card, so that a waiting signature continues."""
        self._card.order("touch", required)

    def wait_for_touch_request(self) -> None:
        """Return when the card, after `touch(True)`, waits to be touched."""
        self._card.order("wait for wish")

    def patience(self, seconds: float) -> None:
        """Set how long the card waits for a touch; a YubiKey waits 15 s."""
        self._card.order("patience", seconds)

    def hold(self, seconds: float) -> None:
        """Set how long each signature takes."""
        self._card.order("hold", seconds)

    def forget_login(self) -> None:
        """Let another process select the PIV application again: the card ends the login, and tells no other process."""
        self._card.order("forget login")

    def reset_card(self) -> None:
        """Let another process reset the card; pcscd tells all other processes."""
        self._card.order("reset card")

    def sign_elsewhere(self, reference: int, block: bytes) -> bytes:
        """Let another process, without a PIN, sign with the key in a slot; return the card's answer."""
        template = bytes.fromhex("7c82010682008182") + len(block).to_bytes(2, "big") + block
        command = bytes((0x00, 0x87, 0x07, reference, 0x00)) + len(template).to_bytes(2, "big") + template + b"\0\0"
        return bytes.fromhex(self._card.order("transmit", command.hex()))

    def change_pin(self, pin: str) -> None:
        """Change the card's PIN, as its owner would with another program, until `reset`."""
        self._card.order("change pin", pin)

    def leave_tries(self, tries: int) -> None:
        """Use up PIN tries, as another person would, until this many are left."""
        self._card.order("leave tries", tries)

    def import_keys(self) -> None:
        """Make the card's keys imported ones, which it does not attest, until `reset`."""
        self._card.order("import keys")

    def take_certificates(self) -> None:
        """Remove the keys' own certificates from the card, until `reset`."""
        self._card.order("take certificates")

    def take_certificate_of_9c(self) -> None:
        """Take the certificate of the key in slot 9c off the card, until `reset`."""
        self._card.order("take certificate of 9c")

    def take_keys(self) -> None:
        """Leave the card empty, as it is sold, until `put_keys`."""
        self._card.order("take keys")

    def put_keys(self) -> None:
        """Let the owner of the card make its keys and certificates, with the management key and in another program."""
        self._card.order("put keys")

    def take_9c(self) -> None:
        """Remove the key in slot 9c from the card, until `reset`."""
        self._card.order("take 9c")

    def reset(self) -> None:
        """Plug the card in with its original PIN, keys and tries, touch and sign at once, and count PINs from 0."""
        self._card.order("reset")
        self._card.order("plug")

    def close(self) -> None:
        """Stop everything, including the other stack."""
        self._card.close()


class VirtualYubiKey:
    """The card and the two stacks above it.

    Attributes:
        stacks: the card through ykcs11, and through OpenSC.
    """

    def __init__(self) -> None:
        self.pin = "123456"
        self._turn = threading.Lock()
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.support.stacks.piv_reader", self.pin],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C goes to the tests only: they stop it in order
        )
        try:
            directory, *certificates = json.loads(self._hear())
            self.certificates = [bytes.fromhex(certificate) for certificate in certificates]
            self.environment = {"PCSCLITE_CSOCK_NAME": f"{directory}/{SOCKET}"}
            self.stacks = (
                PivStack(self, "ykcs11", "ykcs11", "YubiKey PIV #12345678"),
                # OpenSC names the card after the certificate in 9a.
                PivStack(self, "opensc", "opensc-pkcs11", "virtual 9a"),
            )
        except BaseException:
            self.close()
            raise

    def order(self, command: str, argument: float | str = 0) -> Any:
        """Send the program a command for the card; return its answer."""
        assert self._program.stdin is not None
        with self._turn:
            self._program.stdin.write(json.dumps([command, argument]) + "\n")
            self._program.stdin.flush()
            return json.loads(self._hear())

    def close(self) -> None:
        """Stop everything that was started. May be called twice."""
        self._program.communicate()

    def _hear(self) -> str:
        assert self._program.stdout is not None
        if not (line := self._program.stdout.readline()):
            raise RuntimeError(f"the card's program ended with status {self._program.wait()}; see its stderr")
        return line


def _stack_key(uri: Pkcs11Uri, certificate: bytes) -> StackKey:
    public_key = x509.load_der_x509_certificate(certificate).public_key()
    assert isinstance(public_key, rsa.RSAPublicKey)
    return StackKey(str(uri), public_key, certificate)
