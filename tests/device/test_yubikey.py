"""What a smart card does that other devices do not: it waits for a touch, and shares its login with other processes."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess, Operator
from hsm_signer.device.device import Device, open_device
from hsm_signer.device.locate import find_device, load
from hsm_signer.device.pin.pin import Login, Pin, PinRequest
from hsm_signer.device.pin.sources import FixedLogin, NoPinSource
from hsm_signer.device.pin.state import PinState
from hsm_signer.device.signer import DeviceSigner, open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import (
    DeviceError,
    DeviceGone,
    PinError,
    PinIncorrect,
    PinLastTry,
    PinLocked,
    PinUnavailable,
    TouchMissed,
)
from tests.support.fixtures import Running
from tests.support.login_process import start_login
from tests.support.stacks import StackKey
from tests.support.stacks.piv import PivStack

MESSAGE = b"header.claims"


def access_to(yubikey: PivStack, pin: str | None = None, key: StackKey | None = None) -> KeyAccess:
    return KeyAccess(
        uri=Pkcs11Uri.parse((key or yubikey.key).uri),
        pin=FixedLogin(Pin(pin or yubikey.pin), "a test PIN"),
        module=yubikey.module,
        module_environment=yubikey.environment,
    )


def test_a_missed_touch_is_a_separate_error_and_sends_no_other_pin(yubikey: PivStack) -> None:
    with open_device(access_to(yubikey)) as device:
        signer = open_signer(device)
        yubikey.patience(6)
        yubikey.touch(True)
        with pytest.raises(TouchMissed, match="waited for a touch, and nobody touched it"):
            signer.sign(Algorithm.RS256, MESSAGE)
        assert yubikey.presented() == 1


def test_the_notice_to_touch_is_shown_until_the_signature_is_made(yubikey: PivStack) -> None:
    shown = []

    @contextlib.contextmanager
    def slow(what: str) -> Iterator[None]:
        shown.append(what)
        yubikey.touch(False)
        yield
        shown.append("over")

    with open_device(replace(access_to(yubikey), operator=Operator(slow=slow))) as device:
        signer = open_signer(device)
        yubikey.touch(True)
        assert signer.public_key.verify(Algorithm.RS256, MESSAGE, signer.sign(Algorithm.RS256, MESSAGE))
    assert shown == ["signing", "over"]


def test_no_notice_to_touch_is_shown_for_a_quick_signature(yubikey: PivStack) -> None:
    def slow(what: str) -> contextlib.AbstractContextManager[None]:
        pytest.fail(f"shown while {what}")

    with open_device(replace(access_to(yubikey), operator=Operator(slow=slow))) as device:
        open_signer(device).sign(Algorithm.RS256, MESSAGE)


def test_a_login_that_another_process_ended_is_repeated_once(yubikey: PivStack) -> None:
    with open_device(access_to(yubikey)) as device:
        signer = open_signer(device)
        yubikey.forget_login()
        assert signer.public_key.verify(Algorithm.RS256, MESSAGE, signer.sign(Algorithm.RS256, MESSAGE))
        assert yubikey.presented() == 2


def test_a_card_signs_again_after_another_process_reset_it(yubikey: PivStack) -> None:
    with open_device(access_to(yubikey)) as device:
        signer = open_signer(device)
        yubikey.reset_card()
        assert signer.public_key.verify(Algorithm.RS256, MESSAGE, signer.sign(Algorithm.RS256, MESSAGE))
        assert yubikey.presented() == 2


def test_a_card_unplugged_while_it_waits_for_a_touch_signs_after_it_is_plugged_in(yubikey: PivStack) -> None:
    def replug() -> None:
        yubikey.wait_for_touch_request()
        yubikey.unplug()
        yubikey.touch(False)
        yubikey.plug()

    with open_device(access_to(yubikey)) as device:
        signer = open_signer(device)
        yubikey.touch(True)
        hand = threading.Thread(target=replug)
        hand.start()
        try:
            signature = signer.sign(Algorithm.RS256, MESSAGE)
        except Exception:
            # The search ran while it was still unplugged; the next request finds it.
            hand.join()
            signature = signer.sign(Algorithm.RS256, MESSAGE)
        hand.join()
        assert signer.public_key.verify(Algorithm.RS256, MESSAGE, signature)


def test_the_last_try_is_not_used_until_the_caller_allows_it(yubikey: PivStack) -> None:
    for _ in range(2):
        with contextlib.suppress(Exception):
            open_device(access_to(yubikey, yubikey.wrong_pin))
    with pytest.raises(PinLastTry):
        open_device(access_to(yubikey))
    assert yubikey.presented() == 2
    with open_device(replace(access_to(yubikey), allow_last_try=True)) as device:
        open_signer(device).sign(Algorithm.RS256, MESSAGE)


def test_processes_that_load_the_module_by_different_paths_do_not_use_the_last_try(
    yubikey: PivStack, running: Running, tmp_path: Path
) -> None:
    """Each process has a different wrong PIN, so only the card's flags, read under the login lock, can stop them."""
    processes = []
    for number, stack in enumerate([yubikey, running("ykcs11"), running("opensc")] * 2):
        module, pin = tmp_path / f"module{number}.so", tmp_path / f"pin{number}"
        module.symlink_to(stack.module)
        pin.write_text(f"65432{number}")
        pin.chmod(0o600)
        login = start_login(stack.key.uri, module, stack.environment, pin=pin, record=tmp_path / "pins")
        processes.append(login)
    outcomes = [process.communicate(timeout=100)[0].strip() for process in processes]
    # A card that other processes reset may be gone for a moment, which costs no PIN try.
    assert set(outcomes) - {"device_gone", "device_not_found"} == {"pin_incorrect", "pin_last_try"}
    assert yubikey.presented() == 2


