"""A rotation that was begun is given up: what was done for the next key is undone, and the current key stays in use."""

import signal
from dataclasses import replace

import pytest

from hsm_signer.config.keyfile import KeyEntry, write_key_file
from hsm_signer.device.manage.keys import delete_key, find_key
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError, EntraError
from hsm_signer.rotation.plan import Step
from hsm_signer.testing import GraphRefusal, Slow
from tests.support.application import Application
from tests.support.names import CLIENT, TENANT

CUTS = [
    pytest.param("hsm_signer.rotation.rotation", "write_key_file", 1, id="the next key is named"),
    pytest.param("hsm_signer.rotation.actions", "generate_key", 1, id="generated"),
    pytest.param("hsm_signer.device.manage.certificates", "store_certificate", 1, id="certified"),
    pytest.param("hsm_signer.entra.graph", "Graph.add_key", 1, id="registered, and this is not written"),
    pytest.param("hsm_signer.rotation.rotation", "write_key_file", 2, id="registered"),
]


def cancel(application: Application, **wanted: object) -> list[Step]:
    return application.rotate({}, cancel=True, **wanted)


def begin(application: Application) -> Pkcs11Uri:
    """Rotate until the next key is registered, and return where it is."""
    application.entra.delay_propagation(token_requests=2)
    with pytest.raises(EntraError, match="still does not accept"):
        application.rotate()
    application.entra.delay_propagation()
    assert application.file.next
    return application.file.next.uri


@pytest.mark.parametrize(("module", "name", "call"), CUTS)
def test_wherever_the_rotation_was_interrupted_everything_is_as_before(
    application: Application, module: str, name: str, call: int
) -> None:
    before = application.seen()
    cut = {"module": module, "name": name, "call": call, "when": "after"}
    assert application.rotate_until(cut) == -signal.SIGKILL
    assert cancel(application)[0] is Step.CANCEL
    assert application.seen() == before
    assert application.is_tidy()


def test_without_a_list_from_graph_a_key_that_was_not_registered_needs_no_credential_id(unlisted: Application) -> None:
    unlisted.entra.answer_next_graph(Slow(0), GraphRefusal("Request_BadRequest", "Not now.", 400))
    with pytest.raises(EntraError):
        unlisted.rotate()
    assert cancel(unlisted) == [Step.CANCEL, Step.UNREGISTER, Step.DELETE]
    assert unlisted.is_tidy()


def test_without_a_list_from_graph_the_credential_is_found_in_the_key_file(unlisted: Application) -> None:
    begin(unlisted)
    assert cancel(unlisted) == [Step.CANCEL, Step.UNREGISTER, Step.DELETE]
    assert unlisted.is_tidy()


def test_the_key_stays_on_the_device_unless_it_is_to_be_deleted(application: Application) -> None:
    lost = begin(application)
    assert cancel(application, delete_old=False) == [Step.CANCEL, Step.UNREGISTER, Step.KEEP]
    assert len(application.registered()) == 1
    assert {key.label for key in application.on_device().keys} == {"app", lost.object}
    assert (application.file.next, application.file.retired) == (None, ())


def test_a_key_that_is_lost_is_taken_from_entra_alone(application: Application) -> None:
    lost = begin(application)
    with application.device() as device:
        delete_key(device, find_key(device, lost))
    said: list[tuple[Step, str]] = []
    request = {"cancel": True, "delete_old": False}
    with application.rotation({}, lambda *each: said.append(each), **request) as rotation:
        rotation.run()
    assert [step for step, _ in said] == [Step.CANCEL, Step.UNREGISTER, Step.KEEP]
    assert "was not found on the device" in said[-1][1]
    assert len(application.registered()) == 1


def test_what_could_not_be_undone_now_is_undone_by_the_next_run(application: Application) -> None:
    begin(application)
    # Asked: what is registered, and to remove the key.
    application.entra.answer_next_graph(Slow(0), GraphRefusal("Request_BadRequest", "Not now.", 400))
    with pytest.raises(EntraError):
        cancel(application)
    assert application.file.next is None
    assert application.token()
    assert application.rotate(delete_old=False) == [Step.UNREGISTER, Step.DELETE]
    assert application.is_tidy()


@pytest.mark.parametrize("spelling", ["pkcs11:token=rolling;object=app;id=%01", "pkcs11:object=app"])
@pytest.mark.parametrize("registered", [False, True])
def test_a_next_key_that_is_the_current_one_is_only_removed_from_the_file(
    application: Application, spelling: str, registered: bool
) -> None:
    again = KeyEntry(Pkcs11Uri.parse(spelling), registered, application.file.current.key_id)
    write_key_file(application.key_file, replace(application.file, next=again))
    before = application.seen()
    assert cancel(application) == [Step.CANCEL, Step.FORGET]
    assert application.seen() == before
    assert application.is_tidy()


def test_after_the_switch_the_way_back_is_shown(application: Application) -> None:
    application.rotate({"grace": 3600})
    before = application.key_file.read_bytes(), application.seen()
    with pytest.raises(ConfigError, match="has switched") as caught:
        application.rotate({"grace": 3600}, cancel=True)
    assert f"--next '{application.first.uri}'" in caught.value.commands[0]
    assert (application.key_file.read_bytes(), application.seen()) == before


def test_nothing_is_done_if_nothing_was_begun(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEVICE_PIN")
    assert cancel(application) == []


def test_a_key_that_waits_from_the_last_rotation_is_left_alone(application: Application) -> None:
    application.rotate({"grace": 3600})
    made = application.softhsm.add_identity("made elsewhere", b"\x77")
    application.entra.answer_next_graph(Slow(0), GraphRefusal("Request_BadRequest", "Not now.", 400))
    with pytest.raises(EntraError):
        application.rotate({"grace": 3600}, next_key=Pkcs11Uri.parse(made.uri))
    taken = application.rotate({"grace": 3600}, cancel=True)
    assert taken == [Step.CANCEL, Step.UNREGISTER, Step.DELETE, Step.WAIT]
    assert [key.uri.object for key in application.file.retired] == ["app"]
    assert len(application.entra.key_credentials(CLIENT, tenant=TENANT)) == 2
    assert application.token()
