"""pcscd, the daemon between modules for smart cards and their readers, asked in the way a module asks it."""

import ctypes
import os
from pathlib import Path

from hsm_signer.errors import DeviceError

_LIBRARY = "libpcsclite.so"
_SOCKET = "/run/pcscd/pcscd.comm"
# pcsclite.h: SCARD_SCOPE_SYSTEM, SCARD_W_SECURITY_VIOLATION
_SCOPE_SYSTEM, _SECURITY_VIOLATION = 2, 0x8010006A


def reader_library() -> Path | None:
    """Return the PC/SC library that a module has brought into this process, or None where none needs readers."""
    try:
        # proc(5): the path is the last of six fields.
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    paths = (Path(fields[5]) for fields in (line.split(maxsplit=5) for line in lines) if len(fields) == 6)
    return next((path for path in paths if path.name.startswith(_LIBRARY)), None)


def require_pcscd(library: Path) -> str:
    """Make sure that pcscd takes us for a client. To be called on the lane of the module that uses it.

    Returns:
        The socket it answers on.

    Raises:
        DeviceError: it does not run, or it does not let us in.
    """
    socket = os.environ.get("PCSCLITE_CSOCK_NAME") or _SOCKET
    pcsc = ctypes.CDLL(str(library))
    context = ctypes.c_long()
    status = pcsc.SCardEstablishContext(ctypes.c_ulong(_SCOPE_SYSTEM), None, None, ctypes.byref(context))
    if status == 0:
        pcsc.SCardReleaseContext(context)
        return socket
    if status & 0xFFFFFFFF == _SECURITY_VIOLATION:
        raise DeviceError(
            f"pcscd refuses this user at {socket}.",
            hint="polkit forbids it, as it does to services and remote logins: allow this user the actions "
            "org.debian.pcsc-lite.access_pcsc and org.debian.pcsc-lite.access_card in a polkit rule.",
        )
    if not os.path.exists(socket):
        raise DeviceError(
            f"pcscd does not run: there is no {socket}.",
            hint="Install pcscd, and start it: systemctl enable --now pcscd.socket",
        )
    if not os.access(socket, os.R_OK | os.W_OK):
        raise DeviceError(f"This user may not use pcscd's socket {socket}.", hint="Check its mode and owner.")
    raise DeviceError(
        f"pcscd does not answer at {socket} (0x{status & 0xFFFFFFFF:08X}).",
        hint="Start it anew: systemctl restart pcscd.socket pcscd.service",
    )
