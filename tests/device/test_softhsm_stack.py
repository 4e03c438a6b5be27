"""The SoftHSM of the matrix can be taken away and brought back, and forgets what a test did to it."""

from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from .stacks import Stack
from .stacks.apart import run_apart
from .stacks.softhsm import SoftHsmStack

SIGN = """
for uri in KEY, ALWAYS:
    with open_device(reference(uri)) as device:
        signer = device.signer()
        tell(signer.sign(Algorithm.RS256, b"message").hex())
        tell(signer.key.always_authenticate)
        tell(device.certificate(signer).hex())
"""
WRONG_PIN = 'tell(outcome(open_device, reference(KEY, "STACK_WRONG_PIN")))'
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


def test_signs_with_both_keys(stack: Stack) -> None:
    lines = run_apart(stack, SIGN)
    for key, always in (stack.key, "False"), (stack.always_authenticate_key, "True"):
        assert key is not None
        signature, wants_pin, certificate = (lines.pop(0) for _ in range(3))
        key.public_key.verify(bytes.fromhex(signature), b"message", padding.PKCS1v15(), hashes.SHA256())
        assert wants_pin == always
        assert bytes.fromhex(certificate) == key.certificate


def test_is_not_found_while_unplugged(stack: Stack) -> None:
    stack.unplug()
    assert run_apart(stack, "tell(outcome(open_device, reference(KEY)))") == ["DeviceNotFound"]


def test_signs_after_it_was_plugged_in_again(stack: Stack) -> None:
    stack.unplug()
    stack.plug()
    assert len(run_apart(stack, SIGN)) == 6


def test_forgets_a_wrong_pin_at_reset(stack: Stack) -> None:
    assert run_apart(stack, WRONG_PIN) == ["PinIncorrect"]
    assert run_apart(stack, FLAGS) == ["True"]
    stack.reset()
    assert run_apart(stack, FLAGS) == ["False"]
