"""A program: a PIV card in a reader of a separate pcscd, and the hand that moves it.

    python -m tests.support.stacks.piv_reader PIN

It prints its directory and the certificates of slots 9a and 9c, and then runs commands: each line on stdin is
`[command, argument]` in JSON, each line on stdout the answer. At the end of stdin it ends, and removes everything that
it started and wrote. It is a separate process because a module may hold the GIL while it waits for the card.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.certificates import common_name, make_certificate

from .pcscd import asks_polkit, start_pcscd
from .piv_attestation import make_attesting_key
from .piv_card import ATR, ATTESTATION, AUTHENTICATION, SIGNATURE, TRIES, PivCard, PivKey

SOCKET = "pcscd.comm"
"""Where in the directory pcscd listens: the value of PCSCLITE_CSOCK_NAME."""

_READER = "Yubico"  # ykcs11 only uses readers whose name begins like this
_SLOT = f"{_READER} 00 00".encode()
_DRIVER = "/usr/lib/pcsc/drivers/serial/libifdvpcd.so"
_SERIAL = 12345678
_PATIENCE = 15.0  # seconds that a YubiKey waits for a touch
_NOTICED = 10.0  # seconds until pcscd must have noticed a change of the card


class Finger:
    """Whether the card is touched, and how long it takes to sign."""

    def __init__(self) -> None:
        self._touched = threading.Event()
        self._waited_for = threading.Event()
        self.reset()

    def reset(self) -> None:
        """Touch at once, sign at once."""
        self.latency, self.patience = 0.0, _PATIENCE
        self._touched.set()

    def require(self, required: bool) -> None:
        """Make the card wait for a touch; or touch it, so that a waiting signature continues."""
        if required:
            self._waited_for.clear()
            self._touched.clear()
        else:
            self._touched.set()

    def wait_for_touch_request(self) -> None:
        """Return when the card waits to be touched."""
        if not self._waited_for.wait(_NOTICED):
            raise TimeoutError("nobody asked the card for a signature")

    def __call__(self) -> bool:
        self._waited_for.set()
        touched = self._touched.wait(self.patience)
        time.sleep(self.latency)
        return touched


class Contacts:
    """The card's side of vpcd's protocol: two bytes of length, then a command; a single byte controls the power."""

    def __init__(self, card: PivCard, port: int) -> None:
        self._card = card
        self._port = port
        self._connection: socket.socket | None = None

    def plug(self) -> bool:
        """Plug the card in; return whether it was unplugged."""
        if self._connection is not None:
            return False
        self._connection = socket.create_connection(("127.0.0.1", self._port))
        threading.Thread(target=self._serve, args=(self._connection,), daemon=True).start()
        return True

    def unplug(self) -> bool:
        """Unplug it, even during a command; return whether it was plugged in."""
        if self._connection is None:
            return False
        with suppress(OSError):  # the reader was faster
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection = None
        return True

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rwb") as stream:
            while len(size := stream.read(2)) == 2:
                # vpcd sends the length, and then waits for its TCP acknowledgement: up to 40 ms for each command.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                message = stream.read(int.from_bytes(size, "big"))
                answer = self._control(message[0]) if len(message) == 1 else self._card.transmit(message)
                if answer is not None:
                    stream.write(len(answer).to_bytes(2, "big") + answer)
                    stream.flush()

    def _control(self, code: int) -> bytes | None:
        if code == 4:  # the answer to reset; vpcd requests it at every poll, to see whether the card is present
            return ATR
        self._card.power_up()  # off, on and reset have no answer
        return None


def _leave_network() -> None:
    """Enter an empty network namespace if allowed, because vpcd listens on all addresses."""
    libc = ctypes.CDLL(None)
    new_user, new_net = 0x10000000, 0x40000000  # unshare(2)
    if libc.unshare(new_net if os.geteuid() == 0 else new_user | new_net) == 0:
        with socket.socket() as any_socket:
            up = struct.pack("16sh22x", b"lo", 1)  # IFF_UP, netdevice(7)
            fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS


def _free_ports() -> int:
    """Return the first of two free ports: vpcd's reader has a second slot, which stays empty."""
    while True:
        with socket.create_server(("", 0)) as first, suppress(OSError, OverflowError):
            port: int = first.getsockname()[1]
            socket.create_server(("", port + 1)).close()
            return port


