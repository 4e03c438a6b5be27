"""The doctor on a device that is lost during the check: it still logs in once, and reports what it can."""

from collections.abc import Iterator

import pytest

from hsm_signer.config.profile import Profile, profile_from_arguments
from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess, Operator
from hsm_signer.device.device import open_device
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.doctor.doctor import examine
from hsm_signer.doctor.verdicts import Status, Verdict
from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.counted_pin import CountedPin
from tests.support.faulty_module.control import FaultyModule, Rv

# The probes that need the session, in order. The probes after these are about the network.
ON_THE_DEVICE = ("key", "protection", "mechanisms", "certificate", "signature")
ON_SESSIONS = ("C_FindObjectsInit", "C_FindObjects", "C_GetAttributeValue", "C_SignInit", "C_Sign(NULL)", "C_Sign")
LOST = (Rv.DEVICE_REMOVED, Rv.SESSION_HANDLE_INVALID, Rv.USER_NOT_LOGGED_IN, Rv.GENERAL_ERROR)


@pytest.fixture
def pin(softhsm: SoftHsm) -> CountedPin:
    return CountedPin(softhsm.pin)


@pytest.fixture
def profile(faulty: FaultyModule, key: SoftHsmKey) -> Profile:
    return profile_from_arguments(
        {
            "tenant": "contoso.example",
            "client_id": "8f1c1f3e-7a58-4f0a-8f1e-3f5ad2a3a001",
            "key": key.uri,
            "module": faulty.path,
            "module_environment": faulty.environment,
        }
    )


def run(profile: Profile, pin: CountedPin) -> dict[str, Verdict]:
    """Run every probe but pcscd, which depends on what other tests have loaded into this process."""
    findings = examine(profile, Operator(prompt=pin), offline=True)
    return {name: verdict for name, verdict in findings if name != "pcscd"}


def calls_of_each_probe(profile: Profile, pin: CountedPin, faulty: FaultyModule) -> Iterator[tuple[str, int]]:
    """Check a device without faults. Return the probe and the number of each call after the login."""
    done = 0
    for name, _ in examine(profile, Operator(prompt=pin), offline=True):
        before, done = done, len(faulty.log())
        if name in ON_THE_DEVICE:
            for number in range(before, done):
                yield name, number


def lose_session(faulty: FaultyModule, rv: Rv, before: list[str], call: str) -> None:
    """Lose the session in a call, after those in `before`. The device stays, and would accept another login."""
    for function in {call, *ON_SESSIONS}:
        faulty.rule(function, rv=rv, skip=before.count(function), times=None if function in ON_SESSIONS else 1)


@pytest.mark.parametrize("rv", LOST)
@pytest.mark.parametrize("always_authenticate", [False, True])
def test_a_device_lost_at_any_call_costs_no_second_login(
    rv: Rv, always_authenticate: bool, profile: Profile, pin: CountedPin, faulty: FaultyModule
) -> None:
    run(profile, pin)  # so that the module is loaded in the next runs
    faulty.clear()
    faulty.always_authenticate(always_authenticate)
    calls = list(calls_of_each_probe(profile, pin, faulty))
    names = [call.function for call in faulty.log()]
    assert {probe for probe, _ in calls} == {"key", "protection", "certificate", "signature"}
    for probe, number in calls:
        faulty.clear()
        faulty.always_authenticate(always_authenticate)
        pin.times = 0
        lose_session(faulty, rv, names[:number], names[number])
        findings = run(profile, pin)
        where = f"{names[number]}, call {number}, of the probe {probe}"
        logins = [login.context_specific for login in faulty.logins()]
        assert (logins.count(False), pin.times) == (1, 1), where
        assert logins.count(True) <= always_authenticate, where
        assert findings[probe].status is Status.FAILED, where
        assert "was lost while" in findings[probe].detail, where
        before = ON_THE_DEVICE[: ON_THE_DEVICE.index(probe)]
        assert Status.FAILED not in [findings[name].status for name in before], where


def test_after_a_single_failure_the_remaining_probes_still_run(
    profile: Profile, pin: CountedPin, faulty: FaultyModule
) -> None:
    run(profile, pin)
    faulty.clear()
    numbers = [number for probe, number in calls_of_each_probe(profile, pin, faulty) if probe == "protection"]
    names = [call.function for call in faulty.log()][: numbers[0]]
    faulty.clear()
    faulty.rule("C_GetAttributeValue", rv=Rv.DEVICE_ERROR, times=1, skip=names.count("C_GetAttributeValue") + 1)
    findings = run(profile, pin)
    assert [name for name, verdict in findings.items() if verdict.status is Status.FAILED] == ["protection"]
    assert findings["signature"].status is Status.OK
    assert faulty.calls("C_Login") == 1


def test_a_module_that_other_code_initializes_again_costs_no_second_login(
    profile: Profile, pin: CountedPin, faulty: FaultyModule, key: SoftHsmKey
) -> None:
    access = KeyAccess(Pkcs11Uri.parse(key.uri), pin, faulty.path, module_environment=faulty.environment)
    findings = {}
    with open_device(access) as other:
        signer = open_signer(other)
        for name, verdict in examine(profile, Operator(prompt=pin), offline=True):
            findings[name] = verdict
            if name == "key":
                faulty.clear()
                faulty.rule("C_SignInit", rv=Rv.DEVICE_REMOVED, times=1)
                signer.sign(Algorithm.RS256, b"message")
    assert "initialised the module again" in findings["protection"].detail
    assert faulty.calls("C_Login") == 1  # the login of the other device object
