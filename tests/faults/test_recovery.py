"""How our own code handles a device that misbehaves: one recovery, no wrong result, a refused PIN sent once."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pkcs11 import Mechanism, TokenFlag

from hsm_signer.config.profile import profile_from_arguments
from hsm_signer.credential.client import resolve_client
from hsm_signer.credential.keys import COOLDOWN, Keys
from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess, Operator
from hsm_signer.device.device import Device, open_device
from hsm_signer.device.pin.pin import Login, PinPad, PinRequest, PinSource
from hsm_signer.device.pin.sources import PROTECTED, FixedLogin
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.device.worker.pool import open_worker
from hsm_signer.errors import (
    DeviceError,
    DeviceGone,
    DeviceTimeout,
    HsmSignerError,
    KeyUnfit,
    LoginInterrupted,
    MechanismUnsupported,
    PinError,
    PinIncorrect,
    PinLastTry,
    PinLocked,
    PinOutcomeUnknown,
    PinRefusedBefore,
    PinUnavailable,
    SignatureInvalid,
)
from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.counted_pin import CountedPin
from tests.support.faulty_module.control import FaultyModule, Rv

MESSAGE = b"header.claims"
LOST = [Rv.DEVICE_REMOVED, Rv.DEVICE_ERROR, Rv.SESSION_HANDLE_INVALID, Rv.USER_NOT_LOGGED_IN, Rv.GENERAL_ERROR]
USER_TYPE_INVALID = 0x103  # PKCS#11 v3.1 section 6.1; what openCryptoki answers to CKU_CONTEXT_SPECIFIC
FOREVER = float("inf")


AccessTo = Callable[..., KeyAccess]


@pytest.fixture
def access_to(faulty: FaultyModule, softhsm: SoftHsm, key: SoftHsmKey) -> AccessTo:
    def access_to(pin: PinSource | None = None, *, timeout: float = 10, record: Path | None = None) -> KeyAccess:
        return KeyAccess(
            uri=Pkcs11Uri.parse(key.uri),
            pin=pin or CountedPin(softhsm.pin),
            module=Path(faulty.path),
            module_environment=faulty.environment,
            timeout=timeout,
            pin_record=record,
        )

    return access_to


@pytest.fixture
def device(access_to: AccessTo) -> Iterator[Device]:
    with open_device(access_to()) as device:
        yield device


class TestTokenInfo:
    """SoftHSM rewrites a device's file while another process logs in, and C_GetTokenInfo fails for a moment."""

    READS = 4  # the device, SoftHSM's empty slot, the PIN state, and the device at the login

    def test_opening_a_device_reads_its_info_four_times(self, access_to: AccessTo, faulty: FaultyModule) -> None:
        open_device(access_to()).close()
        assert faulty.calls("C_GetTokenInfo") == self.READS

    @pytest.mark.parametrize("read", range(READS))
    def test_each_read_is_repeated_once(self, read: int, access_to: AccessTo, faulty: FaultyModule) -> None:
        faulty.rule("C_GetTokenInfo", rv=Rv.GENERAL_ERROR, skip=read, times=1)
        open_device(access_to()).close()
        assert faulty.calls("C_GetTokenInfo") == self.READS + 1
        assert [seen.right for seen in faulty.logins()] == [True]

    def test_a_read_that_fails_twice_is_an_error(self, access_to: AccessTo, faulty: FaultyModule) -> None:
        faulty.rule("C_GetTokenInfo", rv=Rv.GENERAL_ERROR)
        with pytest.raises(DeviceGone):
            open_device(access_to())
        assert faulty.calls("C_GetTokenInfo") == 2

    def test_a_read_with_another_error_is_not_repeated(self, access_to: AccessTo, faulty: FaultyModule) -> None:
        faulty.rule("C_GetTokenInfo", rv=Rv.DEVICE_ERROR)
        with pytest.raises(DeviceGone):
            open_device(access_to())
        assert faulty.calls("C_GetTokenInfo") == 1

    def test_a_login_that_fails_is_not_repeated(self, access_to: AccessTo, faulty: FaultyModule) -> None:
        faulty.rule("C_Login", rv=Rv.GENERAL_ERROR)
        with pytest.raises(DeviceGone):
            open_device(access_to())
        assert faulty.calls("C_Login") == 1


