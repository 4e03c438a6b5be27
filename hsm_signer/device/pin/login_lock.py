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
    """Wait until no other unattended login is under way, and let the others wait meanwhile.

    There is one lock for all devices, for two names may mean one device, and the flags of a device can only be relied
    on while nobody else sends it a PIN.

    Args:
        directory: where records are kept.
        timeout: seconds to wait.

    Yields:
        What `count_logins` returned until now.

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
        raise record_failure(directory, error) from None
    try:
        _lock(file, timeout)
        before = count_logins(directory)
        _write_count(directory, file, before + 1)
        try:
            yield before
        finally:
            # For those who have looked at the device since the turn began.
            _write_count(directory, file, before + 2)
    finally:
        os.close(file)


def count_logins(directory: Path) -> int:
    """Return how often a turn began or ended: if one has since a device was found, its flags may have changed."""
    try:
        return int((directory / _LOCK).read_bytes())
    except (OSError, ValueError):
        return 0


def _write_count(directory: Path, file: int, count: int) -> None:
    try:
        os.pwrite(file, str(count).encode(), 0)
    except OSError as error:
        raise record_failure(directory, error) from None


def record_failure(directory: Path, error: OSError) -> PinError:
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
                    hint="See whether it waits for a touch or hangs.",
                ) from None
            time.sleep(_POLL)
        else:
            return
