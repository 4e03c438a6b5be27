"""Rotations that run into trouble: Graph refuses, a key is lost, a device or a file cannot be changed."""

import fcntl
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from joserfc.util import urlsafe_b64decode

from hsm_signer.config.keyfile import KeyEntry, KeyFile, write_key_file
from hsm_signer.crypto import Algorithm
from hsm_signer.device.device import Device
from hsm_signer.device.manage.certificates import certificates_of_key, delete_certificate, replace_certificates
from hsm_signer.device.manage.generate import KeySpec, generate_key
from hsm_signer.device.manage.keys import delete_key, find_key
from hsm_signer.device.match import KeyInfo
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import (
    ConfigError,
    EntraError,
    HsmSignerError,
    KeyNotFound,
    NetworkError,
    OutputError,
    PinIncorrect,
)
from hsm_signer.rotation.plan import Step
from hsm_signer.rotation.request import RotationRequest
from hsm_signer.rotation.rotation import Rotation
from hsm_signer.testing import Disconnected, GraphRefusal, Html, Slow, Throttled, Unavailable
from hsm_signer.x509.issuance import create_certificate
from tests.support.application import Application
from tests.support.names import CLIENT, PIN, TENANT

# One rotation sends Graph four requests: list, addKey, list, removeKey.
REQUESTS = 4

ORDINARY = Slow(0)


@pytest.mark.parametrize("request_number", range(REQUESTS))
@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([GraphRefusal("Authorization_RequestDenied", "Insufficient privileges.", 403)], id="403"),
        pytest.param([GraphRefusal("Request_BadRequest", "It cannot be.", 400)], id="400"),
        pytest.param([Throttled("3600")], id="429"),
        pytest.param([Unavailable()] * 2, id="503"),
        pytest.param([Html(502)] * 2, id="HTML"),
        pytest.param([Disconnected()] * 2, id="disconnected"),
    ],
)
def test_after_any_failure_of_graph_a_key_works_and_the_next_run_finishes_the_rotation(
    application: Application, answers: list[GraphRefusal], request_number: int
) -> None:
    before = application.registered()
    application.entra.answer_next_graph(*[ORDINARY] * request_number, *answers)
    failure = attempt(application)
    if failure is not None:  # otherwise a retry helped, or the rotation worked without the list
        assert failure.hint
        assert application.token()
        application.rotate()
    assert application.is_tidy()
    assert application.registered() != before


def attempt(application: Application) -> HsmSignerError | None:
    try:
        application.rotate()
    except (EntraError, NetworkError) as error:
        return error
    return None


def test_the_key_can_be_rotated_twice(application: Application) -> None:
    seen = {*application.registered()}
    for _ in range(2):
        application.rotate()
        seen |= {*application.registered()}
        assert application.is_tidy()
    assert len(seen) == 3


def test_a_service_principals_own_key_is_rotated_too(application: Application) -> None:
    first = application.softhsm.add_identity("principal", b"\x02")
    assert first.certificate is not None
    entra = application.entra
    entra.register(CLIENT, first.certificate, tenant=TENANT, service_principal=True)
    write_key_file(application.key_file, KeyFile(KeyEntry(Pkcs11Uri.parse(first.uri))))
    principal = entra.service_principal_id(CLIENT, tenant=TENANT)
    before = application.registered()
    with Rotation(application.profile(service_principal=True, object_id=principal), RotationRequest()) as rotation:
        rotation.run()
    (held,) = entra.key_credentials(CLIENT, tenant=TENANT, service_principal=True)
    assert held.key_id == application.file.current.key_id
    assert application.registered() == before


def test_the_next_key_requires_the_pin_for_each_signature_if_the_current_one_does(application: Application) -> None:
    spec = KeySpec("careful", b"\x03", always_authenticate=True)
    with application.device() as device:
        made = generate_key(device, spec)
        signer = open_signer(device, Pkcs11Uri.parse(made.uri))
        certificate = create_certificate(signer, Algorithm.RS256, "CN=careful", 30, datetime.now(UTC))
        replace_certificates(device, made.info, certificate)
    application.entra.register(CLIENT, certificate, tenant=TENANT)
    write_key_file(application.key_file, KeyFile(KeyEntry(Pkcs11Uri.parse(made.uri))))
    application.rotate()
    following = [key for key in application.on_device().keys if key.label.startswith("careful-")]
    assert [key.protection.always_authenticate for key in following] == [True]


def test_if_graph_refuses_the_proof_the_current_key_stays_in_use(application: Application) -> None:
    with (
        Rotation(application.profile(object_id=CLIENT), RotationRequest(propagation=0)) as rotation,
        pytest.raises(EntraError, match="Authentication_MissingOrMalformed") as caught,
    ):
        rotation.run()
    assert caught.value.hint is not None
    assert "object ID" in caught.value.hint
    assert application.token()
    application.rotate()
    assert application.is_tidy()


def test_a_running_program_switches_to_the_next_key_when_the_key_file_changes(application: Application) -> None:
    with application.tokens() as tokens:
        before = thumbprint(tokens.assertion())
        application.rotate(delete_old=False)
        after = thumbprint(tokens.assertion())
    assert [before] != application.registered()
    assert [after] == application.registered()


