"""What openCryptoki's soft token does that other devices do not. Run by test_opencryptoki.py, in its namespaces."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from pkcs11 import Mechanism

from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.manage.generate import KeySpec, generate_key
from hsm_signer.device.mechanisms import plan_signing
from hsm_signer.device.pin.pin import Pin
from hsm_signer.device.pin.sources import FixedLogin
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceError, KeyUnfit
from tests.support.fixtures import Running
from tests.support.stacks import Stack
from tests.support.stacks.apart import Apart, run_apart


@pytest.fixture
def stack(running: Running) -> Iterator[Stack]:
    stack = running("opencryptoki")
    stack.reset()
    yield stack
    stack.reset()


def access_to(stack: Stack) -> KeyAccess:
    pin = FixedLogin(Pin(stack.pin), "a test")
    return KeyAccess(Pkcs11Uri.parse(stack.key.uri), pin, stack.module, writable=True)


def test_before_version_3_16_the_host_must_hash_for_rs256(stack: Stack) -> None:
    with open_device(access_to(stack)) as device:
        mechanisms = open_signer(device).key.mechanisms
        raw = device.info.library_version < (3, 16)
    assert plan_signing(Algorithm.RS256, mechanisms).mechanism is (
        Mechanism.RSA_PKCS if raw else Mechanism.SHA256_RSA_PKCS
    )
    assert plan_signing(Algorithm.PS256, mechanisms).mechanism is Mechanism.SHA256_RSA_PKCS_PSS


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_digest_from_the_host_is_signed(stack: Stack, algorithm: Algorithm) -> None:
    with open_device(access_to(stack)) as device:
        signer = open_signer(device)
        signer.key = replace(signer.key, mechanisms=frozenset({Mechanism.RSA_PKCS, Mechanism.RSA_PKCS_PSS}))
        signature = signer.sign(algorithm, b"x")
    scheme = padding.PKCS1v15() if algorithm is Algorithm.RS256 else padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    stack.key.public_key.verify(signature, b"x", scheme, hashes.SHA256())


def test_a_key_that_requires_the_pin_for_each_signature_does_not_work(stack: Stack) -> None:
    with open_device(access_to(stack)) as device:

        def make_and_use() -> None:
            made = generate_key(device, KeySpec("always", always_authenticate=True))  # version 3.23 refuses
            open_signer(device, Pkcs11Uri.parse(made.uri)).sign(Algorithm.RS256, b"x")  # 3.8 cannot be given the PIN

        with pytest.raises((DeviceError, KeyUnfit)) as caught:
            make_and_use()
        assert "without --always-authenticate" in str(caught.value.hint)
        # The other keys of the device still work.
        open_signer(device).sign(Algorithm.RS256, b"x")


def test_a_process_still_signs_after_the_daemon_was_restarted(stack: Stack) -> None:
    lines = """
        with open_device(access(KEY)) as device:
            signer = open_signer(device)
            tell("open")
            wait()
            tell(len(signer.sign(Algorithm.RS256, b"x")))
        """
    with Apart(stack, lines) as apart:
        assert apart.hear() == "open"
        stack.unplug()
        stack.plug()
        apart.go()
        assert apart.rest() == ["256"]


def test_if_the_daemon_is_stopped_the_hint_names_it(stack: Stack) -> None:
    stack.unplug()
    (hint,) = run_apart(
        stack,
        """
        try:
            open_device(access(KEY))
        except HsmSignerError as error:
            tell(" ".join([str(error.hint), *error.commands]))
        """,
    )
    assert "systemctl enable --now pkcsslotd" in hint
