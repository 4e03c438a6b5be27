"""The fault module applies its rules, and otherwise only forwards."""

import os
import signal
import subprocess
import sys
import time
from ast import literal_eval

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from pkcs11 import Mechanism, TokenFlag

from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FUNCTIONS, FaultyModule, LoginSeen, Rv

from .conftest import Client, StartClient

# Together these lines make every call that a rule can name. The names are those of the client in conftest.py.
EVERY_CALL = (
    "lib = pkcs11.lib(path)",
    "slot = token().slot",
    "slot.get_mechanisms()",
    "slot.get_mechanism_info(Mechanism.RSA_PKCS)",
    "session = token().open(rw=True, user_pin=PIN)",
    "sign()",
    "session.generate_keypair(KeyType.RSA, 1024, store=False)",
    "data = session.create_object({Attribute.CLASS: ObjectClass.DATA, Attribute.TOKEN: False})",
    "data.destroy()",
    "session.close()",
    "lib.finalize()",
)


def make_every_call(client: Client) -> None:
    """Run all lines. After the first error the others fail with NameError, or get no answer from an ended program."""
    for line in EVERY_CALL:
        if client(line) in ("", "DeviceError"):
            return


def verify(key: SoftHsmKey, signature: str) -> None:
    assert isinstance(key.public_key, rsa.RSAPublicKey)
    key.public_key.verify(bytes.fromhex(signature), b"message", padding.PKCS1v15(), hashes.SHA256())


def wait_for(faulty: FaultyModule, function: str) -> None:
    """Wait until a call is inside `function`."""
    deadline = time.monotonic() + 30
    while not any(call.function == function and call.left is None for call in faulty.log()):
        assert time.monotonic() < deadline
        time.sleep(0.005)


class TestForwarding:
    def test_a_forwarded_signature_is_the_devices(self, client: Client, key: SoftHsmKey) -> None:
        verify(key, client("sign()"))

    def test_every_call_is_counted_and_succeeds(self, faulty: FaultyModule, start: StartClient) -> None:
        make_every_call(start(faulty))
        assert {function for function in FUNCTIONS if faulty.calls(function) == 0} == set()
        # SoftHSM refuses one call: python-pkcs11 asks a data object for an attribute that only keys have.
        assert {call.rv for call in faulty.log()} == {Rv.OK, Rv.ATTRIBUTE_TYPE_INVALID}

    def test_calls_are_logged_in_order_with_their_process(self, faulty: FaultyModule, client: Client) -> None:
        faulty.clear()
        client("sign()")
        log = faulty.log()
        assert [call.function for call in log[-3:]] == ["C_SignInit", "C_Sign(NULL)", "C_Sign"]
        assert {call.pid for call in log} == {client.pid}
        times = [moment for call in log for moment in (call.entered, call.left)]
        assert times == sorted(times, key=lambda moment: moment or 0)

    def test_two_fault_modules_and_the_real_module_work_in_one_process(
        self, faulty: FaultyModule, client: Client, softhsm: SoftHsm
    ) -> None:
        with FaultyModule(softhsm.module, softhsm.environment, pin=softhsm.pin) as other:
            other.rule("C_OpenSession", rv=Rv.DEVICE_ERROR)
            assert client(f"lib = pkcs11.lib({str(softhsm.module)!r})") == "done"
            assert client("token().open().close()") == "None"
            assert client(f"lib = pkcs11.lib({str(other.path)!r})") == "done"
            assert client("token().open()") == "DeviceError"
            assert len(bytes.fromhex(client("sign()"))) == 256


