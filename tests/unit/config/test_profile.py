"""Settings are read from the right place, in the right order, and every mistake is reported with its fix."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.config.file import default_config_files
from hsm_signer.config.profile import (
    Profile,
    load_profile,
    profile_from_arguments,
    require_settings,
    state_directory,
)
from hsm_signer.config.settings import SETTINGS, Setting, missing
from hsm_signer.crypto import Algorithm
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.entra.clouds import Cloud
from hsm_signer.errors import ConfigError, UriError
from hsm_signer.jwt.assertion import Thumbprint

PIN = "s3cret-4711"
Write = Callable[[str], Path]

# The table of the command line's settings: option, variable, the variable the Azure SDKs share.
NAMES = {
    "tenant": ("--tenant", "HSM_SIGNER_TENANT", "AZURE_TENANT_ID"),
    "client_id": ("--client-id", "HSM_SIGNER_CLIENT_ID", "AZURE_CLIENT_ID"),
    "scope": ("--scope", "HSM_SIGNER_SCOPE", None),
    "key": ("--key", "HSM_SIGNER_KEY", None),
    "module": ("--module", "HSM_SIGNER_MODULE", None),
    "module_environment": (None, None, None),
    "pin_source": ("--pin-source", "HSM_SIGNER_PIN_SOURCE", None),
    "certificate": ("--certificate", "HSM_SIGNER_CERTIFICATE", None),
    "algorithm": ("--algorithm", "HSM_SIGNER_ALGORITHM", None),
    "thumbprint": ("--thumbprint", "HSM_SIGNER_THUMBPRINT", None),
    "send_chain": ("--send-chain", None, None),
    "cloud": ("--cloud", "HSM_SIGNER_CLOUD", None),
    "authority": ("--authority", "HSM_SIGNER_AUTHORITY", "AZURE_AUTHORITY_HOST"),
    "token_endpoint": ("--token-endpoint", "HSM_SIGNER_TOKEN_ENDPOINT", None),
    "audience": ("--audience", None, None),
    "lifetime": ("--lifetime", None, None),
    "object_id": ("--object-id", "HSM_SIGNER_OBJECT_ID", None),
    "service_principal": ("--service-principal", None, None),
    "graph": ("--graph", "HSM_SIGNER_GRAPH", None),
    "grace": ("--grace", "HSM_SIGNER_GRACE", None),
    "ca_bundle": ("--ca-bundle", "HSM_SIGNER_CA_BUNDLE", None),
    "device_timeout": ("--device-timeout", "HSM_SIGNER_DEVICE_TIMEOUT", None),
    "network_timeout": ("--network-timeout", "HSM_SIGNER_NETWORK_TIMEOUT", None),
    "pin_record": ("--no-pin-record", None, None),
    "allow_last_try": ("--allow-last-try", None, None),
    "wait": ("--wait", None, None),
}

# For each setting a value in each place, the place that wins first, and the value in the profile. Places that a setting
# does not have are left out. Neighbouring values differ.
FOUND: dict[str, dict[str, tuple[Any, Any]]] = {
    "tenant": {"option": ("a", "a"), "variable": ("b", "b"), "profile": ("c", "c"), "azure": ("d", "d")},
    "client_id": {"option": ("a", "a"), "variable": ("b", "b"), "profile": ("c", "c"), "azure": ("d", "d")},
    "scope": {
        "option": (["a/.default", "b/.default"], ("a/.default", "b/.default")),
        "variable": ("c/.default  d/.default", ("c/.default", "d/.default")),
        "profile": ("e/.default", ("e/.default",)),
    },
    "key": {
        "option": (["pkcs11:token=a", "pkcs11:token=b"], (Pkcs11Uri(token="a"), Pkcs11Uri(token="b"))),
        "variable": ("pkcs11:token=c pkcs11:token=d", (Pkcs11Uri(token="c"), Pkcs11Uri(token="d"))),
        "profile": (["pkcs11:token=e"], (Pkcs11Uri(token="e"),)),
    },
    "module": {
        "option": ("/a.so", Path("/a.so")),
        "variable": ("/b.so", Path("/b.so")),
        "profile": ("/c.so", Path("/c.so")),
    },
    "module_environment": {"profile": ({"SOFTHSM2_CONF": "/a"}, {"SOFTHSM2_CONF": "/a"})},
    "pin_source": {
        "option": ("env:A", "env:A"),
        "variable": ("env:B", "env:B"),
        "profile": (["/bin/pin", "x y"], ("/bin/pin", "x y")),
    },
    "certificate": {
        "option": ("/a.pem", Path("/a.pem")),
        "variable": ("/b.pem", Path("/b.pem")),
        "profile": ("/c.pem", Path("/c.pem")),
    },
    "algorithm": {
        "option": ("RS256", Algorithm.RS256),
        "variable": (" Auto ", None),
        "profile": ("ps256", Algorithm.PS256),
    },
    "thumbprint": {
        "option": ("sha1", Thumbprint.SHA1),
        "variable": ("SHA256", Thumbprint.SHA256),
        "profile": ("sha1", Thumbprint.SHA1),
    },
    "send_chain": {"option": (True, True), "profile": (False, False)},
    "cloud": {
        "option": ("public", Cloud.PUBLIC),
        "variable": ("China", Cloud.CHINA),
        "profile": ("usgov", Cloud.USGOV),
    },
    "authority": {
        "option": ("https://a", "https://a"),
        "variable": ("https://b", "https://b"),
        "profile": ("https://c", "https://c"),
        "azure": ("d.example", "d.example"),
    },
    "token_endpoint": {
        "option": ("https://a", "https://a"),
        "variable": ("https://b", "https://b"),
        "profile": ("https://c", "https://c"),
    },
    "audience": {"option": ("https://a", "https://a"), "profile": ("https://b", "https://b")},
    "lifetime": {"option": ("300", 300), "profile": (900, 900)},
    "object_id": {"option": ("a", "a"), "variable": ("b", "b"), "profile": ("c", "c")},
    "service_principal": {"option": (True, True), "profile": (False, False)},
    "graph": {
        "option": ("https://a", "https://a"),
        "variable": ("https://b", "https://b"),
        "profile": ("https://c", "https://c"),
    },
    "grace": {"option": ("0", 0), "variable": ("7200", 7200), "profile": (0, 0)},
    "ca_bundle": {
        "option": ("/a.pem", Path("/a.pem")),
        "variable": ("/b.pem", Path("/b.pem")),
        "profile": ("/c.pem", Path("/c.pem")),
    },
    "device_timeout": {"option": ("1", 1.0), "variable": ("2.5", 2.5), "profile": (3, 3.0)},
    "network_timeout": {"option": ("1", 1.0), "variable": ("2.5", 2.5), "profile": (3.5, 3.5)},
    "pin_record": {"option": (False, False), "profile": (True, True)},
    "allow_last_try": {"option": (True, True)},
    "wait": {"option": (True, True)},
}
EACH = [pytest.param(name, place, id=f"{name} {place}") for name, places in FOUND.items() for place in places]
WITH_VARIABLE = [setting for setting in SETTINGS.values() if setting.variable]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a configuration and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        path.chmod(0o600)
        return path

    return write


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {json.dumps(text)}" for name, text in value.items()) + "}"
    return json.dumps(value)


def load(write: Write, name: str, places: Mapping[str, object]) -> Any:
    """Load a profile with these values of one setting, by place, and return the setting's value in the profile."""
    setting, environ = SETTINGS[name], {}
    if setting.variable and "variable" in places:
        environ[setting.variable] = str(places["variable"])
    if setting.azure and "azure" in places:
        environ[setting.azure] = str(places["azure"])
    in_file = f"{name} = {toml(places['profile'])}" if "profile" in places else ""
    config = write(f"[profile.default]\n{in_file}\n")
    return getattr(load_profile({name: places.get("option")}, config=config, environ=environ), name)


