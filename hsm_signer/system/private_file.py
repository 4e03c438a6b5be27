"""Write files that only we may change. A file is replaced as a whole or not at all."""

import contextlib
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from hsm_signer.errors import ConfigError, OutputError
from hsm_signer.system.trusted_path import require_trusted_path

logger = logging.getLogger(__name__)

_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


def write_private(
    path: Path, make: Callable[[], str | bytes], *, mode: int, group: int | None = None, exact: bool = False
) -> None:
    """Replace a file with one that holds exactly what `make` returns.

    `make` is called last, after everything else has worked, because it may require a touch. The old file stays until
    the new one is complete. The new file gets its group and mode before its content.

    Args:
        make: returns the content: bytes, or text, which is ASCII.
        mode: as in chmod; the umask does not apply.
        group: the id of its group. None: as the directory decides.
        exact: write nothing unless the file gets this mode and group, and belongs to us.

    Raises:
        ConfigError: other users can write in the directory, or replace it; or with `exact`, the file got another mode,
            group or owner.
        OutputError: the file cannot be written.
        HsmSignerError: whatever `make` raises.
    """
    try:
        trusted = require_trusted_path(path.parent, "directory")
        directory = os.open(trusted, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        with replacing(path, mode=mode, group=group, exact=exact, directory=directory) as file:
            content = make()
            file.write(content if isinstance(content, bytes) else content.encode("ascii"))
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        os.close(directory)


@contextlib.contextmanager
def replacing(
    path: Path, *, mode: int = 0o600, group: int | None = None, exact: bool = False, directory: int | None = None
) -> Iterator[BinaryIO]:
    """Return a stream for the new content of a file. The file is replaced when the `with` block ends without an error.

    Only a regular file is replaced. A symbolic link is not followed: in a shared directory, another user could use one
    to choose the file that we replace.

    Raises:
        OutputError: the name belongs to something other than a regular file.
        OSError: the file cannot be written.
    """
    opened = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY) if directory is None else os.dup(directory)
    temporary = f".{path.name}.{os.urandom(8).hex()}"
    try:
        _require_regular(path, opened)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(temporary, flags, 0o600, dir_fd=opened)
        try:
            with open(descriptor, "wb") as file:
                if group is not None:
                    os.fchown(descriptor, -1, group)
                os.fchmod(descriptor, mode)
                if exact:
                    _require_exact(path, os.fstat(descriptor), mode, group)
                yield file
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, path.name, src_dir_fd=opened, dst_dir_fd=opened)
            os.fsync(opened)  # the name must survive a power cut as well
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=opened)
            raise
    finally:
        os.close(opened)


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _require_regular(path: Path, directory: int) -> None:
    """Raise OutputError if a name in `directory` belongs to something other than a regular file."""
    try:
        # "." and "/" are directories, and Path gives them no name.
        mode = os.lstat(path.name, dir_fd=directory).st_mode if path.name else stat.S_IFDIR
    except FileNotFoundError:
        return
    if stat.S_ISREG(mode):
        return
    hint = "Give the path of a regular file, which is replaced, or of a file that does not exist yet."
    if stat.S_ISLNK(mode):
        hint = f"Give the path of the file itself: {os.path.realpath(path)}"
    kind = _KINDS[stat.S_IFMT(mode)]
    raise OutputError(f"{path} cannot be written: it is {kind}, not a regular file.", hint=hint)


def unwritable(path: Path, error: OSError) -> OutputError:
    """Return the error for a file that cannot be written or removed."""
    return OutputError(
        f"{path} cannot be written: {error.strerror}.",
        hint="Check that its directory exists, that you may write there, and that you are in the file's group.",
    )


def warn_unless_in_memory(directory: Path) -> None:
    """Log a warning if a directory is on a disk, as far as Linux knows (proc_pid_mountinfo(5))."""
    try:
        device = directory.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for mount, _, filesystem in (line.partition(" - ") for line in mounts):
        if mount.split()[2] == f"{os.major(device)}:{os.minor(device)}":
            if (kind := filesystem.split()[0]) not in _IN_MEMORY:
                logger.warning("%s is not in memory (%s): deleted files may be recovered later.", directory, kind)
            return


def _require_exact(path: Path, status: os.stat_result, mode: int, group: int | None) -> None:
    wanted = (mode, status.st_gid if group is None else group, os.geteuid())
    found = (stat.S_IMODE(status.st_mode), status.st_gid, status.st_uid)
    if found != wanted:
        said = "mode {:04o}, group {}, owner {}"
        raise ConfigError(
            f"{path} should have {said.format(*wanted)}, but the file system gave it {said.format(*found)}.",
            hint="Use a file system that keeps modes and groups, such as /run.",
        )