class TestLostSession:
    @pytest.mark.parametrize("rv", LOST)
    def test_a_lost_session_is_opened_again_and_the_signature_made(
        self, rv: Rv, device: Device, faulty: FaultyModule
    ) -> None:
        signer = open_signer(device)
        faulty.rule("C_Sign", rv=rv, times=1)
        assert signer.public_key.verify(Algorithm.RS256, MESSAGE, signer.sign(Algorithm.RS256, MESSAGE))

    def test_a_lost_session_costs_exactly_one_more_login(self, device: Device, faulty: FaultyModule) -> None:
        signer = open_signer(device)
        faulty.rule("C_SignInit", rv=Rv.DEVICE_REMOVED, times=1)
        signer.sign(Algorithm.RS256, MESSAGE)
        assert [seen.right for seen in faulty.logins()] == [True, True]

    @pytest.mark.parametrize("rv", LOST)
    def test_a_session_lost_twice_in_a_row_is_an_error_after_one_retry(
        self, rv: Rv, device: Device, faulty: FaultyModule
    ) -> None:
        signer = open_signer(device)
        faulty.rule("C_SignInit", rv=rv)
        with pytest.raises(DeviceGone):
            signer.sign(Algorithm.RS256, MESSAGE)
        assert faulty.calls("C_SignInit") == 2

    def test_the_module_is_initialized_again_before_the_login(self, device: Device, faulty: FaultyModule) -> None:
        signer = open_signer(device)
        faulty.rule("C_Sign", rv=Rv.DEVICE_REMOVED, times=1)
        signer.sign(Algorithm.RS256, MESSAGE)
        names = [call.function for call in faulty.log()]
        last_login = len(names) - 1 - names[::-1].index("C_Login")
        between = names[names.index("C_Login") + 1 : last_login]
        assert between.index("C_Finalize") < between.index("C_Initialize") < between.index("C_GetSlotList")

    def test_an_unplugged_device_is_named_and_used_again_once_it_is_plugged_in(
        self, device: Device, faulty: FaultyModule
    ) -> None:
        signer = open_signer(device)
        faulty.absent(True)
        for _ in range(3):
            with pytest.raises(DeviceGone) as caught:
                signer.sign(Algorithm.RS256, MESSAGE)
            assert "'faults'" in str(caught.value.hint)
        faulty.absent(False)
        assert signer.public_key.verify(Algorithm.RS256, MESSAGE, signer.sign(Algorithm.RS256, MESSAGE))

    def test_several_threads_reopen_the_session_once(self, device: Device, faulty: FaultyModule) -> None:
        signer = open_signer(device)
        faulty.absent(True)
        with pytest.raises(DeviceGone):
            signer.sign(Algorithm.RS256, MESSAGE)
        faulty.absent(False)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: signer.sign(Algorithm.RS256, MESSAGE), range(16)))
        assert len(faulty.logins()) == 2

    def test_a_right_pin_refused_after_a_replug_is_not_sent_again(
        self, access_to: AccessTo, softhsm: SoftHsm, faulty: FaultyModule
    ) -> None:
        source = CountedPin(softhsm.pin)
        with open_device(access_to(source)) as device:
            signer = open_signer(device)
            faulty.rule("C_SignInit", rv=Rv.DEVICE_REMOVED, times=1)
            faulty.rule("C_Login", rv=Rv.PIN_INCORRECT)
            with pytest.raises(PinIncorrect):
                signer.sign(Algorithm.RS256, MESSAGE)
            for _ in range(3):
                with pytest.raises(DeviceError):
                    signer.sign(Algorithm.RS256, MESSAGE)
        assert len(faulty.logins()) == 2
        assert source.times == 1


class TestSignature:
    def test_a_corrupted_signature_is_neither_returned_nor_retried(self, device: Device, faulty: FaultyModule) -> None:
        signer = open_signer(device)
        faulty.rule("C_Sign", corrupt=True)
        with pytest.raises(SignatureInvalid):
            signer.sign(Algorithm.RS256, MESSAGE)
        assert faulty.calls("C_Sign") == 1