@contextmanager
def _pcscd(directory: Path, port: int) -> Iterator[None]:
    """Run a pcscd that has one reader, which waits for its card at `port`.

    The filter hides every other reader that it might still be able to open: any name with letters not in "Yubico".
    """
    if not Path(_DRIVER).is_file():
        sys.exit("pcscd and its virtual reader are needed: apt-get install pcscd vsmartcard-vpcd")
    others = ":".join(sorted({chr(code) for code in range(0x20, 0x7F)} - {*_READER, ":"}))
    configuration = f'FRIENDLYNAME "{_READER}"\nDEVICENAME /dev/null:{port}\nLIBPATH {_DRIVER}\nCHANNELID {port}\n'
    log = directory / "pcscd.log"
    with log.open("wb") as output:
        process = start_pcscd(
            directory / SOCKET,
            configuration,
            "--info",
            # polkit admits only the user at the machine, and nobody if polkit does not run.
            *(["--disable-polkit"] if asks_polkit() else []),
            environment={"PCSCLITE_FILTER_IGNORE_READER_NAMES": others},
            output=output,
        )
    try:
        yield
    except OSError:
        sys.stderr.write(log.read_text())
        raise
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _ReaderState(ctypes.Structure):
    """SCARD_READERSTATE of winscard.h."""

    _fields_ = (
        ("reader", ctypes.c_char_p),
        ("user_data", ctypes.c_void_p),
        ("current", ctypes.c_ulong),
        ("event", ctypes.c_ulong),
        ("atr_length", ctypes.c_ulong),
        ("atr", ctypes.c_ubyte * 33),
    )
    current: int
    event: int


class Witness:
    """A client of pcscd that sees what every other client sees."""

    def __init__(self, directory: Path) -> None:
        os.environ["PCSCLITE_CSOCK_NAME"] = str(directory / SOCKET)
        self._pcsc = ctypes.CDLL("libpcsclite.so.1")
        self._context = ctypes.c_long()
        # Returns when pcscd is ready.
        self._succeed(self._pcsc.SCardEstablishContext(2, None, None, ctypes.byref(self._context)))

    def noticed(self) -> int:
        """Return how often pcscd has seen the card plugged in or unplugged."""
        state = _ReaderState(reader=_SLOT)
        self._succeed(self._pcsc.SCardGetStatusChange(self._context, ctypes.c_ulong(0), ctypes.byref(state), 1))
        return state.event >> 16

    def wait_for_card(self, present: bool, after: int | None = None) -> None:
        """Return when pcscd has noticed that the card is present, or absent.

        Args:
            after: what `noticed` was before. A program that fails to reset a card makes pcscd call it absent before
                the thread that watches the reader has looked; were it back by then, that thread would notice nothing.
        """
        deadline = time.monotonic() + _NOTICED
        state = _ReaderState(reader=_SLOT)
        # SCARD_STATE_PRESENT
        while bool(state.event & 0x20) is not present or not state.event or state.event >> 16 == after:
            left = ctypes.c_ulong(max(1, int((deadline - time.monotonic()) * 1000)))
            state.current = state.event
            self._succeed(self._pcsc.SCardGetStatusChange(self._context, left, ctypes.byref(state), 1))

    def reset_card(self) -> None:
        """Reset the card, as some programs do when they end, whether or not others use it: the login is lost."""
        card, protocol = ctypes.c_long(), ctypes.c_ulong()
        shared, t1, reset = (ctypes.c_ulong(number) for number in (2, 2, 1))
        self._succeed(
            self._pcsc.SCardConnect(self._context, _SLOT, shared, t1, ctypes.byref(card), ctypes.byref(protocol))
        )
        self._succeed(self._pcsc.SCardDisconnect(card, reset))

    def transmit(self, command: bytes) -> bytes:
        """Send the card a command without selecting its application, which would end another program's login."""
        card, protocol = ctypes.c_long(), ctypes.c_ulong()
        shared, t1, leave = (ctypes.c_ulong(number) for number in (2, 2, 0))
        self._succeed(
            self._pcsc.SCardConnect(self._context, _SLOT, shared, t1, ctypes.byref(card), ctypes.byref(protocol))
        )
        answer, length = ctypes.create_string_buffer(1024), ctypes.c_ulong(1024)
        pci = ctypes.byref((ctypes.c_ulong * 2).in_dll(self._pcsc, "g_rgSCardT1Pci"))
        size = ctypes.c_ulong(len(command))
        self._succeed(self._pcsc.SCardTransmit(card, pci, command, size, None, answer, ctypes.byref(length)))
        self._succeed(self._pcsc.SCardDisconnect(card, leave))
        return answer.raw[: length.value]

    def _succeed(self, status: int) -> None:
        if status:
            raise OSError(f"pcscd answered 0x{status & 0xFFFFFFFF:08x}")


