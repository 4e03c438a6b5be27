"""Separate processes do not lock a card between them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hsm_signer.device.device import KeyReference, open_device
from hsm_signer.device.match import DeviceInfo
from hsm_signer.device.pin import Login, Pin, PinRequest
from hsm_signer.device.pin_sources import FilePin, FixedLogin
from hsm_signer.device.record import Outcome, PinRecord, forget_failures, next_outcome
from hsm_signer.errors import DeviceError, DeviceTimeout, PinError, PinIncorrect, PinLocked, PinRefusedBefore
from hsm_signer.testing.softhsm import SoftHsmKey

from .conftest import Refer

DEVICE = DeviceInfo("label", "maker", "model", "serial", 1, "slot", "slot maker", "library", "description", (2, 6))
SOURCE = FixedLogin(Pin("4711"), "a source")
OTHER = FixedLogin(Pin("4712"), "another source")


@pytest.fixture
def record(tmp_path: Path) -> PinRecord:
    return PinRecord(tmp_path / "pins", Path("/usr/lib/module.so"), DEVICE)


def allow() -> None:
    """The device's flags have nothing against a try."""


def attempt(record: PinRecord, source: FixedLogin = SOURCE, error: BaseException | None = None) -> None:
    """Log in, with this outcome."""
    with record.login(source, 5, allow):
        if error is not None:
            raise error


class TestDecision:
    @pytest.mark.parametrize(
        ("last", "upcoming"),
        [
            (None, Outcome.BEGUN),
            (Outcome.BEGUN, Outcome.BEGUN_AGAIN),
            (Outcome.BEGUN_AGAIN, None),
            (Outcome.REFUSED, None),
        ],
    )
    def test_one_more_try_after_an_unknown_end_and_none_after_a_refusal(
        self, last: Outcome | None, upcoming: Outcome | None
    ) -> None:
        assert next_outcome(last) is upcoming


