"""Files that nobody else may write: replaced whole or not at all, and read only when they are ours alone."""

import contextlib
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from hsm_signer.errors import ConfigError, OutputError

logger = logging.getLogger(__name__)

_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


def write_private(path: Path, make: Callable[[], str], *, mode: int, group: int | None = None) -> None:
    """Replace a file by one that holds what `make` returns, and nothing else.

    `make` is called when everything else is known to work, for it may cost a touch. What was there before stays until
    the new file is whole. It has its group and mode before it has content.

    Args:
        make: returns the text, ASCII.
        mode: as in chmod; no umask applies.
        group: its id; None leaves it to the directory.

    Raises:
        ConfigError: others can write in the directory.
        OutputError: the file cannot be written.
        HsmSignerError: whatever `make` raises.
    """
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        _require_private(path.parent, os.fstat(directory))
        with replacing(path, mode=mode, group=group, directory=directory) as file:
            file.write(make().encode("ascii"))
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        os.close(directory)


@contextlib.contextmanager
def replacing(
    path: Path, *, mode: int = 0o600, group: int | None = None, directory: int | None = None
) -> Iterator[BinaryIO]:
    """Give a stream whose content takes the place of a file when the `with` ends well; otherwise nothing changes.

    Raises:
        OSError: it cannot be written.
    """
    opened = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY) if directory is None else os.dup(directory)
    temporary = f".{path.name}.{secrets.token_hex(8)}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(temporary, flags, 0o600, dir_fd=opened)
        try:
            with open(descriptor, "wb") as file:
                if group is not None:
                    os.fchown(descriptor, -1, group)
                os.fchmod(descriptor, mode)
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


def read_trusted(path: Path, what: str) -> bytes:
    """Return what a file holds that says what code to load: whoever can write it can run as us.

    Args:
        what: it is, for messages: "configuration".

    Raises:
        ConfigError: it is not there or cannot be read, or somebody besides root and us can write it.
    """
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if others_can_write(status, os.geteuid()):
                raise ConfigError(
                    f"The {what} {path} can be written by others (mode {stat.S_IMODE(status.st_mode):04o}, "
                    f"owner {status.st_uid}), and it names code to run.",
                    hint=f"chmod go-w {path}; it must belong to root or to you.",
                )
            return stream.read()
    except OSError as error:
        raise ConfigError(
            f"The {what} {path} cannot be read: {error.strerror}.", hint="Check its name and mode."
        ) from None


def unwritable(path: Path, error: OSError) -> OutputError:
    """Return the error for a file that cannot be written or removed."""
    return OutputError(
        f"{path} cannot be written: {error.strerror}.",
        hint="Check that its directory exists and that you may write there; a group it is given must be one of yours.",
    )


def warn_unless_in_memory(directory: Path) -> None:
    """Warn when the files of a directory end up on a disk, as far as Linux tells (proc_pid_mountinfo(5))."""
    try:
        device = directory.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for mount, _, filesystem in (line.partition(" - ") for line in mounts):
        if mount.split()[2] == f"{os.major(device)}:{os.minor(device)}":
            if (kind := filesystem.split()[0]) not in _IN_MEMORY:
                logger.warning("%s is not in memory (%s): what is written there may be found later.", directory, kind)
            return


def others_can_write(status: os.stat_result, uid: int) -> bool:
    """Tell whether somebody besides root and `uid` can write a file, or put files into a directory.

    A sticky one is no better: while there is no file, anybody can put one in its place. An ACL shows in the group bits.
    """
    return status.st_uid not in (0, uid) or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _require_private(directory: Path, status: os.stat_result) -> None:
    if others_can_write(status, os.geteuid()):
        raise ConfigError(
            f"The directory {directory} can be written by others (mode {stat.S_IMODE(status.st_mode):04o}, "
            f"owner {status.st_uid}), who could put a file of theirs there.",
            hint="Use one that is yours alone: RuntimeDirectory= in a systemd unit, $XDG_RUNTIME_DIR, or mkdir -m 700.",
        )
