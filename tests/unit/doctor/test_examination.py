"""How probes run: each once, and only after what it needs."""

import time
from contextlib import suppress

from hsm_signer.config.profile import Profile
from hsm_signer.device.access import Operator
from hsm_signer.doctor.examination import Examination, Probe
from hsm_signer.doctor.verdicts import Status, Verdict, failed, ok
from hsm_signer.errors import DeviceNotFound, EntraError


def examination(*, offline: bool = False) -> Examination:
    return Examination(Profile(), Operator(), offline=offline, now=time.time)


def broken(run: Examination) -> tuple[int, Verdict]:
    raise DeviceNotFound("No device.", hint="Plug one in.")


class Counted:
    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, run: Examination) -> tuple[int, Verdict]:
        self.runs += 1
        return 7, ok("It works.")


def test_a_probe_runs_once_and_gives_its_value_to_others() -> None:
    counted = Counted()
    first = Probe("first", counted)
    second = Probe("second", lambda run: (None, ok(f"It was {run.value(first)}.")))
    run = examination()
    assert (run.verdict(first), run.verdict(second)) == (ok("It works."), ok("It was 7."))
    assert counted.runs == 1


def test_a_failed_probe_runs_once() -> None:
    calls: list[str] = []

    def measure(run: Examination) -> tuple[None, Verdict]:
        calls.append("run")
        raise DeviceNotFound("No device.", hint="Plug one in.")

    probe, run = Probe("device", measure), examination()
    assert run.verdict(probe) == run.verdict(probe) == failed("No device.", "Plug one in.")
    assert calls == ["run"]


def test_a_probe_is_skipped_if_any_probe_before_it_in_the_chain_failed() -> None:
    first = Probe("first", broken)
    second = Probe("second", lambda run: (run.value(first), ok("")))
    third = Probe("third", lambda run: (run.value(second), ok("")))
    run = examination()
    assert run.verdict(third).status is Status.SKIPPED
    assert "first failed" in run.verdict(third).detail


def test_a_probe_whose_verdict_is_failed_has_no_value() -> None:
    probe = Probe("clock", lambda run: (1, failed("It is wrong.", None)))
    run = examination()
    assert not run.succeeded(probe)
    assert run.verdict(Probe("token", lambda run: (run.value(probe), ok("")))).status is Status.SKIPPED


def test_offline_a_probe_that_needs_the_network_does_not_run() -> None:
    counted = Counted()
    verdict = examination(offline=True).verdict(Probe("clock", counted, network=True))
    assert (verdict.status, counted.runs) == (Status.SKIPPED, 0)


def test_a_refusal_by_entra_has_its_correlation_id() -> None:
    def measure(run: Examination) -> tuple[None, Verdict]:
        raise EntraError("Refused.", hint="Upload it.", correlation_id="1-2-3")

    assert examination().verdict(Probe("token", measure)) == failed("Refused. Correlation id: 1-2-3.", "Upload it.")


def test_an_unexpected_error_is_named_and_not_quoted() -> None:
    facts: dict[str, int] = {}
    verdict = examination().verdict(Probe("pin", lambda run: (facts["secret"], ok(""))))
    assert verdict.status is Status.FAILED
    assert "KeyError" in verdict.detail
    assert "secret" not in verdict.detail


def test_what_a_probe_opened_is_closed_with_the_run() -> None:
    closed: list[str] = []

    def measure(run: Examination) -> tuple[None, Verdict]:
        run.resources.callback(closed.append, "device")
        return None, ok("")

    run = examination()
    with suppress(KeyboardInterrupt), run.resources:
        run.verdict(Probe("login", measure))
        raise KeyboardInterrupt
    assert closed == ["device"]
