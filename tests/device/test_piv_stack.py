"""The virtual YubiKey through both modules: the facts that the contract suite builds on.

Everything that loads a module runs in a separate process.
"""

import hashlib
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from tests.support.stacks.apart import Apart, run_apart
from tests.support.stacks.piv import PivStack, VirtualYubiKey
from tests.support.stacks.piv_card import AUTHENTICATION, SIGNATURE

SIGN_TWICE = """
    with open_device(access({uri})) as device:
        signer = open_signer(device)
        tell(signer.key.always_authenticate)
        for _ in range(2):
            tell(signer.sign(Algorithm.{algorithm}, b"x").hex())
    """


@pytest.fixture(scope="module")
def yubikey() -> Iterator[VirtualYubiKey]:
    yubikey = VirtualYubiKey()
    yield yubikey
    yubikey.close()


@pytest.fixture(params=["ykcs11", "opensc"])
def stack(yubikey: VirtualYubiKey, request: pytest.FixtureRequest) -> PivStack:
    (stack,) = (stack for stack in yubikey.stacks if stack.name == request.param)
    stack.reset()
    return stack


@pytest.mark.parametrize("algorithm", ["RS256", "PS256"])
class TestSigning:
    def test_9a_signs_after_one_pin(self, stack: PivStack, algorithm: str) -> None:
        always, *signatures = run_apart(stack, SIGN_TWICE.format(uri="KEY", algorithm=algorithm))
        for signature in signatures:
            stack.key.public_key.verify(bytes.fromhex(signature), b"x", _padding(algorithm), hashes.SHA256())
        assert (always, len(signatures), stack.presented()) == ("False", 2, 1)

    def test_9c_signs_with_the_pin_each_time(self, stack: PivStack, algorithm: str) -> None:
        key = stack.always_authenticate_key
        assert key is not None
        always, *signatures = run_apart(stack, SIGN_TWICE.format(uri="ALWAYS", algorithm=algorithm))
        for signature in signatures:
            key.public_key.verify(bytes.fromhex(signature), b"x", _padding(algorithm), hashes.SHA256())
        assert (always, len(signatures), stack.presented()) == ("True", 2, 3)


class TestAttestation:
    """What a module shows besides the two keys and their certificates."""

    LIST = """
login("STACK_PIN")
for kind in (ObjectClass.CERTIFICATE, ObjectClass.PRIVATE_KEY):
    for each in list(session.get_objects({Attribute.CLASS: kind})):
        of_key = each[Attribute.SIGN] if kind is ObjectClass.PRIVATE_KEY else each[Attribute.TOKEN]
        tell(f"{each[Attribute.ID].hex()} {kind.name} {of_key}")
"""
    OWN = frozenset({f"{number} {kind} True" for number in ("01", "02") for kind in ("CERTIFICATE", "PRIVATE_KEY")})
    ATTESTING = frozenset({"19 CERTIFICATE True", "19 PRIVATE_KEY False"})

    def test_ykcs11_adds_an_attestation_certificate_for_each_key_and_the_attestation_key(self, stack: PivStack) -> None:
        attestations = {"01 CERTIFICATE False", "02 CERTIFICATE False"}  # not objects of the token: of the session
        shown = {"ykcs11": self.OWN | self.ATTESTING | attestations, "opensc": self.OWN}
        assert set(run_apart(stack, RAW + self.LIST)) == shown[stack.name]

    def test_imported_keys_are_not_attested(self, stack: PivStack) -> None:
        stack.import_keys()
        shown = {"ykcs11": self.OWN | self.ATTESTING, "opensc": self.OWN}
        assert set(run_apart(stack, RAW + self.LIST)) == shown[stack.name]

    def test_opensc_hides_a_key_without_a_certificate(self, stack: PivStack) -> None:
        stack.take_certificates()
        keys = {each for each in self.OWN | self.ATTESTING if "PRIVATE_KEY" in each}
        told = {each for each in run_apart(stack, RAW + self.LIST) if "PRIVATE_KEY" in each}
        assert told == {"ykcs11": keys, "opensc": set()}[stack.name]

    def test_opensc_reports_imported_keys_as_generated_on_the_card(self, stack: PivStack) -> None:
        stack.import_keys()
        told = run_apart(stack, RAW + 'login("STACK_PIN"); find(1); tell(key[Attribute.LOCAL])')
        assert told == [{"ykcs11": "False", "opensc": "True"}[stack.name]]


