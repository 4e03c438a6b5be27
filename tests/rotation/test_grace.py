"""The old credential stays registered while an assertion signed with it may be in use, and no run blocks for that."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from hsm_signer.config.keyfile import KeyEntry, write_key_file
from hsm_signer.device.manage.keys import delete_key, find_key
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError, EntraError
from hsm_signer.rotation.due import Due, check_due
from hsm_signer.rotation.plan import Step
from tests.support.application import Application
from tests.support.names import CLIENT, TENANT

DEFAULT = {"grace": None}
HOUR, MINUTE = 3600, 60
Check = Callable[..., Due]
MADE = [Step.NAME, Step.GENERATE, Step.CERTIFY, Step.REGISTER, Step.PROVE, Step.SWITCH]


@pytest.fixture
def rotated(application: Application) -> Application:
    """An application that was rotated 70 minutes ago."""
    application.time.ago = 70 * MINUTE
    assert application.rotate(DEFAULT) == [*MADE, Step.WAIT]
    return application


def until(application: Application) -> list[float]:
    """Return when each retired key may be removed, in seconds from now."""
    return [round((key.until or 0) - application.time.now()) for key in application.file.retired]


def test_both_keys_are_registered_and_work_after_the_switch(rotated: Application) -> None:
    assert len(rotated.registered()) == 2
    assert rotated.token()
    with rotated.time.real(), rotated.tokens(key=rotated.first.uri) as old:
        assert old.get(old.build_query(("https://graph.microsoft.com/.default",))).token


@pytest.mark.parametrize(
    ("profile", "seconds"),
    [
        pytest.param({}, HOUR + 10 * MINUTE, id="an assertion file's lifetime and what SDKs keep of it"),
        pytest.param({"lifetime": 2 * HOUR}, 2 * HOUR + 10 * MINUTE, id="a longer lifetime"),
        pytest.param({"lifetime": 300}, HOUR + 10 * MINUTE, id="a shorter lifetime"),
        pytest.param({"grace": 123}, 123, id="as told"),
    ],
)
def test_the_default_grace_period_follows_from_the_lifetimes_in_use(
    application: Application, profile: dict[str, object], seconds: int
) -> None:
    application.rotate({**DEFAULT, **profile})
    assert until(application) == [pytest.approx(seconds, abs=30)]


def test_a_grace_period_too_long_for_the_next_certificate_is_refused_before_the_first_change(
    application: Application,
) -> None:
    # No other rotation starts during the grace period, so the next certificate would expire first.
    with pytest.raises(ConfigError, match="30 days") as caught:
        application.rotate({"grace": 16 * 24 * HOUR}, days=30)
    assert "--days" in str(caught.value.hint)
    assert application.file.next is None
    assert application.rotate({"grace": 15 * 24 * HOUR}, days=30)[-1] is Step.WAIT


def test_during_the_grace_period_a_run_changes_nothing_and_needs_no_device(
    rotated: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotated.time.ago = MINUTE
    monkeypatch.delenv("DEVICE_PIN")
    before = rotated.key_file.read_text()
    assert rotated.rotate(DEFAULT) == [Step.WAIT]
    assert rotated.key_file.read_text() == before


def test_a_run_after_the_grace_period_finishes_the_rotation_as_first_requested(rotated: Application) -> None:
    rotated.time.ago = 0
    assert rotated.rotate(DEFAULT, delete_old=False) == [Step.UNREGISTER, Step.DELETE]
    assert rotated.is_tidy()


def test_without_a_grace_period_the_old_credential_is_removed_at_once(application: Application) -> None:
    assert application.rotate({"grace": 0}) == [*MADE, Step.UNREGISTER, Step.DELETE]
    assert application.is_tidy()


def test_a_later_run_without_a_grace_period_removes_the_old_credential_at_once(rotated: Application) -> None:
    assert rotated.rotate({"grace": 0}) == [Step.UNREGISTER, Step.DELETE]
    assert rotated.is_tidy()


def test_a_later_run_with_another_grace_period_does_not_change_the_first(rotated: Application) -> None:
    before = rotated.file
    assert rotated.rotate({"grace": 1}) == [Step.WAIT]
    assert rotated.rotate({"grace": 100000}) == [Step.WAIT]
    assert rotated.file == before


def test_a_retired_key_added_to_the_file_by_hand_gets_a_grace_period_from_the_next_run(
    application: Application,
) -> None:
    other = application.softhsm.add_identity("other", b"\x02")
    assert other.certificate
    application.entra.register(CLIENT, other.certificate, tenant=TENANT)
    retired = KeyEntry(Pkcs11Uri.parse(other.uri))
    write_key_file(application.key_file, replace(application.file, retired=(retired,)))
    application.time.ago = 70 * MINUTE
    assert application.rotate(DEFAULT) == [Step.WAIT]
    assert until(application) == [pytest.approx(70 * MINUTE, abs=30)]
    application.time.ago = 0
    assert application.rotate(DEFAULT) == [Step.UNREGISTER, Step.DELETE]
    assert application.is_tidy()


def test_an_abandoned_next_key_is_removed_without_a_grace_period(application: Application) -> None:
    application.entra.delay_propagation(token_requests=2)
    with pytest.raises(EntraError):
        application.rotate(DEFAULT)
    application.entra.delay_propagation()
    assert application.file.next
    with application.device() as device:
        delete_key(device, find_key(device, application.file.next.uri))
    taken = application.rotate(DEFAULT)
    assert taken == [Step.ABANDON, Step.UNREGISTER, Step.DELETE, *MADE, Step.WAIT]
    assert len(application.registered()) == 2


def test_the_old_key_id_given_to_one_run_is_stored_for_the_run_that_needs_it(unlisted: Application) -> None:
    ours = unlisted.file.current.key_id
    write_key_file(unlisted.key_file, replace(unlisted.file, current=replace(unlisted.file.current, key_id=None)))
    unlisted.time.ago = 70 * MINUTE
    unlisted.rotate(DEFAULT, old_key_id=ours)
    unlisted.time.ago = 0
    assert unlisted.rotate(DEFAULT) == [Step.UNREGISTER, Step.DELETE]
    assert unlisted.is_tidy()


def test_during_the_grace_period_another_rotation_starts_only_if_its_key_is_named(rotated: Application) -> None:
    made = rotated.softhsm.add_identity("made elsewhere", b"\x77")
    rotated.time.ago = 30 * MINUTE
    assert rotated.rotate(DEFAULT) == [Step.WAIT]
    taken = rotated.rotate(DEFAULT, next_key=Pkcs11Uri.parse(made.uri))
    assert taken == [Step.NAME, Step.REGISTER, Step.PROVE, Step.SWITCH, Step.WAIT, Step.WAIT]
    assert len(rotated.registered()) == 3
    rotated.time.ago = -41 * MINUTE
    assert rotated.rotate(DEFAULT) == [Step.UNREGISTER, Step.DELETE, Step.UNREGISTER, Step.DELETE]
    assert rotated.is_tidy()


def test_the_plan_shows_the_wait_and_the_steps_after_it(application: Application) -> None:
    with application.rotation(DEFAULT, lambda step, text: None) as rotation:
        assert rotation.plan() == [*MADE, Step.WAIT, Step.UNREGISTER, Step.DELETE]


def test_the_plan_of_the_remaining_steps_needs_no_device(rotated: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEVICE_PIN")
    with rotated.rotation(DEFAULT, lambda step, text: None) as rotation:
        assert rotation.plan() == [Step.WAIT, Step.UNREGISTER, Step.DELETE]


class TestTheCheck:
    @pytest.fixture
    def due(self, rotated: Application) -> Check:
        def due(**changes: object) -> Due:
            now = datetime.fromtimestamp(rotated.time.now(), UTC)
            return check_due(rotated.profile(**{**DEFAULT, **changes}), 20, now)

        return due

    def test_an_unfinished_rotation_is_not_due_during_the_grace_period(self, rotated: Application, due: Check) -> None:
        assert due() == Due(364, unfinished=True, due=False, until=rotated.file.retired[0].until)

    def test_an_unfinished_rotation_is_due_after_the_grace_period(self, rotated: Application, due: Check) -> None:
        rotated.time.ago = 0
        assert due() == Due(364, unfinished=True, due=True)

    def test_an_unfinished_rotation_without_a_grace_period_is_due(self, due: Check) -> None:
        assert due(grace=0).due

    def test_an_unfinished_rotation_without_a_recorded_time_is_due(self, rotated: Application, due: Check) -> None:
        # `rotate` starts the grace period.
        (old,) = rotated.file.retired
        write_key_file(rotated.key_file, replace(rotated.file, retired=(replace(old, until=None),)))
        assert due().due
