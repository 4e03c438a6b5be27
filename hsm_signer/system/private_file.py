"""Files that nobody else may write: replaced whole or not at all, and read only when nobody else can replace them."""

import contextlib
import errno
import logging
import os
import shlex
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from hsm_signer.errors import ConfigError, OutputError

logger = logging.getLogger(__name__)

_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
_MAXIMUM_LINKS = 40  # path_resolution(7)


def write_private(
    path: Path, make: Callable[[], str], *, mode: int, group: int | None = None, exact: bool = False
) -> None:
    """Replace a file by one that holds what `make` returns, and nothing else.

    `make` is called when everything else is known to work, for it may cost a touch. What was there before stays until
    the new file is whole. It has its group and mode before it has content.

    Args:
        make: returns the text, ASCII.
        mode: as in chmod; no umask applies.
        group: its id; None leaves it to the directory.
        exact: write nothing where the file does not get this mode and group, and us as its owner.

    Raises:
        ConfigError: other users can write in the directory, or replace it; or the file system has no such modes.
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
            file.write(make().encode("ascii"))
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        os.close(directory)


@contextlib.contextmanager
def replacing(
    path: Path, *, mode: int = 0o600, group: int | None = None, exact: bool = False, directory: int | None = None
) -> Iterator[BinaryIO]:
    """Give a stream whose content takes the place of a file when the `with` ends well; otherwise nothing changes.

    Only a regular file is replaced. A symbolic link is not followed: in a directory that others share, whoever put it
    there would choose the file that we replace.

    Raises:
        OutputError: something else than a regular file has the name.
        OSError: it cannot be written.
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
    """Raise OutputError where a name of `directory` is taken by something else than a regular file."""
    try:
        # "." and "/" have no name in their directory, and are one.
        mode = os.lstat(path.name, dir_fd=directory).st_mode if path.name else stat.S_IFDIR
    except FileNotFoundError:
        return
    if stat.S_ISREG(mode):
        return
    hint = "Name a file that does not exist yet, or a regular file: it is replaced whole."
    if stat.S_ISLNK(mode):
        hint = f"Name the file itself: {os.path.realpath(path)}"
    kind = _KINDS[stat.S_IFMT(mode)]
    raise OutputError(f"{path} cannot be written: it is {kind}, not a regular file.", hint=hint)


def read_trusted(path: Path, what: str) -> tuple[bytes, Path]:
    """Read a file that decides what code is loaded: whoever can replace it can run code as us.

    Args:
        what: for messages: "configuration".

    Returns:
        Its content, and its path without symbolic links: where the file that was read really is.

    Raises:
        ConfigError: it cannot be read, is not a regular file, or another user can replace it.
    """
    try:
        trusted = require_trusted_path(path, what)
        # O_NONBLOCK: opening a FIFO without a writer must not hang.
        descriptor = os.open(trusted, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW)
        try:
            status = os.fstat(descriptor)
            _require_ours(status, trusted, path, what)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"The {what} {path} is not a regular file.", hint="Name the file itself.")
            with open(descriptor, "rb", closefd=False) as stream:
                return stream.read(), trusted
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(
            f"The {what} {path} cannot be read: {error.strerror}.", hint="Check its name and mode."
        ) from None


def make_private_directory(path: Path, what: str) -> Path:
    """Make a directory, mode 0700, and those that are missing above it; or make sure that one can be trusted.

    Args:
        what: for messages: "state directory".

    Returns:
        The path without symbolic links.

    Raises:
        ConfigError: another user could replace it. Nothing was made in a directory of another user.
        OSError: it cannot be made.
    """
    missing, here = [], path.absolute()
    while not os.path.lexists(here):
        missing.append(here)
        here = here.parent
    if missing:
        # In a sticky directory mkdir either makes the name ours, or fails and the check below finds whose it is.
        require_trusted_path(here, what, is_passed=True)
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
    return require_trusted_path(path, what)