class TestPss:
    @pytest.fixture
    def keys(self, faulty: FaultyModule, softhsm: SoftHsm, key: SoftHsmKey) -> Iterator[Keys]:
        """The key, with the algorithm chosen by what the device supports."""
        profile = profile_from_arguments(
            {
                "client_id": "client",
                "token_endpoint": "https://login.example.org/token",
                "key": key.uri,
                "module": faulty.path,
                "module_environment": faulty.environment,
                "algorithm": "auto",
            }
        )
        keys = Keys(profile, resolve_client(profile), Operator(prompt=CountedPin(softhsm.pin)))
        yield keys
        keys.close()

    @staticmethod
    def algorithm(assertion: str) -> str:
        algorithm: str = json.loads(base64.urlsafe_b64decode(assertion.split(".")[0] + "=="))["alg"]
        return algorithm

    def test_ps256_is_used_if_the_device_supports_it(self, keys: Keys) -> None:
        assert self.algorithm(keys.assertion("audience")) == "PS256"

    def test_rs256_is_used_if_the_device_lacks_pss(self, keys: Keys, faulty: FaultyModule) -> None:
        faulty.hide_mechanisms(Mechanism.SHA256_RSA_PKCS_PSS, Mechanism.RSA_PKCS_PSS, Mechanism.RSA_X_509)
        assert self.algorithm(keys.assertion("audience")) == "RS256"

    def test_if_the_device_refuses_the_pss_parameters_rs256_is_used_from_then_on(
        self, keys: Keys, faulty: FaultyModule
    ) -> None:
        faulty.rule("C_SignInit", rv=Rv.MECHANISM_PARAM_INVALID, times=1)
        assert [self.algorithm(keys.assertion("audience")) for _ in range(2)] == ["RS256", "RS256"]

    def test_if_the_device_uses_another_salt_length_rs256_is_used(self, keys: Keys, faulty: FaultyModule) -> None:
        # For us a salt of another length is like a corrupted signature: it does not verify.
        faulty.rule("C_Sign", corrupt=True, times=1)
        assert self.algorithm(keys.assertion("audience")) == "RS256"

    def test_if_ps256_was_requested_the_error_names_the_alternative(self, device: Device, faulty: FaultyModule) -> None:
        signer = open_signer(device)
        faulty.rule("C_SignInit", rv=Rv.MECHANISM_PARAM_INVALID)
        with pytest.raises(MechanismUnsupported) as caught:
            signer.sign(Algorithm.PS256, MESSAGE)
        assert "--algorithm RS256" in str(caught.value.hint)


class TestPinState:
    def test_no_pin_is_sent_to_a_locked_device(self, access_to: AccessTo, faulty: FaultyModule) -> None:
        faulty.flags(set=TokenFlag.USER_PIN_LOCKED)
        source = CountedPin("1234")
        with pytest.raises(PinLocked):
            open_device(access_to(source))
        assert (source.times, faulty.calls("C_Login")) == (0, 0)

    def test_the_last_try_is_not_used_unless_allowed(
        self, access_to: AccessTo, faulty: FaultyModule, softhsm: SoftHsm
    ) -> None:
        faulty.flags(set=TokenFlag.USER_PIN_FINAL_TRY)
        with pytest.raises(PinLastTry) as caught:
            open_device(access_to())
        assert "--allow-last-try" in str(caught.value.hint)
        assert faulty.calls("C_Login") == 0
        open_device(replace(access_to(), allow_last_try=True)).close()

    def test_the_flags_are_read_again_after_the_pin_prompt(
        self, access_to: AccessTo, faulty: FaultyModule, softhsm: SoftHsm
    ) -> None:
        class Slow(CountedPin):
            def __call__(self, request: PinRequest) -> Login:
                # While a person types the PIN, another program locks the card.
                faulty.flags(set=TokenFlag.USER_PIN_LOCKED)
                return super().__call__(request)

        with pytest.raises(PinLocked):
            open_device(access_to(Slow(softhsm.pin)))
        assert faulty.calls("C_Login") == 0

    def test_the_pin_source_learns_of_a_low_count(
        self, access_to: AccessTo, faulty: FaultyModule, softhsm: SoftHsm
    ) -> None:
        faulty.flags(set=TokenFlag.USER_PIN_COUNT_LOW)
        warnings = []

        class Watching(CountedPin):
            def __call__(self, request: PinRequest) -> Login:
                warnings.append(request.warning)
                return super().__call__(request)

        open_device(access_to(Watching(softhsm.pin))).close()
        assert warnings == ["A wrong PIN was entered since the last login."]

    def test_without_a_source_the_pin_pad_of_the_device_is_used(
        self, access_to: AccessTo, faulty: FaultyModule
    ) -> None:
        faulty.flags(set=TokenFlag.PROTECTED_AUTHENTICATION_PATH)
        pads = []

        class Watching(CountedPin):
            def __call__(self, request: PinRequest) -> Login:
                pads.append(request.pad)
                return PinPad.PROTECTED

        with open_device(access_to(Watching(""))) as device:
            open_signer(device).sign(Algorithm.RS256, MESSAGE)
        assert pads == [True]

    def test_a_device_without_a_pin_pad_is_not_reported_as_a_refused_pin(
        self, access_to: AccessTo, faulty: FaultyModule
    ) -> None:
        with pytest.raises(PinUnavailable, match="has no PIN pad") as caught:
            open_device(access_to(PROTECTED))
        assert "--pin-source" in str(caught.value.hint)
        assert faulty.calls("C_Login") == 0

    def test_a_pin_pad_does_not_work_for_a_key_that_requires_the_pin_for_each_signature(
        self, access_to: AccessTo, faulty: FaultyModule
    ) -> None:
        faulty.flags(set=TokenFlag.PROTECTED_AUTHENTICATION_PATH)
        faulty.always_authenticate(True)
        with open_device(access_to(FixedLogin(PinPad.PROTECTED, "the pad"))) as device:
            with pytest.raises(PinUnavailable, match="requires the PIN for each signature"):
                open_signer(device).sign(Algorithm.RS256, MESSAGE)