def refused(options: Mapping[str, object], **where: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_profile(options, **{"environ": {}, **where})
    return caught.value


def test_every_setting_has_the_names_that_are_documented() -> None:
    shown = {
        name: (each.option if each.panel is not None else None, each.variable, each.azure)
        for name, each in SETTINGS.items()
    }
    assert shown == NAMES


def test_every_setting_is_a_field_of_the_profile_and_every_field_a_setting() -> None:
    places = {"key_file", "configured_key_file", "state_directory", "command", "device_options", "has_config_file"}
    assert set(SETTINGS) == {field.name for field in fields(Profile)} - places


def test_the_tables_of_these_tests_have_every_place_that_a_setting_has() -> None:
    def places(each: Setting) -> list[str]:
        has = {
            "option": each.panel is not None,
            "variable": each.variable,
            "profile": each.in_profile,
            "azure": each.azure,
        }
        return [place for place, there in has.items() if there]

    assert {name: list(found) for name, found in FOUND.items()} == {
        each.name: places(each) for each in SETTINGS.values()
    }


@pytest.mark.parametrize(("name", "place"), EACH)
def test_the_first_place_that_has_a_setting_wins(write: Write, name: str, place: str) -> None:
    places = list(FOUND[name])
    nearest = places[places.index(place) :]
    given_there = {each: FOUND[name][each][0] for each in nearest}
    assert load(write, name, given_there) == FOUND[name][place][1]


@pytest.mark.parametrize("name", list(FOUND))
def test_a_setting_that_is_not_set_has_its_default(write: Write, name: str) -> None:
    assert load(write, name, {}) == getattr(Profile(), name)


@pytest.mark.parametrize("setting", WITH_VARIABLE, ids=lambda setting: setting.name)
def test_an_empty_variable_is_ignored(write: Write, setting: Setting) -> None:
    raw, expected = FOUND[setting.name]["profile"]
    assert load(write, setting.name, {"variable": "", "profile": raw}) == expected


@pytest.mark.parametrize("name", ["send_chain", "service_principal", "pin_record"])
@pytest.mark.parametrize("value", [True, False])
def test_a_flag_in_a_profile_may_be_either(write: Write, name: str, value: bool) -> None:
    assert load(write, name, {"profile": value}) is value


def test_an_ambient_client_and_tenant_do_not_change_a_profile(write: Write) -> None:
    config = write('[profile.prod]\nclient_id = "ours"\ntenant = "ours.example"\n')
    ambient = {"AZURE_CLIENT_ID": "theirs", "AZURE_TENANT_ID": "theirs.example"}
    profile = load_profile({}, config=config, name="prod", environ=ambient)
    assert (profile.client_id, profile.tenant) == ("ours", "ours.example")


AMBIENT = {"AZURE_AUTHORITY_HOST": "https://login.microsoftonline.com/"}


def test_an_ambient_authority_does_not_change_the_cloud_of_a_profile(write: Write) -> None:
    config = write('[profile.gov]\ncloud = "usgov"\n')
    assert load_profile({}, config=config, name="gov", environ=AMBIENT).authority is None


@pytest.mark.parametrize("options", [{"cloud": "usgov"}, {"cloud": "public"}])
def test_an_ambient_authority_does_not_change_the_cloud_of_an_option(options: dict[str, str]) -> None:
    assert load_profile(options, environ=AMBIENT).authority is None


def test_an_ambient_authority_does_not_change_the_cloud_of_our_own_variable() -> None:
    assert load_profile({}, environ={**AMBIENT, "HSM_SIGNER_CLOUD": "usgov"}).authority is None


def test_an_authority_of_a_profile_goes_with_its_cloud(write: Write) -> None:
    config = write('[profile.default]\ncloud = "usgov"\nauthority = "https://c"\n')
    assert load_profile({}, config=config, environ=AMBIENT).authority == "https://c"


def test_without_a_file_there_are_only_defaults(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": "/state"}
    assert load_profile({}, environ=environ) == Profile(
        state_directory=Path("/state/hsm-signer"), has_config_file=False
    )


TWO = '[profile.default]\nclient_id = "first"\n[profile.prod]\nclient_id = "second"\n'


@pytest.mark.parametrize(
    ("name", "environ", "expected"),
    [
        (None, {}, "first"),
        ("prod", {}, "second"),
        (None, {"HSM_SIGNER_PROFILE": "prod"}, "second"),
        ("default", {"HSM_SIGNER_PROFILE": "prod"}, "first"),
        (None, {"HSM_SIGNER_PROFILE": ""}, "first"),
    ],
)
def test_the_profile_is_the_one_named_else_the_variables_else_default(
    write: Write, name: str | None, environ: dict[str, str], expected: str
) -> None:
    assert load_profile({}, config=write(TWO), name=name, environ=environ).client_id == expected


def test_the_file_is_the_one_named_else_the_variables_else_the_users(tmp_path: Path) -> None:
    files = [tmp_path / "named.toml", tmp_path / "variable.toml", tmp_path / "hsm-signer" / "config.toml"]
    files[2].parent.mkdir()
    for file in files:
        file.write_text(f'[profile.default]\nclient_id = "{file.name}"\n')
        file.chmod(0o600)
    user = {"XDG_CONFIG_HOME": str(tmp_path)}
    variable = {**user, "HSM_SIGNER_CONFIG": str(files[1])}
    found = [
        load_profile({}, config=files[0], environ=variable).client_id,
        load_profile({}, environ=variable).client_id,
        load_profile({}, environ=user).client_id,
    ]
    assert found == ["named.toml", "variable.toml", "config.toml"]


def test_the_users_file_comes_before_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    machine = Path("/etc/hsm-signer/config.toml")
    assert [default_config_files({}), default_config_files({"XDG_CONFIG_HOME": "/x"})] == [
        (Path("/home/somebody/.config/hsm-signer/config.toml"), machine),
        (Path("/x/hsm-signer/config.toml"), machine),
    ]


def test_a_relative_base_directory_is_ignored_as_its_specification_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_config_files({"XDG_CONFIG_HOME": "x"}) == default_config_files({})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "/home/somebody/.local/state/hsm-signer"),
        ({"XDG_STATE_HOME": "/x"}, "/x/hsm-signer"),
        ({"XDG_STATE_HOME": "x"}, "/home/somebody/.local/state/hsm-signer"),
        ({"XDG_STATE_HOME": ""}, "/home/somebody/.local/state/hsm-signer"),
        ({"STATE_DIRECTORY": "/var/lib/app", "XDG_STATE_HOME": "/x"}, "/var/lib/app"),
        ({"STATE_DIRECTORY": "/var/lib/app:/var/lib/other"}, "/var/lib/app"),
    ],
)
def test_state_is_kept_where_systemd_says_else_in_the_home(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert state_directory(environ) == Path(expected)


def test_without_a_home_directory_no_file_is_in_the_current_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)  # as in a container that runs as a number
    assert all(path.is_absolute() for path in (state_directory({}), *default_config_files({})))


