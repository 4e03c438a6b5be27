"""`assertion-file` as a service: what systemd hears, what readers find, and what happens when something fails."""

import os
import secrets
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwt as jose
from joserfc.jwk import OctKey, RSAKey

from hsm_signer.testing import EntraEmulator
from tests.support.faulty_module.control import FaultyModule, Rv
from tests.support.listener import Listener, ready
from tests.support.names import CLIENT, PIN, TENANT
from tests.support.program import Program, Result, Settings, options

OFTEN = ("--lifetime", "700", "--interval", "1")
FOR_EVER = float("inf")


@pytest.fixture
def file(program: Program) -> Path:
    directory = program.directory / "run"
    directory.mkdir(mode=0o700)
    return directory / "assertion"


def claims_of(text: str, certificate: Path) -> dict[str, Any]:
    """Return the claims of an assertion, verified with the key of the certificate by another library."""
    public_key = x509.load_der_x509_certificate(certificate.read_bytes()).public_key()
    pem = public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return dict(jose.decode(text, RSAKey.import_key(pem), algorithms=["RS256"]).claims)


def refused(result: Result, status: int) -> str:
    """Return the error of a run that ended with this status, with a hint how to fix it."""
    assert (result.status, result.stdout) == (status, "")
    lines = [line for line in result.stderr.splitlines() if not line.startswith("hsm-signer: warning: ")]
    assert [line.partition(": ")[0] for line in lines] == ["error", "hint"]
    return lines[0]


class TestOnce:
    def test_writes_an_assertion_that_is_valid_for_an_hour(
        self, program: Program, signing: Settings, file: Path, certificate: Path
    ) -> None:
        result = program("assertion-file", str(file), "--once", *options(signing))
        assert (result.status, result.stdout) == (0, "")
        claims = claims_of(file.read_text(), certificate)
        assert claims["exp"] - claims["nbf"] == 3600
        assert claims["iss"] == CLIENT
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert os.listdir(file.parent) == ["assertion"]

    def test_prefers_the_lifetime_of_the_profile_to_its_default(
        self, program: Program, signing: Settings, file: Path, certificate: Path
    ) -> None:
        config = program.directory / "config.toml"
        config.write_text("[profile.default]\nlifetime = 7200\n")
        config.chmod(0o600)
        program("--config", str(config), "assertion-file", str(file), "--once", *options(signing))
        claims = claims_of(file.read_text(), certificate)
        assert claims["exp"] - claims["nbf"] == 7200

    def test_with_a_fresh_assertion_does_not_use_the_device(
        self, program: Program, signing: Settings, file: Path
    ) -> None:
        program("assertion-file", str(file), "--once", *options(signing))
        text = file.read_text()
        result = program("assertion-file", str(file), "--once", *options(signing, module="/nowhere/module.so"))
        assert result.status == 0
        assert file.read_text() == text

    def test_lets_a_group_read(self, program: Program, signing: Settings, file: Path) -> None:
        group = os.getegid()
        program("assertion-file", str(file), "--once", "--group", str(group), *options(signing))
        assert (stat.S_IMODE(file.stat().st_mode), file.stat().st_gid) == (0o640, group)

    def test_sets_the_requested_mode(self, program: Program, signing: Settings, file: Path) -> None:
        program("assertion-file", str(file), "--once", "--mode", "0440", *options(signing))
        assert stat.S_IMODE(file.stat().st_mode) == 0o440

    def test_warns_only_if_the_file_is_on_a_disk(self, program: Program, signing: Settings) -> None:
        memory = Path("/dev/shm") / f"hsm-signer-{secrets.token_hex(8)}"  # noqa: S108
        memory.mkdir(mode=0o700)
        try:
            result = program("assertion-file", str(memory / "assertion"), "--once", *options(signing))
        finally:
            (memory / "assertion").unlink(missing_ok=True)
            memory.rmdir()
        assert (result.status, result.stderr) == (0, "")


