"""A rotation on cards, where keys are made with other tools: from slot 9a to slot 9c."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hsm_signer.config.keyfile import FiledKey, KeyFile, read_key_file, write_key_file
from hsm_signer.config.profile import Profile, profile_from_arguments
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceReadOnly
from hsm_signer.rotation.plan import Step
from hsm_signer.rotation.rotation import Rotation, RotationRequest
from hsm_signer.testing import EntraEmulator
from tests.support.names import CLIENT, TENANT
from tests.support.stacks.piv import PivStack


@pytest.fixture
def entra(yubikey: PivStack) -> Iterator[EntraEmulator]:
    assert yubikey.key.certificate is not None
    with EntraEmulator(https=False) as entra:
        entra.register(CLIENT, yubikey.key.certificate, tenant=TENANT)
        yield entra


@pytest.fixture
def profile(yubikey: PivStack, entra: EntraEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setenv("DEVICE_PIN", yubikey.pin)
    write_key_file(tmp_path / "key.json", KeyFile(FiledKey(Pkcs11Uri.parse(yubikey.key.uri))))
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


def test_a_key_that_was_made_on_the_card_takes_over(yubikey: PivStack, entra: EntraEmulator, profile: Profile) -> None:
    assert yubikey.always_authenticate_key is not None
    following = Pkcs11Uri.parse(yubikey.always_authenticate_key.uri)
    taken: list[Step] = []
    with Rotation(profile, RotationRequest(following=following), report=lambda step, _: taken.append(step)) as rotation:
        rotation.run()
    assert taken == [Step.NAME, Step.REGISTER, Step.PROVE, Step.SWITCH, Step.UNREGISTER, Step.KEEP]
    assert profile.key_file is not None
    assert read_key_file(profile.key_file).current.uri == following
    (held,) = entra.key_credentials(CLIENT, tenant=TENANT)
    assert held.key_id == read_key_file(profile.key_file).current.key_id


def test_no_key_is_made_on_the_card_and_the_tool_that_does_is_named(yubikey: PivStack, profile: Profile) -> None:
    with Rotation(profile, RotationRequest()) as rotation, pytest.raises(DeviceReadOnly) as caught:
        rotation.run()
    assert caught.value.hint is not None
    assert "ykman" in caught.value.hint
    assert profile.key_file is not None
    assert read_key_file(profile.key_file).next is None