def _make_key(name: str) -> PivKey:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    certificate = make_certificate(key, subject=common_name(name))
    return PivKey(key, certificate.public_bytes(serialization.Encoding.DER))


def main(pin: str) -> None:
    """Run commands until stdin ends."""
    _leave_network()
    port = _free_ports()
    own = {AUTHENTICATION: _make_key("virtual 9a"), SIGNATURE: _make_key("virtual 9c")}
    attesting = {ATTESTATION: PivKey(*make_attesting_key(), generated=False)}
    finger = Finger()
    card = PivCard(attesting | own, pin, _SERIAL, finger)
    contacts = Contacts(card, port)

    def obey(command: str, argument: float | str) -> int | str | None:
        match command:
            case "plug":
                before = witness.noticed()
                witness.wait_for_card(True, before if contacts.plug() else None)
            case "unplug":
                before = witness.noticed()
                witness.wait_for_card(False, before if contacts.unplug() else None)
            case "forget login":
                card.forget_login()
            case "reset card":
                witness.reset_card()
            case "transmit":
                return witness.transmit(bytes.fromhex(str(argument))).hex()
            case "touch":
                finger.require(bool(argument))
            case "wait for wish":
                finger.wait_for_touch_request()
            case "patience":
                finger.patience = float(argument)
            case "hold":
                finger.latency = float(argument)
            case "change pin":
                card.change_pin(str(argument))
            case "leave tries":
                card.tries = int(argument)
                card.forget_login()  # like after every wrong PIN
            case "import keys":
                card.change_keys(attesting | {slot: replace(key, generated=False) for slot, key in own.items()})
            case "take certificates":
                card.change_keys(attesting | {slot: replace(key, certificate=None) for slot, key in own.items()})
            case "take certificate of 9c":
                card.change_keys(attesting | own | {SIGNATURE: replace(own[SIGNATURE], certificate=None)})
            case "put keys":
                card.change_keys(attesting | own)
            case "take keys":
                card.change_keys(attesting)
            case "take 9c":
                card.change_keys(attesting | {AUTHENTICATION: own[AUTHENTICATION]})
            case "presented":
                return card.presented
            case "reset":
                card.tries, card.presented = TRIES, 0
                card.change_keys(attesting | own)
                card.change_pin(pin)
                finger.reset()
            case _:
                raise ValueError(command)
        return None

    with tempfile.TemporaryDirectory(prefix="piv-") as directory, _pcscd(Path(directory), port):
        witness = Witness(Path(directory))
        contacts.plug()
        witness.wait_for_card(True)
        print(json.dumps([directory, *(key.certificate.hex() for key in own.values() if key.certificate)]), flush=True)
        for line in sys.stdin:
            print(json.dumps(obey(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
