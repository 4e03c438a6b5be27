"""Common mistakes: the exit status says who must act, the message what is wrong and how to fix it.

`assert_explained` checks each twice: the text for people, and the JSON for programs.
"""

import json
import os
import re
import shutil
import signal
import socket
from pathlib import Path

import pkcs11._pkcs11
import pytest

from hsm_signer.jwt.compact import parse_jwt
from tests.cli.conftest import key_uri
from tests.support.names import CLIENT, TENANT, WRONG_PIN
from tests.support.program import Program, Settings, assert_explained, options

# A separate device: SoftHSM remembers a refused PIN, and would warn at the next login of another test.
SPARE, WRONG = "pkcs11:token=spare", {"DEVICE_PIN": WRONG_PIN}


def test_a_missing_module(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing, module="/nowhere/module.so"))
    assert_explained(result, 3, "module_load_error")
    assert "/nowhere/module.so" in result.stderr


def test_a_module_name_that_does_not_exist(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing, module=None, key="pkcs11:token=office?module-name=nobody"))
    assert_explained(result, 3, "module_load_error")
    assert "nobody" in result.stderr


def test_a_module_that_is_another_library(program: Program, signing: Settings) -> None:
    # python-pkcs11's own extension: certainly there, loadable, and no module. The checkout may belong to another user.
    module = shutil.copy(pkcs11._pkcs11.__file__, program.directory / "library.so")
    result = program("assertion", *options(signing, module=str(module)))
    assert_explained(result, 3, "module_load_error")
    assert "C_GetFunctionList" in result.stderr


@pytest.mark.parametrize("content", [b"#!/bin/sh\n", b"\x7fELF and not much more"])
def test_a_module_that_is_not_a_library(program: Program, signing: Settings, content: bytes) -> None:
    file = program.directory / "module.so"
    file.write_bytes(content)
    assert_explained(program("assertion", *options(signing, module=str(file))), 3, "module_load_error")


def test_no_device_at_all(program: Program, signing: Settings) -> None:
    (program.directory / "tokens").mkdir()
    configuration = program.directory / "empty.conf"
    configuration.write_text(f"directories.tokendir = {program.directory / 'tokens'}\n")
    result = program("assertion", *options(signing), environment={"SOFTHSM2_CONF": str(configuration)})
    assert_explained(result, 3, "device_not_found")


def test_no_device_of_that_name(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing, key="pkcs11:token=offfice"))
    assert_explained(result, 3, "device_not_found")
    assert "pkcs11:token=office" in result.stderr


def test_two_devices_with_one_label(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing, key="pkcs11:token=twins"))
    assert_explained(result, 3, "device_ambiguous")
    candidates = re.findall(r"pkcs11:token=twins;serial=\w+", result.stderr)
    assert len(set(candidates)) == 2
    # Each is ready to be used: the device is found, and has no key.
    chosen = program("assertion", *options(signing, key=candidates[0]), "-o", "json")
    assert chosen.error["code"] == "key_not_found"


def test_no_key(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing, key=key_uri("absent")))
    assert_explained(result, 5, "key_not_found")
    assert "object=good;id=%01" in result.stderr


def test_two_keys(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing, key=key_uri("twin")))
    assert_explained(result, 5, "key_ambiguous")
    candidates = re.findall(r"pkcs11:token=office;[^ ,]*object=twin;id=%1[34]", result.stderr)
    assert len(set(candidates)) == 2


def test_a_key_without_a_certificate(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing, key=key_uri("bare")))
    assert_explained(result, 5, "certificate_not_found")


@pytest.mark.parametrize("where", ["device", "file"])
def test_the_certificate_of_another_key(program: Program, signing: Settings, certificate: Path, where: str) -> None:
    wrong = {"key": key_uri("mismatched")} if where == "device" else {"key": key_uri("bare")}
    file = None if where == "device" else str(certificate)
    result = program("assertion", *options({**signing, **wrong}, certificate=file))
    assert_explained(result, 5, "certificate_mismatch")


def test_an_expired_certificate(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing, key=key_uri("expired")))
    assert_explained(result, 5, "certificate_unusable")
    assert "expired on" in result.stderr


