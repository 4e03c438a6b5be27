"""A program: a PIV card in a reader of a pcscd of its own, and a hand that moves it.

    python -m tests.device.stacks.piv_reader DIRECTORY PIN

It prints one line, then obeys: each line on stdin is `[command, argument]` in JSON, each line on stdout the answer.
With the end of stdin everything it started ends. It is a process of its own because a module may hold the
interpreter's lock while it waits for the card.

pcscd gets its socket the way systemd hands it over (sd_listen_fds(3)), so the socket is in DIRECTORY and modules find
it by PCSCLITE_CSOCK_NAME. Its other paths are compiled in: a mount namespace hides the machine's /run/pcscd, and the
drivers with which it would take the machine's own readers.
"""

import ctypes
import datetime
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from .piv_card import ATR, AUTHENTICATION, SIGNATURE, TRIES, PivCard, PivKey

READER = "Yubico YubiKey OTP+FIDO+CCID"
"""What pcscd calls it, with a number behind: ykcs11 uses readers that begin with "Yubico" only."""

SERIAL = 12345678
TOUCH_SECONDS = 15.0

_DRIVER = Path("/usr/lib/pcsc/drivers/serial/libifdvpcd.so")
_NOTICED_SECONDS = 10.0


class Finger:
    """Whether the card is touched, and how long it takes to sign."""

    def __init__(self) -> None:
        self.latency = 0.0
        self.patience = TOUCH_SECONDS
        self._free = threading.Event()
        self._free.set()

    def require(self, required: bool) -> None:
        """Let the card want a touch that does not come, or touch it: a signature that waits goes on."""
        if required:
            self._free.clear()
        else:
            self._free.set()

    def __call__(self) -> bool:
        touched = self._free.wait(self.patience)
        time.sleep(self.latency)
        return touched


class Contacts:
    """The card's side of vpcd's protocol: two bytes of length, then a command; one byte alone is for the contacts.

    vpcd connects to us and tries again several times a second: nothing listens beyond this machine.
    """

    def __init__(self, card: PivCard) -> None:
        self._card = card
        self._plugged = True
        self._connection: socket.socket | None = None
        self._lock = threading.Lock()
        slot, empty = _listen_side_by_side()
        self.port: int = slot.getsockname()[1]
        for listener, serve in ((slot, self._serve), (empty, _hang_up)):
            threading.Thread(target=_accept, args=(listener, serve), daemon=True).start()

    def plug(self) -> None:
        self._plugged = True

    def unplug(self) -> None:
        with self._lock:
            self._plugged = False
            if self._connection is not None:
                with suppress(OSError):  # vpcd was faster
                    self._connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, connection: socket.socket) -> None:
        with self._lock, suppress(OSError):
            self._connection = connection
            if not self._plugged:
                connection.shutdown(socket.SHUT_RDWR)
        self._card.power_up()
        with connection, connection.makefile("rwb") as stream, suppress(OSError):
            while len(size := stream.read(2)) == 2:
                message = stream.read(int.from_bytes(size, "big"))
                answer = self._control(message[0]) if len(message) == 1 else self._card.transmit(message)
                if answer is not None:
                    stream.write(len(answer).to_bytes(2, "big") + answer)
                    stream.flush()

    def _control(self, code: int) -> bytes | None:
        if code == 4:  # asked with every poll, to see whether the card is there
            return ATR
        self._card.power_up()  # off, on, reset
        return None


def _listen_side_by_side() -> tuple[socket.socket, socket.socket]:
    """Return listeners on two neighbouring ports: vpcd's reader has a second slot, which stays empty."""
    while True:
        first = socket.create_server(("127.0.0.1", 0))
        with suppress(OSError, OverflowError):
            return first, socket.create_server(("127.0.0.1", first.getsockname()[1] + 1))
        first.close()


