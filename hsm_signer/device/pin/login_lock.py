"""One unattended login at a time on this machine: a file lock, and a count of the logins so far."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from hsm_signer.errors import ConfigError, DeviceTimeout, PinError
from hsm_signer.system.trusted_path import make_private_directory

_LOCK = "lock"
_POLL = 0.05


@contextlib.contextmanager
def login_lock(directory: Path, timeout: float) -> Iterator[int]:
    """Wait for the unattended logins of other processes to end, and hold the lock inside the `with`.

    There is one lock for all devices: one device may have two names, and its flags are reliable only while no other
    process sends it a PIN.

    Args:
        directory: where records are kept.
        timeout: seconds to wait.

    Yields:
        What `count_logins` returned before this login.

    Raises:
        ConfigError: another user could replace the directory.
        PinError: the record cannot be kept.
        DeviceTimeout: another login did not end.
    """
    try:
        make_private_directory(directory, "state directory")
        file = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except ConfigError as error:
        hint = f"{error.hint} Or choose another directory with XDG_STATE_HOME, or use --no-pin-record."
        raise ConfigError(error.message, hint=hint) from None
    except OSError as error:
        raise explain_record_failure(directory, error) from None
    try:
        _lock(file, timeout)
        before = count_logins(directory)
        _write_count(directory, file, before + 1)
        try:
            yield before
        finally:
            # So that processes that have read the device's flags since we took the lock read them again.
            _write_count(directory, file, before + 2)
    finally:
        os.close(file)


def count_logins(directory: Path) -> int:
    """Return how often the lock was taken or released. If that has changed, read a device's flags again."""
    try:
        return int((directory / _LOCK).read_bytes())
    except (OSError, ValueError):
        return 0


def _write_count(directory: Path, file: int, count: int) -> None:
    try:
        os.pwrite(file, str(count).encode(), 0)
    except OSError as error:
        raise explain_record_failure(directory, error) from None


def explain_record_failure(directory: Path, error: OSError) -> PinError:
    """Return the error to raise when the record of refused PINs cannot be read or written."""
    return PinError(
        f"The record of refused PINs cannot be kept in {directory}: {error.strerror}. Without it, repeated "
        "unattended logins with a wrong PIN could lock the device.",
        hint="Make the directory writable (StateDirectory= in a systemd unit), or use --no-pin-record.",
    )


def _lock(file: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise DeviceTimeout(
                    f"Another process has been logging in to a device for {timeout:g} s.",
                    hint="Check whether that process is waiting for a touch, or hangs.",
                ) from None
            time.sleep(_POLL)
        else:
            return
