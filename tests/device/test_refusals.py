"""Several processes together do not lock a card."""

import contextlib
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.pin.login_lock import count_logins, login_lock
from hsm_signer.device.pin.pin import Pin, PinRequest
from hsm_signer.device.pin.refusals import PinRecord, forget_failures
from hsm_signer.device.pin.sources import FilePin, FixedLogin
from hsm_signer.errors import (
    ConfigError,
    DeviceGone,
    DeviceTimeout,
    LoginInterrupted,
    PinError,
    PinIncorrect,
    PinLocked,
    PinOutcomeUnknown,
    PinRefusedBefore,
)
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.counted_pin import CountedPin
from tests.support.login_process import start_login

from .conftest import AccessTo

DEVICE = DeviceInfo("label", "maker", "model", "serial", 1, "slot", "slot maker", "library", "description", (2, 6))
SOURCE = FixedLogin(Pin("4711"), "a source")
OTHER = FixedLogin(Pin("4712"), "another source")


@pytest.fixture
def record(tmp_path: Path) -> PinRecord:
    (tmp_path / "pins").mkdir()
    return PinRecord(tmp_path / "pins", Path("/usr/lib/module.so"), DEVICE)


def attempt(
    record: PinRecord, source: FixedLogin = SOURCE, error: BaseException | None = None, *, accepted: bool = False
) -> None:
    """Log in with this outcome."""
    with record.login(source, source.identity, accepted=accepted):
        if error is not None:
            raise error


