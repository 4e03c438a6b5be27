"""Each error value that a module returns becomes one of our errors, with a hint."""

import pkcs11
import pytest
from pkcs11 import TokenFlag, exceptions

from hsm_signer.device.failures import explain_failure, explain_login_failure, explain_refusal, require_changeable
from hsm_signer.device.match import DeviceInfo
from hsm_signer.errors import (
    DeviceError,
    DeviceGone,
    DeviceReadOnly,
    HsmSignerError,
    LoginInterrupted,
    MechanismUnsupported,
    PinError,
    PinIncorrect,
    PinLocked,
)

INFO = DeviceInfo("Office card", "Yubico", "PIV", "0001", 0, "reader", "", "", "", (0, 0))
DEVICE = str(INFO)
NO_FLAGS = TokenFlag(0)
LOW, FINAL, LOCKED = TokenFlag.USER_PIN_COUNT_LOW, TokenFlag.USER_PIN_FINAL_TRY, TokenFlag.USER_PIN_LOCKED

RETURNED: list[type[pkcs11.PKCS11Error]] = sorted(
    {kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, pkcs11.PKCS11Error)},
    key=lambda kind: kind.__name__,
)
# Measured on the devices of PKCS11.md when the device was removed, came back, or lost its session or its login.
GONE = {
    "DeviceError": DeviceGone,
    "DeviceRemoved": DeviceGone,
    "GeneralError": DeviceGone,
    "ObjectHandleInvalid": DeviceGone,
    "SessionClosed": DeviceGone,
    "SessionHandleInvalid": DeviceGone,
    "TokenNotPresent": DeviceGone,
    "TokenNotRecognised": DeviceGone,
    "UserNotLoggedIn": DeviceGone,
}
MECHANISM = {"MechanismInvalid": MechanismUnsupported, "MechanismParamInvalid": MechanismUnsupported}
CALL: dict[str, type[HsmSignerError]] = {**GONE, **MECHANISM}
# PKCS#11 v3.1 sections 5.1.2, 5.1.3, 5.6.1 and 5.6.8: these say that C_Login did not come to check the PIN.
PIN_NOT_CHECKED = {
    "AnotherUserAlreadyLoggedIn": DeviceError,
    "FunctionNotSupported": DeviceError,
    "SessionCount": DeviceError,
    "SessionHandleInvalid": DeviceGone,
    "SessionReadOnlyExists": DeviceError,
    "SessionReadWriteSOExists": DeviceError,
    "SlotIDInvalid": DeviceError,
    "TokenNotPresent": DeviceGone,
    "TokenNotRecognised": DeviceGone,
    "TokenWriteProtected": DeviceError,
    "UserTooManyTypes": DeviceError,
}
LOGIN: dict[str, type[HsmSignerError]] = {
    **PIN_NOT_CHECKED,
    "PinIncorrect": PinIncorrect,
    "PinInvalid": PinIncorrect,
    "PinLenRange": PinIncorrect,  # OpenSC, to a PIN that is too short
    "ArgumentsBad": PinIncorrect,  # ykcs11, likewise
    "PinLocked": PinLocked,
    "PinExpired": PinError,
    "UserPinNotInitialized": PinError,
}


def test_the_tables_name_only_values_that_modules_can_return() -> None:
    assert set(LOGIN) <= {kind.__name__ for kind in RETURNED}


@pytest.mark.parametrize("kind", RETURNED)
def test_each_value_that_a_call_returns_becomes_one_of_our_errors(kind: type[pkcs11.PKCS11Error]) -> None:
    assert type(explain_failure(kind(), "signing", DEVICE)) is CALL.get(kind.__name__, DeviceError)


@pytest.mark.parametrize("kind", RETURNED)
def test_each_value_that_a_login_returns_becomes_one_of_our_errors(kind: type[pkcs11.PKCS11Error]) -> None:
    assert type(explain_login_failure(kind(), INFO, NO_FLAGS)) is LOGIN.get(kind.__name__, LoginInterrupted)


@pytest.mark.parametrize("counted", [LOW, FINAL, LOW | FINAL])
def test_a_login_that_lowered_the_pin_tries_was_a_wrong_pin_whatever_the_module_returned(counted: TokenFlag) -> None:
    refused = explain_login_failure(pkcs11.DeviceError(), INFO, counted, before=NO_FLAGS)
    assert type(refused) is PinIncorrect
    assert type(explain_login_failure(pkcs11.DeviceError(), INFO, counted, before=counted)) is LoginInterrupted


