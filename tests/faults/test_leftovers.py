"""A failure leaves no thread, no descriptor and no process behind."""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.inventory.survey import survey
from hsm_signer.device.module import load_module
from hsm_signer.device.module_search import ModuleReference
from hsm_signer.device.pin.pin import Pin
from hsm_signer.device.pin.sources import FixedLogin
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.device.worker.pool import open_worker
from hsm_signer.errors import DeviceTimeout, HsmSignerError
from tests.support.faulty_module.control import FaultyModule, Rv
from tests.support.processes import children_of_this_process

Fail = Callable[[FaultyModule], None]


def is_no_module(faulty: FaultyModule) -> None:
    load_module(Path(__file__), {}, 60)


def refuses_to_initialize(faulty: FaultyModule) -> None:
    load_module(Path(faulty.path), faulty.environment, 60)


def refuses_in_a_worker(faulty: FaultyModule) -> None:
    pin = FixedLogin(Pin("4711"), "a test")
    open_worker(KeyAccess(Pkcs11Uri(), pin, Path(faulty.path), module_environment=faulty.environment))


def refuses_in_a_survey(faulty: FaultyModule) -> None:
    problem = survey(ModuleReference(Path(faulty.path)), faulty.environment, 60).problem
    assert problem is not None
    raise HsmSignerError(problem.message)


def left() -> tuple[int, int, int]:
    """Return how many threads, descriptors and child processes this process has."""
    return threading.active_count(), len(os.listdir("/proc/self/fd")), len(children_of_this_process())


@pytest.mark.parametrize(
    ("fail", "times"),
    [(is_no_module, 50), (refuses_to_initialize, 50), (refuses_in_a_worker, 3), (refuses_in_a_survey, 3)],
)
def test_a_module_that_fails_to_load_leaves_nothing_behind(fail: Fail, times: int, faulty: FaultyModule) -> None:
    faulty.rule("C_Initialize", rv=Rv.GENERAL_ERROR)

    def fails() -> None:
        with pytest.raises(HsmSignerError):
            fail(faulty)

    fails()
    before = left()
    for _ in range(times):
        fails()
    # A thread that is asked to end needs a moment.
    deadline = time.monotonic() + 30
    while left() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left() <= before


@pytest.mark.parametrize("fail", [refuses_in_a_worker, refuses_in_a_survey])
def test_a_process_that_cannot_be_started_leaves_nothing_behind(
    fail: Fail, faulty: FaultyModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    before = left()
    with pytest.raises(HsmSignerError, match="No process could be started"):
        fail(faulty)
    assert left()[1:] == before[1:]


def test_a_module_that_hangs_while_it_loads_is_not_called_again_before_it_returns(faulty: FaultyModule) -> None:
    faulty.rule("C_Initialize", hang=float("inf"))
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(DeviceTimeout):
            load_module(Path(faulty.path), faulty.environment, 0.1)
    assert faulty.calls("C_Initialize") == 1
    assert threading.active_count() == before + 1
    faulty.clear()
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    load_module(Path(faulty.path), faulty.environment, 60)