def test_a_person_at_the_prompt_does_not_use_a_last_try_that_other_processes_left_meanwhile(
    yubikey: PivStack, tmp_path: Path
) -> None:
    """ykcs11 reads the PIN state once, when it is initialized: it does not show later logins of other processes."""

    class Person:
        description = identity = "a person"
        attended = True

        def __call__(self, request: PinRequest) -> Login:
            for number in range(2):
                file = tmp_path / f"pin{number}"
                file.write_text(f"65432{number}")
                file.chmod(0o600)
                login = start_login(
                    yubikey.key.uri, yubikey.module, yubikey.environment, pin=file, record=tmp_path / "pins"
                )
                assert login.communicate()[0] == "pin_incorrect\n"
            return Pin(yubikey.wrong_pin)

    with pytest.raises(PinLastTry):
        open_device(replace(access_to(yubikey), pin=Person(), pin_record=tmp_path / "pins"))
    assert yubikey.presented() == 2
    yubikey.reset()
    open_device(access_to(yubikey)).close()  # otherwise the next test sees what ykcs11 remembers


class TestPinState:
    @pytest.mark.parametrize(
        ("wrong", "ykcs11", "opensc"),
        [
            (0, PinState.FINE, PinState.FINE),
            (1, PinState.COUNT_LOW, PinState.FINE),  # OpenSC never sets CKF_USER_PIN_COUNT_LOW
            (2, PinState.LAST_TRY, PinState.LAST_TRY),
            (3, PinState.LOCKED, PinState.LOCKED),
        ],
    )
    def test_the_pin_state_follows_the_number_of_wrong_pins(
        self, wrong: int, ykcs11: PinState, opensc: PinState, yubikey: PivStack
    ) -> None:
        for _ in range(wrong):
            with contextlib.suppress(PinError):
                open_device(replace(access_to(yubikey, yubikey.wrong_pin), allow_last_try=True))
        module = load(access_to(yubikey))
        assert find_device(module, access_to(yubikey)).pin is {"ykcs11": ykcs11, "opensc": opensc}[yubikey.name]

    def test_the_pin_state_is_read_again_before_a_login(self, yubikey: PivStack) -> None:
        open_device(access_to(yubikey)).close()
        yubikey.leave_tries(1)
        with pytest.raises(PinLastTry):
            open_device(access_to(yubikey))
        assert yubikey.presented() == 1

    def test_a_locked_card_is_reported_without_sending_a_pin(self, yubikey: PivStack) -> None:
        yubikey.leave_tries(0)
        with pytest.raises(PinLocked):
            open_device(access_to(yubikey))
        assert yubikey.presented() == 0

    def test_the_error_for_a_wrong_pin_warns_if_one_try_is_left(self, yubikey: PivStack) -> None:
        yubikey.leave_tries(2)
        with pytest.raises(PinIncorrect, match=r"One more wrong PIN locks the device\."):
            open_device(access_to(yubikey, yubikey.wrong_pin))

    def test_the_default_pin_of_cards_is_never_tried(self, yubikey: PivStack) -> None:
        assert yubikey.pin == "123456"
        with pytest.raises(PinUnavailable):
            open_device(replace(access_to(yubikey), pin=NoPinSource()))
        assert yubikey.presented() == 0

    def test_an_old_pin_is_sent_once_after_a_replug(self, yubikey: PivStack) -> None:
        with open_device(access_to(yubikey)) as device:
            signer = open_signer(device)
            yubikey.change_pin("111111")
            yubikey.unplug()
            yubikey.plug()
            with pytest.raises(PinIncorrect):
                signer.sign(Algorithm.RS256, MESSAGE)
            for _ in range(3):
                with pytest.raises(DeviceError):
                    signer.sign(Algorithm.RS256, MESSAGE)
        assert yubikey.presented() == 2


