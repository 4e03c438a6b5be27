"""A login that could lock the device is not tried unless a person allowed it."""

from itertools import chain, combinations

import pytest
from pkcs11 import TokenFlag

from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.pin.state import PinState, pin_state, require_pin_tries
from hsm_signer.errors import PinLastTry, PinLocked

DEVICE = DeviceInfo("Office card", "Yubico", "PIV", "0001", 0, "reader", "", "", "", (0, 0))
NO_FLAGS = TokenFlag(0)
USABLE = TokenFlag.LOGIN_REQUIRED | TokenFlag.TOKEN_INITIALIZED | TokenFlag.USER_PIN_INITIALIZED
LOW, FINAL, LOCKED = TokenFlag.USER_PIN_COUNT_LOW, TokenFlag.USER_PIN_FINAL_TRY, TokenFlag.USER_PIN_LOCKED


class TestPinState:
    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            (TokenFlag.TOKEN_INITIALIZED, PinState.NOT_NEEDED),
            (USABLE, PinState.FINE),
            (USABLE & ~TokenFlag.USER_PIN_INITIALIZED, PinState.NOT_SET),
            (USABLE | TokenFlag.USER_PIN_COUNT_LOW, PinState.COUNT_LOW),
            (USABLE | TokenFlag.USER_PIN_COUNT_LOW | TokenFlag.USER_PIN_FINAL_TRY, PinState.LAST_TRY),
            (USABLE | TokenFlag.USER_PIN_FINAL_TRY | TokenFlag.USER_PIN_LOCKED, PinState.LOCKED),
        ],
    )
    def test_the_flag_nearest_to_a_locked_pin_decides(self, flags: TokenFlag, expected: PinState) -> None:
        assert pin_state(flags) is expected


SAFE = [NO_FLAGS, USABLE]


@pytest.mark.parametrize("flags", SAFE)
@pytest.mark.parametrize("allow_last_try", [False, True])
def test_a_device_with_all_its_pin_tries_gets_no_warning(flags: TokenFlag, allow_last_try: bool) -> None:
    assert require_pin_tries(DEVICE, flags, allow_last_try=allow_last_try) is None


@pytest.mark.parametrize("allow_last_try", [False, True])
def test_a_device_that_saw_a_wrong_pin_gets_a_warning(allow_last_try: bool) -> None:
    warning = require_pin_tries(DEVICE, LOW, allow_last_try=allow_last_try)
    assert warning == "A wrong PIN was entered since the last login."


@pytest.mark.parametrize("flags", [FINAL, FINAL | LOW])
def test_the_last_try_is_refused(flags: TokenFlag) -> None:
    with pytest.raises(PinLastTry, match="has one PIN try left") as refused:
        require_pin_tries(DEVICE, flags, allow_last_try=False)
    assert "--allow-last-try" in str(refused.value.hint)


@pytest.mark.parametrize("flags", [FINAL, FINAL | LOW])
def test_the_last_try_is_used_with_a_warning_if_the_caller_allowed_it(flags: TokenFlag) -> None:
    warning = require_pin_tries(DEVICE, flags, allow_last_try=True)
    assert warning == "This is the last try: a wrong PIN locks the device."


OTHERS = list(chain.from_iterable(combinations((LOW, FINAL), size) for size in range(3)))


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("allow_last_try", [False, True])
def test_a_locked_device_is_refused_whatever_is_allowed(others: tuple[TokenFlag, ...], allow_last_try: bool) -> None:
    flags = LOCKED
    for other in others:
        flags |= other
    with pytest.raises(PinLocked):
        require_pin_tries(DEVICE, flags, allow_last_try=allow_last_try)
