"""Check that pcscd, the smart card daemon, accepts this user, in the way that a module would use it."""

import ctypes
import json
import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

from hsm_signer.device.known_modules import install_commands
from hsm_signer.device.stack.problem import problem
from hsm_signer.errors import DeviceError
from hsm_signer.system.operating_system import system_names, user_name

_LIBRARY = "libpcsclite.so"
_SOCKET = "/run/pcscd/pcscd.comm"
_PATIENCE = 2.0  # seconds; a pcscd that accepts us waits for our first message
# pcsclite.h: SCARD_SCOPE_SYSTEM, SCARD_SHARE_DIRECT, SCARD_LEAVE_CARD, SCARD_W_SECURITY_VIOLATION
_SCOPE_SYSTEM, _SHARE_DIRECT, _LEAVE_CARD, _SECURITY_VIOLATION = 2, 3, 0, 0x8010006A
# What polkit is asked for every client, and for every reader it opens (README.polkit of pcsc-lite).
_ACTIONS = ["org.debian.pcsc-lite.access_pcsc", "org.debian.pcsc-lite.access_card"]


def reader_library() -> Path | None:
    """Return the PC/SC library that a module loaded into this process, or None if no module uses readers."""
    try:
        # proc(5): the path is the last of six fields.
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    paths = (Path(fields[5]) for fields in (line.split(maxsplit=5) for line in lines) if len(fields) == 6)
    return next((path for path in paths if path.name.startswith(_LIBRARY)), None)


def require_pcscd(library: Path) -> str:
    """Make sure that pcscd accepts us and lets us open its readers. Runs on the lane of its module.

    Returns:
        The socket it answers on.

    Raises:
        DeviceError: it is not running, or it refuses this user.
    """
    path = os.environ.get("PCSCLITE_CSOCK_NAME") or _SOCKET
    pcsc = ctypes.CDLL(str(library))
    context, status = _establish(pcsc)
    if status != 0 and _hangs_up(path):
        # libpcsclite reports that pcscd has died if pcscd refuses the client while it is still sending.
        status = _SECURITY_VIOLATION
    if status == 0:
        try:
            for reader in _readers(pcsc, context):
                if _opening(pcsc, context, reader) == _SECURITY_VIOLATION:
                    name = reader.decode(errors="replace")
                    raise DeviceError(
                        f"pcscd at {path} does not let this user open the reader {name!r}.", hint=_polkit_hint()
                    )
        finally:
            pcsc.SCardReleaseContext(context)
        return path
    if status == _SECURITY_VIOLATION:
        raise DeviceError(f"pcscd at {path} refuses this user.", hint=_polkit_hint())
    if not os.path.exists(path):
        raise problem(
            f"pcscd is not running: {path} does not exist.",
            "Smart card modules reach their readers through it. Start it:",
            *_start_commands(),
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise DeviceError(
            f"This user may not use pcscd's socket {path}.", hint=f"Check its mode and owner: ls -l {shlex.quote(path)}"
        )
    raise problem(
        f"pcscd does not answer at {path} (0x{status:08X}).",
        "Restart it:",
        "sudo systemctl restart pcscd.socket pcscd.service",
    )


def pcscd_problem() -> DeviceError | None:
    """Return why a module in this process cannot reach its readers, or None. Runs on the lane.

    The module itself does not report it: if pcscd refuses the user, OpenSC shows no slots, and ykcs11 fails.
    """
    library = reader_library()
    if library is not None:
        try:
            require_pcscd(library)
        except DeviceError as error:
            return error
    return None


def _start_commands() -> tuple[str, ...]:
    """Return what starts pcscd here, and before it what installs it, where that is not done."""
    is_installed = any(os.path.exists(f"{directory}/pcscd") for directory in ("/usr/sbin", "/usr/bin", "/sbin"))
    install = () if is_installed else install_commands(["pcscd"], system_names())
    return (*install, "sudo systemctl enable --now pcscd.socket")


def _establish(pcsc: ctypes.CDLL) -> tuple[ctypes.c_long, int]:
    context = ctypes.c_long()
    status: int = pcsc.SCardEstablishContext(ctypes.c_ulong(_SCOPE_SYSTEM), None, None, ctypes.byref(context))
    return context, status & 0xFFFFFFFF


def _hangs_up(path: str) -> bool:
    """Return whether pcscd closes a new connection at once, as it does to users whom polkit refuses."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_PATIENCE)
        try:
            client.connect(path)
            return client.recv(1) == b""
        except ConnectionResetError:
            return True
        except OSError:
            return False


def _readers(pcsc: ctypes.CDLL, context: ctypes.c_long) -> Iterator[bytes]:
    size = ctypes.c_ulong()
    if pcsc.SCardListReaders(context, None, None, ctypes.byref(size)) != 0:
        return
    names = ctypes.create_string_buffer(size.value)
    if pcsc.SCardListReaders(context, None, names, ctypes.byref(size)) == 0:
        yield from filter(None, names.raw[: size.value].split(b"\0"))


def _opening(pcsc: ctypes.CDLL, context: ctypes.c_long, reader: bytes) -> int:
    """Return the status of opening a reader, whether or not it holds a card, without powering the card."""
    card, protocol = ctypes.c_long(), ctypes.c_ulong()
    direct, none = ctypes.c_ulong(_SHARE_DIRECT), ctypes.c_ulong(0)
    status: int = pcsc.SCardConnect(context, reader, direct, none, ctypes.byref(card), ctypes.byref(protocol))
    if status == 0:
        pcsc.SCardDisconnect(card, ctypes.c_ulong(_LEAVE_CARD))
    return status & 0xFFFFFFFF


def _polkit_hint() -> str:
    name = user_name()  # a number, where there is no name, as polkit calls it
    # No space after `return`: if the line is wrapped there, JavaScript ends the statement.
    rule = (
        f"polkit.addRule(function(action, subject) {{ if ({json.dumps(_ACTIONS)}.indexOf(action.id) >= 0 "
        f"&& subject.user == {json.dumps(name)}) return(polkit.Result.YES); }});"
    )
    return (
        "polkit lets active local sessions use smart cards, but not services or remote logins. To allow this user, "
        f"write this polkit rule to /etc/polkit-1/rules.d/50-pcscd.rules as root: {rule} "
        "If polkit is not running, as in a container, start pcscd with --disable-polkit."
    )
