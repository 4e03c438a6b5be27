"""What a smart card does that other devices do not: wait for a touch, and share its login with others."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hsm_signer.crypto import Algorithm
from hsm_signer.device.device import KeyReference, open_device
from hsm_signer.device.pin import FixedLogin, Pin
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import PinLastTry, TouchMissed

from .stacks.piv import PivStack

MESSAGE = b"header.claims"


def refer(yubikey: PivStack, pin: str | None = None) -> KeyReference:
    return KeyReference(
        uri=Pkcs11Uri.parse(yubikey.key.uri),
        pin=FixedLogin(Pin(pin or yubikey.pin), "a test PIN"),
        module=yubikey.module,
        module_environment=yubikey.environment,
    )


def test_a_missed_touch_is_its_own_error_and_costs_no_pin(yubikey: PivStack) -> None:
    with open_device(refer(yubikey)) as device:
        signer = device.signer()
        yubikey.patience(6)
        yubikey.touch(True)
        with pytest.raises(TouchMissed, match="waited for a touch, and none came"):
            signer.sign(Algorithm.RS256, MESSAGE)
        assert yubikey.presented() == 1


def test_somebody_is_told_to_touch_and_not_told_any_more_afterwards(yubikey: PivStack) -> None:
    shown = []

    @contextlib.contextmanager
    def slow(what: str) -> Iterator[None]:
        shown.append(what)
        yubikey.touch(False)
        yield
        shown.append("over")

    with open_device(replace(refer(yubikey), slow=slow)) as device:
        signer = device.signer()
        yubikey.touch(True)
        assert signer.public_key.verify(Algorithm.RS256, MESSAGE, signer.sign(Algorithm.RS256, MESSAGE))
    assert shown == ["signing", "over"]


def test_nobody_is_told_to_touch_for_a_signature_that_takes_a_moment(yubikey: PivStack) -> None:
    def slow(what: str) -> contextlib.AbstractContextManager[None]:
        pytest.fail(f"shown while {what}")

    with open_device(replace(refer(yubikey), slow=slow)) as device:
        device.signer().sign(Algorithm.RS256, MESSAGE)


def test_a_login_that_another_process_took_is_made_once_more(yubikey: PivStack) -> None:
    with open_device(refer(yubikey)) as device:
        signer = device.signer()
        yubikey.forget_login()
        assert signer.public_key.verify(Algorithm.RS256, MESSAGE, signer.sign(Algorithm.RS256, MESSAGE))
        assert yubikey.presented() == 2


def test_a_card_that_another_process_reset_signs_again(yubikey: PivStack) -> None:
    with open_device(refer(yubikey)) as device:
        signer = device.signer()
        yubikey.reset_card()
        assert signer.public_key.verify(Algorithm.RS256, MESSAGE, signer.sign(Algorithm.RS256, MESSAGE))
        assert yubikey.presented() == 2


def test_a_card_pulled_out_while_it_waits_for_a_touch_signs_when_it_is_back(yubikey: PivStack) -> None:
    def replug() -> None:
        yubikey.wait_for_wish()
        yubikey.unplug()
        yubikey.touch(False)
        yubikey.plug()

    with open_device(refer(yubikey)) as device:
        signer = device.signer()
        yubikey.touch(True)
        hand = threading.Thread(target=replug)
        hand.start()
        try:
            signature = signer.sign(Algorithm.RS256, MESSAGE)
        except Exception:
            # It was looked up while it was still away; the next request finds it.
            hand.join()
            signature = signer.sign(Algorithm.RS256, MESSAGE)
        hand.join()
        assert signer.public_key.verify(Algorithm.RS256, MESSAGE, signature)


def test_the_last_try_is_kept_until_it_is_allowed(yubikey: PivStack) -> None:
    for _ in range(2):
        with contextlib.suppress(Exception):
            open_device(refer(yubikey, yubikey.wrong_pin))
    with pytest.raises(PinLastTry):
        open_device(refer(yubikey))
    assert yubikey.presented() == 2
    with open_device(replace(refer(yubikey), allow_last_try=True)) as device:
        device.signer().sign(Algorithm.RS256, MESSAGE)
