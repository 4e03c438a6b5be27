"""Check that only root and we can change where a path leads, before we read a file or create one there."""

import contextlib
import errno
import os
import shlex
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from hsm_signer.errors import ConfigError

_MAXIMUM_LINKS = 40  # path_resolution(7)


def require_trusted_path(path: Path, what: str, *, is_passed: bool = False) -> Path:
    """Make sure that only root and we can replace a file or directory, or any component of its path.

    Every component, also those of symbolic links, must belong to root or to us, and no directory may be writable by
    others, as for sshd's StrictModes. A path may lead through a sticky directory, such as /tmp: others
    cannot replace our files there. It may not end in one, because others could create a file there before we do. A
    directory on a read-only mount counts as not writable: Kubernetes mounts ConfigMaps with mode 0777.

    Nobody else can change what was checked, so opening the returned path afterwards is safe.

    Args:
        path: a file to read, or a directory to create files in.
        what: what it is, for messages: "configuration".
        is_passed: whether the path is the beginning of a longer one, so that it may end in a sticky directory.

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
            "Use a directory that only you can write to: RuntimeDirectory= in a systemd unit, $XDG_RUNTIME_DIR, or one "
            "made with mkdir -m 700."
        )
    named = "it" if component == path else component
    raise ConfigError(
        f"Other users could replace the {what} {path}: {named} belongs to user {status.st_uid} and has mode "
        f"{stat.S_IMODE(status.st_mode):04o}.",
        hint=hint,
    )


def _is_read_only(directory: Path) -> bool:
    return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)


def others_can_replace(
    status: os.stat_result, uid: int, *, is_last: bool, read_only: Callable[[], bool] = lambda: False
) -> bool:
    """Return whether anybody besides root and `uid` can replace a component of a path, or its content.

    Args:
        status: the component's own status, not that of a link's target. An ACL shows in the group bits.
        is_last: whether the path ends here. If so, others must not be able to create files in it either.
        read_only: returns whether it is on a read-only mount.
    """
    if status.st_uid not in (0, uid):
        return True
    if stat.S_ISLNK(status.st_mode) or not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return False
    if not stat.S_ISDIR(status.st_mode):
        return True
    return not (status.st_mode & stat.S_ISVTX and not is_last) and not read_only()


def read_trusted(path: Path, what: str) -> tuple[bytes, Path]:
    """Read a file that decides which code is loaded: anyone who can replace it can run code as us.

    Args:
        what: what it is, for messages: "configuration".

    Returns:
        Its content, and its path without symbolic links.

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
                raise ConfigError(f"The {what} {path} is not a regular file.", hint="Give the path of a regular file.")
            with open(descriptor, "rb", closefd=False) as stream:
                return stream.read(), trusted
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(
            f"The {what} {path} cannot be read: {error.strerror}.", hint="Check its name and mode."
        ) from None


def make_private_directory(path: Path, what: str) -> Path:
    """Make a directory and its missing parents, mode 0700. If it exists, make sure that it can be trusted.

    Args:
        what: what it is, for messages: "state directory".

    Returns:
        The path without symbolic links.

    Raises:
        ConfigError: another user could replace it. Nothing was made in a directory of another user.
        OSError: it cannot be created.
    """
    missing, here = [], path.absolute()
    while not os.path.lexists(here):
        missing.append(here)
        here = here.parent
    if missing:
        # In a sticky directory, mkdir either creates our directory, or fails, and then the check below finds its owner.
        require_trusted_path(here, what, is_passed=True)
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
    return require_trusted_path(path, what)
