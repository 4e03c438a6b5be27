"""When a PIN source may hold another PIN than before, told without keeping anything that is derived from a PIN.

A state of a source is a string, its identity. The identity of a file is its inode and when that was created and last
changed (statx(2)), not its name: one file has many. It does not hold the size, which tells how long the PIN is, nor the
number of the device, which btrfs, overlayfs and tmpfs may get anew with each mount.

The change time is the one time that no program can set: writing a file moves it, also where the program restores the
modification time afterwards. So does everything else that changes an inode, and the kernel does not tell which it was.
Two cases have to be told apart:

- `touch` does not change what the file holds, so a refused PIN stays refused. It leaves a mark: it sets the access time
  to the change time, which neither writing nor a later read does.
- Whatever else moves the change time (a rewrite, and also chmod, chown, rename) may have changed the PIN, so the source
  may be tried once more. The same goes for `touch` when another program reads the file before we look.
"""

import os
import struct
import sys

_TOUCHED = ", touched"


def file_identity(descriptor: int) -> str:
    """Return which state of a file this is.

    Args:
        descriptor: of the open file; O_PATH is enough.
    """
    status = os.fstat(descriptor)
    born = _born(descriptor, status)
    touched = status.st_atime_ns == status.st_ctime_ns != born
    return f"inode {status.st_ino}, created {born}, changed {status.st_ctime_ns}{_TOUCHED if touched else ''}"


def same_state(then: str, now: str) -> bool:
    """Decide whether a source still holds the PIN that it held then, as far as can be told from its identities."""
    file, changed, _ = now.partition(", changed ")
    return _bare(then) == _bare(now) or (now.endswith(_TOUCHED) and then.startswith(file + changed))


def _bare(identity: str) -> str:
    return identity.removesuffix(_TOUCHED)


def _born(descriptor: int, status: os.stat_result) -> int:
    """Return when an inode was created, in nanoseconds; 0 where the file system does not tell.

    A new file may get the inode number of one that was removed, and then this tells them apart.
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