def test_an_ec_key(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing, key=key_uri("elliptic")))
    assert_explained(result, 5, "key_unfit")
    assert "EC, not RSA" in result.stderr


def test_a_1024_bit_key(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing, key=key_uri("short")))
    assert_explained(result, 5, "certificate_unusable")
    assert "1024 bits" in result.stderr


def test_a_wrong_pin(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing, key=SPARE), "--no-pin-record", environment=WRONG)
    assert_explained(result, 4, "pin_incorrect")


def test_a_pin_that_was_refused_before(program: Program, signing: Settings) -> None:
    first = program("assertion", *options(signing, key=SPARE), environment=WRONG)
    assert first.status == 4
    assert_explained(first.again(), 4, "pin_refused_before")


def test_no_pin_source_and_no_terminal(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing, pin_source=None))
    assert_explained(result, 4, "pin_unavailable")
    assert "--pin-source" in result.stderr


@pytest.mark.parametrize("uri", ["token=office", "pkcs11:token=%zz", "pkcs11:tokn=office"])
def test_a_malformed_uri(program: Program, signing: Settings, uri: str) -> None:
    result = program("assertion", *options(signing, key=uri))
    assert_explained(result, 2, "uri_error")
    assert "--key" in result.stderr


def test_a_pin_on_the_command_line(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing, key=f"{SPARE}?pin-value={WRONG_PIN}"))
    assert_explained(result, 2, "config_error")
    assert "--pin-source" in result.stderr


def test_the_tenant_common(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing, tenant="common"))
    assert_explained(result, 2, "config_error")
    assert "'common'" in result.stderr


def test_a_scope_without_default(program: Program, exchange: Settings) -> None:
    result = program("token", *options(exchange, scope="https://graph.microsoft.com/User.Read"))
    assert_explained(result, 2, "scope_error")
    assert "https://graph.microsoft.com/.default" in result.stderr.splitlines()[1]


def test_an_authority_over_plain_http(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing, authority="http://login.example.com"))
    assert_explained(result, 2, "config_error")
    assert "plain http" in result.stderr


@pytest.mark.parametrize("path", ["nowhere/result", "file/result"])
def test_an_output_file_that_cannot_be_written(program: Program, signing: Settings, path: str) -> None:
    (program.directory / "file").touch()
    result = program("assertion", *options(signing), "--output-file", path)
    assert_explained(result, 74, "output_error")
    assert os.listdir(program.directory) == ["file"]


@pytest.mark.parametrize("kind", ["FIFO", "link"])
@pytest.mark.parametrize("command", ["assertion", "assertion-file"])
def test_an_output_file_that_is_not_a_regular_file(
    program: Program, signing: Settings, kind: str, command: str
) -> None:
    directory = program.directory / "private"
    directory.mkdir(mode=0o700)
    file, target = directory / "result", directory / "target"
    if kind == "FIFO":
        os.mkfifo(file)
    else:
        target.write_text("of before")
        file.symlink_to(target)
    where = ["--output-file", str(file)] if command == "assertion" else [str(file), "--once"]
    result = program(command, *options(signing), *where)
    assert result.status == 74
    assert result.stderr.count("not a regular file") == 1
    assert file.is_fifo() if kind == "FIFO" else (file.is_symlink() and target.read_text() == "of before")


def test_a_stdout_that_cannot_be_written(program: Program, signing: Settings) -> None:
    full = ("sh", "-c", 'exec "$@" >/dev/full', "sh")
    assert_explained(program("assertion", *options(signing), within=full), 74, "output_error")


@pytest.mark.parametrize("command", ["assertion", "decode"])
def test_a_closed_stdout(program: Program, signing: Settings, jwt: str, command: str) -> None:
    closed = ("sh", "-c", 'exec "$@" >&-', "sh")
    arguments = options(signing) if command == "assertion" else [jwt]
    assert_explained(program(command, *arguments, within=closed), 74, "output_error")


