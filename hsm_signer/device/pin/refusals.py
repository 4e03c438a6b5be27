"""The record of PINs that devices have refused: without it, several processes together could lock a card.

After a device has refused a PIN, no process sends it again until the source of the PIN changes or the operator allows
it. TPMs set no flags before they lock, so for them this is the only protection. Nothing derived from a PIN is stored.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from hsm_signer.device import wire
from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.pin.attempts import Attempt, Outcome, next_attempt
from hsm_signer.device.pin.forget_command import forget_command
from hsm_signer.device.pin.login_lock import explain_record_failure
from hsm_signer.device.pin.pin import PinSource
from hsm_signer.errors import (
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

_NONE_YET = Attempt(Outcome.BEGUN, 0, 0.0)


@dataclass(frozen=True)
class _Stored:
    """One file of the record: a device, the module it is reached through, and the last attempt with each PIN source.

    Attributes:
        module: as `module_identity` returns it.
        sources: the last attempt, by the identity of the source.
    """

    module: str
    device: DeviceInfo
    sources: Mapping[str, Attempt]

    def last(self, identity: str) -> Attempt:
        """Return the last attempt with a source's PIN."""
        found = [attempt for recorded, attempt in self.sources.items() if same_state(recorded, identity)]
        return max(found, key=lambda attempt: (attempt.outcome is Outcome.REFUSED, attempt.times), default=_NONE_YET)

    def with_attempt(self, identity: str, attempt: Attempt | None) -> "_Stored":
        """Return a copy with this attempt for a source, or without any."""
        others = {known: each for known, each in self.sources.items() if not same_state(known, identity)}
        return _Stored(self.module, self.device, others if attempt is None else {**others, identity: attempt})


@dataclass(frozen=True)
class PinRecord:
    """The record of one device, a file in the state directory.

    Attributes:
        directory: where records are kept.
        module: the module through which the device is reached.
        device: what the device reports about itself; the stable parts determine the file's name.
        now: the clock, epoch seconds.
    """

    directory: Path
    module: Path
    device: DeviceInfo
    now: Callable[[], float] = time.time

    @contextlib.contextmanager
    def login(self, source: PinSource, identity: str, *, accepted: bool = False) -> Iterator[None]:
        """Record one login with a PIN, made inside the `with`. Hold `login_lock`.

        Args:
            source: where the PIN is from, for messages.
            identity: the state of the source that the PIN was read from.
            accepted: whether the device has accepted it before, and has counted no wrong PIN since.

        Raises:
            PinRefusedBefore: this device, or one that may be the same device, has refused this PIN before.
            PinOutcomeUnknown: it is unknown whether the device has refused this PIN.
            LoginInterrupted: the device failed several times in a row; it is too early for the next try.
            PinError: the record cannot be kept.
        """
        self.require_not_refused(source, identity, accepted=accepted)
        before = self._load(self.path)
        last = before.last(identity)
        upcoming = next_attempt(last, accepted=accepted, now=self.now())
        if upcoming is None:
            raise self._outcome_unknown(source, last, accepted)
        self._store(before.with_attempt(identity, upcoming))
        try:
            yield
        except (PinIncorrect, PinLocked):
            self.add_refusal(identity)
            raise
        except (LoginInterrupted, DeviceTimeout):
            raise
        except HsmSignerError:
            # The device answered, and the answer was not about the PIN.
            self._store(before)
            raise
        self._store(before.with_attempt(identity, None))

    def add_refusal(self, identity: str) -> None:
        """Record that the device has refused a PIN. Hold `login_lock`.

        Raises:
            PinError: the record cannot be kept.
        """
        refused = Attempt(Outcome.REFUSED, 1, self.now())
        self._store(self._load(self.path).with_attempt(identity, refused))

    def require_not_refused(self, source: PinSource, identity: str, *, accepted: bool = False) -> None:
        """Make sure that neither this device nor one that may be the same has refused the PIN of a source.

        If this device has accepted the PIN, only its own record counts.

        Modules describe the same card differently, and with different serials. Within one module, another serial means
        another device. A label proves nothing: OpenSC takes it from a certificate, and the tokens of one TPM are
        locked together.

        Args:
            source: where the PIN is from, for messages.
            identity: the state of the source that the PIN was read from.
            accepted: whether this device has accepted the PIN before.

        Raises:
            PinRefusedBefore: one of them has refused it.
            PinError: the record cannot be read.
        """
        others = () if accepted else self.directory.glob("*.json")
        for path in sorted({self.path, *others}):
            stored = self._load(path)
            last = stored.last(identity)
            if last.outcome is Outcome.REFUSED and self._may_be_same_device(stored):
                if identity not in stored.sources:  # `touch` has moved the change time
                    self._store(stored.with_attempt(identity, last), path)
                raise self._refused_before(source, stored)

    @property
    def path(self) -> Path:
        """The file. Its name is a hash of what is stable about the device."""
        stable = "\0".join((module_identity(self.module), *self.device.identity))
        name = hashlib.sha256(stable.encode()).hexdigest()[:32]
        return self.directory / f"{name}.json"

    def _may_be_same_device(self, stored: _Stored) -> bool:
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
            raise explain_record_failure(self.directory, error) from None
        except wire.Malformed:
            raise PinError(
                f"The record of refused PINs {path} is damaged, so it is unknown whether a login is safe.",
                hint="If no wrong PIN was sent to the device, run:",
                commands=(forget_command(self.directory),),
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
            raise explain_record_failure(self.directory, error) from None

    def _outcome_unknown(self, source: PinSource, last: Attempt, accepted: bool) -> HsmSignerError:
        if accepted:
            return LoginInterrupted(
                f"{last.times} logins to {self.device} in a row were interrupted. The next login is allowed "
                f"{last.pause:.0f} s after the last one.",
                hint="Check that the device is plugged in and works.",
            )
        return PinOutcomeUnknown(
            f"{last.times} logins to {self.device} with the PIN from {source.description} were interrupted. It is "
            "unknown whether the device has refused the PIN, so it was not sent again.",
            hint="Check the PIN and the device, then run:",
            commands=(forget_command(self.directory),),
        )

    def _refused_before(self, source: PinSource, by: _Stored) -> PinRefusedBefore:
        message = f"{by.device} already refused the PIN from {source.description}. It was not sent again."
        if by.module != module_identity(self.module) or by.device.identity != self.device.identity:
            message = (
                f"{by.device} already refused the PIN from {source.description}, through {by.module}. "
                f"{self.device} may be the same device, so the PIN was not sent to it."
            )
        return PinRefusedBefore(
            message,
            hint="Correct the PIN at its source. If the source is not a file, also run:",
            commands=(forget_command(self.directory),),
        )


def module_identity(path: Path) -> str:
    """Return what identifies a module: the same for all paths to the same file."""
    resolved = path.resolve()
    try:
        status = resolved.stat()
    except OSError:  # removed since it was loaded
        return str(resolved)
    return f"{resolved} (device {status.st_dev}, inode {status.st_ino})"


def forget_failures(directory: Path, chosen: Callable[[DeviceInfo], bool]) -> list[str]:
    """Remove the records of the devices for which `chosen` returns true, and all damaged records.

    Returns:
        For each removed record, the name of its device, or its path if it was damaged.

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