class TestPinThatTheModuleKeeps:
    """ykcs11 2.7 sends the PIN by itself to a replugged card, and a signature may end with the card's refusal."""

    @pytest.mark.parametrize(("rv", "error"), [(Rv.PIN_INCORRECT, PinIncorrect), (Rv.PIN_LOCKED, PinLocked)])
    def test_a_pin_refused_during_a_signature_closes_the_device_and_is_recorded(
        self, rv: Rv, error: type[PinError], access_to: AccessTo, faulty: FaultyModule, softhsm: SoftHsm, tmp_path: Path
    ) -> None:
        access = access_to(CountedPin(softhsm.pin, attended=False), record=tmp_path)
        with open_device(access) as device:
            signer = open_signer(device)
            faulty.rule("C_Sign", rv=rv)
            with pytest.raises(error):
                signer.sign(Algorithm.RS256, MESSAGE)
            calls = faulty.calls("C_SignInit")
            with pytest.raises(DeviceError, match="was closed"):
                signer.sign(Algorithm.RS256, MESSAGE)
        assert faulty.calls("C_SignInit") == calls
        with pytest.raises(PinRefusedBefore):
            open_device(access)

    def test_a_pin_refused_during_a_signature_finalizes_the_module(
        self, device: Device, faulty: FaultyModule, softhsm: SoftHsm
    ) -> None:
        """Otherwise it would keep the card's transaction."""
        signer = open_signer(device)
        faulty.rule("C_Sign", rv=Rv.PIN_INCORRECT)
        before = faulty.calls("C_Finalize")
        with pytest.raises(PinIncorrect):
            signer.sign(Algorithm.RS256, MESSAGE)
        assert faulty.calls("C_Finalize") == before + 1

    def test_arguments_bad_during_a_signature_is_not_a_refused_pin(self, device: Device, faulty: FaultyModule) -> None:
        """ykcs11 returns this value for a PIN that is too short."""
        signer = open_signer(device)
        faulty.rule("C_Sign", rv=Rv.ARGUMENTS_BAD, times=1)
        with pytest.raises(DeviceError, match="ArgumentsBad"):
            signer.sign(Algorithm.RS256, MESSAGE)
        signer.sign(Algorithm.RS256, MESSAGE)