def test_a_configuration_file_in_an_unreadable_place_is_ignored() -> None:
    # Too long a name stands for every other reason: root may look everywhere.
    assert load_profile({}, environ={"XDG_CONFIG_HOME": "/" + "x" * 5000}).client_id is None


@pytest.mark.parametrize("name", ["module", "certificate", "ca_bundle"])
def test_a_relative_path_in_a_profile_is_relative_to_its_file(write: Write, tmp_path: Path, name: str) -> None:
    assert load(write, name, {"profile": "sub/file"}) == tmp_path / "sub" / "file"


@pytest.mark.parametrize("name", ["module", "certificate", "ca_bundle"])
@pytest.mark.parametrize("place", ["option", "variable"])
def test_any_other_relative_path_is_relative_to_the_current_directory(write: Write, name: str, place: str) -> None:
    assert load(write, name, {place: "sub/file"}).absolute() == Path("sub/file").absolute()


def test_a_relative_module_in_a_deleted_directory_is_refused(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="current directory, which does not exist"):
        load(write, "module", {"option": "./file"})


def test_paths_in_a_relative_configuration_file_are_absolute(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write('[profile.default]\nmodule = "a.so"\n')
    monkeypatch.chdir(tmp_path)
    assert load_profile({}, config=Path("config.toml"), environ={}).module == tmp_path / "a.so"


PIN_FILES = pytest.mark.parametrize(
    ("place", "source", "expected"),
    [
        ("profile", "file:sub/pin", "file:{directory}/sub/pin"),
        ("profile", "file:../pin", "file:{directory}/../pin"),
        ("profile", "file:/etc/pin", "file:/etc/pin"),
        ("profile", "file:///etc/pin", "file:///etc/pin"),
        ("profile", "/etc/pin", "/etc/pin"),
        ("profile", "env:PIN", "env:PIN"),
        ("variable", "file:sub/pin", "file:sub/pin"),
        ("option", "file:sub/pin", "file:sub/pin"),
    ],
)


@PIN_FILES
def test_a_pin_file_named_in_a_profile_is_relative_to_the_profile(
    write: Write, tmp_path: Path, place: str, source: str, expected: str
) -> None:
    assert load(write, "pin_source", {place: source}) == expected.format(directory=tmp_path)


def test_a_pin_source_without_a_file_name_is_unchanged(write: Write) -> None:
    assert load(write, "pin_source", {"profile": "file:"}) == "file:"


@PIN_FILES
def test_a_pin_file_in_a_uri_of_a_profile_is_relative_to_the_profile(
    write: Write, tmp_path: Path, place: str, source: str, expected: str
) -> None:
    (uri,) = load(write, "key", {place: f"pkcs11:token=a?pin-source={source}"})
    assert uri.pin_source == expected.format(directory=tmp_path)


@pytest.mark.parametrize("place", ["option", "variable", "profile"])
@pytest.mark.parametrize("path", ["m.so", "../m.so", ""])
def test_a_relative_module_path_in_a_uri_is_refused(write: Write, place: str, path: str) -> None:
    with pytest.raises(UriError, match="module-path must be an absolute path"):
        load(write, "key", {place: f"pkcs11:token=a?module-path={path}"})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("SOFTHSM2_CONF", "softhsm2.conf", "{directory}/softhsm2.conf"),
        ("TPM2_PKCS11_STORE", "store", "{directory}/store"),
        ("OPENSC_CONF", "../opensc.conf", "{directory}/../opensc.conf"),
        ("SOFTHSM2_CONF", "/etc/softhsm2.conf", "/etc/softhsm2.conf"),
        ("VENDOR_CONFIGURATION", "./vendor.cfg", "{directory}/vendor.cfg"),
        ("VENDOR_CONFIGURATION", "../vendor.cfg", "{directory}/../vendor.cfg"),
        ("TPM2_PKCS11_TCTI", "tabrmd:bus_name=com.example", "tabrmd:bus_name=com.example"),
        ("SOFTHSM2_CONF", "", ""),
    ],
)
def test_a_path_in_module_environment_is_relative_to_the_profile(
    write: Write, tmp_path: Path, name: str, value: str, expected: str
) -> None:
    environment = load(write, "module_environment", {"profile": {name: value}})
    assert environment == {name: expected.format(directory=tmp_path)}


