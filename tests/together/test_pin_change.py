"""The PIN changes while a program runs: the new one is used, and the old one is never sent again."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Protocol

import pytest

from hsm_signer import HsmCredential
from hsm_signer.errors import DeviceGone, HsmSignerError, PinIncorrect, PinRefusedBefore, PinUnavailable
from tests.support.faulty_module.control import Rv
from tests.support.names import CLIENT, TENANT

from .conftest import Card

NEW = "22222222"


class Start(Protocol):
    """Starts a program that holds a credential."""

    def __call__(self, *, isolated: bool, pin_record: bool = True) -> HsmCredential: ...


@pytest.fixture
def start(card: Card) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(*, isolated: bool, pin_record: bool = True) -> HsmCredential:
            credential = HsmCredential(
                TENANT,
                CLIENT,
                card.key.uri,
                isolated=isolated,
                module=card.faulty.path,
                module_environment=card.faulty.environment,
                pin_source=f"file:{card.file}",
                pin_record=pin_record,
            )
            return stack.enter_context(credential)

        yield start


def another_process(card: Card) -> str:
    """Have the command line sign with the PIN file; return the code of its error, or the empty string."""
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from hsm_signer.cli import main; main()", "assertion", "-o", "json"),
            *("--tenant", TENANT, "--client-id", CLIENT, "--key", card.key.uri),
            *("--module", str(card.faulty.path), "--pin-source", f"file:{card.file}"),
        ],
        env={**os.environ, **card.faulty.environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return "" if done.returncode == 0 else str(json.loads(done.stderr.splitlines()[-1])["error"]["code"])


def lose_the_session(card: Card) -> None:
    """Have the next signature find its session lost, so that the program has to log in again."""
    card.faulty.rule("C_SignInit", rv=Rv.DEVICE_REMOVED, times=1)


@pytest.mark.parametrize("pin_record", [True, False])
@pytest.mark.parametrize("isolated", [False, True])
class TestOnTheDeviceAndInTheFile:
    def test_the_next_login_uses_the_new_pin(self, card: Card, start: Start, isolated: bool, pin_record: bool) -> None:
        credential = start(isolated=isolated, pin_record=pin_record)
        credential.assertion()
        card.change_pin(NEW)
        card.write(NEW)
        lose_the_session(card)
        credential.assertion()
        assert card.sent == [True, True]

    def test_the_next_signature_that_requires_the_pin_uses_the_new_one(
        self, card: Card, start: Start, isolated: bool, pin_record: bool
    ) -> None:
        card.faulty.always_authenticate(True)
        credential = start(isolated=isolated, pin_record=pin_record)
        credential.assertion()
        card.change_pin(NEW)
        card.write(NEW)
        credential.assertion()
        assert card.sent == [True] * 4

    def test_a_program_that_need_not_log_in_keeps_signing(
        self, card: Card, start: Start, isolated: bool, pin_record: bool
    ) -> None:
        credential = start(isolated=isolated, pin_record=pin_record)
        credential.assertion()
        card.change_pin(NEW)
        card.write("not the PIN")
        credential.assertion()
        assert card.sent == [True]


@pytest.mark.parametrize("isolated", [False, True])
class TestOnTheDeviceOnly:
    def test_the_old_pin_is_sent_once_and_the_new_one_as_soon_as_it_is_in_the_file(
        self, card: Card, start: Start, isolated: bool
    ) -> None:
        credential = start(isolated=isolated)
        credential.assertion()
        card.change_pin(NEW)
        lose_the_session(card)
        for _ in range(3):
            with pytest.raises(PinIncorrect):
                credential.assertion()
        card.file.touch()
        with pytest.raises(PinIncorrect):
            credential.assertion()
        assert card.sent == [True, False]
        card.write(NEW)
        credential.assertion()
        assert card.sent == [True, False, True]

    def test_an_old_pin_that_another_process_sent_is_not_sent_again(
        self, card: Card, start: Start, isolated: bool
    ) -> None:
        credential = start(isolated=isolated)
        credential.assertion()
        card.change_pin(NEW)
        assert another_process(card) == "pin_incorrect"
        lose_the_session(card)
        for _ in range(3):
            with pytest.raises(PinRefusedBefore):
                credential.assertion()
        assert card.sent == [True, False]
        card.write(NEW)
        credential.assertion()
        assert another_process(card) == ""
        assert card.sent == [True, False, True, True]

    def test_an_old_pin_that_another_process_sent_is_not_sent_for_a_signature(
        self, card: Card, start: Start, isolated: bool
    ) -> None:
        card.faulty.always_authenticate(True)
        credential = start(isolated=isolated)
        credential.assertion()
        card.change_pin(NEW)
        assert another_process(card) == "pin_incorrect"
        for _ in range(3):
            with pytest.raises(PinRefusedBefore):
                credential.assertion()
        assert card.sent == [True, True, False]
        card.write(NEW)
        credential.assertion()
        assert card.sent == [True, True, False, True, True]


@pytest.mark.parametrize("isolated", [False, True])
class TestInTheFileOnly:
    def test_a_wrong_pin_is_sent_once_and_the_corrected_one_used(
        self, card: Card, start: Start, isolated: bool
    ) -> None:
        credential = start(isolated=isolated)
        credential.assertion()
        card.write("33333333")
        lose_the_session(card)
        for _ in range(3):
            with pytest.raises(PinIncorrect):
                credential.assertion()
        assert another_process(card) == "pin_refused_before"
        card.write(card.pin)
        credential.assertion()
        assert card.sent == [True, False, True]

    def test_a_program_that_started_with_a_wrong_pin_uses_the_corrected_one(
        self, card: Card, start: Start, isolated: bool
    ) -> None:
        card.write("33333333")
        credential = start(isolated=isolated)
        for _ in range(3):
            with pytest.raises(PinIncorrect):
                credential.assertion()
        card.write(card.pin)
        credential.assertion()
        assert card.sent == [False, True]

    def test_after_the_file_was_missing_the_pin_is_read_again(self, card: Card, start: Start, isolated: bool) -> None:
        credential = start(isolated=isolated)
        credential.assertion()
        card.file.unlink()
        lose_the_session(card)
        for _ in range(2):
            with pytest.raises(PinUnavailable, match="No such file"):
                credential.assertion()
        card.write(card.pin)
        credential.assertion()
        assert card.sent == [True, True]


def test_a_new_worker_reads_the_new_pin_after_the_old_worker_died(card: Card, start: Start) -> None:
    credential = start(isolated=True)
    credential.assertion()
    card.change_pin(NEW)
    card.write(NEW)
    card.faulty.rule("C_SignInit", crash=True, times=1)
    with suppress(DeviceGone):
        credential.assertion()
    credential.assertion()
    assert another_process(card) == ""
    assert all(card.sent)


@pytest.mark.parametrize("isolated", [False, True])
def test_two_programs_that_log_in_again_send_a_wrong_pin_once_in_total(
    card: Card, start: Start, isolated: bool
) -> None:
    """Both must log in again at the same time, with a wrong PIN in the file: only one of them sends it."""
    first, second = start(isolated=isolated), start(isolated=True)
    first.assertion()
    second.assertion()
    card.write("33333333")
    card.faulty.rule("C_SignInit", rv=Rv.DEVICE_REMOVED, times=2)
    codes = []
    for credential in (first, second, first, second):
        try:
            credential.assertion()
        except HsmSignerError as error:
            codes.append(error.code)
    assert codes == ["pin_incorrect", "pin_refused_before"] * 2
    assert card.sent == [True, True, False]
    card.write(card.pin)
    first.assertion()
    second.assertion()
    assert card.sent == [True, True, False, True, True]
