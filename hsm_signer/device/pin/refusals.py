"""The record of PINs that devices have refused: what keeps separate processes from locking a card between them.

A PIN that a device has refused is not sent to it again, by whatever process, until its source changes or the operator
says so. TPMs set no flags before they lock; for them this is the only guard. Nothing derived from a PIN is stored.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.pin.pin import PinSource
from hsm_signer.device.worker import wire
from hsm_signer.errors import (
    ConfigError,
    DeviceTimeout,
    HsmSignerError,
    LoginInterrupted,
    PinError,
    PinIncorrect,
    PinLocked,
    PinOutcomeUnknown,
    PinRefusedBefore,
)
from hsm_signer.system.file_state import same_state
from hsm_signer.system.private_file import replacing
from hsm_signer.system.trusted_path import make_private_directory

_LOCK = "lock"
_POLL = 0.05
_TRIES = 2
_LONGEST_PAUSE = 300.0


class Outcome(StrEnum):
    """What became of the last login with a source's PIN, where it was not accepted."""

    BEGUN = "begun"
    """Its end was not seen, or says nothing about the PIN: power cut, kill, a device that failed."""
    REFUSED = "refused"


@dataclass(frozen=True)
class Attempt:
    """A login with a source's PIN that was not accepted.

    Attributes:
        times: how many were begun in a row.
        at: when the last one was begun, epoch seconds.
    """

    outcome: Outcome
    times: int
    at: float

    @property
    def pause(self) -> float:
        """Seconds to let pass before an accepted PIN is presented again."""
        return min(_LONGEST_PAUSE, 2.0 ** (min(self.times, 20) - _TRIES))


_NONE_YET = Attempt(Outcome.BEGUN, 0, 0.0)


def next_attempt(last: Attempt, *, accepted: bool, now: float) -> Attempt | None:
    """Decide whether a source's PIN may be presented, from what became of it the last time.

    A PIN of which nothing is known gets one more try when the first had no known outcome, and no third: both may have
    been wrong ones, which the device has counted. One that was accepted before is not in doubt, and a device that fails
    now and then must not end a program for good. It gets more tries, at growing intervals: somebody may have changed
    the PIN on the device, and the module may report the refusal as a failure.

    Args:
        accepted: whether the device has accepted the PIN before, and counts no wrong one since.
        now: epoch seconds.

    Returns:
        What to write down before it is presented, or None when it may not be, or not yet.
    """
    waits = accepted and 0 <= now - last.at < last.pause
    if last.outcome is Outcome.REFUSED or (last.times >= _TRIES and (waits or not accepted)):
        return None
    return Attempt(Outcome.BEGUN, last.times + 1, now)


@dataclass(frozen=True)
class _Stored:
    """What one file of the record holds: a device, reached through a module, and how each source fared with it.

    Attributes:
        module: as `module_identity` returns it.
        sources: by their identities.
    """

    module: str
    device: DeviceInfo
    sources: Mapping[str, Attempt]

    def last(self, identity: str) -> Attempt:
        """Return what became of a source's PIN."""
        found = [attempt for recorded, attempt in self.sources.items() if same_state(recorded, identity)]
        return max(found, key=lambda attempt: (attempt.outcome is Outcome.REFUSED, attempt.times), default=_NONE_YET)

    def having(self, identity: str, attempt: Attempt | None) -> "_Stored":
        """Return this with another attempt for a source, or with none."""
        others = {known: each for known, each in self.sources.items() if not same_state(known, identity)}
        return _Stored(self.module, self.device, others if attempt is None else {**others, identity: attempt})