class TestAlwaysAuthenticate:
    def test_the_pin_is_asked_for_once_for_the_login_and_all_signatures(
        self, access_to: AccessTo, faulty: FaultyModule, softhsm: SoftHsm
    ) -> None:
        faulty.always_authenticate(True)
        source = CountedPin(softhsm.pin)
        with open_device(access_to(source)) as device:
            signer = open_signer(device)
            for _ in range(2):
                signer.sign(Algorithm.RS256, MESSAGE)
        assert source.times == 1
        assert [seen.context_specific for seen in faulty.logins()] == [False, True, True]

    @pytest.mark.parametrize(
        ("rv", "error"),
        [
            (Rv.PIN_INCORRECT, PinIncorrect),
            (Rv.PIN_INVALID, PinIncorrect),
            (Rv.PIN_LEN_RANGE, PinIncorrect),  # OpenSC, to a PIN that is too short
            (Rv.ARGUMENTS_BAD, PinIncorrect),  # ykcs11, likewise
            (Rv.PIN_LOCKED, PinLocked),
        ],
    )
    def test_a_refused_context_specific_login_is_not_repeated(
        self, rv: Rv, error: type[PinError], access_to: AccessTo, faulty: FaultyModule
    ) -> None:
        faulty.always_authenticate(True)
        with open_device(access_to()) as device:
            signer = open_signer(device)
            faulty.rule("C_Login", rv=rv)
            with pytest.raises(error):
                signer.sign(Algorithm.RS256, MESSAGE)
            with pytest.raises(DeviceError):
                signer.sign(Algorithm.RS256, MESSAGE)
        assert len(faulty.logins()) == 2

    def test_a_refused_context_specific_login_is_recorded_for_other_processes(
        self, access_to: AccessTo, faulty: FaultyModule, softhsm: SoftHsm, tmp_path: Path
    ) -> None:
        faulty.always_authenticate(True)
        access = access_to(CountedPin(softhsm.pin, attended=False), record=tmp_path)
        with open_device(access) as device:
            signer = open_signer(device)
            faulty.rule("C_Login", rv=Rv.PIN_INCORRECT)
            with pytest.raises(PinIncorrect):
                signer.sign(Algorithm.RS256, MESSAGE)
        with pytest.raises(PinRefusedBefore):
            open_device(access)
        assert len(faulty.logins()) == 2

    def test_a_pin_that_was_not_sent_is_not_recorded(
        self, access_to: AccessTo, faulty: FaultyModule, softhsm: SoftHsm, tmp_path: Path
    ) -> None:
        faulty.always_authenticate(True)
        access = access_to(CountedPin(softhsm.pin, attended=False), record=tmp_path)
        with open_device(access) as device:
            signer = open_signer(device)
            faulty.flags(set=TokenFlag.USER_PIN_LOCKED)
            with pytest.raises(PinLocked):
                signer.sign(Algorithm.RS256, MESSAGE)
            faulty.flags()
            signer.sign(Algorithm.RS256, MESSAGE)
        open_device(access).close()

    def test_a_refused_context_specific_login_is_not_repeated_after_the_device_is_lost(
        self, access_to: AccessTo, faulty: FaultyModule
    ) -> None:
        faulty.always_authenticate(True)
        with open_device(access_to()) as device:
            signer = open_signer(device)
            faulty.rule("C_Login", rv=Rv.PIN_INCORRECT)
            faulty.rule("C_GetTokenInfo", rv=Rv.DEVICE_REMOVED, skip=1)  # the first call is before the login
            with pytest.raises(PinIncorrect):
                signer.sign(Algorithm.RS256, MESSAGE)
        assert len(faulty.logins()) == 2

    def test_a_device_without_context_specific_logins_is_reported(
        self, access_to: AccessTo, faulty: FaultyModule
    ) -> None:
        faulty.always_authenticate(True)
        with open_device(access_to()) as device:
            signer = open_signer(device)
            faulty.rule("C_Login", rv=USER_TYPE_INVALID)
            with pytest.raises(KeyUnfit, match="does not support such a login"):
                signer.sign(Algorithm.RS256, MESSAGE)

    @pytest.mark.parametrize(
        ("flag", "error"), [(TokenFlag.USER_PIN_LOCKED, PinLocked), (TokenFlag.USER_PIN_FINAL_TRY, PinLastTry)]
    )
    def test_the_pin_is_not_sent_after_other_programs_used_up_the_tries(
        self, flag: TokenFlag, error: type[PinError], access_to: AccessTo, faulty: FaultyModule
    ) -> None:
        faulty.always_authenticate(True)
        with open_device(access_to()) as device:
            signer = open_signer(device)
            faulty.flags(set=flag)
            with pytest.raises(error):
                signer.sign(Algorithm.RS256, MESSAGE)
        assert len(faulty.logins()) == 1

    def test_the_last_try_is_used_for_a_signature_if_allowed(self, access_to: AccessTo, faulty: FaultyModule) -> None:
        faulty.always_authenticate(True)
        faulty.flags(set=TokenFlag.USER_PIN_FINAL_TRY)
        with open_device(replace(access_to(), allow_last_try=True)) as device:
            open_signer(device).sign(Algorithm.RS256, MESSAGE)
        assert len(faulty.logins()) == 2

    def test_a_device_lost_after_the_login_costs_another_login_and_one_for_the_signature(
        self, access_to: AccessTo, faulty: FaultyModule
    ) -> None:
        faulty.always_authenticate(True)
        with open_device(access_to()) as device:
            signer = open_signer(device)
            faulty.rule("C_SignInit", rv=Rv.DEVICE_REMOVED, times=1)
            signer.sign(Algorithm.RS256, MESSAGE)
        assert [seen.context_specific for seen in faulty.logins()] == [False, False, True]

    def test_an_ordinary_key_needs_no_context_specific_login(self, device: Device, faulty: FaultyModule) -> None:
        open_signer(device).sign(Algorithm.RS256, MESSAGE)
        assert [seen.context_specific for seen in faulty.logins()] == [False]


