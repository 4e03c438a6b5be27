"""The contract of a device: the same tests for every stack of the matrix."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from hsm_signer.crypto import Algorithm, PublicKey
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.manage.certificates import read_certificate
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.device.worker.pool import open_worker
from hsm_signer.errors import (
    DeviceError,
    DeviceGone,
    DeviceNotFound,
    HsmSignerError,
    PinError,
    PinIncorrect,
    PinLocked,
    PinRefusedBefore,
)
from tests.support.counted_pin import CountedPin
from tests.support.faulty_module.control import FaultyModule
from tests.support.fixtures import Running
from tests.support.stacks import Stack, StackKey
from tests.support.stacks.opencryptoki import stacks

MESSAGE = b"header.claims"
OWN = os.environ.get("HSM_SIGNER_TEST_URI")
STACKS = ["own"] if OWN else stacks("softhsm", "p11-kit", "tpm", "ykcs11", "opensc")
# A process that opened openCryptoki's soft token has the key in its memory: unplugging does not stop it.
REMOVABLE = [name for name in STACKS if name != "opencryptoki"]

# These tests cost PIN tries on a person's own device, or need a person to unplug it.
not_on_ones_own = pytest.mark.skipif(OWN is not None, reason="not done to a person's own device")


@pytest.fixture(params=STACKS)
def stack(request: pytest.FixtureRequest, running: Running) -> Iterator[Stack]:
    stack = running(request.param)
    stack.reset()
    yield stack
    stack.reset()


def access_to(
    stack: Stack, key: StackKey | None = None, pin: CountedPin | None = None, counted: FaultyModule | None = None
) -> KeyAccess:
    """Return access to a key of a stack, through the counting module if one is given."""
    return KeyAccess(
        uri=Pkcs11Uri.parse((key or stack.key).uri),
        pin=pin or CountedPin(stack.pin),
        module=counted.path if counted else stack.module,
        module_environment=stack.environment,
    )


def require_valid(key: StackKey, algorithm: Algorithm, signature: bytes, message: bytes = MESSAGE) -> None:
    """Verify a signature with cryptography."""
    scheme: padding.AsymmetricPadding = padding.PKCS1v15()
    if algorithm is Algorithm.PS256:
        scheme = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)
    key.public_key.verify(signature, message, scheme, hashes.SHA256())


def algorithms(stack: Stack) -> list[Algorithm]:
    return [Algorithm.RS256, Algorithm.PS256] if stack.has_pss else [Algorithm.RS256]


def test_the_key_is_found_by_each_selector(stack: Stack) -> None:
    with open_device(access_to(stack)) as device:
        info, key = device.info, open_signer(device).key.info
    whole = Pkcs11Uri(
        token=info.label,
        manufacturer=info.manufacturer,
        model=info.model,
        serial=info.serial,
        slot_id=info.slot_id,
        slot_description=info.slot_description,
        slot_manufacturer=info.slot_manufacturer,
        library_manufacturer=info.library_manufacturer,
        library_description=info.library_description,
        library_version=info.library_version,
        type="private",
    )
    numbers = stack.key.public_key.public_numbers()
    for selector in (Pkcs11Uri(id=key.id), Pkcs11Uri(object=key.label), Pkcs11Uri(object=key.label, id=key.id)):
        uri = replace(whole, object=selector.object, id=selector.id)
        with open_device(replace(access_to(stack), uri=uri)) as device:
            assert open_signer(device).public_key == PublicKey(numbers.n, numbers.e)


def test_signatures_are_valid(stack: Stack) -> None:
    with open_device(access_to(stack)) as device:
        signer = open_signer(device)
        for algorithm in algorithms(stack):
            require_valid(stack.key, algorithm, signer.sign(algorithm, MESSAGE))


def test_the_certificate_belongs_to_the_key(stack: Stack) -> None:
    with open_device(access_to(stack)) as device:
        assert read_certificate(device, open_signer(device).key.info) == stack.key.certificate


def test_a_key_that_requires_the_pin_for_each_signature_asks_for_it_once(stack: Stack) -> None:
    key = stack.always_authenticate_key
    if key is None:
        pytest.skip("there is no such key on this device")
    source = CountedPin(stack.pin)
    with open_device(access_to(stack, key, source)) as device:
        signer = open_signer(device)
        assert signer.key.always_authenticate
        for algorithm in algorithms(stack):
            require_valid(key, algorithm, signer.sign(algorithm, MESSAGE))
    assert source.times == 1


def test_an_ordinary_key_costs_one_login(stack: Stack, counted: FaultyModule) -> None:
    with open_device(access_to(stack, counted=counted)) as device:
        signer = open_signer(device)
        for _ in range(3):
            signer.sign(Algorithm.RS256, MESSAGE)
    assert [(login.right, login.context_specific) for login in counted.logins()] == [(True, False)]


@not_on_ones_own
def test_a_wrong_pin_is_sent_once(stack: Stack, counted: FaultyModule) -> None:
    source = CountedPin(stack.wrong_pin)
    with pytest.raises(PinIncorrect) as caught:
        open_device(access_to(stack, pin=source, counted=counted))
    assert source.times == 1
    assert [login.right for login in counted.logins()] == [False]
    assert stack.wrong_pin not in str(caught.value) + str(caught.value.hint)


@not_on_ones_own
def test_an_unattended_wrong_pin_is_sent_once_in_all_runs_together(
    stack: Stack, counted: FaultyModule, tmp_path: Path
) -> None:
    source = CountedPin(stack.wrong_pin, attended=False)
    access = replace(access_to(stack, pin=source, counted=counted), pin_record=tmp_path)
    with pytest.raises(PinIncorrect):
        open_device(access)
    for _ in range(3):
        with pytest.raises(PinRefusedBefore):
            open_device(access)
    assert [login.right for login in counted.logins()] == [False]


@not_on_ones_own
def test_a_pin_that_is_too_short_counts_as_refused(stack: Stack) -> None:
    with pytest.raises(PinIncorrect):
        open_device(access_to(stack, pin=CountedPin("1")))


@not_on_ones_own
@pytest.mark.parametrize("stack", [name for name in STACKS if name not in ("softhsm", "p11-kit")], indirect=True)
def test_a_locked_device_is_reported_as_locked(stack: Stack) -> None:
    assert stack.locks
    for _ in range(3):
        with pytest.raises(PinError):
            open_device(replace(access_to(stack, pin=CountedPin(stack.wrong_pin)), allow_last_try=True))
    with pytest.raises(PinLocked) as caught:
        open_device(access_to(stack))
    assert "Unblock" in str(caught.value.hint)


@not_on_ones_own
def test_a_device_signs_again_after_it_was_unplugged_and_plugged_in(stack: Stack) -> None:
    source = CountedPin(stack.pin)
    with open_device(access_to(stack, pin=source)) as device:
        signer = open_signer(device)
        signer.sign(Algorithm.RS256, MESSAGE)
        stack.unplug()
        stack.plug()
        require_valid(stack.key, Algorithm.RS256, signer.sign(Algorithm.RS256, MESSAGE))
    assert source.times == 1


@not_on_ones_own
@pytest.mark.parametrize("stack", REMOVABLE, indirect=True)
def test_signing_fails_while_a_device_is_unplugged_and_works_again_afterwards(stack: Stack) -> None:
    with open_device(access_to(stack)) as device:
        signer = open_signer(device)
        stack.unplug()
        for _ in range(2):
            with pytest.raises(DeviceGone):
                signer.sign(Algorithm.RS256, MESSAGE)
        stack.plug()
        require_valid(stack.key, Algorithm.RS256, signer.sign(Algorithm.RS256, MESSAGE))


@not_on_ones_own
def test_a_device_that_is_plugged_in_after_the_start_is_found(stack: Stack) -> None:
    stack.unplug()
    with pytest.raises((DeviceNotFound, DeviceError)):
        open_device(access_to(stack))
    stack.plug()
    with open_device(access_to(stack)) as device:
        open_signer(device).sign(Algorithm.RS256, MESSAGE)


@not_on_ones_own
@pytest.mark.parametrize("stack", REMOVABLE, indirect=True)
def test_a_worker_signs_again_after_its_device_was_replugged(stack: Stack) -> None:
    source = CountedPin(stack.pin)
    with open_worker(access_to(stack, pin=source)) as signer:
        signer.sign(Algorithm.RS256, MESSAGE)
        stack.unplug()
        with pytest.raises(HsmSignerError):
            signer.sign(Algorithm.RS256, MESSAGE)
        stack.plug()
        require_valid(stack.key, Algorithm.RS256, signer.sign(Algorithm.RS256, MESSAGE))
    assert source.times == 1


def test_four_threads_get_valid_signatures(stack: Stack) -> None:
    with open_device(access_to(stack)) as device, ThreadPoolExecutor(4) as pool:
        signer = open_signer(device)
        messages = [bytes([number]) * 40 for number in range(40)]
        signatures = list(pool.map(lambda message: signer.sign(Algorithm.RS256, message), messages))
    for message, signature in zip(messages, signatures, strict=True):
        require_valid(stack.key, Algorithm.RS256, signature, message)


_FORK = """
import os, sys
from pathlib import Path
from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.pin.sources import EnvironmentPin
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceError
from tests.support.counted_pin import CountedPin

uri, module = sys.argv[1:]
access = KeyAccess(Pkcs11Uri.parse(uri), EnvironmentPin("TEST_PIN"), Path(module))
device = open_device(access)
signer = open_signer(device)
for use in (False, True):
    if os.fork() == 0:
        if use:
            for attempt in (lambda: signer.sign(Algorithm.RS256, b"x"), lambda: open_device(access)):
                try:
                    attempt()
                except DeviceError as error:
                    print("child:", error, flush=True)
        sys.exit(0)
    os.wait()
# Below our own recovery, which would hide a session that the child has ended.
session = device._session
signer.sign(Algorithm.RS256, b"x")
print("same session:", device._session is session)
"""


def test_a_forked_child_cannot_use_the_parents_device_and_does_not_close_it(stack: Stack) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORK, stack.key.uri, str(stack.module)],
        env={**os.environ, **stack.environment, "TEST_PIN": stack.pin},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert "was opened by the parent" in done.stdout
    assert "was loaded by the parent" in done.stdout
    assert done.stdout.splitlines()[-1] == "same session: True"
