"""A one-shot command on a device that misbehaves: it ends in time, says why, and never prints a false result."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from joserfc.util import urlsafe_b64decode
from pkcs11 import Mechanism

import hsm_signer
from hsm_signer.testing import SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FUNCTIONS, Call, FaultyModule, Rv

DEADLINE = 2.0  # longer than a busy machine pauses a program between two calls into the module
CLOSING = 2.0  # seconds that closing a device may take
SOON = 3.0
FOREVER = float("inf")

PROVISIONING = ("C_GenerateKeyPair", "C_CreateObject", "C_DestroyObject")
# python-pkcs11 holds the GIL during these calls, so no thread of ours can watch them.
UNWATCHED = ("C_GetFunctionList", "C_Finalize")
CLOSING_CALLS = ("C_Logout", "C_CloseSession")
DURING = [name for name in FUNCTIONS if name not in (*PROVISIONING, *UNWATCHED, *CLOSING_CALLS)]


@dataclass(frozen=True)
class Ended:
    """How a run ended, what it printed, and when it ended (`time.monotonic`)."""

    status: int
    stdout: str
    stderr: str
    at: float


@dataclass(frozen=True)
class Assertion:
    """Runs ``hsm-signer assertion`` on the faulty device."""

    faulty: FaultyModule
    key: SoftHsmKey
    pin: str
    home: Path

    def __call__(self, *arguments: str, before: tuple[str, ...] = ()) -> Ended:
        """Run it to its end.

        Args:
            arguments: further arguments.
            before: arguments before the command.
        """
        environment = {
            **self.faulty.environment,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(hsm_signer.__file__).parents[1]),
            "HOME": str(self.home),
            "DEVICE_PIN": self.pin,
        }
        done = subprocess.run(
            [
                *(sys.executable, "-c", "from hsm_signer.cli import main; main()", *before, "assertion"),
                *("--tenant", "contoso.example", "--client-id", "8f1c1f3e-7a58-4f0a-8f1e-3f5ad2a3a001"),
                *("--key", self.key.uri, "--module", str(self.faulty.path), "--pin-source", "env:DEVICE_PIN"),
                *("--device-timeout", str(DEADLINE), *arguments),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
        return Ended(done.returncode, done.stdout, done.stderr, time.monotonic())


@pytest.fixture
def assertion(faulty: FaultyModule, key: SoftHsmKey, softhsm: SoftHsm, tmp_path: Path) -> Assertion:
    return Assertion(faulty, key, softhsm.pin, tmp_path)


@dataclass(frozen=True)
class Hung:
    """A run whose module hung forever in one call.

    Attributes:
        module: the module that the program loaded.
        last: the last call into the module.
    """

    ended: Ended
    module: Path
    last: Call


@pytest.fixture(scope="module")
def hung(softhsm: SoftHsm, key: SoftHsmKey, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Hung]:
    """One hung run for each function. Several run at a time, because they mostly wait."""

    def run(function: str) -> Hung:
        home = tmp_path_factory.mktemp("home")
        with FaultyModule(softhsm.module, copy_device(softhsm, home / "device"), pin=softhsm.pin) as faulty:
            faulty.rule(function, hang=FOREVER)
            ended = Assertion(faulty, key, softhsm.pin, home)()
            return Hung(ended, faulty.path, faulty.log()[-1])

    functions = [*DURING, *CLOSING_CALLS]
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(functions, pool.map(run, functions), strict=True))


def copy_device(softhsm: SoftHsm, directory: Path) -> dict[str, str]:
    """Return the environment in which SoftHSM finds a copy of the device.

    While one process logs in, SoftHSM rewrites the device's flags, and C_GetTokenInfo may fail in all others.
    """
    shutil.copytree(softhsm.directory, directory)
    configuration = directory / softhsm.configuration.name
    text = softhsm.configuration.read_text().replace(str(softhsm.directory), str(directory))
    configuration.write_text(text)
    return {"SOFTHSM2_CONF": str(configuration)}


def verify(key: SoftHsmKey, jwt: str, algorithm: str = "RS256") -> None:
    signing_input, _, signature = jwt.strip().rpartition(".")
    scheme: padding.AsymmetricPadding = padding.PKCS1v15()
    if algorithm == "PS256":
        scheme = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)
    assert isinstance(key.public_key, rsa.RSAPublicKey)
    key.public_key.verify(urlsafe_b64decode(signature.encode()), signing_input.encode(), scheme, hashes.SHA256())


def test_one_assertion_costs_one_login_and_one_signature(
    assertion: Assertion, faulty: FaultyModule, key: SoftHsmKey
) -> None:
    verify(key, assertion().stdout)
    assert faulty.calls("C_Sign(NULL)") == 1
    assert faulty.calls("C_Sign") == 1
    assert faulty.calls("C_Login") == 1
    assert [(login.right, login.context_specific) for login in faulty.logins()] == [(True, False)]


class TestHangs:
    @pytest.mark.parametrize("function", DURING)
    def test_a_hanging_call_ends_in_an_error_soon_after_the_deadline(
        self, function: str, hung: dict[str, Hung]
    ) -> None:
        ended, last = hung[function].ended, hung[function].last
        assert (last.function, last.left) == (function, None)
        assert (ended.status, ended.stdout) == (8, "")
        error, hint = ended.stderr.splitlines()
        assert error.startswith("error: The module did not return from ")
        assert error.endswith(f" within 2 s: {hung[function].module}.")
        assert hint.startswith("hint: Check that the device ")
        assert ended.at - last.entered < DEADLINE + SOON

    @pytest.mark.parametrize("function", CLOSING_CALLS)
    def test_a_hang_after_the_signature_does_not_lose_the_result(
        self, function: str, hung: dict[str, Hung], key: SoftHsmKey
    ) -> None:
        ended, last = hung[function].ended, hung[function].last
        assert (last.function, last.left) == (function, None)
        assert (ended.status, ended.stderr) == (0, "")
        verify(key, ended.stdout)
        assert ended.at - last.entered < CLOSING + SOON

    def test_c_finalize_is_not_called_at_exit(
        self, assertion: Assertion, faulty: FaultyModule, key: SoftHsmKey
    ) -> None:
        faulty.rule("C_Finalize", hang=FOREVER)
        ended = assertion()
        assert (ended.status, ended.stderr) == (0, "")
        verify(key, ended.stdout)
        assert faulty.calls("C_Finalize") == 0

    def test_a_call_shorter_than_the_deadline_is_waited_for(
        self, assertion: Assertion, faulty: FaultyModule, key: SoftHsmKey
    ) -> None:
        faulty.rule("C_Sign", hang=DEADLINE / 2)
        verify(key, assertion().stdout)


class TestLostDevices:
    @pytest.mark.parametrize("call", ["C_FindObjectsInit", "C_FindObjects", "C_SignInit", "C_Sign"])
    def test_a_device_lost_once_causes_a_warning_and_no_traceback(
        self, call: str, assertion: Assertion, faulty: FaultyModule, key: SoftHsmKey
    ) -> None:
        faulty.rule(call, rv=Rv.DEVICE_REMOVED, times=1)
        ended = assertion()
        verify(key, ended.stdout)
        (warning,) = ended.stderr.splitlines()
        assert warning.startswith("hsm-signer: warning: 'faults' ")
        assert "was lost while" in warning

    @pytest.mark.parametrize("call", ["C_FindObjectsInit", "C_FindObjects", "C_SignInit", "C_Sign"])
    def test_a_device_that_stays_lost_is_an_error_without_a_traceback(
        self, call: str, assertion: Assertion, faulty: FaultyModule
    ) -> None:
        for function in (call, "C_FindObjectsFinal"):
            faulty.rule(function, rv=Rv.DEVICE_REMOVED)
        ended = assertion()
        assert (ended.status, ended.stdout) == (3, "")
        assert [line.partition(": ")[0] for line in ended.stderr.splitlines()] == ["hsm-signer", "error", "hint"]


class TestNoise:
    def test_the_output_of_the_module_is_not_mixed_into_ours(
        self, assertion: Assertion, faulty: FaultyModule, key: SoftHsmKey
    ) -> None:
        faulty.noisy(True)
        ended = assertion()
        assert (ended.status, ended.stderr) == (0, "")
        assert ended.stdout.count("\n") == 1
        verify(key, ended.stdout)

    def test_the_output_of_the_module_does_not_hide_an_error(self, assertion: Assertion, faulty: FaultyModule) -> None:
        faulty.noisy(True)
        faulty.rule("C_Sign", corrupt=True)
        ended = assertion()
        assert (ended.status, ended.stdout) == (3, "")
        assert [line.partition(": ")[0] for line in ended.stderr.splitlines()] == ["error", "hint"]

    def test_the_output_of_the_module_is_shown_on_request_and_only_on_stderr(
        self, assertion: Assertion, faulty: FaultyModule, key: SoftHsmKey
    ) -> None:
        faulty.noisy(True)
        ended = assertion(before=("-v",))
        assert "noise of C_Sign\n" in ended.stderr
        assert ended.stdout.count("\n") == 1
        verify(key, ended.stdout)


class TestFalseSignatures:
    def test_a_false_signature_is_an_error_and_not_printed(self, assertion: Assertion, faulty: FaultyModule) -> None:
        faulty.rule("C_Sign", corrupt=True)
        ended = assertion("--output", "json")
        assert (ended.status, ended.stdout) == (3, "")
        assert '"code": "signature_invalid"' in ended.stderr
        assert faulty.calls("C_Sign") == 1

    def test_a_false_signature_does_not_replace_the_old_file(
        self, assertion: Assertion, faulty: FaultyModule, tmp_path: Path
    ) -> None:
        file = tmp_path / "out" / "assertion.jwt"
        file.parent.mkdir()
        file.write_text("of before")
        faulty.rule("C_Sign", corrupt=True)
        ended = assertion("--output-file", str(file))
        assert ended.status == 3
        assert list(file.parent.iterdir()) == [file]
        assert file.read_text() == "of before"


COMBINED = (Mechanism.SHA256_RSA_PKCS, Mechanism.SHA256_RSA_PKCS_PSS)
PADDED = (Mechanism.RSA_PKCS, Mechanism.RSA_PKCS_PSS)


class TestMissingMechanisms:
    @pytest.mark.parametrize(
        ("algorithm", "hidden", "used"),
        [
            ("RS256", COMBINED, "CKM_RSA_PKCS"),
            ("PS256", COMBINED, "CKM_RSA_PKCS_PSS"),
            ("RS256", COMBINED + PADDED, "CKM_RSA_X_509"),
            ("PS256", COMBINED + PADDED, "CKM_RSA_X_509"),
        ],
    )
    def test_the_host_hashes_and_pads_in_place_of_missing_mechanisms(
        self,
        algorithm: str,
        hidden: tuple[Mechanism, ...],
        used: str,
        assertion: Assertion,
        faulty: FaultyModule,
        key: SoftHsmKey,
    ) -> None:
        faulty.hide_mechanisms(*hidden)
        ended = assertion("--algorithm", algorithm, before=("--verbose",))
        verify(key, ended.stdout, algorithm)
        assert f"signed {algorithm} by {used} " in ended.stderr