class TestRecord:
    def test_a_refused_pin_is_not_presented_again(self, record: PinRecord) -> None:
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"))
        with pytest.raises(PinRefusedBefore, match="has refused the PIN from a source before"):
            attempt(record)

    def test_neither_is_one_that_locked_the_device(self, record: PinRecord) -> None:
        with pytest.raises(PinLocked):
            attempt(record, error=PinLocked("locked"))
        with pytest.raises(PinRefusedBefore):
            attempt(record)

    def test_another_source_may_still_try(self, record: PinRecord) -> None:
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"))
        attempt(record, OTHER)

    def test_its_success_does_not_clear_the_refused_one(self, record: PinRecord) -> None:
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"))
        attempt(record, OTHER)
        with pytest.raises(PinRefusedBefore):
            attempt(record)

    def test_success_leaves_nothing_behind(self, record: PinRecord) -> None:
        attempt(record)
        assert not record.path.exists()

    def test_a_login_whose_end_nobody_saw_may_be_tried_once_more(self, record: PinRecord) -> None:
        for _ in range(2):
            with pytest.raises(DeviceError):
                attempt(record, error=DeviceError("pulled out"))
        with pytest.raises(PinRefusedBefore):
            attempt(record)

    def test_it_is_written_before_the_pin_is_presented(self, record: PinRecord) -> None:
        with record.login(SOURCE, 5, allow):
            assert json.loads(record.path.read_text())["sources"] == {"a source": "begun"}

    def test_it_holds_nothing_of_the_pin(self, record: PinRecord) -> None:
        with record.login(SOURCE, 5, allow):
            assert "4711" not in record.path.read_text()

    def test_it_belongs_to_one_device(self, record: PinRecord) -> None:
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"))
        attempt(replace(record, device=replace(DEVICE, label="another")))

    def test_a_device_plugged_into_another_slot_is_the_same(self, record: PinRecord) -> None:
        moved = replace(record, device=replace(DEVICE, slot_id=7, slot_description="another slot"))
        assert moved.path == record.path

    def test_what_the_flags_forbid_is_not_recorded_as_tried(self, record: PinRecord) -> None:
        def forbid() -> None:
            raise PinLocked("locked")

        with pytest.raises(PinLocked), record.login(SOURCE, 5, forbid):
            pytest.fail("the PIN would have been presented")
        attempt(record)

    def test_a_damaged_record_stops_the_login_and_says_what_to_do(self, record: PinRecord) -> None:
        record.directory.mkdir()
        record.path.write_text("{")
        with pytest.raises(PinError, match="is damaged") as caught:
            attempt(record)
        assert "forget-pin-failures" in str(caught.value.hint)

    def test_a_state_directory_that_cannot_be_made_says_why_it_is_needed(
        self, record: PinRecord, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(PinError, match="could lock the device") as caught:
            attempt(replace(record, directory=tmp_path / "file" / "pins"))
        assert "--no-pin-record" in str(caught.value.hint)

    def test_a_second_process_waits_for_the_first_only_so_long(self, record: PinRecord) -> None:
        with record.login(SOURCE, 5, allow), pytest.raises(DeviceTimeout, match="Another process has been logging in"):
            with record.login(OTHER, 0.1, allow):
                pytest.fail("two logins at once")


class TestForgetting:
    def test_the_operator_can_allow_another_try(self, record: PinRecord) -> None:
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"))
        assert forget_failures(record.directory, lambda device: True) == [str(DEVICE)]
        attempt(record)

    def test_for_one_device_only(self, record: PinRecord) -> None:
        with pytest.raises(PinIncorrect):
            attempt(record, error=PinIncorrect("no"))
        assert forget_failures(record.directory, lambda device: device.label == "another") == []
        with pytest.raises(PinRefusedBefore):
            attempt(record)

    def test_damaged_records_go_too(self, record: PinRecord) -> None:
        record.directory.mkdir()
        record.path.write_text("{")
        assert forget_failures(record.directory, lambda device: False) == [str(record.path)]
        attempt(record)


class TestOnADevice:
    @pytest.fixture
    def guarded(self, refer: Refer, key: SoftHsmKey, tmp_path: Path) -> Callable[[str], KeyReference]:
        """Refer to a key with a PIN from a file that holds this text."""
        file = tmp_path / "pin"

        def guarded(text: str) -> KeyReference:
            file.write_text(text)
            file.chmod(0o600)
            return replace(refer(key.uri, pin=FilePin(file)), pin_record=tmp_path / "pins")

        return guarded

    def test_a_wrong_pin_in_a_file_is_presented_once(self, guarded: Callable[[str], KeyReference]) -> None:
        reference = guarded("not-the-pin")
        with pytest.raises(PinIncorrect):
            open_device(reference)
        for _ in range(3):
            with pytest.raises(PinRefusedBefore):
                open_device(reference)

    def test_writing_the_file_anew_allows_another_try(
        self, guarded: Callable[[str], KeyReference], refer: Refer, key: SoftHsmKey
    ) -> None:
        with pytest.raises(PinIncorrect):
            open_device(guarded("not-the-pin"))
        right = refer(key.uri).pin(PinRequest("test"))
        assert isinstance(right, Pin)
        open_device(guarded(right.reveal())).close()

    def test_ten_processes_present_a_wrong_pin_once_between_them(
        self, guarded: Callable[[str], KeyReference], key: SoftHsmKey
    ) -> None:
        reference = guarded("not-the-pin")
        program = """
import sys
from pathlib import Path
from hsm_signer.device.device import KeyReference, open_device
from hsm_signer.device.pin_sources import FilePin
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import PinError

uri, module, pin, record = sys.argv[1:]
try:
    open_device(KeyReference(Pkcs11Uri.parse(uri), FilePin(Path(pin)), Path(module), pin_record=Path(record)))
except PinError as error:
    print(error.code)
"""
        assert isinstance(reference.pin, FilePin)
        command = [sys.executable, "-c", program, key.uri, str(reference.module)]
        command += [str(reference.pin.path), str(reference.pin_record)]
        environment = {**os.environ, **reference.module_environment}
        processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(10)]
        outcomes = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
        assert outcomes == ["pin_incorrect"] + ["pin_refused_before"] * 9

    def test_a_person_at_the_prompt_needs_no_record(
        self, guarded: Callable[[str], KeyReference], tmp_path: Path
    ) -> None:
        class Person:
            description = identity = "a person"
            attended = True

            def __call__(self, request: PinRequest) -> Login:
                return Pin("not-the-pin")

        reference = replace(guarded(""), pin=Person())
        for _ in range(2):
            with pytest.raises(PinIncorrect):
                open_device(reference)
        assert not (tmp_path / "pins").exists()