@pytest.mark.parametrize("command", ["assertion", "decode", "--help"])
def test_a_reader_that_closes_early_is_no_error(program: Program, signing: Settings, jwt: str, command: str) -> None:
    arguments = {"assertion": options(signing), "decode": [jwt]}.get(command, [])
    reader, writer = os.pipe()
    os.close(reader)
    with program.start(command, *arguments, stdout=writer) as process:
        os.close(writer)
        assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt(program: Program, signing: Settings, number: signal.Signals, status: int) -> None:
    file = program.directory / "result"
    file.write_text("as before")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}/token"
        settings = options(signing, token_endpoint=endpoint, scope="anything")
        with program.start("token", *settings, "--output-file", "result") as process:
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(4096).startswith(b"POST /token")
                process.send_signal(number)
                said = process.communicate(timeout=60)
    assert (process.returncode, *said) == (status, "", "")
    assert file.read_text() == "as before"
    assert os.listdir(program.directory) == ["result"]


@pytest.mark.parametrize("mode", [0o720, 0o702])
@pytest.mark.parametrize("weak", ["file", "directory"])
def test_a_profile_that_others_can_replace(program: Program, weak: str, mode: int) -> None:
    file = program.directory / "config.toml"
    file.write_text(f'[profile.default]\ntenant = "{TENANT}"\nclient_id = "{CLIENT}"\n')
    component = file if weak == "file" else program.directory
    component.chmod(mode)
    result = program("--config", str(file), "assertion")
    assert_explained(result, 2, "config_error")
    assert f"chmod go-w {component}" in result.stderr


@pytest.mark.parametrize("given", ["profile", "key file"])
def test_a_fifo_that_nobody_writes_to(program: Program, given: str) -> None:
    os.mkfifo(program.directory / "fifo")
    config = program.directory / "config.toml"
    config.write_text('[profile.default]\nkey = "file:fifo"\n')
    result = program("--config", "fifo" if given == "profile" else "config.toml", "assertion")
    assert_explained(result, 2, "config_error")
    assert "is not a regular file" in result.stderr


@pytest.mark.parametrize("where", ["option", "variable", "profile", "key file"])
def test_a_program_named_by_a_uri_is_refused_also_beside_another_pin_source(
    program: Program, signing: Settings, where: str
) -> None:
    uri = f"{signing['key']}?pin-source=%7C/usr/bin/touch%20started"
    others = {name: value for name, value in signing.items() if name != "key"}
    (program.directory / "key.json").write_text(json.dumps({"key": uri}))
    (program.directory / "config.toml").write_text(f'[profile.default]\nkey = "{uri}"\n')
    given = {
        "option": (["--key", uri], {}),
        "variable": ([], {"HSM_SIGNER_KEY": uri}),
        "profile": (["--config", "config.toml"], {}),
        "key file": (["--key", "file:key.json"], {}),
    }
    more, environment = given[where]
    before = more if where == "profile" else []
    after = [] if where == "profile" else more
    result = program(*before, "assertion", *options(others), *after, environment=environment)
    assert_explained(result, 2, "config_error")
    assert not (program.directory / "started").exists()


def test_all_missing_settings_are_named_at_once(program: Program) -> None:
    result = program("token")
    assert_explained(result, 2, "config_error")
    message, hint, *lines = result.stderr.splitlines()
    assert message == "error: No tenant, client ID, key or scope is set."
    assert "--tenant, --client-id, --key and --scope, in a profile, or in variables" in hint
    assert [line.split()[0] for line in lines[1:]] == ["--tenant", "--client-id", "--key", "--scope"]


@pytest.mark.parametrize("command", ["token", "assertion"])
def test_init_is_named_where_nothing_is_set_up(program: Program, command: str) -> None:
    _, hint, first, *_ = program(command).stderr.splitlines()
    assert hint.startswith("hint: Nothing is set up yet.")
    assert first == "  hsm-signer init"


def test_init_is_not_named_where_there_is_a_configuration_file(program: Program) -> None:
    file = program.home / ".config/hsm-signer/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[profile.default]\nscope = "https://vault.azure.net/.default"\n')
    assert "hsm-signer init" not in program("token").stderr


def test_an_authority_may_come_without_a_scheme(program: Program, signing: Settings) -> None:
    result = program("assertion", *options(signing), environment={"AZURE_AUTHORITY_HOST": "login.microsoftonline.us"})
    assert parse_jwt(result.stdout.strip()).claims["aud"].startswith("https://login.microsoftonline.us/")