def test_the_home_directory_may_be_written_as_a_tilde(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    places = [load(write, "certificate", {place: "~/app.pem"}) for place in ("option", "variable", "profile")]
    assert places == [Path("/home/somebody/app.pem")] * 3


def test_the_home_directory_of_an_unknown_user_is_an_ordinary_name(write: Write, tmp_path: Path) -> None:
    assert load(write, "certificate", {"profile": "~no-such-user/x"}) == tmp_path / "~no-such-user" / "x"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o644, 0o755])
def test_a_file_that_others_can_only_read_is_used(write: Write, mode: int) -> None:
    config = write(TWO)
    config.chmod(mode)
    assert load_profile({}, config=config, environ={}).client_id == "first"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o660, 0o666, 0o777])
def test_a_file_that_others_can_write_is_refused_with_its_mode(write: Write, mode: int) -> None:
    config = write(TWO)
    config.chmod(mode)
    error = refused({}, config=config)
    assert error.message == (
        f"Other users could replace the configuration {config}: it belongs to user {os.geteuid()} and has mode "
        f"{mode:04o}."
    )
    assert error.hint == f"Run: chmod go-w {config}"


def test_a_file_that_others_can_write_is_refused_behind_a_link(write: Write, tmp_path: Path) -> None:
    config, link = write(TWO), tmp_path / "link"
    config.chmod(0o666)
    link.symlink_to(config)
    assert f" {config} belongs to user" in refused({}, config=link).message