class TestPin:
    def test_a_wrong_pin_costs_one_try(self, stack: PivStack) -> None:
        (told,) = run_apart(stack, 'tell(outcome(open_device, access(KEY, "STACK_WRONG_PIN")))')
        assert told.startswith("PinIncorrect")
        assert stack.presented() == 1

    def test_a_reset_restores_the_tries(self, stack: PivStack) -> None:
        wrong_ones = RAW + 'for _ in range(3): tell(attempt(lambda: login("STACK_WRONG_PIN")))'
        right_one = RAW + 'tell(attempt(lambda: login("STACK_PIN")))'
        assert run_apart(stack, wrong_ones) == ["PinIncorrect"] * 3
        assert run_apart(stack, right_one) == ["PinLocked"]
        stack.reset()
        assert run_apart(stack, right_one) == ["done"]
        assert stack.presented() == 1

    def test_a_pin_of_impossible_length_never_reaches_the_card(self, stack: PivStack) -> None:
        short = RAW + 'os.environ["SHORT"] = "1"; tell(attempt(lambda: login("SHORT")))'
        assert run_apart(stack, short) == [{"ykcs11": "ArgumentsBad", "opensc": "PinLenRange"}[stack.name]]
        assert stack.presented() == 0


# What the modules return, without our own code in between.
RAW = """
import os
import pkcs11
from pkcs11 import Attribute, Mechanism, ObjectClass

library = pkcs11.lib(os.environ["STACK_MODULE"])

def tell(word): print(word, flush=True)
def attempt(function):
    try:
        function()
    except pkcs11.PKCS11Error as error:
        return type(error).__name__
    return "done"

def login(variable):
    global session
    (slot,) = library.get_slots(token_present=True)
    session = slot.get_token().open(user_pin=os.environ[variable])

def find(number):
    global key
    (key,) = session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: bytes([number])})

def sign(pin=None):
    more = {"pin": os.environ[pin]} if pin else {}
    key.sign(b"x", mechanism=Mechanism.SHA256_RSA_PKCS, **more)
"""
SIGN = 'login("STACK_PIN"); find(1); sign(); tell("signed"); input()\n'


