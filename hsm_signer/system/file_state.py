"""Find out whether a file may have changed since we last read it.

For a certificate or a key file, `file_version` is enough: reading the file again costs nothing.

For a PIN, a mistake costs a try, and what we store must not be derived from the PIN. `file_identity` is the inode
number and when the inode was created and last changed (statx(2)). It has no name, because a file can have many; no
size, which would show the length of the PIN; and no device number, which btrfs, overlayfs and tmpfs may change with
each mount.

No program can set the change time: writing a file updates it, even if the program then restores the modification time.
Every other change of the inode updates it too, and the kernel does not say what changed. `same_state` distinguishes two
cases:

- `touch` does not change the content, so a refused PIN stays refused. We recognize `touch` because it sets the access
  time to the change time, which neither writing nor a later read does.
- Anything else that updates the change time (a rewrite, but also chmod, chown, rename) may have changed the PIN, so the
  source may be tried once more. The same is true after `touch` if another program reads the file before we do.

systemd copies a credential to a new file at each start of a service, whether it changed or not. Two copies of the same
start can be compared. Copies of two starts cannot: a service that restarts again and again would lock its device.
"""

import os
import struct
import sys
from pathlib import Path

_TOUCHED = ", touched"
_COPY = ", copied for the start "


def file_version(path: Path) -> tuple[int, ...]:
    """Return a value that changes when the file is written or replaced."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def file_identity(descriptor: int) -> str:
    """Return a string that identifies the state of a file that holds a PIN. It may be stored.

    Args:
        descriptor: the open file; O_PATH is enough.
    """
    status = os.fstat(descriptor)
    born = _born(descriptor, status)
    touched = status.st_atime_ns == status.st_ctime_ns != born
    return f"inode {status.st_ino}, created {born}, changed {status.st_ctime_ns}{_TOUCHED if touched else ''}"


def credential_identity(name: str, start: str, file: str) -> str:
    """Return a string that identifies the state of a copy of a systemd credential. It may be stored.

    Args:
        name: of the credential, for people.
        start: of the service, for which the copy was made: INVOCATION_ID.
        file: the `file_identity` of the copy.
    """
    return f"{name}{_COPY}{start}, {file}"


def same_state(then: str, now: str) -> bool:
    """Return whether a source still holds the same PIN, as far as its identities show."""
    (name, copied, copy), (name_now, copied_now, copy_now) = then.partition(_COPY), now.partition(_COPY)
    start, start_now = copy.partition(", ")[0], copy_now.partition(", ")[0]
    if name == name_now and (copied, start) != (copied_now, start_now):
        return True
    file, changed, _ = now.partition(", changed ")
    return _bare(then) == _bare(now) or (now.endswith(_TOUCHED) and then.startswith(file + changed))


def _bare(identity: str) -> str:
    return identity.removesuffix(_TOUCHED)


def _born(descriptor: int, status: os.stat_result) -> int:
    """Return when an inode was created, in nanoseconds; 0 if the file system does not say.

    A new file may get the inode number of a removed one, but their creation times differ.
    """
    if sys.platform != "linux":
        return int(getattr(status, "st_birthtime", 0) * 10**9)
    import ctypes

    # statx(2) and <linux/stat.h>: stx_mask at 0, stx_btime at 80. Python's os.statx comes with 3.15.
    empty_path, btime = 0x1000, 0x800
    buffer = ctypes.create_string_buffer(256)
    statx = getattr(ctypes.CDLL(None), "statx", None)
    if statx is None or statx(descriptor, b"", empty_path, btime, buffer) != 0:
        return 0
    (known,) = struct.unpack_from("=I", buffer, 0)
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, 80)
    return seconds * 10**9 + nanoseconds if known & btime else 0
