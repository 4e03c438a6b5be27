"""The current key stays in use, whatever the key file or the command line calls it."""

from dataclasses import replace

import pytest
from pkcs11 import KeyType

from hsm_signer.config.keyfile import KeyEntry, KeyFile, write_key_file
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError, EntraError, KeyNotFound, KeyUnfit
from hsm_signer.jwt.compact import thumbprints
from hsm_signer.rotation.plan import Step
from hsm_signer.testing import GraphRefusal, Slow
from hsm_signer.x509.certificate import parse_certificates
from tests.support.application import Application
from tests.support.names import CLIENT, TENANT

# What a person may call the key `app` with the id 01.
SPELLINGS = [
    "pkcs11:token=rolling;object=app",
    "pkcs11:token=rolling;id=%01",
    "pkcs11:id=%01;object=app;token=rolling;type=private",
    "pkcs11:token=rolling",
    "pkcs11:object=%61pp",
]


def parsed(uri: str) -> Pkcs11Uri:
    return Pkcs11Uri.parse(uri)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_current_key_is_refused_as_the_next_key(application: Application, spelling: str) -> None:
    before = application.seen()
    with pytest.raises(ConfigError, match="is the current key") as caught:
        application.rotate(next_key=parsed(spelling))
    assert caught.value.hint
    assert application.seen() == before
    assert application.token()


@pytest.mark.parametrize("registered", [True, False])
def test_a_key_file_whose_next_key_is_the_current_one_is_refused(application: Application, registered: bool) -> None:
    again = KeyEntry(parsed("pkcs11:token=rolling;object=app"), registered=registered)
    write_key_file(application.key_file, replace(application.file, next=again))
    before = application.seen()
    with pytest.raises(ConfigError, match="is the current key"):
        application.rotate()
    assert application.seen() == before
    assert application.token()


@pytest.mark.parametrize(("spelling", "registered"), [(each, True) for each in SPELLINGS] + [(SPELLINGS[0], False)])
def test_a_retired_key_that_is_the_current_one_is_only_dropped_from_the_file(
    application: Application, spelling: str, registered: bool
) -> None:
    again = KeyEntry(parsed(spelling), registered=registered, key_id=application.file.current.key_id)
    write_key_file(application.key_file, replace(application.file, retired=(again,)))
    before = application.seen()
    assert application.rotate() == [Step.FORGET]
    assert application.seen() == before
    assert application.file.retired == ()
    assert application.is_tidy()


def test_after_a_manual_rollback_the_old_key_stays_in_use(
    application: Application,
) -> None:
    old = application.file.current
    application.rotate(delete_old=False)
    assert application.first.certificate
    application.entra.register(CLIENT, application.first.certificate, tenant=TENANT)
    new = application.file.current
    write_key_file(application.key_file, KeyFile(replace(old, key_id=None), retired=(old, new)))
    application.rotate()
    assert application.file.current.uri == old.uri
    assert application.is_tidy()


def test_a_retired_key_becomes_current_again_if_it_is_named_as_the_next_key(application: Application) -> None:
    old = application.file.current.uri
    application.rotate(delete_old=False)
    new = application.file.current.uri
    retired = replace(application.file, retired=(KeyEntry(Pkcs11Uri(token="rolling", id=b"\x01"), registered=False),))
    write_key_file(application.key_file, retired)
    taken = application.rotate(next_key=old)
    assert taken[:2] == [Step.NAME, Step.REGISTER]
    assert application.file.current.uri == old
    assert application.is_tidy()
    assert new != old


def test_repeating_a_command_after_the_switch_finishes_the_rotation(
    application: Application,
) -> None:
    made = application.softhsm.add_identity("made elsewhere", b"\x77")
    following = parsed(made.uri)
    application.entra.answer_next_graph(*[Slow(0)] * 3, GraphRefusal("Request_BadRequest", "Not now.", 400))
    with pytest.raises(EntraError):
        application.rotate(next_key=following)
    assert application.file.current.uri == following
    assert application.rotate(next_key=following) == [Step.UNREGISTER, Step.DELETE]
    assert application.is_tidy()