def test_a_file_of_another_user_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(TWO)
    if os.geteuid() == 0:
        os.chown(config, 4711, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert "belongs to user" in refused({}, config=config).message


def test_relative_paths_are_relative_to_the_file_that_was_read_and_not_to_a_link_to_it(
    write: Write, tmp_path: Path
) -> None:
    config = write('[profile.default]\nmodule = "m.so"\n')
    link = tmp_path / "elsewhere" / "config.toml"
    link.parent.mkdir()
    link.symlink_to(config)
    assert load_profile({}, config=link, environ={}).module == config.resolve().parent / "m.so"


def test_a_configuration_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    error = refused({}, config=tmp_path / "absent.toml")
    assert error.message == f"The configuration {tmp_path / 'absent.toml'} cannot be read: No such file or directory."


def test_a_directory_is_refused_as_a_configuration_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert "is not a regular file" in refused({}, config=tmp_path).message


def test_a_profile_without_a_configuration_file_is_refused_with_the_paths_that_were_tried(tmp_path: Path) -> None:
    error = refused({}, name="prod", environ={"XDG_CONFIG_HOME": str(tmp_path)})
    assert error.message == (
        f"No configuration file for profile 'prod'. Looked for {tmp_path}/hsm-signer/config.toml, "
        "/etc/hsm-signer/config.toml."
    )


@pytest.mark.parametrize(("name", "hint"), [("prd", "Did you mean prod?"), ("xyz", "Add a table [profile.xyz].")])
def test_a_missing_profile_is_refused_with_the_existing_and_the_nearest_names(
    write: Write, name: str, hint: str
) -> None:
    config = write(TWO)
    error = refused({}, config=config, name=name)
    assert (error.message, error.hint) == (f"{config} has no profile {name!r}. It has default, prod.", hint)


def test_the_default_profile_need_not_exist(write: Write) -> None:
    config = write('[profile.prod]\nclient_id = "a"\n')
    assert load_profile({}, config=config, environ={}).client_id is None


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "[profile]\n"])
def test_a_file_without_any_profile_is_refused(write: Write, text: str) -> None:
    assert refused({}, config=write(text)).message.endswith("has no profile 'default'. It has none.")


