"""The key of a card is replaced, from slot 9a to slot 9c, even if the card is unplugged and plugged in meanwhile."""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hsm_signer.config.keyfile import KeyEntry, KeyFile, read_key_file, write_key_file
from hsm_signer.config.profile import Profile, profile_from_arguments
from hsm_signer.credential.tokens import Tokens
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceGone, DeviceNotFound, DeviceReadOnly, KeyNotFound
from hsm_signer.rotation.plan import Step
from hsm_signer.rotation.request import RotationRequest
from hsm_signer.rotation.rotation import Rotation
from hsm_signer.testing import EntraEmulator
from tests.support.names import CLIENT, GRAPH, TENANT
from tests.support.stacks.piv import PivStack
from tests.together.programs import thumbprint

STEPS = [Step.NAME, Step.REGISTER, Step.PROVE, Step.SWITCH, Step.UNREGISTER, Step.KEEP]


@pytest.fixture
def entra(yubikey: PivStack) -> Iterator[EntraEmulator]:
    assert yubikey.key.certificate is not None
    with EntraEmulator(https=False) as entra:
        entra.register(CLIENT, yubikey.key.certificate, tenant=TENANT)
        yield entra


@pytest.fixture
def profile(yubikey: PivStack, entra: EntraEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("DEVICE_PIN", yubikey.pin)
    write_key_file(tmp_path / "key.json", KeyFile(KeyEntry(Pkcs11Uri.parse(yubikey.key.uri))))
    return profile_from_arguments(
        {
            "tenant": TENANT,
            "client_id": CLIENT,
            "authority": entra.authority,
            "key": f"file:{tmp_path / 'key.json'}",
            "module": str(yubikey.module),
            "module_environment": yubikey.environment,
            "pin_source": "env:DEVICE_PIN",
            "pin_record": False,
            "grace": 0,
        }
    )


@pytest.fixture
def following(yubikey: PivStack) -> Pkcs11Uri:
    assert yubikey.always_authenticate_key is not None
    return Pkcs11Uri.parse(yubikey.always_authenticate_key.uri)


def rotate(
    profile: Profile, following: Pkcs11Uri, at: Step | None = None, act: Callable[[], None] = lambda: None
) -> list[Step]:
    """Rotate, call `act` right after a step, and return the steps that were taken."""
    taken: list[Step] = []

    def report(step: Step, text: str) -> None:
        taken.append(step)
        if step is at:
            act()

    with Rotation(profile, RotationRequest(next_key=following, propagation=0), report=report) as rotation:
        rotation.run()
    return taken


def key_file(profile: Profile) -> Path:
    assert profile.key_file is not None
    return profile.key_file


def in_use(profile: Profile) -> Pkcs11Uri:
    return read_key_file(key_file(profile)).current.uri


def test_a_key_generated_on_the_card_becomes_the_current_key(
    yubikey: PivStack, entra: EntraEmulator, profile: Profile, following: Pkcs11Uri
) -> None:
    assert rotate(profile, following) == STEPS
    assert in_use(profile) == following
    (held,) = entra.key_credentials(CLIENT, tenant=TENANT)
    assert held.key_id == read_key_file(key_file(profile)).current.key_id


def refused(profile: Profile, entra: EntraEmulator, **wanted: Any) -> tuple[DeviceReadOnly, list[list[str]]]:
    """Return why a rotation is refused, before it has written the key file or asked Entra, and the commands to give."""
    before = key_file(profile).read_bytes()
    with Rotation(profile, RotationRequest(**wanted)) as rotation:
        with pytest.raises(DeviceReadOnly):
            rotation.plan()
        with pytest.raises(DeviceReadOnly) as caught:
            rotation.run()
    assert key_file(profile).read_bytes() == before
    assert not entra.requests
    assert caught.value.hint
    return caught.value, [shlex.split(command) for command in caught.value.commands]


class TestIsRefusedBeforeAnythingIsBegun:
    def test_without_a_next_key_which_the_card_s_tool_makes(self, profile: Profile, entra: EntraEmulator) -> None:
        _, (generate, certify, again) = refused(profile, entra)
        # Never in the slot of the key that is in use. On this card 9c has a key, and 9d is free.
        assert generate == ["ykman", *"piv keys generate --algorithm RSA2048 9d public.pem".split()]
        assert certify == ["ykman", *"piv certificates generate --subject".split(), "CN=virtual 9a", "9d", "public.pem"]
        assert "--next" in again
        assert Pkcs11Uri.parse(again[again.index("--next") + 1]) == replace(in_use(profile), id=b"\x03")

    def test_with_a_next_key_that_has_no_certificate(
        self, yubikey: PivStack, profile: Profile, entra: EntraEmulator, following: Pkcs11Uri
    ) -> None:
        yubikey.take_certificate_of_9c()
        if yubikey.name == "opensc":  # which shows no key without a certificate
            with pytest.raises(KeyNotFound):
                rotate(profile, following)
            return
        error, (export, certify) = refused(profile, entra, next_key=following)
        assert "no certificate that can be used" in error.message
        assert export == "ykman piv keys export 9c public.pem".split()
        assert certify[-2:] == ["9c", "public.pem"]

    def test_if_the_old_key_is_to_be_deleted(
        self, profile: Profile, entra: EntraEmulator, following: Pkcs11Uri
    ) -> None:
        error, _ = refused(profile, entra, next_key=following, delete_old=True)
        assert "Omit --delete-old-key" in str(error.hint)

    def test_with_a_next_key_that_is_not_there(self, profile: Profile, entra: EntraEmulator) -> None:
        before = key_file(profile).read_bytes()
        with pytest.raises(KeyNotFound, match="No private key"):
            rotate(profile, replace(in_use(profile), id=b"\x09"))
        assert key_file(profile).read_bytes() == before
        assert not entra.requests


def test_the_plan_heeds_the_key_that_is_named(profile: Profile, following: Pkcs11Uri) -> None:
    with Rotation(profile, RotationRequest(next_key=following)) as rotation:
        assert rotation.plan() == STEPS


def test_a_rotation_that_is_given_up_leaves_the_card_as_it_was(
    yubikey: PivStack, entra: EntraEmulator, profile: Profile, following: Pkcs11Uri
) -> None:
    before, said = in_use(profile), dict[Step, str]()
    with pytest.raises((DeviceGone, DeviceNotFound)):
        rotate(profile, following, Step.REGISTER, yubikey.unplug)
    yubikey.plug()
    with Rotation(profile, RotationRequest(cancel=True), report=said.__setitem__) as rotation:
        rotation.run()
    assert [*said] == [Step.CANCEL, Step.UNREGISTER, Step.KEEP]
    assert "ykman piv keys delete 9c" in said[Step.KEEP]
    (held,) = entra.key_credentials(CLIENT, tenant=TENANT)
    assert (in_use(profile), held.certificate.subject.rfc4514_string()) == (before, "CN=virtual 9a")


def test_the_advice_at_the_end_is_the_card_s(profile: Profile, following: Pkcs11Uri) -> None:
    said: dict[Step, str] = {}
    with Rotation(profile, RotationRequest(next_key=following), report=said.__setitem__) as rotation:
        rotation.run()
    assert "ykman piv certificates delete 9a && ykman piv keys delete 9a" in said[Step.KEEP]
    assert "hsm-signer key delete" not in said[Step.KEEP]


def test_a_key_that_an_earlier_run_was_to_delete_does_not_stop_the_rotation_for_ever(
    profile: Profile, following: Pkcs11Uri
) -> None:
    file = read_key_file(key_file(profile))
    retired = KeyEntry(following, registered=False, delete=True)
    write_key_file(key_file(profile), replace(file, retired=(retired,)))
    with Rotation(profile, RotationRequest()) as rotation:
        rotation.run()
    assert read_key_file(key_file(profile)).retired == ()


@pytest.mark.parametrize("step", STEPS[:-2])
def test_a_rotation_continues_if_the_card_is_plugged_in_at_once(
    yubikey: PivStack, entra: EntraEmulator, profile: Profile, following: Pkcs11Uri, step: Step
) -> None:
    def replug() -> None:
        yubikey.unplug()
        yubikey.plug()

    assert rotate(profile, following, step, replug) == STEPS
    (held,) = entra.key_credentials(CLIENT, tenant=TENANT)
    assert (in_use(profile), held.certificate.subject.rfc4514_string()) == (following, "CN=virtual 9c")


@pytest.mark.parametrize("step", STEPS[:-2])
def test_if_the_card_stays_unplugged_the_run_ends_and_the_next_run_continues(
    yubikey: PivStack, entra: EntraEmulator, profile: Profile, following: Pkcs11Uri, step: Step
) -> None:
    before = in_use(profile)
    with pytest.raises((DeviceGone, DeviceNotFound)):
        rotate(profile, following, step, yubikey.unplug)
    yubikey.plug()
    # After the proof, the switch needs no device.
    assert in_use(profile) == (following if step in (Step.PROVE, Step.SWITCH) else before)
    with Tokens(profile) as tokens:
        assert tokens.get(tokens.build_query((GRAPH,))).token
    rotate(profile, following)
    (held,) = entra.key_credentials(CLIENT, tenant=TENANT)
    assert (in_use(profile), held.certificate.subject.rfc4514_string()) == (following, "CN=virtual 9c")


def test_a_running_program_switches_to_the_next_key(
    yubikey: PivStack, entra: EntraEmulator, profile: Profile, following: Pkcs11Uri
) -> None:
    def replug() -> None:
        yubikey.unplug()
        yubikey.plug()

    with Tokens(profile, isolated=True) as tokens:
        before = thumbprint(tokens.assertion())
        rotate(profile, following, Step.REGISTER, replug)
        after = thumbprint(tokens.assertion())
    assert before != after == read_key_file(key_file(profile)).current.thumbprints["x5t"]
    assert {request.status for request in entra.requests} == {200}
