"""pcscd on a machine where polkit refuses this user: the real daemon, and stand-ins that answer like it.

pcscd asks polkit twice (its auth.c): for every client, and for every reader that a client opens.
"""

import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from tests.support.stacks.pcscd import start_pcscd
from tests.support.stacks.piv_card import ATR

READER = "Yubico 00 00"
_REFUSED = 0x8010006A  # SCARD_W_SECURITY_VIOLATION

# Commands of pcscd's protocol, winscard_msg.h: a header with the body's size and the command, then the body. The answer
# is a body of the same form, whose last word is the status.
_ESTABLISH_CONTEXT, _CONNECT, _GET_READERS_STATE, _WAIT_FOR_READERS, _STOP_WAITING = 0x01, 0x04, 0x12, 0x13, 0x14
# The name, counter, state and sharing, ATR, its length and protocol of each of 16 readers.
_READER_STATE = struct.Struct("128s3I33s3x2I")
_PRESENT = 0x34  # SCARD_PRESENT, SCARD_POWERED, SCARD_NEGOTIABLE


@contextmanager
def unanswered_by_polkit(path: Path) -> Iterator[None]:
    """Run this machine's pcscd at `path`, without readers; polkit does not answer it."""
    no_bus = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={path}.no-bus"}
    process = start_pcscd(path, "", environment=no_bus, output=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def refusing_clients(path: Path) -> Iterator[None]:
    """Refuse every client: close its connection, as pcscd does after polkit has answered.

    By then the client has sent its version (20 bytes), which pcscd has not read, so the client sees a reset.
    """
    with _listening(path, lambda connection: connection.recv(19, socket.MSG_WAITALL)):
        yield


@contextmanager
def refusing_unheard(path: Path) -> Iterator[None]:
    """Refuse every client before it has sent anything, as pcscd does on a busy machine."""
    with _listening(path, lambda connection: None):
        yield


@contextmanager
def refusing_the_reader(path: Path) -> Iterator[None]:
    """List one reader, and refuse to open it."""
    with _listening(path, _serve):
        yield


@contextmanager
def _listening(path: Path, serve: Callable[[socket.socket], object]) -> Iterator[None]:
    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=_end_with, args=(connection, serve), daemon=True).start()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _end_with(connection: socket.socket, serve: Callable[[socket.socket], object]) -> None:
    with suppress(OSError), closing(connection):
        serve(connection)


def _serve(connection: socket.socket) -> None:
    reader = _READER_STATE.pack(READER.encode(), 0, _PRESENT, 0, ATR, len(ATR), 0)
    with connection.makefile("rwb") as stream:
        while len(header := stream.read(8)) == 8:
            size, command = struct.unpack("2I", header)
            body = stream.read(size)
            if command in (_GET_READERS_STATE, _WAIT_FOR_READERS):
                answer = reader + bytes(15 * _READER_STATE.size)
            elif command == _STOP_WAITING:
                answer = bytes(8)
            elif command == _ESTABLISH_CONTEXT:
                answer = body[:4] + struct.pack("2I", connection.fileno(), 0)  # a number that no other client has
            else:
                answer = body[:-4] + struct.pack("I", _REFUSED if command == _CONNECT else 0)
            stream.write(answer)
            stream.flush()