@pytest.mark.parametrize(
    "text",
    [
        "[profile.default",
        "client_id = ",
        "[profile.default]\nmodule = 'a'\nmodule = 'b'",
        "a = 1\n[a]\n",
        "\x00",
        "= 1",
        f"a = {'[' * 900}{']' * 900}",
        f"a = {'9' * 5000}",
        f"a = {'{b = ' * 900}1{'}' * 900}",
    ],
)
def test_malformed_toml_is_refused_and_the_file_named(write: Write, text: str) -> None:
    config = write(text)
    assert refused({}, config=config).message.startswith(f"{config} is not TOML: ")


def test_a_file_that_is_not_utf_8_is_refused_and_named(write: Write) -> None:
    config = write("")
    config.write_bytes(b'[profile.default]\nclient_id = "\xff"\n')
    assert refused({}, config=config).message.startswith(f"{config} is not TOML: ")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            'tenant = "x"',
            "Unknown table or key 'tenant' in {}.",
            "tables named [profile.NAME], such as [profile.default].",
        ),
        (
            '[prod]\ntenant = "x"',
            "Unknown table or key 'prod' in {}.",
            "tables named [profile.NAME], such as [profile.prod].",
        ),
        ('[profiles.prod]\ntenant = "x"', "Unknown table or key 'profiles' in {}.", "Did you mean profile?"),
        (
            '[profile]\ntenant = "x"',
            "In {}, profile is not a table of profiles.",
            "Begin each profile with a line [profile.NAME].",
        ),
        (
            'profile = "prod"',
            "In {}, profile is not a table of profiles.",
            "Begin each profile with a line [profile.NAME].",
        ),
        (
            '[[profile]]\ntenant = "x"',
            "In {}, profile is not a table of profiles.",
            "Begin each profile with a line [profile.NAME].",
        ),
    ],
)
def test_a_common_mistake_in_a_configuration_file_is_named_with_its_fix(
    write: Write, text: str, message: str, hint: str
) -> None:
    config = write(text)
    error = refused({}, config=config)
    assert error.message == message.format(config)
    assert str(error.hint).endswith(hint)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("client-id", "Did you mean client_id?"),
        ("clientid", "Did you mean client_id?"),
        ("tenant_id", "Did you mean tenant?"),
        ("certficate", "Did you mean certificate?"),
        ("pin-source", "Did you mean pin_source?"),
        ("scopes", "Did you mean scope?"),
        ("xyz", "Known keys: tenant, client_id,"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(write: Write, key: str, hint: str) -> None:
    config = write(f'[profile.default]\n{key} = "x"\n')
    error = refused({}, config=config)
    assert error.message == f"Unknown key {key!r} in profile 'default' of {config}."
    assert str(error.hint).startswith(hint)


def test_a_setting_for_a_single_run_is_unknown_in_a_profile(write: Write) -> None:
    assert (
        "Unknown key 'allow_last_try'" in refused({}, config=write("[profile.default]\nallow_last_try = true")).message
    )


def test_only_the_profile_in_use_is_checked(write: Write) -> None:
    config = write('[profile.default]\nclient_id = "a"\n[profile.other]\nxyz = 1\n')
    assert load_profile({}, config=config, environ={}).client_id == "a"


def test_a_pin_in_a_profile_is_refused_and_not_shown(write: Write) -> None:
    error = refused({}, config=write(f'[profile.default]\npin = "{PIN}"\n'))
    assert PIN not in repr(error) + str(error.hint)


TEXT = "must be a string"
SECONDS = "must be a number of seconds, more than 0 and at most 86400."
MALFORMED: list[tuple[str, object, str]] = [
    *((name, value, TEXT) for name in ("tenant", "client_id", "authority", "token_endpoint", "audience", "pin_source")
      for value in (1, True, {"a": "b"}, "", "  ")),
    *((name, value, TEXT) for name in ("module", "certificate", "ca_bundle") for value in (1, True, ["/a"], "", " ")),
    *((name, "/a\0b", "contains a NUL character") for name in ("module", "certificate", "ca_bundle")),
    *((name, value, "must be a string or a list of strings") for name in ("scope", "key")
      for value in (1, True, {"a": "b"})),
    *((name, value, TEXT) for name in ("scope", "key", "pin_source") for value in ([1], [""], [["a"]])),
    *((name, value, "must be true or false") for name in ("send_chain", "pin_record") for value in ("true", 1, 0, [1])),
    *((name, value, SECONDS) for name in ("device_timeout", "network_timeout")
      for value in (0, -1, 86401, True, "soon", "", [1], "nan", "inf", "-inf")),
    *(("lifetime", value, "must be a whole number of seconds, 1 to 86400.")
      for value in (0, -1, 86401, True, "soon", "", [1], "nan", "inf", "-inf", 1.5, "600.5")),
    *(("grace", value, "must be a whole number of seconds, 0 to 2592000.")
      for value in (-1, 2592001, True, "soon", "", [1], "nan", "inf", 1.5, 10**400)),
    ("algorithm", "ES256", "is 'ES256'; it must be one of RS256, PS256, auto."),
    ("algorithm", 256, TEXT),
    ("thumbprint", "md5", "is 'md5'; it must be one of sha1, sha256."),
    ("cloud", "germany", "is 'germany'; it must be one of public, usgov, china."),
    ("key", "pkcs12:token=a", "The PKCS#11 URI is malformed at character 1"),
    ("key", "token=a", "The PKCS#11 URI is malformed at character 1"),
    ("module_environment", "SOFTHSM2_CONF=/a", "must be a table of strings"),
    ("module_environment", {"A": 1}, "must be a table of strings"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "reason"), MALFORMED)
def test_a_malformed_value_in_a_profile_is_refused_and_its_key_named(
    write: Write, name: str, value: object, reason: str
) -> None:
    config = write(f"[profile.default]\n{name} = {toml(value)}\n")
    message = refused({}, config=config).message
    assert message.startswith(f"{name} in profile 'default' of {config}")
    assert reason in message


@pytest.mark.parametrize(
    ("value", "kind"), [("", "empty"), (" ", "empty"), (1, "of type int"), (["a"], "of type list")]
)
def test_a_value_that_is_not_a_string_is_refused_with_its_type(write: Write, value: object, kind: str) -> None:
    config = write(f"[profile.default]\ntenant = {toml(value)}\n")
    assert refused({}, config=config).message.endswith(f"must be a string, but is {kind}.")


@pytest.mark.parametrize(
    ("options", "environ", "source"),
    [
        ({"device_timeout": "soon"}, {}, "--device-timeout must"),
        ({}, {"HSM_SIGNER_DEVICE_TIMEOUT": "soon"}, "HSM_SIGNER_DEVICE_TIMEOUT must"),
        ({"algorithm": "ES256"}, {}, "--algorithm is"),
        ({}, {"HSM_SIGNER_CLOUD": "germany"}, "HSM_SIGNER_CLOUD is"),
        ({}, {"AZURE_TENANT_ID": " "}, "AZURE_TENANT_ID must"),
    ],
)
def test_a_malformed_value_is_refused_and_its_source_named(
    options: dict[str, object], environ: dict[str, str], source: str
) -> None:
    assert refused(options, environ=environ).message.startswith(source)


@pytest.mark.parametrize(("name", "value", "hint"), [("algorithm", "RS265", "RS256"), ("cloud", "us-gov", "usgov")])
def test_a_misspelt_value_is_refused_with_the_nearest_one(name: str, value: str, hint: str) -> None:
    assert refused({name: value}).hint == f"Did you mean {hint}?"


def test_a_malformed_uri_is_refused_with_its_position() -> None:
    error = refused({"key": ["pkcs11:token=a", "pkcs11:token=b;token=c"]})
    assert isinstance(error, UriError)
    assert error.position == len("pkcs11:token=b;")
    assert error.message.startswith("--key: The PKCS#11 URI is malformed at character 16")


def test_the_refusal_of_a_malformed_uri_does_not_show_its_pin() -> None:
    error = refused({"key": [f"pkcs11:token=a?pin-value={PIN}%"]})
    assert PIN not in repr(error) + str(error.hint) + repr(error.__context__)


WITH_PIN = f"pkcs11:token=a?pin-value={PIN}"


def test_a_pin_on_the_command_line_is_refused_and_not_shown() -> None:
    error = refused({"key": [WITH_PIN]})
    assert error.message == "--key contains a PIN (pin-value), which every user of this machine could read."
    assert PIN not in repr(error) + str(error.hint)


@pytest.mark.parametrize("place", ["variable", "profile"])
def test_a_pin_in_a_uri_from_a_variable_or_a_profile_causes_a_warning_that_does_not_show_it(
    write: Write, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    assert load(write, "key", {place: WITH_PIN}) == (Pkcs11Uri(token="a", pin_value=PIN),)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "contains a PIN in clear text (pin-value)" in caplog.text
    assert PIN not in caplog.text


@given(st.text(max_size=12))
def test_seconds_are_a_finite_number_in_range_or_refused(text: str) -> None:
    try:
        seconds = profile_from_arguments({"device_timeout": text}).device_timeout
    except ConfigError:
        return
    assert 0 < seconds <= 86400


def test_arguments_are_read_like_options_and_messages_name_the_argument() -> None:
    profile = profile_from_arguments({"key": "pkcs11:token=a", "module": Path("/a.so"), "lifetime": 300})
    assert (profile.key, profile.module, profile.lifetime) == ((Pkcs11Uri(token="a"),), Path("/a.so"), 300)
    with pytest.raises(ConfigError, match="lifetime must be a whole number"):
        profile_from_arguments({"lifetime": "soon"})


def test_with_arguments_the_environment_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in WITH_VARIABLE:
        monkeypatch.setenv(str(setting.variable), "x")
    monkeypatch.setenv("AZURE_CLIENT_ID", "x")
    assert profile_from_arguments({"tenant": "a"}).client_id is None


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        (
            "client_id",
            "No client ID is set.",
            'It is "Application (client) ID" on the app\'s Overview page: --client-id ID, HSM_SIGNER_CLIENT_ID, '
            "AZURE_CLIENT_ID, or client_id in a profile.",
        ),
        (
            "key",
            "No key is set.",
            "It is a PKCS#11 URI, as hsm-signer device list shows it: --key URI, HSM_SIGNER_KEY, or key in a profile.",
        ),
    ],
)
def test_a_missing_setting_is_named_with_where_to_find_it_and_every_way_to_set_it(
    name: str, message: str, hint: str
) -> None:
    error = missing(name)
    assert (error.message, error.hint, error.commands) == (message, hint, ())


