"""The key of a card is replaced, from slot 9a to slot 9c, even if the card is unplugged and plugged in meanwhile."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hsm_signer.config.keyfile import KeyEntry, KeyFile, read_key_file, write_key_file
from hsm_signer.config.profile import Profile, profile_from_arguments
from hsm_signer.credential.tokens import Tokens
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceGone, DeviceNotFound, DeviceReadOnly
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


def test_generating_a_key_on_the_card_is_refused_and_its_own_tool_is_named(yubikey: PivStack, profile: Profile) -> None:
    with Rotation(profile, RotationRequest()) as rotation, pytest.raises(DeviceReadOnly) as caught:
        rotation.run()
    assert caught.value.hint is not None
    assert "ykman" in caught.value.hint
    assert read_key_file(key_file(profile)).next is None


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
