"""Read a short secret from a file, a descriptor or a program: only if other users cannot, and with a deadline.

Nothing here knows what the bytes mean. No exception contains any of them.
"""

import os
import select
import shlex
import signal
import stat
import subprocess
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from hsm_signer.errors import ConfigError
from hsm_signer.system.environment import inherited_environment
from hsm_signer.system.file_state import file_identity
from hsm_signer.system.trusted_path import require_trusted_path

LIMIT = 1024
"""The maximum length of a secret in bytes. The functions below read one byte more, so that the caller notices."""


class Unreadable(Exception):
    """The bytes cannot be read. The text is the reason, as the end of a sentence; the hint says what to do."""

    def __init__(self, reason: str, *, hint: str | None) -> None:
        super().__init__(reason)
        self.hint = hint


def exposure(status: os.stat_result, uid: int, groups: Collection[int]) -> str | None:
    """Return how users besides root and us could read or change a file, or None if they cannot.

    The group may read the file if root owns it and we are in the group: that is the usual way to give a secret to a
    service. The group may never change it.

    Args:
        status: the status of the file, with its owner, group and mode. An ACL shows in the group bits of the mode.
        uid: our effective user.
        groups: all groups of this process, including the effective one.
    """
    if status.st_uid not in (0, uid):
        return f"it belongs to user {status.st_uid}"
    if status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        return "everybody can read or change it"
    if status.st_mode & stat.S_IWGRP:
        return f"its group {status.st_gid} can change it"
    shared_by_root = status.st_uid == 0 and status.st_gid in groups
    if status.st_mode & stat.S_IRGRP and not shared_by_root:
        return f"its group {status.st_gid} can read it"
    return None


def read_file_state(path: Path, *, private: bool) -> tuple[bytes, str]:
    """Return the content of a regular file, and the identity of the state that it was in (`file_identity`).

    Args:
        private: refuse the file if `exposure` returns a reason, or if others could replace it: a wrong PIN costs a try.
            This checks the opened file, not its name.

    Raises:
        Unreadable: it cannot be opened, is not a regular file, is exposed, or changes while it is read.
    """
    try:
        descriptor = _open_file(path)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("it is not a regular file", hint="For a pipe, use --pin-source fd:NUMBER.")
            if private and (who := exposure(status, os.geteuid(), {os.getegid(), *os.getgroups()})):
                raise Unreadable(who, hint=_cure(path, status))
            if private:
                _require_trusted(path, "PIN file")
            identity = file_identity(descriptor)
            raw = _read_all(descriptor, time.monotonic())  # a regular file is always ready
            if os.fstat(descriptor).st_ctime_ns != status.st_ctime_ns:
                raise Unreadable("it was changed while it was read", hint="Run the command again.")
            return raw, identity
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unreadable(str(error.strerror), hint=f"Check the name and mode of {path}.") from error


def _require_trusted(path: Path, what: str) -> None:
    try:
        require_trusted_path(path, what)
    except ConfigError as error:
        raise Unreadable(error.message[0].lower() + error.message[1:].rstrip("."), hint=error.hint) from None


def _cure(path: Path, status: os.stat_result) -> str:
    name = shlex.quote(str(path))
    if status.st_uid == 0 != os.geteuid():
        return f"As root, let only its group read it: chmod 640 {name}"
    if status.st_uid != os.geteuid():
        return f"As root, make yourself its owner: chown {os.geteuid()} {name} && chmod 600 {name}"
    return f"Remove everyone else's access: chmod 600 {name}"


def _open_file(path: Path) -> int:
    # O_NONBLOCK: a FIFO without a writer must not hang us. Python opens every file close-on-exec (PEP 446).
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    with suppress(PermissionError):
        # So that `file_identity` still recognizes a `touch`. Only the owner and root may use this flag (open(2)).
        return os.open(path, flags | getattr(os, "O_NOATIME", 0))
    return os.open(path, flags)


def read_descriptor(descriptor: int, seconds: float) -> bytes:
    """Read an open descriptor to its end, and close it.

    Raises:
        Unreadable: it is not open for reading, is a terminal, or has not ended after `seconds`.
    """
    if os.isatty(descriptor):
        raise Unreadable("it is a terminal, which would show what is typed", hint="Use --pin-source prompt.")
    try:
        os.read(descriptor, 0)  # fails at once if it is not open for reading; poll would wait
        try:
            return _read_all(descriptor, time.monotonic() + seconds)
        finally:
            _close(descriptor)
    except TimeoutError:
        raise _late(seconds) from None
    except OSError as error:
        raise Unreadable(str(error.strerror), hint="Open it for reading, for example 3< FILE.") from error


def run_command(argv: Sequence[str], seconds: float) -> bytes:
    """Return the output of a program. It runs without a shell, input or terminal, and its stderr is discarded.

    Raises:
        Unreadable: others could replace the program, it cannot be started, it fails, or it has not ended after
            `seconds`. In the last case it is killed with its process group.
    """
    deadline = time.monotonic() + seconds
    try:
        _require_trusted(Path(argv[0]), "program")
        process = subprocess.Popen(  # noqa: S603  # the operator's own command
            argv,
            env=inherited_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # it might quote the secret
            start_new_session=True,  # its own process group, to kill it by; no terminal that could stop it
        )
    except OSError as error:
        raise Unreadable(str(error.strerror), hint=f"Check the name and mode of {argv[0]}.") from error
    try:
        raw = _read_all(process.stdout.fileno(), deadline) if process.stdout else b""
        status = 0 if len(raw) > LIMIT else process.wait(max(0, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        raise _late(seconds) from None
    finally:
        _end(process)
    if status:
        how = f"status {status}" if status > 0 else f"signal {-status}"
        raise Unreadable(
            f"it ended with {how}", hint=f"To see why, run it with no input: {shlex.quote(argv[0])} … </dev/null"
        )
    return raw


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdout:
        process.stdout.close()
    if process.returncode is None:
        # We have not waited for it yet, so no other process or group can have its number.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # one that runs as somebody else cannot be killed
            process.wait(1)


def _read_all(descriptor: int, deadline: float) -> bytes:
    """Read to the end, or until there is too much. Raise TimeoutError when the monotonic clock passes `deadline`."""
    raw = b""
    readable = select.poll()
    readable.register(descriptor, select.POLLIN)
    while len(raw) <= LIMIT:
        if not readable.poll(max(0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        chunk = os.read(descriptor, LIMIT + 1 - len(raw))
        if not chunk:
            break
        raw += chunk
    return raw


def _close(descriptor: int) -> None:
    if descriptor > 2:
        os.close(descriptor)
    else:  # the next file we open must not become standard input or output
        with open(os.devnull, "r+b", buffering=0) as nothing:
            os.dup2(nothing.fileno(), descriptor)


def _late(seconds: float) -> Unreadable:
    return Unreadable(
        f"it had not ended after {seconds:g} s",
        hint="It must not wait for input, and must close its output after the PIN.",
    )
