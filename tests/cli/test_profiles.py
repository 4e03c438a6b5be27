"""Profiles, variables and options: which one wins, and which file is trusted."""

from pathlib import Path

import pytest

from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.names import CLIENT, PIN, TENANT
from tests.support.program import Program, Settings, assert_explained, options


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o600)
    return file


@pytest.fixture
def office(program: Program, softhsm: SoftHsm, good: SoftHsmKey, certificate: Path) -> str:
    """A profile with everything that `assertion` needs, and its files in the same directory."""
    directory = program.directory / "office"
    write(directory / "pin", PIN + "\n")
    (directory / "good.der").write_bytes(certificate.read_bytes())
    return f"""
tenant = "{TENANT}"
client_id = "{CLIENT}"
key = "{good.uri}"
module = "{softhsm.module}"
module_environment = {{ SOFTHSM2_CONF = "{softhsm.configuration}" }}
pin_source = "file:pin"
certificate = "good.der"
lifetime = 300
"""


NO_SOFTHSM = {"SOFTHSM2_CONF": "/nowhere"}


def test_a_profile_alone_is_enough_and_its_paths_are_relative_to_it(program: Program, office: str) -> None:
    file = write(program.directory / "office" / "config.toml", f"[profile.default]{office}")
    result = program("--config", str(file), "assertion", "-o", "json", environment=NO_SOFTHSM)
    assert (result.status, result.stderr) == (0, "")
    claims = result.json["claims"]
    assert claims["iss"] == CLIENT
    assert claims["exp"] - claims["nbf"] == 300


def test_a_profile_works_from_any_directory_with_relative_paths_in_its_uri_and_environment(
    program: Program, office: str, good: SoftHsmKey, softhsm: SoftHsm
) -> None:
    profile = office.replace('pin_source = "file:pin"', "").replace(good.uri, f"{good.uri}?pin-source=file:pin")
    profile = profile.replace(str(softhsm.configuration), "softhsm2.conf")
    (program.directory / "office" / "softhsm2.conf").write_text(softhsm.configuration.read_text())
    file = write(program.directory / "office" / "config.toml", f"[profile.default]{profile}")
    # A file of that name in the current directory is ignored.
    write(program.directory / "pin", "not the PIN\n")
    result = program("--config", str(file), "assertion", environment=NO_SOFTHSM)
    assert (result.status, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("file", "variables"),
    [
        (".config/hsm-signer/config.toml", {}),
        ("xdg/hsm-signer/config.toml", {"XDG_CONFIG_HOME": "xdg"}),
        ("office/my.toml", {"HSM_SIGNER_CONFIG": "office/my.toml"}),
    ],
)
def test_the_configuration_is_found_where_the_environment_puts_it(
    program: Program, signing: Settings, file: str, variables: Settings
) -> None:
    write(program.home / file, '[profile.default]\nclient_id = "found"')
    environment = {name: str(program.home / value) for name, value in variables.items()}
    result = program("assertion", *options(signing, client_id=None), "-o", "json", environment=environment)
    assert result.json["claims"]["iss"] == "found"


@pytest.mark.parametrize(
    ("arguments", "variables", "chosen"),
    [
        ([], {}, "default"),
        ([], {"HSM_SIGNER_PROFILE": "test"}, "test"),
        (["--profile", "prod"], {"HSM_SIGNER_PROFILE": "test"}, "prod"),
    ],
)
def test_the_profile_is_chosen_by_option_then_variable(
    program: Program, signing: Settings, arguments: list[str], variables: Settings, chosen: str
) -> None:
    names = ("default", "test", "prod")
    text = "\n".join(f'[profile.{name}]\nclient_id = "{name}"' for name in names)
    write(program.home / ".config/hsm-signer/config.toml", text)
    result = program(*arguments, "assertion", *options(signing, client_id=None), "-o", "json", environment=variables)
    assert result.json["claims"]["iss"] == chosen


@pytest.mark.parametrize("winner", ["option", "variable", "profile", "ambient"])
def test_an_option_beats_its_variable_beats_the_profile_beats_the_sdks_variable(
    program: Program, signing: Settings, winner: str
) -> None:
    ways = ["option", "variable", "profile", "ambient"]
    given = ways[ways.index(winner) :]
    if "profile" in given:
        write(program.home / ".config/hsm-signer/config.toml", '[profile.default]\nclient_id = "profile"')
    variables = {"variable": "HSM_SIGNER_CLIENT_ID", "ambient": "AZURE_CLIENT_ID"}
    result = program(
        "assertion",
        *options(signing, client_id="option" if "option" in given else None),
        *("-o", "json"),
        environment={name: way for way, name in variables.items() if way in given},
    )
    assert result.json["claims"]["iss"] == winner


def test_every_setting_of_an_assertion_can_come_from_the_environment(program: Program, signing: Settings) -> None:
    result = program("assertion", environment={f"HSM_SIGNER_{name.upper()}": value for name, value in signing.items()})
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.count(".") == 2


def test_an_unknown_key_is_refused_with_the_nearest_right_name(program: Program) -> None:
    write(program.home / ".config/hsm-signer/config.toml", '[profile.default]\ncleint_id = "x"')
    result = program("assertion")
    assert_explained(result, 2, "config_error")
    assert "Did you mean client_id?" in result.stderr


def test_an_unknown_profile_is_refused_with_the_nearest_right_name(program: Program) -> None:
    write(program.home / ".config/hsm-signer/config.toml", '[profile.production]\ntenant = "x"')
    result = program("--profile", "produktion", "assertion")
    assert_explained(result, 2, "config_error")
    assert "Did you mean production?" in result.stderr


@pytest.mark.parametrize("text", ["[profile.default", "tenant = 'x'", "[profile.default]\ncloud = 'pubic'"])
def test_a_malformed_configuration_file_is_refused(program: Program, text: str) -> None:
    write(program.home / ".config/hsm-signer/config.toml", text)
    assert_explained(program("assertion"), 2, "config_error")


def test_a_configuration_file_that_is_named_must_exist(program: Program) -> None:
    assert_explained(program("--config", "nowhere.toml", "assertion"), 2, "config_error")


def test_a_pin_file_that_others_can_read_is_refused(program: Program, office: str) -> None:
    file = write(program.directory / "office" / "config.toml", f"[profile.default]{office}")
    (program.directory / "office" / "pin").chmod(0o604)
    result = program("--config", str(file), "assertion", environment=NO_SOFTHSM)
    assert_explained(result, 4, "pin_unavailable")


def test_global_options_may_follow_the_command(program: Program, office: str) -> None:
    file = write(program.directory / "office" / "config.toml", f"[profile.prod]\n{office}")
    result = program("assertion", "--config", str(file), "--profile", "prod", "-v", environment=NO_SOFTHSM)
    assert result.status == 0
    assert "hsm-signer: debug: " in result.stderr


def test_a_global_option_without_its_value_is_a_usage_error(program: Program) -> None:
    result = program("token", "--profile")
    assert (result.status, result.stdout) == (2, "")
    assert "error: Option '--profile' requires an argument." in result.stderr