class TestWorker:
    @pytest.mark.parametrize("call", ["C_SignInit", "C_Sign", "C_Sign(NULL)"])
    def test_a_hang_ends_at_the_deadline_and_the_next_request_works(
        self, call: str, access_to: AccessTo, faulty: FaultyModule
    ) -> None:
        with open_worker(access_to(timeout=2)) as signer:
            faulty.rule(call, hang=FOREVER, times=1)
            with pytest.raises(DeviceTimeout):
                signer.sign(Algorithm.RS256, MESSAGE)
            signer.sign(Algorithm.RS256, MESSAGE)

    @pytest.mark.parametrize("call", ["C_GetFunctionList", "C_Initialize", "C_GetSlotList", "C_OpenSession", "C_Login"])
    def test_a_hang_while_opening_ends_at_the_deadline(
        self, call: str, access_to: AccessTo, faulty: FaultyModule
    ) -> None:
        faulty.rule(call, hang=FOREVER)
        with pytest.raises(DeviceTimeout):
            open_worker(access_to(timeout=2))

    def test_a_crash_fails_the_current_request_and_needs_no_new_pin_prompt(
        self, access_to: AccessTo, faulty: FaultyModule, softhsm: SoftHsm
    ) -> None:
        source = CountedPin(softhsm.pin)
        with open_worker(access_to(source)) as signer:
            faulty.rule("C_Sign", crash=True, times=1)
            with pytest.raises(DeviceGone, match="SIGSEGV"):
                signer.sign(Algorithm.RS256, MESSAGE)
            signer.sign(Algorithm.RS256, MESSAGE)
        assert source.times == 1

    def test_a_device_that_only_a_new_process_can_use_gets_a_new_worker(
        self, access_to: AccessTo, faulty: FaultyModule
    ) -> None:
        with open_worker(access_to()) as signer:
            faulty.rule("C_SignInit", rv=Rv.GENERAL_ERROR, times=1)
            signer.sign(Algorithm.RS256, MESSAGE)
        assert len({call.pid for call in faulty.log()}) == 2

    def test_a_corrupted_signature_is_not_returned_and_the_next_request_works(
        self, access_to: AccessTo, faulty: FaultyModule
    ) -> None:
        with open_worker(access_to()) as signer:
            faulty.rule("C_Sign", corrupt=True, times=1)
            with pytest.raises(SignatureInvalid, match="does not verify") as caught:
                signer.sign(Algorithm.RS256, MESSAGE)
            assert caught.value.hint
            assert signer.public_key.verify(Algorithm.RS256, MESSAGE, signer.sign(Algorithm.RS256, MESSAGE))

    def test_the_second_worker_logs_in_only_after_the_first(self, access_to: AccessTo, faulty: FaultyModule) -> None:
        with open_worker(access_to(), workers=2) as signer, ThreadPoolExecutor(2) as pool:
            faulty.rule("C_Sign", hang=0.3)
            list(pool.map(lambda _: signer.sign(Algorithm.RS256, MESSAGE), range(2)))
        first, second = (call for call in faulty.log() if call.function == "C_Login")
        assert first.pid != second.pid
        assert first.left is not None
        assert first.left < second.entered

    def test_a_person_must_confirm_the_last_try(
        self, access_to: AccessTo, faulty: FaultyModule, softhsm: SoftHsm
    ) -> None:
        def confirm(request: PinRequest) -> None:
            raise PinLastTry("Nobody wants to.")

        faulty.flags(set=TokenFlag.USER_PIN_FINAL_TRY)
        source = CountedPin(softhsm.pin)
        with pytest.raises(PinLastTry, match="Nobody wants to"):
            open_worker(replace(access_to(source), allow_last_try=True, operator=Operator(confirm=confirm)))
        assert (source.times, faulty.calls("C_Login")) == (0, 0)

    def test_a_pin_refused_while_recovering_stops_all_workers(self, access_to: AccessTo, faulty: FaultyModule) -> None:
        with open_worker(access_to()) as signer:
            faulty.rule("C_Sign", crash=True, times=1)
            faulty.rule("C_Login", rv=Rv.PIN_INCORRECT)
            with pytest.raises(DeviceGone):
                signer.sign(Algorithm.RS256, MESSAGE)
            for _ in range(3):
                with pytest.raises(PinIncorrect):
                    signer.sign(Algorithm.RS256, MESSAGE)
        assert len(faulty.logins()) == 2


