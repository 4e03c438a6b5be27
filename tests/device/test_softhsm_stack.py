"""The SoftHSM of the matrix: it can be unplugged, never locks, and needs its configuration."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from tests.support.stacks import Stack
from tests.support.stacks.apart import run_apart
from tests.support.stacks.softhsm import SoftHsmStack

SIGN = """
for uri in KEY, ALWAYS:
    with open_device(access(uri)) as device:
        signer = open_signer(device)
        tell(signer.sign(Algorithm.RS256, b"message").hex())
        tell(signer.key.always_authenticate)
        tell(read_certificate(device, signer.key.info).hex())
"""
WRONG_PIN = 'tell(outcome(open_device, access(KEY, "STACK_WRONG_PIN")))'
FLAGS = """
import pkcs11

token = pkcs11.lib(os.environ["STACK_MODULE"]).get_token(token_label="device tests")
tell(bool(token.flags & pkcs11.TokenFlag.USER_PIN_COUNT_LOW))
"""


@pytest.fixture(scope="module")
def started() -> Iterator[SoftHsmStack]:
    stack = SoftHsmStack()
    yield stack
    stack.close()


@pytest.fixture
def stack(started: SoftHsmStack) -> Stack:
    started.reset()
    return started


def test_both_keys_sign(stack: Stack) -> None:
    lines = run_apart(stack, SIGN)
    for key, always in (stack.key, "False"), (stack.always_authenticate_key, "True"):
        assert key is not None
        signature, wants_pin, certificate = (lines.pop(0) for _ in range(3))
        key.public_key.verify(bytes.fromhex(signature), b"message", padding.PKCS1v15(), hashes.SHA256())
        assert wants_pin == always
        assert bytes.fromhex(certificate) == key.certificate


def test_it_is_not_found_while_unplugged(stack: Stack) -> None:
    stack.unplug()
    assert run_apart(stack, "tell(outcome(open_device, access(KEY)))") == ["DeviceNotFound"]


def test_it_signs_after_it_was_plugged_in_again(stack: Stack) -> None:
    stack.unplug()
    stack.plug()
    assert len(run_apart(stack, SIGN)) == 6


def test_a_reset_clears_the_wrong_pins(stack: Stack) -> None:
    assert run_apart(stack, WRONG_PIN) == ["PinIncorrect"]
    assert run_apart(stack, FLAGS) == ["True"]
    stack.reset()
    assert run_apart(stack, FLAGS) == ["False"]


def test_ten_wrong_pins_do_not_lock_it(stack: Stack) -> None:
    lines = run_apart(stack, f"for _ in range(10): {WRONG_PIN}\n{SIGN}")
    assert lines[:10] == ["PinIncorrect"] * 10
    assert len(lines) == 16


_WITHOUT_CONFIGURATION = """
import os, sys
from pathlib import Path

import pkcs11._pkcs11  # python-pkcs11 would load it later, when it may be out of reach

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.pin.sources import NO_LOGIN
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ModuleLoadError

if os.geteuid() == 0:  # root could read the system's configuration
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
try:
    open_device(KeyAccess(Pkcs11Uri(), NO_LOGIN, Path(sys.argv[1])))
except ModuleLoadError as error:
    print(error.message, error.hint, sep="\\n")
"""


def test_without_a_configuration_of_ones_own_the_error_says_which_one_was_not_readable(stack: Stack) -> None:
    message, hint = subprocess.run(
        [sys.executable, "-c", _WITHOUT_CONFIGURATION, str(stack.module)],
        env={name: value for name, value in os.environ.items() if name != "SOFTHSM2_CONF"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    ).stdout.splitlines()
    assert "SoftHSM's configuration, " in message
    assert "softhsm2.conf" in message
    assert "Make a configuration of your own." in hint