class TestRefuses:
    def test_a_lifetime_that_is_too_short_for_readers_with_the_calculation(
        self, program: Program, signing: Settings, file: Path
    ) -> None:
        result = program("assertion-file", str(file), "--lifetime", "900", "--interval", "400", *options(signing))
        assert "900 - 400 = 500 s" in refused(result, 2)
        assert not file.exists()

    @pytest.mark.parametrize(
        "arguments", [["--mode", "0644"], ["--mode", "rw"], ["--mode", "9999"], ["--group", "nobody-has-this-group"]]
    )
    def test_what_it_cannot_do(self, program: Program, signing: Settings, file: Path, arguments: list[str]) -> None:
        refused(program("assertion-file", str(file), "--once", *arguments, *options(signing)), 2)
        assert not file.exists()

    def test_a_directory_where_others_can_write(self, program: Program, signing: Settings, file: Path) -> None:
        file.parent.chmod(0o1777)
        error = refused(program("assertion-file", str(file), "--once", *options(signing)), 2)
        assert str(file.parent) in error
        assert not file.exists()

    def test_a_directory_that_does_not_exist(self, program: Program, signing: Settings, file: Path) -> None:
        result = program("assertion-file", str(file / "nowhere"), "--once", *options(signing))
        assert str(file) in refused(result, 74)


class TestPrintEnv:
    def test_prints_what_a_shell_can_evaluate(self, program: Program, signing: Settings) -> None:
        file = "it's here/$(date)"
        printed = program("assertion-file", file, "--print-env", *options(signing, module="/nowhere/module.so"))
        script = 'eval "$1" && env'
        shown = subprocess.run(
            ["sh", "-c", script, "sh", printed.stdout], env={}, capture_output=True, text=True
        ).stdout
        variables = dict(line.split("=", 1) for line in shown.splitlines())
        path = str(program.directory / file)
        assert {name: value for name, value in variables.items() if name.startswith(("AZURE_", "ARM_"))} == {
            "AZURE_FEDERATED_TOKEN_FILE": path,
            "AZURE_TENANT_ID": TENANT,
            "AZURE_CLIENT_ID": CLIENT,
            "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.com",
            "ARM_USE_OIDC": "true",
            "ARM_OIDC_TOKEN_FILE_PATH": path,
            "ARM_TENANT_ID": TENANT,
            "ARM_CLIENT_ID": CLIENT,
        }

    def test_needs_a_tenant(self, program: Program, signing: Settings) -> None:
        settings = options(signing, tenant=None, token_endpoint="https://login.example/token")
        assert "No tenant is set" in refused(program("assertion-file", "file", "--print-env", *settings), 2)


Service = Callable[..., AbstractContextManager["subprocess.Popen[str]"]]


@pytest.fixture
def serve(program: Program, signing: Settings, systemd: Listener, faulty: FaultyModule, file: Path) -> Service:
    """Start the service, on a device that can be commanded."""

    def serve(*arguments: str) -> AbstractContextManager["subprocess.Popen[str]"]:
        settings = options({**signing, "module": str(faulty.path)})
        environment = {**systemd.environment, **faulty.environment}
        return program.start("assertion-file", str(file), *settings, *arguments, environment=environment)

    return serve


def in_trouble(message: dict[str, str]) -> bool:
    return "STATUS" in message and not message["STATUS"].endswith(" UTC.")


def end(process: "subprocess.Popen[str]", by: signal.Signals) -> str:
    """End the service and return what it said on stderr."""
    process.send_signal(by)
    stdout, stderr = process.communicate(timeout=30)
    assert stdout == ""
    assert PIN not in stderr
    return stderr


def last_for(seconds: int) -> str:
    """Return an assertion of an earlier run, good for so many seconds more. Only Entra would look at the signature."""
    expires = int(time.time()) + seconds
    audience = f"https://login.microsoftonline.com/{TENANT}/oauth2/v2.0/token"
    claims = {"iss": CLIENT, "aud": audience, "nbf": expires - 700, "exp": expires}
    return jose.encode({"alg": "HS256"}, claims, OctKey.import_key("whatever an earlier run signed with"))


def put(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o600)