class TestACredential:
    """The credentials in the key file may be wrong, because a person may have written it."""

    def test_the_current_keys_credential_is_not_removed_even_if_the_file_lists_it_for_another_key(
        self, application: Application
    ) -> None:
        other = application.softhsm.add_identity("other", b"\x02")
        mistaken = KeyEntry(parsed(other.uri), key_id=application.file.current.key_id)
        write_key_file(application.key_file, replace(application.file, retired=(mistaken,)))
        before = application.registered()
        application.rotate()
        assert application.registered() == before
        assert application.is_tidy()

    def test_without_a_list_from_graph_it_asks_for_the_old_keys_id_if_the_file_has_the_current_keys_id(
        self, unlisted: Application
    ) -> None:
        other = unlisted.softhsm.add_identity("other", b"\x02")
        mistaken = KeyEntry(parsed(other.uri), key_id=unlisted.file.current.key_id)
        write_key_file(unlisted.key_file, replace(unlisted.file, retired=(mistaken,)))
        with pytest.raises(ConfigError) as caught:
            unlisted.rotate()
        assert "--old-key-id" in str(caught.value.hint)
        assert unlisted.token()

    def test_a_current_credential_that_was_removed_by_mistake_is_registered_again(self, unlisted: Application) -> None:
        # Somebody swapped the two ids, which shows only after one credential was removed.
        other = unlisted.softhsm.add_identity("other", b"\x02")
        assert other.certificate is not None
        unlisted.entra.register(CLIENT, other.certificate, tenant=TENANT)
        ours, others = (each.key_id for each in unlisted.entra.key_credentials(CLIENT, tenant=TENANT))
        current = replace(unlisted.file.current, key_id=others)
        write_key_file(
            unlisted.key_file,
            replace(unlisted.file, current=current, retired=(KeyEntry(parsed(other.uri), key_id=ours),)),
        )
        with pytest.raises(ConfigError, match="registered again at once") as caught:
            unlisted.rotate()
        assert "--old-key-id" in str(caught.value.hint)
        assert unlisted.token()
        unlisted.rotate(old_key_id=others)
        assert unlisted.is_tidy()

    def test_the_credential_of_an_earlier_certificate_is_not_removed_for_the_old_keys(
        self, unlisted: Application
    ) -> None:
        # The file names the credential of an earlier certificate, and this run begins with registering the next one.
        earlier, made = (unlisted.softhsm.add_identity(*each) for each in (("earlier", b"\x02"), ("next", b"\x03")))
        assert earlier.certificate
        unlisted.entra.register(CLIENT, earlier.certificate, tenant=TENANT)
        ours, its = (each.key_id for each in unlisted.entra.key_credentials(CLIENT, tenant=TENANT))
        (certificate,) = parse_certificates(earlier.certificate, "the earlier certificate")
        current = replace(unlisted.file.current, key_id=its, thumbprints=thumbprints(certificate))
        write_key_file(unlisted.key_file, KeyFile(current, next=KeyEntry(parsed(made.uri), registered=False)))
        with pytest.raises(ConfigError, match="unknown"):
            unlisted.rotate()
        assert {ours, its} < {each.key_id for each in unlisted.entra.key_credentials(CLIENT, tenant=TENANT)}
        assert unlisted.rotate(old_key_id=ours) == [Step.UNREGISTER, Step.DELETE]
        assert unlisted.token()

    def test_a_credential_that_may_not_be_the_old_keys_is_not_removed(self, unlisted: Application) -> None:
        (ours,) = (each.key_id for each in unlisted.entra.key_credentials(CLIENT, tenant=TENANT))
        current = replace(unlisted.file.current, key_id="11111111-2222-3333-4444-555555555555")
        gone = KeyEntry(Pkcs11Uri(token="rolling", object="gone"), key_id=ours)
        write_key_file(unlisted.key_file, replace(unlisted.file, current=current, retired=(gone,)))
        with pytest.raises(ConfigError, match="It is not certain"):
            unlisted.rotate()
        assert unlisted.token()


class TestASharedId:
    """Devices allow two keys with one id, and the id is how their certificates are found."""

    @pytest.fixture
    def twin(self, application: Application) -> KeyEntry:
        """Another key with the current key's id, so that the current key's certificate seems to belong to both."""
        named = {"id": b"\x01", "label": "twin", "store": True}
        with application.device() as device:
            device.call("making a key", lambda session: session.generate_keypair(KeyType.RSA, 2048, **named))
        return KeyEntry(Pkcs11Uri(token="rolling", object="twin", id=b"\x01"))

    def test_deleting_a_retired_key_with_the_same_id_keeps_the_current_keys_certificate(
        self, application: Application, twin: KeyEntry
    ) -> None:
        write_key_file(application.key_file, replace(application.file, retired=(twin,)))
        application.rotate()
        assert application.is_tidy()

    def test_a_next_key_with_the_same_id_is_refused(self, application: Application, twin: KeyEntry) -> None:
        with pytest.raises(KeyUnfit, match="has the same id as the current one"):
            application.rotate(next_key=twin.uri)
        assert len(application.on_device().certificates) == 1
        assert application.token()


class TestAUri:
    def test_a_next_key_on_another_device_is_not_found_on_this_one(self, application: Application) -> None:
        made = application.softhsm.add_identity("other", b"\x02")
        with pytest.raises(KeyNotFound, match="is not on"):
            application.rotate(next_key=replace(parsed(made.uri), token="elsewhere"))
        assert application.token()

    def test_a_retired_key_on_another_device_deletes_nothing_on_this_one(self, application: Application) -> None:
        made = application.softhsm.add_identity("other", b"\x02")
        elsewhere = KeyEntry(replace(parsed(made.uri), token="elsewhere"), registered=False)
        write_key_file(application.key_file, replace(application.file, retired=(elsewhere,)))
        application.rotate()
        assert len(application.on_device().keys) == 2

    def test_a_uri_without_a_key_keeps_naming_the_same_key_after_another_was_generated(
        self, application: Application
    ) -> None:
        write_key_file(application.key_file, KeyFile(KeyEntry(Pkcs11Uri(token="rolling"))))
        application.entra.answer_next_graph(Slow(0), GraphRefusal("Request_BadRequest", "Not now.", 400))
        with pytest.raises(EntraError):
            application.rotate()
        assert len(application.on_device().keys) == 2
        assert application.token()
        application.rotate()
        assert application.is_tidy()

    def test_the_uri_of_the_next_key_is_searched_on_the_current_keys_device(self, application: Application) -> None:
        made = application.softhsm.add_identity("other", b"\x02")
        application.softhsm.add_token("another device")
        application.rotate(next_key=Pkcs11Uri(object=made.label))
        assert application.is_tidy()


@pytest.mark.parametrize("registered", [True, False])
def test_no_key_is_deleted_before_the_current_one_has_worked(application: Application, registered: bool) -> None:
    # Somebody named a key that Entra does not know as current, and the one that works as retired.
    works = replace(application.file.current, registered=registered)
    unknown = application.softhsm.add_identity("unknown", b"\x02")
    write_key_file(application.key_file, KeyFile(KeyEntry(parsed(unknown.uri)), retired=(works,)))
    before = application.seen()
    with pytest.raises(EntraError):
        application.rotate()
    assert application.seen() == before