def test_several_missing_settings_have_a_line_each() -> None:
    error = missing("tenant", "client_id", "scope")
    assert error.message == "No tenant, client ID or scope is set."
    assert error.hint == (
        "Set them with --tenant, --client-id and --scope, in a profile, or in variables such as HSM_SIGNER_TENANT."
    )
    assert error.commands == (
        '--tenant TENANT  # "Directory (tenant) ID" on the app\'s Overview page',
        '--client-id ID   # "Application (client) ID" on the app\'s Overview page',
        "--scope SCOPE    # the API that the token is for, for example https://graph.microsoft.com/.default",
    )


@pytest.mark.parametrize(
    "authority", ["https://login.microsoftonline.com", "login.example.com", "https://ciamlogin.com"]
)
def test_an_authority_does_not_replace_the_tenant(authority: str) -> None:
    profile = profile_from_arguments({"client_id": "a", "authority": authority})
    with pytest.raises(ConfigError, match="No tenant or key is set") as caught:
        require_settings(profile, "tenant", "client_id", "key")
    assert caught.value.commands[0].startswith("--tenant TENANT")


@pytest.mark.parametrize(
    "instead",
    [
        pytest.param({"authority": "https://contoso.ciamlogin.com"}, id="an authority that is named after the tenant"),
        pytest.param({"authority": "contoso.ciamlogin.com"}, id="such an authority without https"),
        pytest.param({"token_endpoint": "https://login.example.com/token"}, id="a token endpoint"),
    ],
)
def test_a_tenant_is_not_required_where_another_setting_implies_it(instead: dict[str, str]) -> None:
    require_settings(profile_from_arguments(instead), "tenant")


def test_an_authority_that_is_no_url_is_refused_before_a_tenant_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="The authority is not an https URL"):
        require_settings(profile_from_arguments({"authority": "ftp://login.example.com"}), "tenant")
