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
from hsm_signer.device.pin import PinSource
from hsm_signer.errors import DeviceTimeout, PinError, PinIncorrect, PinLocked, PinRefusedBefore
from hsm_signer.private_file import replacing

_POLL = 0.05


class Outcome(StrEnum):
    """What became of the last login with a source's PIN, where it was not accepted."""

    BEGUN = "begun"
    """The login was begun and its end never seen: power cut, kill, a device pulled out. One more try is allowed."""
    BEGUN_AGAIN = "begun again"
    """That one more try had no known end either."""
    REFUSED = "refused"


def next_outcome(last: Outcome | None) -> Outcome | None:
    """Decide whether a source's PIN may be presented, from what became of it the last time.

    Returns:
        What to write down before it is presented, or None when it may not be.
    """
    match last:
        case None:
            return Outcome.BEGUN
        case Outcome.BEGUN:
            return Outcome.BEGUN_AGAIN
        case _:
            return None


@dataclass(frozen=True)
class PinRecord:
    """The record of one device, a file in the state directory, used under a lock.

    Attributes:
        directory: where records are kept.
        module: through which the device is reached.
        device: as it describes itself; what of it is stable names the file.
    """

    directory: Path
    module: Path
    device: DeviceInfo

    @contextlib.contextmanager
    def login(self, source: PinSource, timeout: float, check: Callable[[], None]) -> Iterator[None]:
        """Guard one login with the PIN of `source`, which happens inside the `with`.

        Other processes that would log in to the same device wait meanwhile, and see the outcome.

        Args:
            timeout: seconds to wait for another process's login.
            check: runs first, under the lock: raises when the device's own flags forbid a try.

        Raises:
            PinRefusedBefore: the device has refused this PIN before.
            PinError: the record cannot be kept.
            DeviceTimeout: another process's login did not end.
        """
        identity = source.identity
        with self._locked(timeout):
            check()
            outcomes = self._load()
            upcoming = next_outcome(outcomes.get(identity))
            if upcoming is None:
                raise self._refused_before(source)
            self._store({**outcomes, identity: upcoming})
            try:
                yield
            except (PinIncorrect, PinLocked):
                self._store({**outcomes, identity: Outcome.REFUSED})
                raise
            outcomes.pop(identity, None)
            self._store(outcomes)

    @property
    def path(self) -> Path:
        """The file. Its name comes from what of the device is stable, and is not to be read."""
        stable = "\0".join((str(self.module), *self.device.identity))
        name = hashlib.sha256(stable.encode()).hexdigest()[:32]
        return self.directory / f"{name}.json"

    @contextlib.contextmanager
    def _locked(self, timeout: float) -> Iterator[None]:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise self._cannot_be_kept(error) from None
        try:
            _lock(file, timeout, str(self.device))
            yield
        finally:
            os.close(file)

    def _load(self) -> dict[str, Outcome]:
        try:
            sources = json.loads(self.path.read_bytes())["sources"]
            return {source: Outcome(outcome) for source, outcome in sources.items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._cannot_be_kept(error) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise PinError(
                f"The record of refused PINs {self.path} is damaged, so it cannot say that a login is safe.",
                hint="If no wrong PIN was tried, run: hsm-signer device forget-pin-failures",
            ) from None

    def _store(self, outcomes: Mapping[str, Outcome]) -> None:
        document = {"module": str(self.module), "device": asdict(self.device), "sources": outcomes}
        try:
            if not outcomes:
                self.path.unlink(missing_ok=True)
            else:
                with replacing(self.path) as file:
                    file.write(json.dumps(document, indent=2).encode())
        except OSError as error:
            raise self._cannot_be_kept(error) from None

    def _cannot_be_kept(self, error: OSError) -> PinError:
        return PinError(
            f"The record of refused PINs cannot be kept in {self.directory}: {error.strerror}. Without it, repeated "
            "unattended logins with a wrong PIN could lock the device.",
            hint="Make the directory writable (StateDirectory= in a systemd unit), or use --no-pin-record.",
        )

    def _refused_before(self, source: PinSource) -> PinRefusedBefore:
        return PinRefusedBefore(
            f"{self.device} has refused the PIN from {source.description} before. It was not presented again.",
            hint="Correct the PIN at its source. If that is no file, also run: hsm-signer device forget-pin-failures",
        )


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
        found = json.loads(path.read_bytes())["device"]
        return DeviceInfo(**{**found, "library_version": tuple(found["library_version"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lock(file: int, timeout: float, device: str) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise DeviceTimeout(
                    f"Another process has been logging in to {device} for {timeout:g} s.",
                    hint="See whether it waits for a touch or hangs.",
                ) from None
            time.sleep(_POLL)
        else:
            return