class TestMisfortune:
    """What a module returns when something happens to the card between two signatures."""

    def test_a_card_that_is_pulled_and_put_back(self, stack: PivStack) -> None:
        then = 'tell(attempt(sign)); input(); session = None; login("STACK_PIN"); find(1); sign(); tell("again")'
        with Apart(stack, RAW + SIGN + then) as apart:
            assert apart.hear() == "signed"
            stack.unplug()
            apart.go()
            # ykcs11 2.2 and 2.7
            assert apart.hear() in {"ykcs11": ["DeviceError", "DeviceRemoved"], "opensc": ["DeviceRemoved"]}[stack.name]
            stack.plug()
            apart.go()
            assert apart.rest() == ["again"]

    def test_a_card_that_is_pulled_while_it_signs(self, stack: PivStack) -> None:
        with Apart(stack, RAW + SIGN + "tell(attempt(sign))") as apart:
            assert apart.hear() == "signed"
            stack.touch(True)
            apart.go()
            stack.wait_for_touch_request()
            stack.unplug()
            (told,) = apart.rest()
        # OpenSC blames the removal only when pcscd has seen it first, at its next poll of the reader. ykcs11: 2.2, 2.7.
        known = {"ykcs11": ["DeviceError", "FunctionFailed"], "opensc": ["DeviceRemoved", "GeneralError"]}
        assert told in known[stack.name]

    def test_a_card_that_forgot_the_login(self, stack: PivStack) -> None:
        with Apart(stack, RAW + SIGN + "tell(attempt(sign))") as apart:
            assert apart.hear() == "signed"
            stack.forget_login()
            apart.go()
            assert apart.rest() == ["UserNotLoggedIn"]

    def test_a_card_that_was_reset(self, stack: PivStack) -> None:
        with Apart(stack, RAW + SIGN + "tell(attempt(sign))") as apart:
            assert apart.hear() == "signed"
            stack.reset_card()
            apart.go()
            # ykcs11 keeps the PIN and sends it again by itself.
            assert apart.rest() == [{"ykcs11": "done", "opensc": "UserNotLoggedIn"}[stack.name]]
        assert stack.presented() == {"ykcs11": 2, "opensc": 1}[stack.name]

    def test_a_missed_touch(self, stack: PivStack) -> None:
        with Apart(stack, RAW + SIGN + "tell(attempt(sign))") as apart:
            assert apart.hear() == "signed"
            stack.patience(0.2)
            stack.touch(True)
            apart.go()
            assert apart.rest() == ["UserNotLoggedIn"]

    def test_a_touch_that_comes_late(self, stack: PivStack) -> None:
        with Apart(stack, RAW + SIGN + "tell(attempt(sign))") as apart:
            assert apart.hear() == "signed"
            stack.touch(True)
            apart.go()
            stack.wait_for_touch_request()
            stack.touch(False)
            assert apart.rest() == ["done"]

    def test_a_signature_that_takes_its_time(self, stack: PivStack) -> None:
        timed = "import time; begun = time.monotonic(); sign(); tell(time.monotonic() - begun >= 0.3)"
        with Apart(stack, RAW + SIGN + timed) as apart:
            assert apart.hear() == "signed"
            stack.hold(0.3)
            apart.go()
            assert apart.rest() == ["True"]

    def test_a_wrong_pin_for_one_signature(self, stack: PivStack) -> None:
        lines = 'login("STACK_PIN"); find(2); tell(attempt(lambda: sign("STACK_WRONG_PIN")))\n'
        then = 'tell(attempt(lambda: sign("STACK_PIN")))'
        # OpenSC logs the whole session out.
        assert run_apart(stack, RAW + lines + then) == [
            "PinIncorrect",
            {"ykcs11": "done", "opensc": "OperationNotInitialized"}[stack.name],
        ]
        assert stack.presented() == {"ykcs11": 3, "opensc": 2}[stack.name]


def _padding(algorithm: str) -> padding.AsymmetricPadding:
    if algorithm == "RS256":
        return padding.PKCS1v15()
    return padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)


class TestSharing:
    """One card, two processes."""

    @pytest.mark.parametrize("other", ["ykcs11", "opensc"])
    def test_both_sign_in_turn(self, stack: PivStack, other: str, yubikey: VirtualYubiKey) -> None:
        (beside,) = (each for each in yubikey.stacks if each.name == other)
        lines = """
            with open_device(access(KEY)) as device:
                signer = open_signer(device)
                for _ in range(3):
                    tell(signer.sign(Algorithm.RS256, b"x").hex())
                    wait()
            """
        with Apart(stack, lines) as first, Apart(beside, lines) as second:
            for _ in range(3):
                for process in (first, second):
                    signature = bytes.fromhex(process.hear())
                    stack.key.public_key.verify(signature, b"x", padding.PKCS1v15(), hashes.SHA256())
                    process.go()

    def test_a_process_without_the_pin_signs_with_9a_while_another_is_logged_in_but_not_with_9c(
        self, stack: PivStack
    ) -> None:
        info = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(b"x").digest()
        block = b"\x00\x01" + b"\xff" * (256 - len(info) - 3) + b"\x00" + info  # RFC 8017 section 9.2
        with Apart(stack, RAW + SIGN) as apart:
            assert apart.hear() == "signed"
            answer = stack.sign_elsewhere(AUTHENTICATION, block)
            refusal = stack.sign_elsewhere(SIGNATURE, block)
        assert answer[-2:] == b"\x90\x00"
        stack.key.public_key.verify(answer[-258:-2], b"x", padding.PKCS1v15(), hashes.SHA256())
        assert refusal == b"\x69\x82"  # security status not satisfied
        assert stack.presented() == 1

    def test_its_serial_depends_on_the_module(self, yubikey: VirtualYubiKey) -> None:
        lines = "with open_device(access(KEY)) as device: tell(device.info.serial)"
        serials = [run_apart(stack, lines) for stack in yubikey.stacks]
        assert serials[0] == ["12345678"]
        assert serials[1] != serials[0]
