"""Run probes, each at most once, and only if the probes that it needs have succeeded. A failure becomes a verdict."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from hsm_signer.config.profile import Profile
from hsm_signer.device.access import Operator
from hsm_signer.device.device import Device
from hsm_signer.doctor.verdicts import Status, Verdict, failed, skipped
from hsm_signer.errors import EntraError, HsmSignerError

T = TypeVar("T")


@dataclass(frozen=True)
class Probe(Generic[T]):
    """One check.

    Attributes:
        name: the name in the output, one word in lower case. The parts of a check share its name.
        measure: returns a value for other probes, and the verdict on it, or raises an `HsmSignerError`. If it raises or
            the verdict is FAILED, the probes that need its value are skipped.
        network: whether it needs the network.
    """

    name: str
    measure: "Callable[[Examination], tuple[T, Verdict]]"
    network: bool = False


@dataclass(frozen=True)
class _Result:
    """The outcome of a probe.

    Attributes:
        verdict: what people read.
        value: for other probes, if nothing failed.
        failed: the name of the probe that failed first, or None.
    """

    verdict: Verdict
    value: Any = None
    failed: str | None = None


class _NeedFailed(Exception):
    """A probe asked for the value of a probe that failed."""

    def __init__(self, failed: str) -> None:
        super().__init__(failed)
        self.failed = failed


class Examination:
    """One run of the doctor, and the results of its probes so far.

    Args:
        profile: as the user wrote it.
        operator: how to reach the person who enters the PIN and touches the device.
        offline: skip the probes that need the network.
        now: the clock, epoch seconds.
        opened: a device that is open already, and stays open.

    Attributes:
        resources: closed when the run ends.
    """

    def __init__(
        self,
        profile: Profile,
        operator: Operator,
        *,
        offline: bool,
        now: Callable[[], float],
        opened: Device | None = None,
    ) -> None:
        self.profile = profile
        self.operator = operator
        self.now = now
        self.opened = opened
        self.resources = ExitStack()
        self._offline = offline
        self._results: dict[Probe[Any], _Result] = {}

    def value(self, probe: Probe[T]) -> T:
        """Return what a probe measured. If that probe failed, this raises, and the probe that called it is skipped."""
        result = self._result(probe)
        if result.failed is not None:
            raise _NeedFailed(result.failed)
        value: T = result.value
        return value

    def verdict(self, probe: Probe[Any]) -> Verdict:
        """Return the verdict of a probe, whatever it is."""
        return self._result(probe).verdict

    def succeeded(self, *probes: Probe[Any]) -> bool:
        """Return whether all of these probes have a value."""
        return all(self._result(probe).failed is None for probe in probes)

    def _result(self, probe: Probe[Any]) -> _Result:
        if probe not in self._results:
            self._results[probe] = self._run(probe)
        return self._results[probe]

    def _run(self, probe: Probe[Any]) -> _Result:
        if self._offline and probe.network:
            return _Result(skipped("Not checked because of --offline."), failed=probe.name)
        try:
            value, verdict = probe.measure(self)
        except _NeedFailed as need:
            verdict = replace(skipped(f"Not checked because {need.failed} failed."), waits_for=need.failed)
            return _Result(verdict, failed=need.failed)
        except Exception as error:
            return _Result(_explain(error), failed=probe.name)
        return _Result(verdict, value, probe.name if verdict.status is Status.FAILED else None)


def _explain(error: Exception) -> Verdict:
    match error:
        case EntraError():
            return failed(f"{error.message} Correlation id: {error.correlation_id}.", error.hint, error.commands)
        case HsmSignerError():
            return failed(error.message, error.hint, error.commands)
    # Its text may contain a secret.
    return failed(f"Unexpected error: {type(error).__name__}.", "This is a bug in hsm-signer. Please report it.")