class TestKeyThatAlwaysAuthenticates:
    """Slot 9c: the PIN once more for each signature (CKA_ALWAYS_AUTHENTICATE)."""

    @pytest.fixture
    def device(self, yubikey: PivStack) -> Iterator[Device]:
        with open_device(access_to(yubikey, key=yubikey.always_authenticate_key)) as device:
            yield device

    @pytest.fixture
    def signer(self, device: Device) -> DeviceSigner:
        return open_signer(device)

    @staticmethod
    def sign(signer: DeviceSigner) -> None:
        assert signer.public_key.verify(Algorithm.RS256, MESSAGE, signer.sign(Algorithm.RS256, MESSAGE))

    def test_a_pin_changed_since_the_login_is_sent_once(self, signer: DeviceSigner, yubikey: PivStack) -> None:
        yubikey.change_pin("111111")
        with pytest.raises(PinIncorrect):
            self.sign(signer)
        for _ in range(3):
            with pytest.raises(DeviceError):
                self.sign(signer)
        assert yubikey.presented() == 2

    def test_a_card_locked_since_the_login_is_reported_as_locked(self, signer: DeviceSigner, yubikey: PivStack) -> None:
        yubikey.leave_tries(0)
        with pytest.raises(PinLocked) as caught:
            self.sign(signer)
        assert "Unblock" in str(caught.value.hint)

    def test_a_missed_touch_is_a_separate_error_and_sends_no_other_pin(
        self, signer: DeviceSigner, yubikey: PivStack
    ) -> None:
        yubikey.patience(6)
        yubikey.touch(True)
        with pytest.raises(TouchMissed):
            self.sign(signer)
        assert yubikey.presented() == 2

    def test_a_card_that_lost_the_login_signs_with_the_pin_for_the_signature(
        self, signer: DeviceSigner, yubikey: PivStack
    ) -> None:
        yubikey.forget_login()
        self.sign(signer)
        assert yubikey.presented() == 2

    def test_a_card_that_was_reset_signs(self, signer: DeviceSigner, yubikey: PivStack) -> None:
        yubikey.reset_card()
        self.sign(signer)
        # ykcs11 sends the PIN once more by itself.
        assert yubikey.presented() == {"ykcs11": 3, "opensc": 2}[yubikey.name]

    def test_replugging_a_card_costs_one_more_login(self, signer: DeviceSigner, yubikey: PivStack) -> None:
        yubikey.unplug()
        yubikey.plug()
        self.sign(signer)
        assert yubikey.presented() == 3

    def test_signing_fails_while_a_card_is_unplugged_and_works_again_afterwards(
        self, signer: DeviceSigner, yubikey: PivStack
    ) -> None:
        yubikey.unplug()
        for _ in range(2):
            with pytest.raises(DeviceGone):
                self.sign(signer)
        yubikey.plug()
        self.sign(signer)
        assert yubikey.presented() == 3
