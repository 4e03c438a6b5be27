"""Signing in worker processes."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from hsm_signer.crypto import Algorithm
from hsm_signer.device.worker.pool import open_worker
from hsm_signer.errors import DeviceError, DeviceGone, KeyNotFound, PinIncorrect, PinUnavailable
from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.counted_pin import CountedPin
from tests.support.processes import wait_until_gone, workers_of_this_process

from .conftest import AccessTo

MESSAGE = b"header.claims"


@pytest.fixture
def right(softhsm: SoftHsm) -> CountedPin:
    return CountedPin(softhsm.pin)


def test_signatures_verify(access_to: AccessTo, key: SoftHsmKey) -> None:
    with open_worker(access_to(key.uri)) as signer:
        signature = signer.sign(Algorithm.RS256, MESSAGE)
        assert signer.certificate() == key.certificate
    assert isinstance(key.public_key, rsa.RSAPublicKey)
    key.public_key.verify(signature, MESSAGE, padding.PKCS1v15(), hashes.SHA256())


def test_several_workers_sign_in_parallel_after_one_pin_prompt(
    access_to: AccessTo, key: SoftHsmKey, right: CountedPin
) -> None:
    with open_worker(access_to(key.uri, pin=right), workers=3) as signer, ThreadPoolExecutor(6) as pool:
        signatures = list(pool.map(lambda number: signer.sign(Algorithm.PS256, bytes([number])), range(60)))
        assert len(workers_of_this_process()) in (2, 3)
    assert all(signer.public_key.verify(Algorithm.PS256, bytes([n]), each) for n, each in enumerate(signatures))
    assert right.times == 1


def test_a_killed_worker_loses_at_most_the_current_request_and_needs_no_new_pin_prompt(
    access_to: AccessTo, key: SoftHsmKey, right: CountedPin
) -> None:
    with open_worker(access_to(key.uri, pin=right)) as signer:
        (worker,) = workers_of_this_process()
        os.kill(worker, signal.SIGKILL)
        with contextlib.suppress(DeviceGone):
            signer.sign(Algorithm.RS256, MESSAGE)
        signer.sign(Algorithm.RS256, MESSAGE)
        assert worker not in workers_of_this_process()
    assert right.times == 1


def test_a_refused_pin_is_sent_once_and_no_worker_is_started_again(access_to: AccessTo, key: SoftHsmKey) -> None:
    wrong = CountedPin("not-the-pin")
    with pytest.raises(PinIncorrect):
        open_worker(access_to(key.uri, pin=wrong))
    assert wrong.times == 1
    assert workers_of_this_process() == []


def test_an_error_of_the_pin_source_reaches_the_caller(access_to: AccessTo, key: SoftHsmKey) -> None:
    with pytest.raises(PinUnavailable, match="nothing there"):
        open_worker(access_to(key.uri, pin=CountedPin(PinUnavailable("nothing there"))))


def test_if_no_thread_can_start_no_worker_is_started_and_the_error_has_a_hint(
    access_to: AccessTo, key: SoftHsmKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(DeviceError, match="can't start new thread") as failed:
        open_worker(access_to(key.uri))
    assert "ulimit -u" in str(failed.value.hint)


def test_a_worker_ends_if_its_opening_is_interrupted(access_to: AccessTo, key: SoftHsmKey) -> None:
    with pytest.raises(KeyboardInterrupt):
        open_worker(access_to(key.uri, pin=CountedPin(KeyboardInterrupt())))
    assert workers_of_this_process() == []


def test_errors_of_the_device_arrive_with_all_their_fields(access_to: AccessTo, key: SoftHsmKey) -> None:
    with pytest.raises(KeyNotFound, match="object=missing") as caught:
        open_worker(access_to("pkcs11:token=device%20tests;object=missing"))
    assert caught.value.hint
    assert pickle.loads(pickle.dumps(caught.value)).hint == caught.value.hint  # noqa: S301  # our own


def test_closing_ends_the_worker(access_to: AccessTo, key: SoftHsmKey) -> None:
    signer = open_worker(access_to(key.uri))
    signer.close()
    assert workers_of_this_process() == []
    with pytest.raises(DeviceError, match="closed"):
        signer.sign(Algorithm.RS256, MESSAGE)


def test_a_worker_dies_with_its_parent(access_to: AccessTo, key: SoftHsmKey, softhsm: SoftHsm) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.pin.sources import EnvironmentPin
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.device.worker.pool import open_worker

uri, module = sys.argv[1:]
signer = open_worker(KeyAccess(Pkcs11Uri.parse(uri), EnvironmentPin("TEST_PIN"), Path(module)))
children = [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]
print(*children, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    access = access_to(key.uri)
    done = subprocess.run(
        [sys.executable, "-c", program, key.uri, str(access.module)],
        env={**os.environ, **access.module_environment, "TEST_PIN": softhsm.pin},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    (worker,) = done.stdout.split()
    wait_until_gone(int(worker))