@dataclass(frozen=True)
class PinRecord:
    """The record of one device, a file in the state directory.

    Attributes:
        directory: where records are kept.
        module: through which the device is reached.
        device: as it describes itself; what of it is stable names the file.
        now: the clock, epoch seconds.
    """

    directory: Path
    module: Path
    device: DeviceInfo
    now: Callable[[], float] = time.time

    @contextlib.contextmanager
    def login(self, source: PinSource, identity: str, *, accepted: bool = False) -> Iterator[None]:
        """Guard one login with a PIN, which happens inside the `with`. Needs `login_turn`.

        Args:
            source: of the PIN, for messages.
            identity: of the state that the PIN was read from.
            accepted: whether the device has accepted it before, and counts no wrong one since.

        Raises:
            PinRefusedBefore: the device has refused this PIN before, or one that may be the same device has.
            PinOutcomeUnknown: nobody knows whether it has.
            LoginInterrupted: the device failed several times just now, and a pause is due.
            PinError: the record cannot be kept.
        """
        self.require_not_refused(source, identity, accepted=accepted)
        before = self._load(self.path)
        last = before.last(identity)
        upcoming = next_attempt(last, accepted=accepted, now=self.now())
        if upcoming is None:
            raise self._outcome_unknown(source, last, accepted)
        self._store(before.having(identity, upcoming))
        try:
            yield
        except (PinIncorrect, PinLocked):
            self.refuse(identity)
            raise
        except (LoginInterrupted, DeviceTimeout):
            raise
        except HsmSignerError:
            # The device has answered, and not about the PIN.
            self._store(before)
            raise
        self._store(before.having(identity, None))

    def refuse(self, identity: str) -> None:
        """Write down that the device has refused a PIN. Needs `login_turn`.

        Raises:
            PinError: the record cannot be kept.
        """
        refused = Attempt(Outcome.REFUSED, 1, self.now())
        self._store(self._load(self.path).having(identity, refused))

    def require_not_refused(self, source: PinSource, identity: str, *, accepted: bool = False) -> None:
        """Make sure that neither this device nor one that may be the same has refused a PIN.

        Where this very device has accepted the PIN, others do not matter.

        One card has another description, and another serial, in each module. Through one module, a device is another
        when its serial differs. A label proves nothing: OpenSC takes it from a certificate, and the tokens of one TPM
        are locked together.

        Raises:
            PinRefusedBefore: one has.
            PinError: the record cannot be read.
        """
        others = () if accepted else self.directory.glob("*.json")
        for path in sorted({self.path, *others}):
            stored = self._load(path)
            last = stored.last(identity)
            if last.outcome is Outcome.REFUSED and self._may_be(stored):
                if identity not in stored.sources:  # `touch` has moved the change time
                    self._store(stored.having(identity, last), path)
                raise self._refused_before(source, stored)

    @property
    def path(self) -> Path:
        """The file. Its name comes from what of the device is stable, and is not to be read."""
        stable = "\0".join((module_identity(self.module), *self.device.identity))
        name = hashlib.sha256(stable.encode()).hexdigest()[:32]
        return self.directory / f"{name}.json"

    def _may_be(self, stored: _Stored) -> bool:
        return (
            stored.module != module_identity(self.module)
            or stored.device.identity[:-1] == self.device.identity[:-1]  # all but the label
        )

    def _load(self, path: Path) -> _Stored:
        try:
            return _read(path)
        except FileNotFoundError:
            return _Stored(module_identity(self.module), self.device, {})
        except OSError as error:
            raise _cannot_be_kept(self.directory, error) from None
        except wire.Malformed:
            raise PinError(
                f"The record of refused PINs {path} is damaged, so it cannot say that a login is safe.",
                hint="If no wrong PIN was tried, run: hsm-signer device forget-pin-failures",
            ) from None

    def _store(self, stored: _Stored, path: Path | None = None) -> None:
        path = path or self.path
        try:
            if not stored.sources:
                path.unlink(missing_ok=True)
            else:
                with replacing(path) as file:
                    file.write(json.dumps(asdict(stored), indent=2).encode())
        except OSError as error:
            raise _cannot_be_kept(self.directory, error) from None

    def _outcome_unknown(self, source: PinSource, last: Attempt, accepted: bool) -> HsmSignerError:
        if accepted:
            return LoginInterrupted(
                f"{last.times} logins to {self.device} in a row were interrupted. The next one is allowed "
                f"{last.pause:.0f} s after the last.",
                hint="Check that the device is plugged in and works.",
            )
        return PinOutcomeUnknown(
            f"{last.times} logins to {self.device} with the PIN from {source.description} were interrupted. It is "
            "unknown whether the device has refused the PIN, so it was not sent again.",
            hint="Check the PIN and the device, then run: hsm-signer device forget-pin-failures",
        )

    def _refused_before(self, source: PinSource, by: _Stored) -> PinRefusedBefore:
        message = f"{by.device} has refused the PIN from {source.description} before. It was not sent again."
        if by.module != module_identity(self.module) or by.device.identity != self.device.identity:
            message = (
                f"{by.device} has refused the PIN from {source.description} before, through {by.module}. "
                f"{self.device} may be the same device, so the PIN was not sent to it."
            )
        return PinRefusedBefore(
            message,
            hint="Correct the PIN at its source. If that is not a file, also run: hsm-signer device "
            "forget-pin-failures",
        )


@contextlib.contextmanager
def login_turn(directory: Path, timeout: float) -> Iterator[int]:
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
        raise _cannot_be_kept(directory, error) from None
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
        raise _cannot_be_kept(directory, error) from None


def _cannot_be_kept(directory: Path, error: OSError) -> PinError:
    return PinError(
        f"The record of refused PINs cannot be kept in {directory}: {error.strerror}. Without it, repeated "
        "unattended logins with a wrong PIN could lock the device.",
        hint="Make the directory writable (StateDirectory= in a systemd unit), or use --no-pin-record.",
    )


def module_identity(path: Path) -> str:
    """Return what tells a module from another one, by whatever name it is called."""
    resolved = path.resolve()
    try:
        status = resolved.stat()
    except OSError:  # removed since it was loaded
        return str(resolved)
    return f"{resolved} (device {status.st_dev}, inode {status.st_ino})"


def forget_failures(directory: Path, chosen: Callable[[DeviceInfo], bool]) -> list[str]:
    """Remove the records of the devices that are `chosen`, and any that cannot be read.

    Returns:
        What to call each device or file whose record was removed.

    Raises:
        OSError: a record cannot be removed.
    """
    forgotten = []
    for path in sorted(directory.glob("*.json")):
        device = _recorded_device(path)
        if device is None or chosen(device):
            path.unlink(missing_ok=True)
            forgotten.append(str(device or path))
    return forgotten


def _recorded_device(path: Path) -> DeviceInfo | None:
    try:
        return _read(path).device
    except (OSError, wire.Malformed):
        return None


def _read(path: Path) -> _Stored:
    return wire.read(_Stored, wire.parse(path.read_bytes()))


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