def test_a_refused_pin_is_not_sent_again_for_the_next_key(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    with application.tokens() as tokens:
        monkeypatch.setenv("DEVICE_PIN", "0815")
        with pytest.raises(PinIncorrect):
            tokens.assertion()
        monkeypatch.setenv("DEVICE_PIN", PIN)
        application.rotate(delete_old=False)
        with pytest.raises(PinIncorrect):  # the remembered refusal: the PIN is right now, and would be accepted
            tokens.assertion()


def test_a_running_program_keeps_its_key_while_the_key_file_is_damaged(application: Application) -> None:
    with application.tokens() as tokens:
        before = thumbprint(tokens.assertion())
        application.key_file.write_text("{")
        assert thumbprint(tokens.assertion()) == before


def thumbprint(assertion: str) -> bytes:
    header = json.loads(urlsafe_b64decode(assertion.partition(".")[0].encode()))
    return urlsafe_b64decode(header["x5t"].encode())


def change(application: Application, act: Callable[[Device, KeyInfo], None], uri: Pkcs11Uri) -> None:
    """Change a key on the device without the rotation's knowledge."""
    with application.device() as device:
        act(device, find_key(device, uri))


def delete_certificates(device: Device, key: KeyInfo) -> None:
    for certificate in certificates_of_key(device, key):
        delete_certificate(device, certificate.der)


def stop_before_proof(application: Application) -> Pkcs11Uri:
    """Rotate until the next key is registered, and return its URI."""
    application.entra.delay_propagation(token_requests=2)
    with pytest.raises(EntraError, match="still does not accept the next key"):
        application.rotate()
    assert application.token()
    application.entra.delay_propagation()
    following = application.file.next
    assert following is not None
    assert following.registered
    return following.uri


def test_a_next_key_lost_after_its_registration_is_abandoned_and_another_one_generated(
    application: Application,
) -> None:
    lost = stop_before_proof(application)
    change(application, delete_key, lost)
    taken = application.rotate()
    assert taken[:4] == [Step.ABANDON, Step.UNREGISTER, Step.DELETE, Step.NAME]
    contents = application.on_device()
    assert len(application.registered()) == 1
    assert len(contents.keys) == 1
    assert application.token()


def test_a_next_certificate_lost_after_its_registration_is_abandoned_with_its_key(
    application: Application,
) -> None:
    lost = stop_before_proof(application)
    change(application, delete_certificates, lost)
    assert application.rotate()[0] is Step.ABANDON
    assert application.is_tidy()


def test_an_existing_key_can_be_named_as_the_next_key(application: Application) -> None:
    made = application.softhsm.add_key("made elsewhere", b"\x77")
    taken = application.rotate(next_key=Pkcs11Uri.parse(made.uri))
    assert Step.GENERATE not in taken
    assert application.file.current.uri == Pkcs11Uri.parse(made.uri)
    assert application.is_tidy()


def test_a_named_next_key_replaces_one_that_was_not_registered_yet(application: Application) -> None:
    application.entra.answer_next_graph(ORDINARY, GraphRefusal("Request_BadRequest", "It cannot be.", 400))
    with pytest.raises(EntraError):
        application.rotate()
    made = application.softhsm.add_identity("made elsewhere", b"\x77")
    application.rotate(next_key=Pkcs11Uri.parse(made.uri))
    assert application.file.current.uri == Pkcs11Uri.parse(made.uri)
    assert application.token()


def test_a_next_key_that_is_not_there_is_refused_before_anything_is_begun(application: Application) -> None:
    before = application.key_file.read_bytes()
    with pytest.raises(KeyNotFound, match="No private key on"):
        application.rotate(next_key=Pkcs11Uri(token="rolling", id=b"\x99"))
    assert application.key_file.read_bytes() == before


def test_the_plan_heeds_the_key_that_is_named(application: Application) -> None:
    made = application.softhsm.add_key("made elsewhere", b"\x77")
    with application.rotation({}, lambda step, text: None, next_key=Pkcs11Uri.parse(made.uri)) as rotation:
        planned = rotation.plan()
    assert planned == application.rotate(next_key=Pkcs11Uri.parse(made.uri))
    assert Step.GENERATE not in planned


def test_a_wrong_credential_id_stops_the_removal_until_it_is_corrected(unlisted: Application) -> None:
    unknown = replace(unlisted.file.current, key_id="11111111-2222-3333-4444-555555555555")
    write_key_file(unlisted.key_file, replace(unlisted.file, current=unknown))
    with pytest.raises(EntraError, match="Request_ResourceNotFound"):
        unlisted.rotate()
    assert unlisted.token()
    (old, _) = unlisted.entra.key_credentials(CLIENT, tenant=TENANT)
    known = replace(unlisted.file.retired[0], key_id=old.key_id)
    write_key_file(unlisted.key_file, replace(unlisted.file, retired=(known,)))
    unlisted.rotate()
    assert unlisted.is_tidy()


def test_two_rotations_do_not_run_at_once(application: Application) -> None:
    with (application.key_file.parent / ".key.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="Another hsm-signer rotate is running"):
            application.rotate()


def test_a_key_file_that_cannot_be_written_stops_the_rotation_before_a_key_is_generated(
    application: Application,
) -> None:
    # The name is so long that the name of the temporary file is too long.
    stuck = replace(application, key_file=application.key_file.with_name("k" * 240))
    application.key_file.rename(stuck.key_file)
    with pytest.raises(OutputError, match="cannot be written"):
        stuck.rotate()
    assert len(stuck.on_device().keys) == 1
    assert len(stuck.registered()) == 1