class TestSeveralKeys:
    @pytest.fixture
    def keys(
        self, faulty: FaultyModule, softhsm: SoftHsm, key: SoftHsmKey, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[tuple[Keys, list[float]]]:
        """First a key behind the faulty module, then the same key behind the real module, which its URI names."""
        monkeypatch.setenv("TEST_PIN", softhsm.pin)
        clock = [100.0]
        profile = profile_from_arguments(
            {
                "client_id": "client",
                "token_endpoint": "https://login.example.org/token",
                "key": [f"{key.uri}?module-path={faulty.path}", f"{key.uri}?module-path={softhsm.module}"],
                "module_environment": faulty.environment,
                "pin_source": "env:TEST_PIN",
            }
        )
        keys = Keys(profile, resolve_client(profile), monotonic=lambda: clock[0])
        yield keys, clock
        keys.close()

    def test_the_first_key_that_works_is_used(self, keys: tuple[Keys, list[float]], faulty: FaultyModule) -> None:
        keys[0].assertion("audience")
        assert faulty.calls("C_Sign") == 1

    def test_the_next_key_takes_over_until_the_cooldown_of_the_first_ends(
        self, keys: tuple[Keys, list[float]], faulty: FaultyModule
    ) -> None:
        ring, clock = keys
        ring.assertion("audience")
        faulty.absent(True)
        ring.assertion("audience")
        faulty.absent(False)
        ring.assertion("audience")
        assert faulty.calls("C_Sign") == 1
        clock[0] += COOLDOWN
        ring.assertion("audience")
        assert faulty.calls("C_Sign") == 2

    def test_after_a_refused_pin_the_next_key_is_not_tried(
        self, keys: tuple[Keys, list[float]], faulty: FaultyModule
    ) -> None:
        faulty.rule("C_Login", rv=Rv.PIN_INCORRECT)
        for _ in range(3):
            with pytest.raises(PinError):
                keys[0].assertion("audience")
        assert len(faulty.logins()) == 1


class TestInterruptedLogin:
    """C_Login fails without saying anything about the PIN."""

    @pytest.fixture
    def guarded(self, access_to: AccessTo, softhsm: SoftHsm, tmp_path: Path) -> KeyAccess:
        """Access with the right PIN from an unattended source."""
        return access_to(CountedPin(softhsm.pin, attended=False), record=tmp_path / "pins")

    @pytest.mark.parametrize(
        "rv", [Rv.DEVICE_ERROR, Rv.DEVICE_REMOVED, Rv.GENERAL_ERROR, Rv.FUNCTION_FAILED, 0x80000001]
    )
    def test_two_interrupted_logins_are_reported_as_unknown_and_not_as_a_refusal(
        self, rv: int, guarded: KeyAccess, faulty: FaultyModule
    ) -> None:
        faulty.rule("C_Login", rv=rv)
        for _ in range(2):
            with pytest.raises(LoginInterrupted, match="It is unknown whether it checked the PIN"):
                open_device(guarded)
        for _ in range(2):
            with pytest.raises(PinOutcomeUnknown, match="It is unknown whether the device has refused the PIN"):
                open_device(guarded)
        assert faulty.calls("C_Login") == 2

    @pytest.mark.parametrize("rv", [Rv.SESSION_HANDLE_INVALID, Rv.TOKEN_NOT_PRESENT])
    def test_a_failure_before_the_pin_was_checked_costs_no_try(
        self, rv: Rv, guarded: KeyAccess, faulty: FaultyModule
    ) -> None:
        faulty.rule("C_Login", rv=rv, times=5)
        for _ in range(5):
            with pytest.raises(DeviceGone):
                open_device(guarded)
        open_device(guarded).close()

    def test_an_interrupted_login_that_the_device_counted_is_a_refusal(
        self, guarded: KeyAccess, faulty: FaultyModule
    ) -> None:
        open_device(guarded).close()  # a success makes SoftHSM count from zero
        wrong = replace(guarded, pin=CountedPin("not-the-pin", attended=False))
        faulty.rule("C_Login", rv=Rv.DEVICE_ERROR, after_forward=True)
        with pytest.raises(PinIncorrect):
            open_device(wrong)
        with pytest.raises(PinRefusedBefore):
            open_device(wrong)

    def test_after_interrupted_logins_a_program_recovers_with_a_pin_that_was_accepted_before(
        self, guarded: KeyAccess, faulty: FaultyModule
    ) -> None:
        with open_device(guarded) as device:
            signer = open_signer(device)
            faulty.rule("C_SignInit", rv=Rv.DEVICE_REMOVED, times=1)
            faulty.rule("C_Login", rv=Rv.DEVICE_ERROR, times=3)
            failures = 0
            while True:
                try:
                    signer.sign(Algorithm.RS256, MESSAGE)
                except LoginInterrupted:
                    failures += 1
                    time.sleep(0.05)
                else:
                    break
        assert failures >= 3
        # One at the start, three that failed, and one that succeeded: calls during the pauses send no login.
        assert [login.right for login in faulty.logins()] == [True] * 5

    def test_after_interrupted_logins_of_workers_a_program_recovers_too(
        self, guarded: KeyAccess, faulty: FaultyModule
    ) -> None:
        with open_worker(guarded) as signer:
            faulty.rule("C_Sign", crash=True, times=1)
            faulty.rule("C_Login", rv=Rv.DEVICE_ERROR, times=3)
            with pytest.raises(DeviceGone, match="SIGSEGV"):
                signer.sign(Algorithm.RS256, MESSAGE)
            while True:
                try:
                    signer.sign(Algorithm.RS256, MESSAGE)
                except LoginInterrupted:
                    time.sleep(0.05)
                else:
                    break
        assert [login.right for login in faulty.logins()] == [True] * 5

    def test_waiting_for_a_device_does_not_send_the_pin_again_after_an_interrupted_login(
        self, faulty: FaultyModule, softhsm: SoftHsm, key: SoftHsmKey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def wait(reason: HsmSignerError) -> None:
            pytest.fail("the PIN would be presented again")

        monkeypatch.setenv("TEST_PIN", softhsm.pin)
        faulty.rule("C_Login", rv=Rv.DEVICE_ERROR)
        profile = profile_from_arguments(
            {
                "client_id": "client",
                "token_endpoint": "https://login.example.org/token",
                "key": key.uri,
                "module": faulty.path,
                "module_environment": faulty.environment,
                "pin_source": "env:TEST_PIN",
                "pin_record": False,
            }
        )
        keys = Keys(profile, resolve_client(profile), Operator(wait=wait))
        with pytest.raises(LoginInterrupted):
            keys.assertion("audience")
        assert faulty.calls("C_Login") == 1


class TestWaiting:
    def test_a_device_that_is_plugged_in_later_is_waited_for(
        self, faulty: FaultyModule, softhsm: SoftHsm, key: SoftHsmKey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TEST_PIN", softhsm.pin)
        reasons = []

        def wait(reason: HsmSignerError) -> None:
            reasons.append(reason.code)
            if len(reasons) == 3:
                faulty.absent(False)

        faulty.absent(True)
        profile = profile_from_arguments(
            {
                "client_id": "client",
                "token_endpoint": "https://login.example.org/token",
                "key": key.uri,
                "module": faulty.path,
                "module_environment": faulty.environment,
                "pin_source": "env:TEST_PIN",
            }
        )
        keys = Keys(profile, resolve_client(profile), Operator(wait=wait))
        assert keys.assertion("audience").count(".") == 2
        assert reasons == ["device_not_found"] * 3
        keys.close()


FAULTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["C_GetSlotList", "C_GetTokenInfo", "C_OpenSession", "C_Login", "C_FindObjectsInit", "C_SignInit"]
        ),
        st.sampled_from([*LOST, Rv.FUNCTION_FAILED, Rv.OPERATION_ACTIVE]),
        st.integers(0, 2),
    ),
    max_size=4,
)


@given(faults=FAULTS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_in_any_sequence_of_faults_a_wrong_pin_is_refused_at_most_once(
    faults: list[tuple[str, Rv, int]], softhsm: SoftHsm, key: SoftHsmKey, tmp_path_factory: pytest.TempPathFactory
) -> None:
    record = tmp_path_factory.mktemp("pins")
    with FaultyModule(softhsm.module, softhsm.environment, pin=softhsm.pin) as faulty:
        for call, rv, skip in faults:
            faulty.rule(call, rv=rv, times=1, skip=skip)
        access = KeyAccess(
            uri=Pkcs11Uri.parse(key.uri),
            pin=CountedPin("not-the-pin", attended=False),
            module=Path(faulty.path),
            module_environment=faulty.environment,
            pin_record=record,
        )
        for _ in range(6):
            try:
                open_device(access)
            except HsmSignerError:
                continue
        logins = [call.rv for call in faulty.log() if call.function == "C_Login"]
        assert logins.count(Rv.PIN_INCORRECT) <= 1
        # At most two with an unknown outcome and one refusal; failures before the PIN was checked do not count.
        assert len([rv for rv in logins if rv != Rv.SESSION_HANDLE_INVALID]) <= 3