class TestRules:
    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_a_rule_sets_the_value_that_a_call_returns(
        self, function: str, faulty: FaultyModule, start: StartClient
    ) -> None:
        faulty.rule(function, rv=Rv.DEVICE_ERROR, times=1)
        make_every_call(start(faulty))
        assert [call.function for call in faulty.log() if call.rv == Rv.DEVICE_ERROR] == [function]

    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_a_rule_makes_a_call_crash(self, function: str, faulty: FaultyModule, start: StartClient) -> None:
        faulty.rule(function, crash=True)
        client = start(faulty)
        make_every_call(client)
        assert client.end() == -signal.SIGSEGV
        last = faulty.log()[-1]
        assert (last.function, last.left) == (function, None)

    def test_a_rule_makes_each_call_hang_for_a_time(self, faulty: FaultyModule, start: StartClient) -> None:
        for function in FUNCTIONS:
            faulty.rule(function, hang=0.02, times=1)
        make_every_call(start(faulty))
        slow = {call.function for call in faulty.log() if call.left is not None and call.left - call.entered >= 0.02}
        assert slow == set(FUNCTIONS)

    @pytest.mark.parametrize("function", ["C_GetFunctionList", "C_GetTokenInfo", "C_Sign"])
    def test_a_call_hangs_until_the_rule_is_cleared(
        self, function: str, faulty: FaultyModule, start: StartClient
    ) -> None:
        faulty.rule(function, hang=float("inf"))
        client = start(faulty)
        for line in EVERY_CALL[:6]:
            client.tell(line)
        wait_for(faulty, function)
        faulty.clear()
        assert len(bytes.fromhex([client.hear() for _ in EVERY_CALL[:6]][-1])) == 256

    def test_a_rule_can_return_any_value(self, faulty: FaultyModule, client: Client) -> None:
        faulty.rule("C_SignInit", rv=0x80001234)
        assert client("sign()") == "PKCS11Error"
        assert faulty.log()[-1].rv == 0x80001234

    @pytest.mark.parametrize(("after_forward", "made"), [(False, "0"), (True, "1")])
    def test_a_call_fails_before_or_after_it_is_forwarded(
        self, after_forward: bool, made: str, faulty: FaultyModule, client: Client
    ) -> None:
        attributes = "{Attribute.CLASS: ObjectClass.DATA, Attribute.LABEL: 'mine'}"
        faulty.rule("C_CreateObject", rv=Rv.DEVICE_ERROR, after_forward=after_forward)
        assert client(f"session.create_object({{**{attributes}, Attribute.TOKEN: False}})") == "DeviceError"
        assert client(f"len(list(session.get_objects({attributes})))") == made

    def test_a_corrupt_signature_has_the_right_length_and_does_not_verify(
        self, faulty: FaultyModule, client: Client, key: SoftHsmKey
    ) -> None:
        faulty.rule("C_Sign", corrupt=True, times=1)
        signature = client("sign()")
        assert len(bytes.fromhex(signature)) == 256
        with pytest.raises(InvalidSignature):
            verify(key, signature)
        verify(key, client("sign()"))

    def test_a_rule_can_skip_some_calls_and_apply_to_a_number_of_calls(
        self, faulty: FaultyModule, client: Client
    ) -> None:
        faulty.rule("C_Sign", rv=Rv.DEVICE_ERROR, skip=1, times=2)
        answers = [client("sign()") == "DeviceError" for _ in range(5)]
        assert answers == [False, True, True, False, False]

    def test_a_rule_can_skip_some_calls_and_apply_to_all_others(self, faulty: FaultyModule, client: Client) -> None:
        faulty.rule("C_Sign", rv=Rv.DEVICE_ERROR, skip=2)
        assert [client("sign()") == "DeviceError" for _ in range(4)] == [False, False, True, True]

    def test_the_first_of_two_rules_applies(self, faulty: FaultyModule, client: Client) -> None:
        faulty.rule("C_SignInit", rv=Rv.DEVICE_ERROR, times=1)
        faulty.rule("C_SignInit", rv=Rv.GENERAL_ERROR, times=2)
        assert [client("sign()")[:12] for _ in range(2)] == ["DeviceError", "GeneralError"]

    def test_the_count_of_calls_continues_in_the_next_process(self, faulty: FaultyModule, start: StartClient) -> None:
        faulty.rule("C_Initialize", crash=True, times=1)
        assert start(faulty)("lib = pkcs11.lib(path)") == ""
        assert start(faulty)("lib = pkcs11.lib(path)") == "done"

    def test_rules_and_log_reach_a_forked_child(self, faulty: FaultyModule, client: Client) -> None:
        faulty.rule("C_GetSlotList", rv=Rv.DEVICE_ERROR)
        child, status = literal_eval(client("in_child('lib.get_slots()')"))
        assert status == 1
        refused = [call for call in faulty.log() if call.rv == Rv.DEVICE_ERROR]
        assert [(call.function, call.pid) for call in refused] == [("C_GetSlotList", child)]

    def test_a_call_that_does_not_exist_is_refused(self, faulty: FaultyModule) -> None:
        with pytest.raises(ValueError, match="C_Sing"):
            faulty.rule("C_Sing", crash=True)
        with pytest.raises(ValueError, match="C_Sing"):
            faulty.calls("C_Sing")