def _accept(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    while True:
        serve(listener.accept()[0])


def _hang_up(connection: socket.socket) -> None:
    connection.close()


_START = """
mount -t tmpfs none /run && mount -t tmpfs none /usr/lib/pcsc/drivers || exit
LISTEN_PID=$$ LISTEN_FDS=1 exec "$1" --foreground --info --config "$2" 3<&0 </dev/null
"""


class Pcscd:
    """A pcscd with one reader, which looks for its card at a port of this machine."""

    def __init__(self, directory: Path, port: int) -> None:
        program = shutil.which("pcscd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None or not _DRIVER.is_file():
            raise SystemExit("pcscd or its virtual reader is not installed: apt-get install pcscd vsmartcard-vpcd")
        shutil.copy(_DRIVER, directory)
        configuration, log = directory / "reader.conf", directory / "pcscd.log"
        configuration.write_text(
            f'FRIENDLYNAME "{READER}"\nDEVICENAME 127.0.0.1:{port}\nLIBPATH {directory / _DRIVER.name}\nCHANNELID 0\n'
        )
        self.socket = directory / "pcscd.comm"
        namespace = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
        with socket.socket(socket.AF_UNIX) as listener, log.open("wb") as output:
            listener.bind(str(self.socket))
            listener.listen()
            self._process = subprocess.Popen(
                ["unshare", *namespace, "sh", "-c", _START, "sh", program, str(configuration)],
                stdin=listener.fileno(),
                stdout=output,
                stderr=output,
            )

    def wait_for_card(self, present: bool) -> None:
        """Return when pcscd has noticed that the card is there, or is not."""
        deadline = time.monotonic() + _NOTICED_SECONDS
        os.environ["PCSCLITE_CSOCK_NAME"] = str(self.socket)
        pcsc = ctypes.CDLL("libpcsclite.so.1")
        context = ctypes.c_long()
        _succeed(pcsc.SCardEstablishContext(2, None, None, ctypes.byref(context)))
        try:
            state = _ReaderState(reader=f"{READER} 00 00".encode())
            while bool(state.event & 0x20) is not present:  # SCARD_STATE_PRESENT
                left = max(0, int((deadline - time.monotonic()) * 1000))
                state.current = state.event
                _succeed(pcsc.SCardGetStatusChange(context, ctypes.c_ulong(left), ctypes.byref(state), 1))
        finally:
            pcsc.SCardReleaseContext(context)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


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
    event: int
    current: int


def _succeed(status: int) -> None:
    if status:
        raise OSError(f"pcscd answered 0x{status & 0xFFFFFFFF:08x}")


def _make_key(name: str) -> PivKey:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    return PivKey(key, certificate.public_bytes(serialization.Encoding.DER))


def main(directory: Path, pin: str) -> None:
    """Obey until stdin ends."""
    keys = {AUTHENTICATION: _make_key("virtual 9a"), SIGNATURE: _make_key("virtual 9c")}
    finger = Finger()
    card = PivCard(keys, pin, SERIAL, finger)
    contacts = Contacts(card)
    pcscd = Pcscd(directory, contacts.port)

    def obey(command: str, argument: float) -> object:
        match command:
            case "plug":
                contacts.plug()
                pcscd.wait_for_card(True)
            case "unplug":
                contacts.unplug()
                pcscd.wait_for_card(False)
            case "forget login":
                card.power_up()
            case "touch":
                finger.require(bool(argument))
            case "patience":
                finger.patience = argument
            case "hold":
                finger.latency = argument
            case "presented":
                return card.presented
            case "reset":
                card.tries, card.presented = TRIES, 0
                finger.latency, finger.patience = 0.0, TOUCH_SECONDS
                finger.require(False)
            case _:
                raise ValueError(command)
        return None

    try:
        pcscd.wait_for_card(True)
        print(json.dumps([key.certificate.hex() for key in keys.values()]), flush=True)
        for line in sys.stdin:
            print(json.dumps(obey(*json.loads(line))), flush=True)
    finally:
        pcscd.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