class TestService:
    def test_is_ready_when_the_first_assertion_is_written(
        self, serve: Service, systemd: Listener, file: Path, certificate: Path
    ) -> None:
        with serve():
            assert ready(systemd.hear())
            assert claims_of(file.read_text(), certificate)["iss"] == CLIENT

    @pytest.mark.parametrize(("by", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_ends_cleanly_and_leaves_the_file(
        self, serve: Service, systemd: Listener, file: Path, by: signal.Signals, status: int
    ) -> None:
        with serve() as process:
            systemd.wait_for(ready)
            stderr = end(process, by)
        assert process.returncode == status
        assert systemd.hear() == {"STOPPING": "1"}
        assert "error" not in stderr
        assert os.listdir(file.parent) == ["assertion"]

    def test_replaces_the_assertion_every_interval_after_one_login(
        self, serve: Service, systemd: Listener, file: Path, faulty: FaultyModule
    ) -> None:
        texts: set[str] = set()
        with serve(*OFTEN):
            while len(texts) < 3:
                systemd.wait_for(ready)
                texts.add(file.read_text())
        assert len(faulty.logins()) == 1

    def test_continues_after_a_restart_without_the_device(
        self, serve: Service, systemd: Listener, file: Path, faulty: FaultyModule
    ) -> None:
        with serve() as process:
            systemd.wait_for(ready)
            end(process, signal.SIGTERM)
        text = file.read_text()
        faulty.clear()
        with serve():
            systemd.wait_for(lambda message: "STOPPING" in message)
            assert ready(systemd.hear())
        assert file.read_text() == text
        assert faulty.log() == []

    def test_keeps_the_last_assertion_while_the_device_is_unavailable_and_continues_when_it_is_back(
        self, serve: Service, systemd: Listener, file: Path, faulty: FaultyModule
    ) -> None:
        with serve(*OFTEN) as process:
            systemd.wait_for(ready)
            faulty.absent(True)
            message = systemd.wait_for(in_trouble)
            assert ready(message)
            assert "token=office" in message["STATUS"]
            last = file.read_text()
            faulty.absent(False)
            systemd.wait_for(lambda message: ready(message) and not in_trouble(message))
            assert file.read_text() != last
            stderr = end(process, signal.SIGTERM)
        assert "Trying again in 5 s." in stderr
        assert [login.right for login in faulty.logins()] == [True, True]

    def test_leaves_an_assertion_that_expires_while_the_device_is_unavailable_and_logs_that(
        self, serve: Service, systemd: Listener, file: Path, faulty: FaultyModule
    ) -> None:
        last = last_for(3)
        put(file, last)
        faulty.absent(True)
        with serve(*OFTEN) as process:
            assert ready(systemd.wait_for(in_trouble))
            message = systemd.wait_for(lambda message: "The assertion expired at " in message["STATUS"])
            assert not ready(message)
            stderr = end(process, signal.SIGTERM)
        assert file.read_text() == last
        assert stderr.count(f"The assertion in {file} expired at ") == 1

    def test_ends_if_the_device_was_never_available(self, serve: Service, faulty: FaultyModule, file: Path) -> None:
        faulty.absent(True)
        with serve() as process:
            _, stderr = process.communicate(timeout=30)
        assert process.returncode == 3
        assert "error: " in stderr
        assert os.listdir(file.parent) == []

    def test_waits_for_a_device_that_was_never_available_if_asked_to(
        self, serve: Service, systemd: Listener, faulty: FaultyModule
    ) -> None:
        faulty.absent(True)
        with serve("--wait"):
            assert not ready(systemd.wait_for(in_trouble))
            faulty.absent(False)
            systemd.wait_for(ready)

    def test_ends_after_a_wrong_pin_which_is_sent_once(self, serve: Service, faulty: FaultyModule, file: Path) -> None:
        text = last_for(300)
        put(file, text)
        faulty.rule("C_Login", rv=Rv.PIN_INCORRECT)
        with serve(*OFTEN, "--wait") as process:
            stdout, stderr = process.communicate(timeout=30)
        assert (process.returncode, stdout) == (4, "")
        assert "error: " in stderr
        assert faulty.calls("C_Login") == 1
        assert file.read_text() == text

    def test_outlives_a_module_that_hangs(self, serve: Service, systemd: Listener, faulty: FaultyModule) -> None:
        with serve(*OFTEN, "--device-timeout", "2"):
            systemd.wait_for(ready)
            faulty.rule("C_Sign", hang=FOR_EVER, times=1)
            systemd.wait_for(in_trouble)
            systemd.wait_for(lambda message: ready(message) and not in_trouble(message))
        assert {login.right for login in faulty.logins()} == {True}


def test_the_log_holds_no_assertion_and_no_pin(
    program: Program, signing: Settings, file: Path, entra: EntraEmulator
) -> None:
    result = program("-v", "assertion-file", str(file), "--once", *options(signing))
    assert result.status == 0
    parts = file.read_text().split(".")
    assert [secret for secret in (PIN, *parts) if secret in result.stderr] == []