class TestMechanisms:
    def test_hidden_mechanisms_are_neither_listed_nor_described_nor_accepted(
        self, faulty: FaultyModule, client: Client
    ) -> None:
        before = int(client("len(token().slot.get_mechanisms())"))
        faulty.hide_mechanisms(Mechanism.SHA256_RSA_PKCS, Mechanism.RSA_PKCS_PSS)
        assert int(client("len(token().slot.get_mechanisms())")) == before - 2
        assert client("{Mechanism.SHA256_RSA_PKCS, Mechanism.RSA_PKCS_PSS} & token().slot.get_mechanisms()") == "set()"
        assert client("token().slot.get_mechanism_info(Mechanism.SHA256_RSA_PKCS)") == "MechanismInvalid"
        assert client("sign()") == "MechanismInvalid"

    def test_the_other_mechanisms_work(self, faulty: FaultyModule, client: Client) -> None:
        faulty.hide_mechanisms(Mechanism.SHA256_RSA_PKCS)
        assert len(bytes.fromhex(client("sign(mechanism=Mechanism.RSA_PKCS)"))) == 256


class TestFlags:
    @pytest.mark.parametrize(
        "flag",
        [
            TokenFlag.USER_PIN_COUNT_LOW,
            TokenFlag.USER_PIN_FINAL_TRY,
            TokenFlag.USER_PIN_LOCKED,
            TokenFlag.PROTECTED_AUTHENTICATION_PATH,
        ],
    )
    def test_a_flag_is_set(self, flag: TokenFlag, faulty: FaultyModule, client: Client) -> None:
        before = int(client("token().flags.value"))
        faulty.flags(set=flag)
        assert int(client("token().flags.value")) == before | flag

    def test_a_flag_is_cleared(self, faulty: FaultyModule, client: Client) -> None:
        before = int(client("token().flags.value"))
        faulty.flags(clear=TokenFlag.LOGIN_REQUIRED)
        assert int(client("token().flags.value")) == before & ~TokenFlag.LOGIN_REQUIRED

    def test_a_pin_pad_logs_in_with_the_right_pin(
        self, faulty: FaultyModule, start: StartClient, key: SoftHsmKey
    ) -> None:
        faulty.flags(set=TokenFlag.PROTECTED_AUTHENTICATION_PATH)
        client = start(faulty)
        client("lib = pkcs11.lib(path)")
        assert client("session = token().open(user_pin=PROTECTED_AUTH)") == "done"
        verify(key, client("sign()"))
        assert faulty.logins() == [LoginSeen(right=True, context_specific=False, pid=client.pid)]


class TestAlwaysAuthenticate:
    def test_private_keys_have_the_attribute(self, faulty: FaultyModule, client: Client) -> None:
        assert client("key()[Attribute.ALWAYS_AUTHENTICATE]") == "False"
        faulty.always_authenticate(True)
        assert client("key()[Attribute.ALWAYS_AUTHENTICATE]") == "True"

    def test_each_signature_requires_the_right_pin(self, faulty: FaultyModule, client: Client, key: SoftHsmKey) -> None:
        faulty.clear()
        faulty.always_authenticate(True)
        verify(key, client("sign(pin=PIN)"))
        verify(key, client("sign(pin=PIN)"))
        assert faulty.logins() == [LoginSeen(right=True, context_specific=True, pid=client.pid)] * 2

    def test_without_a_pin_signing_fails(self, faulty: FaultyModule, client: Client, key: SoftHsmKey) -> None:
        faulty.always_authenticate(True)
        assert client("sign()") == "UserNotLoggedIn"
        verify(key, client("sign(pin=PIN)"))

    def test_with_a_wrong_pin_signing_fails(self, faulty: FaultyModule, client: Client, key: SoftHsmKey) -> None:
        faulty.always_authenticate(True)
        assert client("sign(pin='wrong-pin')") == "PinIncorrect"
        assert faulty.logins()[-1] == LoginSeen(right=False, context_specific=True, pid=client.pid)
        verify(key, client("sign(pin=PIN)"))

    def test_a_context_specific_login_without_a_signature_is_refused(
        self, faulty: FaultyModule, client: Client
    ) -> None:
        faulty.always_authenticate(True)
        assert client("session.reaffirm_credentials(PIN)") == "OperationNotInitialized"


