"""A slow call shows progress until it ends: in this process and in a worker, on every path."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hsm_signer.crypto import Algorithm, Signer
from hsm_signer.device.access import KeyAccess, Operator
from hsm_signer.device.device import open_device
from hsm_signer.device.pin.pin import Pin
from hsm_signer.device.pin.sources import FixedLogin
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.device.worker.pool import open_worker
from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FaultyModule

MESSAGE = b"header.claims"
Open = Callable[[KeyAccess], AbstractContextManager[Signer]]


@contextmanager
def in_this_process(access: KeyAccess) -> Iterator[Signer]:
    with open_device(access) as device:
        yield open_signer(device)


@pytest.fixture(params=[in_this_process, open_worker])
def opened(request: pytest.FixtureRequest) -> Open:
    opened: Open = request.param
    return opened


class Shown:
    """Records what is slow, and ends the hang of the module once it was shown."""

    def __init__(self, faulty: FaultyModule, awaited: str) -> None:
        self.log: list[str] = []
        self._faulty = faulty
        self._awaited = awaited

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self.log.append(f"begin {what}")
        if what == self._awaited:
            self._faulty.clear()
        yield
        self.log.append(f"end {what}")


@pytest.fixture
def access(faulty: FaultyModule, softhsm: SoftHsm, key: SoftHsmKey, monkeypatch: pytest.MonkeyPatch) -> KeyAccess:
    for module in ("lane", "channel"):
        monkeypatch.setattr(f"hsm_signer.device.{module}.MOMENT", 0.05)
    return KeyAccess(
        uri=Pkcs11Uri.parse(key.uri),
        pin=FixedLogin(Pin(softhsm.pin), "a test"),
        module=Path(faulty.path),
        module_environment=faulty.environment,
    )


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("C_Initialize", "loading the module"),
        ("C_GetSlotList", "looking for the device"),
        ("C_Login", "logging in"),
        ("C_FindObjectsInit", "looking up the key"),
        ("C_SignInit", "signing"),
    ],
)
def test_a_slow_call_is_shown_until_it_ends(
    call: str, what: str, opened: Open, access: KeyAccess, faulty: FaultyModule
) -> None:
    shown = Shown(faulty, what)
    faulty.rule(call, hang=float("inf"))
    with opened(replace(access, operator=Operator(slow=shown))) as signer:
        signer.sign(Algorithm.RS256, MESSAGE)
    assert shown.log.index(f"end {what}") == shown.log.index(f"begin {what}") + 1


def test_a_slow_signature_with_a_key_that_requires_the_pin_each_time_is_shown(
    opened: Open, access: KeyAccess, faulty: FaultyModule
) -> None:
    faulty.always_authenticate(True)
    shown = Shown(faulty, "signing")
    with opened(replace(access, operator=Operator(slow=shown))) as signer:
        faulty.rule("C_Sign", hang=float("inf"))
        with contextlib.suppress(Exception):  # clearing the rule makes the key an ordinary one
            signer.sign(Algorithm.RS256, MESSAGE)
    assert "end signing" in shown.log


def test_without_a_display_the_log_says_to_touch_the_device(
    opened: Open, access: KeyAccess, faulty: FaultyModule, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(access) as signer:
        faulty.rule("C_SignInit", hang=1.0, times=1)
        signer.sign(Algorithm.RS256, MESSAGE)
    assert ("hsm_signer.device.lane", logging.WARNING, "Touch the device if it blinks.") in caplog.record_tuples