def require_trusted_path(path: Path, what: str, *, is_passed: bool = False) -> Path:
    """Make sure that nobody besides root and us can replace what a path leads to, or what it leads through.

    Each component from the root on, through every symbolic link, must belong to root or to us, and no directory may be
    writable by others, as for sshd's StrictModes. In a sticky directory, such as /tmp, others cannot replace what is
    ours: passing through one is safe. Where the path ends in one it is refused, because others can create a name there
    before we do. A directory on a read-only mount counts as not writable: Kubernetes mounts ConfigMaps with mode 0777.

    Nobody else can change what was checked, so what is opened by the result afterwards is still what was checked.

    Args:
        path: of a file to read, or of a directory to create files in.
        what: for messages: "configuration".
        is_passed: the path is only the beginning of a longer one: it may end in a sticky directory.

    Returns:
        The path without symbolic links.

    Raises:
        ConfigError: another user could replace it.
        OSError: it does not exist, or cannot be reached.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "it holds a NUL character", str(path))
    here, names = Path("/"), list(reversed(path.absolute().parts))
    links = 0
    while names:
        name = names.pop()
        parent = here
        here = Path("/") if name.startswith("/") else here.parent if name == ".." else here / name
        status = os.lstat(here)
        _require_ours(status, here, path, what, is_last=not names and not is_passed)
        if stat.S_ISLNK(status.st_mode):
            if (links := links + 1) > _MAXIMUM_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            names += reversed(PurePosixPath(os.readlink(here)).parts)
            here = parent
    return here


def _require_ours(status: os.stat_result, component: Path, path: Path, what: str, *, is_last: bool = True) -> None:
    if not others_can_replace(status, os.geteuid(), is_last=is_last, read_only=lambda: _is_read_only(component)):
        return
    quoted = shlex.quote(str(component))
    commands = []
    if status.st_uid not in (0, os.geteuid()):
        commands.append(f"chown -h root {quoted}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(status.st_mode):
        commands.append(f"chmod go-w {quoted}")
    hint = f"{'Run' if status.st_uid in (0, os.geteuid()) else 'As root, run'}: {' && '.join(commands)}"
    if status.st_mode & stat.S_ISVTX:
        hint = (
            "Use a directory that is yours alone: RuntimeDirectory= in a systemd unit, $XDG_RUNTIME_DIR, or one made "
            "with mkdir -m 700."
        )
    named = "it" if component == path else component
    raise ConfigError(
        f"Other users could replace the {what} {path}: {named} belongs to user {status.st_uid} and has mode "
        f"{stat.S_IMODE(status.st_mode):04o}.",
        hint=hint,
    )


def _is_read_only(directory: Path) -> bool:
    return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)


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


def others_can_replace(
    status: os.stat_result, uid: int, *, is_last: bool, read_only: Callable[[], bool] = lambda: False
) -> bool:
    """Decide whether somebody besides root and `uid` can replace a component of a path, or what it contains.

    Args:
        status: of the component itself, not of what a link points to. An ACL shows in the group bits.
        is_last: whether the path ends here: then others must not be able to create a name in it either.
        read_only: whether it is on a read-only mount.
    """
    if status.st_uid not in (0, uid):
        return True
    if stat.S_ISLNK(status.st_mode) or not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return False
    if not stat.S_ISDIR(status.st_mode):
        return True
    return not (status.st_mode & stat.S_ISVTX and not is_last) and not read_only()


def _require_exact(path: Path, status: os.stat_result, mode: int, group: int | None) -> None:
    wanted = (mode, status.st_gid if group is None else group, os.geteuid())
    found = (stat.S_IMODE(status.st_mode), status.st_gid, status.st_uid)
    if found != wanted:
        said = "mode {:04o}, group {}, owner {}"
        raise ConfigError(
            f"{path} should have {said.format(*wanted)}, but its file system gives it {said.format(*found)}.",
            hint="Put it on a file system that keeps modes and groups, such as /run.",
        )