class TestRecord:
    def test_a_refused_pin_is_not_sent_again(self, record: PinRecord) -> None:
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"))
        with pytest.raises(PinRefusedBefore, match="already refused the PIN from a source"):
            attempt(record)

    def test_a_pin_that_locked_the_device_is_not_sent_again(self, record: PinRecord) -> None:
        with pytest.raises(PinLocked):
            attempt(record, error=PinLocked("locked"))
        with pytest.raises(PinRefusedBefore):
            attempt(record)

    def test_a_pin_from_another_source_is_still_sent(self, record: PinRecord) -> None:
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"))
        attempt(record, OTHER)

    def test_a_success_with_another_source_does_not_clear_the_refusal(self, record: PinRecord) -> None:
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"))
        attempt(record, OTHER)
        with pytest.raises(PinRefusedBefore):
            attempt(record)

    def test_a_successful_login_leaves_no_record(self, record: PinRecord) -> None:
        attempt(record)
        assert not record.path.exists()

    @pytest.mark.parametrize(
        "end", [LoginInterrupted("pulled out"), DeviceTimeout("hung"), KeyboardInterrupt(), MemoryError()]
    )
    def test_a_login_with_an_unknown_outcome_may_be_tried_once_more(
        self, record: PinRecord, end: BaseException
    ) -> None:
        for _ in range(2):
            with pytest.raises(type(end)):
                attempt(record, error=end)
        with pytest.raises(PinOutcomeUnknown, match="is unknown whether the device has refused the PIN") as caught:
            attempt(record)
        assert caught.value.commands[0].endswith("hsm-signer device forget-pin-failures")

    def test_a_failure_before_the_pin_was_checked_is_not_recorded(self, record: PinRecord) -> None:
        for _ in range(5):
            with pytest.raises(DeviceGone):
                attempt(record, error=DeviceGone("not plugged in"))
            assert not record.path.exists()
        attempt(record)

    def test_a_failure_before_the_pin_was_checked_does_not_clear_an_unknown_outcome(self, record: PinRecord) -> None:
        for _ in range(2):
            with pytest.raises(LoginInterrupted):
                attempt(record, error=LoginInterrupted("pulled out"))
            with contextlib.suppress(DeviceGone, PinOutcomeUnknown):
                attempt(record, error=DeviceGone("not plugged in"))
        with pytest.raises(PinOutcomeUnknown):
            attempt(record)

    def test_a_pin_accepted_before_is_tried_with_growing_pauses_until_the_device_works(self, record: PinRecord) -> None:
        clock = [0.0]
        record = replace(record, now=lambda: clock[0])
        tried = []
        for clock[0] in range(100):
            with pytest.raises(LoginInterrupted) as caught:
                attempt(record, error=LoginInterrupted("pulled out"), accepted=True)
            if caught.value.message == "pulled out":
                tried.append(clock[0])
        assert tried == [0, 1, 2, 4, 8, 16, 32, 64]
        clock[0] += 300
        attempt(record, accepted=True)
        assert not record.path.exists()

    def test_a_pin_accepted_before_is_not_sent_again_once_it_was_refused(self, record: PinRecord) -> None:
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"), accepted=True)
        with pytest.raises(PinRefusedBefore):
            attempt(record, accepted=True)

    def test_a_refusal_by_another_device_does_not_stop_a_pin_that_was_accepted_before(self, record: PinRecord) -> None:
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"))
        attempt(replace(record, module=Path("/usr/lib/other.so")), accepted=True)

    def test_the_record_is_written_before_the_pin_is_sent(self, record: PinRecord) -> None:
        with record.login(SOURCE, SOURCE.identity):
            (written,) = json.loads(record.path.read_text())["sources"].items()
            assert (written[0], written[1]["outcome"], written[1]["times"]) == ("a source", "begun", 1)

    def test_the_record_does_not_contain_the_pin(self, record: PinRecord) -> None:
        with record.login(SOURCE, SOURCE.identity):
            assert "4711" not in record.path.read_text()

    @pytest.mark.parametrize("other", [{"serial": "another"}, {"model": "another"}, {"manufacturer": "another"}])
    def test_a_refusal_does_not_affect_another_device_of_the_module(
        self, record: PinRecord, other: dict[str, str]
    ) -> None:
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"))
        attempt(replace(record, device=replace(DEVICE, **other)))  # type: ignore[arg-type]  # texts all

    def test_a_refused_pin_is_not_sent_to_a_device_that_may_be_the_same(self, record: PinRecord) -> None:
        """A card shows a different serial in each module, and a different label once its certificate is renewed."""
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"))
        relabelled = replace(DEVICE, label="another")
        elsewhere = DeviceInfo("4", "other maker", "5", "6", 7, "8", "9", "10", "11", (0, 1))
        for other in (
            replace(record, device=relabelled),
            replace(record, device=elsewhere, module=Path("/usr/lib/other.so")),
        ):
            with pytest.raises(PinRefusedBefore, match="may be the same device"):
                attempt(other)
            attempt(other, OTHER)

    @pytest.mark.parametrize(
        "damage",
        [{"times": "many"}, {"times": 1e400}, {"at": None}, {"outcome": "fine"}, {"serial": 5}, {"slot_id": "1"}],
    )
    def test_a_record_with_a_value_of_the_wrong_type_is_damaged(
        self, record: PinRecord, damage: dict[str, object]
    ) -> None:
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"))
        document = json.loads(record.path.read_text())
        (name,) = damage
        (document["device"] if name in document["device"] else document["sources"]["a source"]).update(damage)
        record.path.write_text(json.dumps(document))
        with pytest.raises(PinError, match="is damaged"):
            attempt(record)
        assert forget_failures(record.directory, lambda device: False) == [str(record.path)]

    def test_an_unknown_outcome_through_one_module_does_not_affect_another_module(self, record: PinRecord) -> None:
        for _ in range(2):
            with pytest.raises(LoginInterrupted):
                attempt(record, error=LoginInterrupted("pulled out"))
        attempt(replace(record, module=Path("/usr/lib/other.so")))

    def test_a_device_in_another_slot_keeps_its_record(self, record: PinRecord) -> None:
        moved = replace(record, device=replace(DEVICE, slot_id=7, slot_description="another slot"))
        assert moved.path == record.path

    @pytest.mark.parametrize(
        "damage",
        [
            "{",
            "\xff",
            "null",
            "[]",
            "[" * 100_000,
            '{"module": 1, "device": {}, "sources": {}}',
            '{"sources": {"a source": "refused"}}',
        ],
    )
    def test_a_damaged_record_stops_the_login_and_says_what_to_do(self, record: PinRecord, damage: str) -> None:
        record.path.write_text(damage, encoding="latin-1")
        with pytest.raises(PinError, match="is damaged") as caught:
            attempt(record)
        assert caught.value.commands[0].endswith("hsm-signer device forget-pin-failures")

    def test_the_error_for_a_state_directory_that_cannot_be_created_says_why_it_is_needed(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(PinError, match="could lock the device") as caught:
            with login_lock(tmp_path / "file" / "pins", 5):
                pytest.fail("it cannot be recorded")
        assert "--no-pin-record" in str(caught.value.hint)

    def test_a_second_process_times_out_waiting_for_the_first(self, tmp_path: Path) -> None:
        with login_lock(tmp_path, 5), pytest.raises(DeviceTimeout, match="Another process has been logging in"):
            with login_lock(tmp_path, 0.1):
                pytest.fail("two logins at once")

    def test_a_process_that_waited_learns_how_many_logins_took_place_before(self, tmp_path: Path) -> None:
        with login_lock(tmp_path, 5) as before:
            assert before == 0
            assert count_logins(tmp_path) == 1
        with contextlib.suppress(PinIncorrect), login_lock(tmp_path, 5):
            raise PinIncorrect("no")
        with login_lock(tmp_path, 5) as before:
            assert before == 4


class TestForgetting:
    def test_the_operator_can_allow_another_try(self, record: PinRecord) -> None:
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"))
        assert forget_failures(record.directory, lambda device: True) == [str(DEVICE)]
        attempt(record)

    def test_only_the_failures_of_the_chosen_device_are_forgotten(self, record: PinRecord) -> None:
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"))
        assert forget_failures(record.directory, lambda device: device.label == "another") == []
        with pytest.raises(PinRefusedBefore):
            attempt(record)

    def test_damaged_records_are_deleted_too(self, record: PinRecord) -> None:
        record.path.write_text("{")
        assert forget_failures(record.directory, lambda device: False) == [str(record.path)]
        attempt(record)


class TestOnADevice:
    @pytest.fixture
    def guarded(self, access_to: AccessTo, key: SoftHsmKey, tmp_path: Path) -> Callable[[str], KeyAccess]:
        """Return access to a key, with a PIN file that holds this text."""
        file = tmp_path / "pin"

        def guarded(text: str) -> KeyAccess:
            file.write_text(text)
            file.chmod(0o600)
            return replace(access_to(key.uri, pin=FilePin(file)), pin_record=tmp_path / "pins")

        return guarded

    def test_a_wrong_pin_in_a_file_is_sent_once(self, guarded: Callable[[str], KeyAccess]) -> None:
        access = guarded("not-the-pin")
        with pytest.raises(PinIncorrect):
            open_device(access)
        for _ in range(3):
            with pytest.raises(PinRefusedBefore):
                open_device(access)

    def test_writing_the_file_again_allows_another_try(
        self, guarded: Callable[[str], KeyAccess], access_to: AccessTo, key: SoftHsmKey
    ) -> None:
        with pytest.raises(PinIncorrect):
            open_device(guarded("not-the-pin"))
        right = access_to(key.uri).pin(PinRequest("test"))
        assert isinstance(right, Pin)
        open_device(guarded(right.reveal())).close()

    def test_ten_processes_send_a_wrong_pin_once_in_total(
        self, guarded: Callable[[str], KeyAccess], key: SoftHsmKey
    ) -> None:
        access = guarded("not-the-pin")
        assert isinstance(access.pin, FilePin)
        assert access.module is not None
        assert access.pin_record is not None
        module, environment, pin, record = access.module, access.module_environment, access.pin.path, access.pin_record
        processes = [start_login(key.uri, module, environment, pin=pin, record=record) for _ in range(10)]
        outcomes = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
        assert outcomes == ["pin_incorrect"] + ["pin_refused_before"] * 9

    def test_a_wrong_pin_is_sent_once_under_all_names_of_the_file_and_the_module(
        self, guarded: Callable[[str], KeyAccess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        access = guarded("not-the-pin")
        assert access.module is not None
        (tmp_path / "other").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "pin")
        monkeypatch.chdir(tmp_path)
        modules = [access.module, tmp_path / "module.so", tmp_path / "other" / "module.so"]
        for link in modules[1:]:
            link.symlink_to(access.module)
        files = ["pin", "link", "other/../pin", str(tmp_path / "link")]
        with pytest.raises(PinIncorrect):
            open_device(access)
        for module, file in itertools.product(modules, files):
            with pytest.raises(PinRefusedBefore):
                open_device(replace(access, module=module, pin=FilePin(Path(file))))

    def test_a_refused_pin_is_not_sent_through_a_copy_of_the_module(
        self, guarded: Callable[[str], KeyAccess], tmp_path: Path
    ) -> None:
        access = guarded("not-the-pin")
        assert access.module is not None
        copy = tmp_path / "copy.so"
        copy.write_bytes(access.module.read_bytes())
        with pytest.raises(PinIncorrect):
            open_device(access)
        with pytest.raises(PinRefusedBefore, match="may be the same device"):
            open_device(replace(access, module=copy))

    def test_the_state_directory_is_private_whatever_the_umask(
        self, guarded: Callable[[str], KeyAccess], tmp_path: Path
    ) -> None:
        state = tmp_path / "state" / "hsm-signer" / "pins"
        before = os.umask(0)
        try:
            with pytest.raises(PinIncorrect):
                open_device(replace(guarded("not-the-pin"), pin_record=state))
        finally:
            os.umask(before)
        assert [path.stat().st_mode & 0o777 for path in (state.parent.parent, state.parent, state)] == [0o700] * 3
        assert {path.stat().st_mode & 0o777 for path in state.iterdir()} == {0o600}

    def test_a_state_directory_that_another_user_could_replace_is_refused_and_no_pin_is_sent(
        self, guarded: Callable[[str], KeyAccess], tmp_path: Path
    ) -> None:
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs").chmod(0o777)
        access = replace(guarded("not-the-pin"), pin_record=tmp_path / "theirs" / "hsm-signer" / "pins")
        for _ in range(2):
            with pytest.raises(ConfigError, match="Other users could replace the state directory") as caught:
                open_device(access)
            assert "XDG_STATE_HOME" in str(caught.value.hint)
            assert "--no-pin-record" in str(caught.value.hint)

    def test_touching_the_file_does_not_lift_a_refusal(
        self, guarded: Callable[[str], KeyAccess], tmp_path: Path
    ) -> None:
        access = guarded("not-the-pin")
        with pytest.raises(PinIncorrect):
            open_device(access)
        for _ in range(3):
            (tmp_path / "pin").touch()
            with pytest.raises(PinRefusedBefore):
                open_device(access)
        # The record has the new time now, so reading the file makes no difference.
        (tmp_path / "pin").read_bytes()
        with pytest.raises(PinRefusedBefore):
            open_device(access)

    def test_rewriting_the_file_with_its_old_modification_time_lifts_a_refusal(
        self, guarded: Callable[[str], KeyAccess], access_to: AccessTo, key: SoftHsmKey, tmp_path: Path
    ) -> None:
        right = access_to(key.uri).pin(PinRequest("test"))
        assert isinstance(right, Pin)
        access = guarded(right.reveal()[::-1])
        with pytest.raises(PinIncorrect):
            open_device(access)
        before = (tmp_path / "pin").stat()
        guarded(right.reveal())
        os.utime(tmp_path / "pin", ns=(before.st_atime_ns, before.st_mtime_ns))
        after = (tmp_path / "pin").stat()
        assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)
        open_device(access).close()

    def test_an_attended_login_is_not_recorded(self, guarded: Callable[[str], KeyAccess], tmp_path: Path) -> None:
        access = replace(guarded(""), pin=CountedPin("not-the-pin"))
        for _ in range(2):
            with pytest.raises(PinIncorrect):
                open_device(access)
        assert not (tmp_path / "pins").exists()
