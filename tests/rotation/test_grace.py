"""The old credential stays registered while somebody may hold an assertion by it, and nobody waits for that."""

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
    """When each retired key may go, in seconds from now."""
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
def test_the_time_that_it_stays_follows_from_the_lifetimes_in_use(
    application: Application, profile: dict[str, object], seconds: int
) -> None:
    application.rotate({**DEFAULT, **profile})
    assert until(application) == [pytest.approx(seconds, abs=30)]


def test_a_time_that_the_next_certificate_hardly_outlives_is_refused_before_anything_is_begun(
    application: Application,
) -> None:
    # Nothing is replaced while it lasts: the certificate would expire first.
    with pytest.raises(ConfigError, match="30 days") as caught:
        application.rotate({"grace": 16 * 24 * HOUR}, days=30)
    assert "--days" in str(caught.value.hint)
    assert application.file.next is None
    assert application.rotate({"grace": 15 * 24 * HOUR}, days=30)[-1] is Step.WAIT


def test_the_next_run_is_quiet_while_the_time_lasts_and_needs_no_device(
    rotated: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotated.time.ago = MINUTE
    monkeypatch.delenv("DEVICE_PIN")
    before = rotated.key_file.read_text()
    assert rotated.rotate(DEFAULT) == [Step.WAIT]
    assert rotated.key_file.read_text() == before


def test_a_run_after_that_ends_the_rotation_as_the_first_one_was_asked_to(rotated: Application) -> None:
    rotated.time.ago = 0
    assert rotated.rotate(DEFAULT, delete_old=False) == [Step.UNREGISTER, Step.DELETE]
    assert rotated.is_tidy()


def test_it_is_removed_at_once_when_that_is_asked_for(application: Application) -> None:
    assert application.rotate({"grace": 0}) == [*MADE, Step.UNREGISTER, Step.DELETE]
    assert application.is_tidy()


def test_it_is_removed_at_once_when_that_is_asked_for_later(rotated: Application) -> None:
    assert rotated.rotate({"grace": 0}) == [Step.UNREGISTER, Step.DELETE]
    assert rotated.is_tidy()


def test_another_time_in_a_later_run_changes_nothing(rotated: Application) -> None:
    before = rotated.file
    assert rotated.rotate({"grace": 1}) == [Step.WAIT]
    assert rotated.rotate({"grace": 100000}) == [Step.WAIT]
    assert rotated.file == before


def test_a_retired_key_that_somebody_has_written_down_stays_for_the_time_from_when_it_is_seen(
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


def test_a_next_key_that_was_given_up_was_never_in_use_and_goes_at_once(application: Application) -> None:
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


def test_the_credentials_id_that_was_given_is_there_for_the_run_that_needs_it(reticent: Application) -> None:
    ours = reticent.file.current.key_id
    write_key_file(reticent.key_file, replace(reticent.file, current=replace(reticent.file.current, key_id=None)))
    reticent.time.ago = 70 * MINUTE
    reticent.rotate(DEFAULT, old_key_id=ours)
    reticent.time.ago = 0
    assert reticent.rotate(DEFAULT) == [Step.UNREGISTER, Step.DELETE]
    assert reticent.is_tidy()


def test_another_rotation_is_begun_only_where_its_key_is_named(rotated: Application) -> None:
    made = rotated.softhsm.add_identity("made elsewhere", b"\x77")
    rotated.time.ago = 30 * MINUTE
    assert rotated.rotate(DEFAULT) == [Step.WAIT]
    taken = rotated.rotate(DEFAULT, next_key=Pkcs11Uri.parse(made.uri))
    assert taken == [Step.NAME, Step.REGISTER, Step.PROVE, Step.SWITCH, Step.WAIT, Step.WAIT]
    assert len(rotated.registered()) == 3
    rotated.time.ago = -41 * MINUTE
    assert rotated.rotate(DEFAULT) == [Step.UNREGISTER, Step.DELETE, Step.UNREGISTER, Step.DELETE]
    assert rotated.is_tidy()


def test_the_plan_shows_that_the_rotation_goes_on_later(application: Application) -> None:
    with application.rotation(DEFAULT, lambda step, text: None) as rotation:
        assert rotation.plan() == [*MADE, Step.WAIT, Step.UNREGISTER, Step.DELETE]


def test_the_plan_of_what_remains_needs_no_device(rotated: Application, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_tells_of_what_remains_and_that_it_is_not_due(self, rotated: Application, due: Check) -> None:
        assert due() == Due(364, unfinished=True, due=False, until=rotated.file.retired[0].until)

    def test_says_when_the_old_key_can_be_removed(self, rotated: Application, due: Check) -> None:
        rotated.time.ago = 0
        assert due() == Due(364, unfinished=True, due=True)

    def test_says_that_it_can_be_removed_now_where_nothing_is_to_be_waited_for(self, due: Check) -> None:
        assert due(grace=0).due

    def test_says_that_it_is_due_where_nobody_has_written_until_when_it_stays(
        self, rotated: Application, due: Check
    ) -> None:
        # `rotate` begins to count.
        (old,) = rotated.file.retired
        write_key_file(rotated.key_file, replace(rotated.file, retired=(replace(old, until=None),)))
        assert due().due
