"""A virtual YubiKey: one PIV card in one reader, through ykcs11 and through OpenSC.

Debian packages: pcscd, vsmartcard-vpcd, ykcs11 and opensc-pkcs11. Root needs no more than to become nobody; an ordinary
user needs /run/pcscd to exist, as it does wherever systemd holds pcscd's socket.
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
    """The card through one of the modules. What happens to the card, happens to it through the other one, too.

    `reset` puts the card back in as well. Wrong PINs lock it at the third.
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
        """Pull the card, also from the midst of a signature; returns when pcscd has noticed."""
        self._card.order("unplug")

    def plug(self) -> None:
        """Put it back; returns when pcscd has noticed."""
        self._card.order("plug")

    def presented(self) -> int:
        """Return how many PINs the card was given since `reset`: logins and context logins, right or wrong."""
        presented: int = self._card.order("presented")
        return presented

    def touch(self, required: bool) -> None:
        """Make every signature wait for a touch; or touch the card, and a signature that waits goes on."""
        self._card.order("touch", required)

    def wait_for_wish(self) -> None:
        """Return when the card, after `touch(True)`, waits to be touched."""
        self._card.order("wait for wish")

    def patience(self, seconds: float) -> None:
        """Let the card wait so long for a touch, and not 15 s as a YubiKey does."""
        self._card.order("patience", seconds)

    def hold(self, seconds: float) -> None:
        """Let each signature take so long."""
        self._card.order("hold", seconds)

    def forget_login(self) -> None:
        """Let another process select the PIV application anew: the card forgets the login, and nobody is told."""
        self._card.order("forget login")

    def reset_card(self) -> None:
        """Let another process reset the card; pcscd tells all others."""
        self._card.order("reset card")

    def sign_elsewhere(self, reference: int, block: bytes) -> bytes:
        """Let another process, which was given no PIN, have the key in a slot sign; return the card's answer."""
        template = bytes.fromhex("7c82010682008182") + len(block).to_bytes(2, "big") + block
        command = bytes((0x00, 0x87, 0x07, reference, 0x00)) + len(template).to_bytes(2, "big") + template + b"\0\0"
        return bytes.fromhex(self._card.order("transmit", command.hex()))

    def change_pin(self, pin: str) -> None:
        """Let the owner of the card change its PIN elsewhere, until `reset`."""
        self._card.order("change pin", pin)

    def leave_tries(self, tries: int) -> None:
        """Let somebody else use up PIN tries: so many are left."""
        self._card.order("leave tries", tries)

    def import_keys(self) -> None:
        """Let the owner of the card have imported its keys, until `reset`: it does not attest those."""
        self._card.order("import keys")

    def take_certificates(self) -> None:
        """Take the keys' own certificates off the card, until `reset`."""
        self._card.order("take certificates")

    def take_certificate_of_9c(self) -> None:
        """Take the certificate of the key in slot 9c off the card, until `reset`."""
        self._card.order("take certificate of 9c")

    def take_9c(self) -> None:
        """Leave the card the key in slot 9a alone, until `reset`."""
        self._card.order("take 9c")

    def reset(self) -> None:
        """Put the card in with its first PIN and keys, give back all tries, touch and sign at once, count from 0."""
        self._card.order("reset")
        self._card.order("plug")

    def close(self) -> None:
        """Stop everything, the other stack as well."""
        self._card.close()


class VirtualYubiKey:
    """The card and the two stacks above it.

    Attributes:
        stacks: through ykcs11, and through OpenSC.
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
            start_new_session=True,  # Ctrl-C is for the tests: they stop it in order
        )
        try:
            directory, *certificates = json.loads(self._hear())
            self.certificates = [bytes.fromhex(certificate) for certificate in certificates]
            self.environment = {"PCSCLITE_CSOCK_NAME": f"{directory}/{SOCKET}"}
            self.stacks = (
                PivStack(self, "ykcs11", "ykcs11", "YubiKey PIV #12345678"),
                # OpenSC calls the card what the certificate of 9a says.
                PivStack(self, "opensc", "opensc-pkcs11", "virtual 9a"),
            )
        except BaseException:
            self.close()
            raise

    def order(self, command: str, argument: float | str = 0) -> Any:
        """Have the program do something with the card; returns when it is done."""
        assert self._program.stdin is not None
        with self._turn:
            self._program.stdin.write(json.dumps([command, argument]) + "\n")
            self._program.stdin.flush()
            return json.loads(self._hear())

    def close(self) -> None:
        """Stop everything that was started. May be called again."""
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
