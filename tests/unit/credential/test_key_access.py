"""How the key of a profile is opened: above all, where its PIN comes from."""

from pathlib import Path

import pytest

from hsm_signer.config.profile import Profile
from hsm_signer.credential.key_access import key_access
from hsm_signer.device.access import Operator
from hsm_signer.device.pin.pin import Pin, PinRequest
from hsm_signer.device.pin.sources import EnvironmentPin, FilePin, FixedLogin, NoPinSource
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import (
    ConfigError,
)

OFFICE = Pkcs11Uri(token="Office")


class Prompt:
    """A person at a terminal."""

    description = identity = "the prompt"
    attended = True

    def __call__(self, request: PinRequest) -> Pin:
        return Pin("4711")


WITH_SOURCE = Pkcs11Uri(token="Office", pin_source="env:URI_PIN")
WITH_VALUE = Pkcs11Uri(token="Office", pin_value="4711")


@pytest.mark.parametrize(
    ("setting", "uri", "prompt", "expected"),
    [
        ("file:pin", WITH_SOURCE, Prompt(), FilePin),
        (None, WITH_SOURCE, Prompt(), EnvironmentPin),
        (None, WITH_VALUE, Prompt(), FixedLogin),
        (None, OFFICE, Prompt(), Prompt),
        (None, OFFICE, None, NoPinSource),
    ],
)
def test_the_pin_comes_from_the_setting_or_else_the_uri_or_else_the_prompt(
    setting: str | None, uri: Pkcs11Uri, prompt: Prompt | None, expected: type[object]
) -> None:
    access = key_access(Profile(key=(uri,), pin_source=setting), uri, Operator(prompt=prompt))
    assert type(access.pin) is expected


def test_a_uri_may_not_name_a_program_that_gives_the_pin() -> None:
    uri = Pkcs11Uri(token="Office", pin_source="command:/bin/pin")
    with pytest.raises(ConfigError, match="must not name a program to run"):
        key_access(Profile(key=(uri,)), uri)


def test_the_pin_file_of_a_profile_is_the_one_it_names() -> None:
    profile = Profile(key=(OFFICE,), pin_source="file:/etc/hsm-signer/pin")
    source = key_access(profile, OFFICE).pin
    assert isinstance(source, FilePin)
    assert source.path == Path("/etc/hsm-signer/pin")


def test_a_profile_that_records_no_refused_pins_has_no_directory_for_them() -> None:
    profiles = [Profile(key=(OFFICE,), state_directory=Path("/s"), pin_record=kept) for kept in (True, False)]
    assert [key_access(profile, OFFICE).pin_record for profile in profiles] == [Path("/s/pins"), None]