@pytest.mark.parametrize("kind", RETURNED)
def test_a_failure_names_the_device_the_operation_and_the_returned_value(kind: type[pkcs11.PKCS11Error]) -> None:
    message = explain_failure(kind("0x123"), "signing", DEVICE).message
    assert (message.startswith(DEVICE), message.endswith(f"while signing ({kind.__name__}: 0x123).")) == (True, True)


@pytest.mark.parametrize("kind", RETURNED)
def test_a_refusal_names_the_device_the_operation_and_the_returned_value(
    kind: type[pkcs11.PKCS11Error],
) -> None:
    refusal = explain_refusal(kind("0x123"), "generating a key", DEVICE)
    assert refusal.message == f"{DEVICE} refused generating a key ({kind.__name__}: 0x123)."
    assert refusal.hint


@pytest.mark.parametrize(
    "error",
    [
        pkcs11.SessionReadOnly(),
        pkcs11.TokenWriteProtected(),
        pkcs11.UserNotLoggedIn(),
        # This is how python-pkcs11 reports CKR_USER_TYPE_INVALID.
        pkcs11.PKCS11Error("User type invalid. Should never see this."),
    ],
)
def test_a_change_that_the_users_pin_does_not_allow_means_a_read_only_device(error: pkcs11.PKCS11Error) -> None:
    assert type(explain_refusal(error, "generating a key", DEVICE)) is DeviceReadOnly


def device(manufacturer: str, model: str) -> DeviceInfo:
    return DeviceInfo("Office card", manufacturer, model, "0001", 0, "reader", "", "", "", (0, 0))


# As ykcs11 and OpenSC describe a YubiKey.
PIV = [device("Yubico (www.yubico.com)", "YubiKey YK5"), device("piv_II", "PKCS#15 emulated")]
OTHERS_THAN_PIV = [
    device("Yubico (www.yubico.com)", "YubiHSM"),
    device("SoftHSM project", "SoftHSM v2"),
    device("IBM", "SW   TPM"),
    device("ZeitControl", "PKCS#15 emulated"),
]


@pytest.mark.parametrize("card", PIV, ids=str)
def test_changing_a_piv_card_is_refused_and_its_own_tools_are_named(card: DeviceInfo) -> None:
    with pytest.raises(DeviceReadOnly, match="management key") as refused:
        require_changeable(card, NO_FLAGS)
    assert "ykman piv keys generate" in str(refused.value.hint)
    assert "yubico-piv-tool" in str(refused.value.hint)


@pytest.mark.parametrize("other", OTHERS_THAN_PIV, ids=str)
def test_other_devices_may_be_changed_unless_they_are_write_protected(other: DeviceInfo) -> None:
    require_changeable(other, NO_FLAGS)
    with pytest.raises(DeviceReadOnly, match="write-protected"):
        require_changeable(other, TokenFlag.WRITE_PROTECTED)


@pytest.mark.parametrize("kind", RETURNED)
def test_every_failure_has_a_hint(kind: type[pkcs11.PKCS11Error]) -> None:
    errors = explain_failure(kind(), "signing", DEVICE), explain_login_failure(kind(), INFO, NO_FLAGS)
    assert all(error.hint for error in errors)


@pytest.mark.parametrize("kind", [pkcs11.PinIncorrect, pkcs11.ArgumentsBad, pkcs11.GeneralError])
def test_a_device_whose_flags_say_locked_is_locked_whatever_the_module_returned(kind: type[pkcs11.PKCS11Error]) -> None:
    assert type(explain_login_failure(kind(), INFO, LOCKED)) is PinLocked


@pytest.mark.parametrize(("flags", "warned"), [(NO_FLAGS, False), (LOW, False), (LOW | FINAL, True)])
def test_the_error_for_a_wrong_pin_warns_if_one_more_would_lock_the_device(flags: TokenFlag, warned: bool) -> None:
    refused = explain_login_failure(pkcs11.PinIncorrect(), INFO, flags)
    assert ("One more wrong PIN locks the device." in refused.message) == warned