class TestAbsence:
    def test_an_unplugged_device_is_not_found(self, faulty: FaultyModule, client: Client) -> None:
        client("slot = token().slot")
        faulty.absent(True)
        assert client("lib.get_slots(token_present=True)") == "[]"
        assert "TOKEN_PRESENT" not in client("[slot.flags for slot in lib.get_slots()]")
        for line in ("slot.get_token()", "slot.get_mechanisms()", "slot.get_mechanism_info(Mechanism.RSA_PKCS)"):
            assert client(line) == "TokenNotPresent"

    def test_an_unplugged_device_loses_its_session(self, faulty: FaultyModule, client: Client) -> None:
        faulty.absent(True)
        assert [client("sign()") for _ in range(3)] == ["DeviceRemoved", *["SessionHandleInvalid"] * 2]

    def test_a_device_that_is_plugged_in_again_has_no_session_and_no_login(
        self, faulty: FaultyModule, client: Client, key: SoftHsmKey
    ) -> None:
        client("old = session")
        faulty.absent(True)
        faulty.absent(False)
        assert client("sign()") == "DeviceRemoved"
        client("session = token().open()")
        assert client("sign()") == "IndexError"
        assert client("session = token().open(user_pin=PIN)") == "done"
        verify(key, client("sign()"))
        assert client("list(old.get_objects())") == "SessionHandleInvalid"


class TestNoise:
    @pytest.mark.parametrize(("noisy", "printed"), [(True, ["noise of C_Initialize"]), (False, [])])
    def test_noise_is_printed_on_both_streams_on_request(
        self, noisy: bool, printed: list[str], faulty: FaultyModule, softhsm: SoftHsm
    ) -> None:
        faulty.noisy(noisy)
        done = subprocess.run(
            [sys.executable, "-c", "import sys, pkcs11; pkcs11.lib(sys.argv[1])", faulty.path],
            env={**os.environ, **faulty.environment},
            capture_output=True,
            text=True,
        )
        for stream in (done.stdout, done.stderr):
            assert [line for line in stream.splitlines() if line == "noise of C_Initialize"] == printed


class TestLogins:
    def test_a_failed_login_is_logged_with_whether_the_pin_was_right(
        self, faulty: FaultyModule, start: StartClient
    ) -> None:
        client = start(faulty)
        client("lib = pkcs11.lib(path)")
        assert client("token().open(user_pin='wrong-pin')") == "PinIncorrect"
        faulty.rule("C_Login", rv=Rv.PIN_INCORRECT, times=1)
        assert client("token().open(user_pin=PIN)") == "PinIncorrect"
        assert client("session = token().open(user_pin=PIN)") == "done"
        assert [login.right for login in faulty.logins()] == [False, True, True]

    def test_the_log_contains_no_pin(self, faulty: FaultyModule, client: Client, softhsm: SoftHsm) -> None:
        client("token().open(user_pin='wrong-pin')")
        log = (faulty.path.parent / "log").read_text()
        assert "login" in log
        assert softhsm.pin not in log
        assert "wrong-pin" not in log


class TestEnd:
    def test_closing_removes_all_files(self, softhsm: SoftHsm) -> None:
        with FaultyModule(softhsm.module, pin=softhsm.pin) as faulty:
            directory = faulty.path.parent
            assert directory.stat().st_mode & 0o077 == 0
        assert not directory.exists()

    def test_after_closing_the_module_only_forwards_for_programs_that_still_use_it(
        self, faulty: FaultyModule, client: Client, key: SoftHsmKey
    ) -> None:
        faulty.absent(True)
        faulty.absent(False)
        client("session = token().open(user_pin=PIN)")
        faulty.rule("C_SignInit", rv=Rv.DEVICE_ERROR)
        faulty.close()
        verify(key, client("sign()"))
