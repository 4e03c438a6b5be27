"""The program as a process of its own, in an environment that holds nothing else, and what it needs to work on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import hsm_signer
from hsm_signer.testing import EntraEmulator, SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FaultyModule
from tests.support.names import CLIENT, PIN, TENANT, WRONG_PIN
from tests.support.terminal import Terminal

MAIN = ("-c", "from hsm_signer.cli import main; main()")

Settings = Mapping[str, str]


def key_uri(label: str) -> str:
    return f"pkcs11:token=office;object={label}"


def options(settings: Settings, **changes: str | None) -> list[str]:
    """Write settings as options, with some of them changed or, where None, left out."""
    given = {**settings, **changes}
    return [
        word for name, value in given.items() if value is not None for word in (f"--{name.replace('_', '-')}", value)
    ]


@dataclass(frozen=True)
class Result:
    """How a run ended, and what it said."""

    status: int
    stdout: str
    stderr: str
    program: "Program" = field(repr=False)
    arguments: tuple[str, ...] = ()
    how: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        document: dict[str, Any] = json.loads(self.stdout)
        return document

    @property
    def error(self) -> dict[str, Any]:
        """The error on stderr, of a run with ``-o json``. Warnings may stand before it."""
        error: dict[str, Any] = json.loads(self.stderr.splitlines()[-1])["error"]
        return error

    def again(self, *more: str) -> "Result":
        """Run the same once more, with further arguments."""
        return self.program(*self.arguments, *more, **self.how)


@dataclass(frozen=True)
class Program:
    """hsm-signer, as it is installed or from the checkout, without a terminal.

    Attributes:
        directory: where it runs.
        home: HOME.
        environment: all that it inherits.
    """

    directory: Path
    home: Path
    environment: Mapping[str, str]

    def __call__(
        self,
        *arguments: str,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
        python: Sequence[str] = MAIN,
        within: Sequence[str] = (),
    ) -> Result:
        """Run it to its end. See `start`."""
        with self.start(*arguments, environment=environment, python=python, within=within) as process:
            stdout, stderr = process.communicate(stdin, timeout=60)
        how = {"stdin": stdin, "environment": environment, "python": python, "within": within}
        return Result(process.returncode, stdout, stderr, self, arguments, how)

    @contextmanager
    def start(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        python: Sequence[str] = MAIN,
        within: Sequence[str] = (),
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> Iterator["subprocess.Popen[str]"]:
        """Start it, and leave nothing of it running.

        Args:
            environment: more variables.
            python: arguments of the interpreter.
            within: the command that runs the interpreter.
        """
        process = subprocess.Popen(
            [*within, sys.executable, *python, *arguments],
            cwd=self.directory,
            env={**self.environment, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            encoding="utf-8",
            start_new_session=True,  # the terminal of whoever runs the tests is not ours to prompt on
        )
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


def assert_explained(result: Result, status: int, code: str) -> None:
    """Assert that a failure says what and how to mend it, to people and to programs, and gives nothing away."""
    as_json = result.again("-o", "json")
    for each in (result, as_json):
        assert each.status == status, each.stderr
        assert each.stdout == ""
        assert "Traceback" not in each.stderr
        assert PIN not in each.stderr
        assert WRONG_PIN not in each.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith("hsm-signer: warning: ")]
    assert [line.partition(": ")[0] for line in lines] == ["error", "hint"]
    error = as_json.error
    assert error["code"] == code
    assert error["message"].endswith(".")
    assert f"hint: {error['hint']}" == lines[1]


@pytest.fixture(scope="session")
def softhsm() -> Iterator[SoftHsm]:
    """A SoftHSM whose token `office` holds a key, by label, for everything that can be wrong with one."""
    with SoftHsm(label="office", pin=PIN) as softhsm:
        softhsm.add_token("twins")
        softhsm.add_token("twins")
        softhsm.add_token("spare")
        now = datetime.now(UTC)
        private_key = rsa.generate_private_key(65537, 2048)
        own = softhsm.import_key(private_key, "bare", b"\x12").public_key
        another = rsa.generate_private_key(65537, 2048).public_key()
        softhsm.import_key(private_key, "twin", b"\x13")
        softhsm.import_key(private_key, "twin", b"\x14")
        softhsm.import_key(private_key, "expired", b"\x15")
        expired = softhsm.issue_certificate(own, not_before=now - timedelta(days=30), not_after=now - timedelta(days=1))
        softhsm.add_certificate(expired, "expired", b"\x15")
        softhsm.import_key(private_key, "mismatched", b"\x16")
        softhsm.add_certificate(softhsm.issue_certificate(another), "mismatched", b"\x16")
        softhsm.import_key(ec.generate_private_key(ec.SECP256R1()), "elliptic", b"\x17")
        short = softhsm.import_key(rsa.generate_private_key(65537, 1024), "short", b"\x18")  # noqa: S505
        softhsm.add_certificate(softhsm.issue_certificate(short.public_key), "short", b"\x18")
        yield softhsm


@pytest.fixture(scope="session")
def good(softhsm: SoftHsm) -> SoftHsmKey:
    """The key with which nothing is wrong."""
    return softhsm.add_identity("good", b"\x01")


@pytest.fixture(scope="session")
def certificate(good: SoftHsmKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of its certificate."""
    assert good.certificate is not None
    file = tmp_path_factory.mktemp("certificate") / "good.der"
    file.write_bytes(good.certificate)
    return file


@pytest.fixture(scope="session")
def entra(certificate: Path) -> Iterator[EntraEmulator]:
    with EntraEmulator() as entra:
        entra.register(CLIENT, certificate.read_bytes(), tenant=TENANT)
        yield entra


@pytest.fixture(scope="session")
def signing(softhsm: SoftHsm, good: SoftHsmKey) -> Settings:
    """What `assertion` needs."""
    return {
        "tenant": TENANT,
        "client_id": CLIENT,
        "key": good.uri,
        "module": str(softhsm.module),
        "pin_source": "env:DEVICE_PIN",
    }


@pytest.fixture(scope="session")
def exchange(signing: Settings, entra: EntraEmulator) -> Settings:
    """What `token` needs."""
    return {
        **signing,
        "authority": entra.authority,
        "ca_bundle": str(entra.ca_file),
        "scope": "https://graph.microsoft.com/.default",
    }


@pytest.fixture(scope="module", autouse=True)
def _no_wrong_pin_is_left(tmp_path_factory: pytest.TempPathFactory, softhsm: SoftHsm, signing: Settings) -> None:
    """SoftHSM remembers a wrong PIN of another file's tests, and warns, until a right one comes."""
    assert _program(tmp_path_factory.mktemp("right_pin"), softhsm)("assertion", *options(signing)).status == 0


@pytest.fixture
def program(tmp_path: Path, softhsm: SoftHsm) -> Program:
    return _program(tmp_path, softhsm)


@pytest.fixture
def faulty(softhsm: SoftHsm) -> Iterator[FaultyModule]:
    """The module of `softhsm` behind the one that counts and fails."""
    with FaultyModule(softhsm.module, softhsm.environment, pin=PIN) as faulty:
        yield faulty


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


@pytest.fixture(scope="session")
def jwt(tmp_path_factory: pytest.TempPathFactory, softhsm: SoftHsm, signing: Settings) -> str:
    """An assertion that the program has signed."""
    return _program(tmp_path_factory.mktemp("jwt"), softhsm)("assertion", *options(signing)).stdout.strip()


def _program(directory: Path, softhsm: SoftHsm) -> Program:
    home, work = directory / "home", directory / "work"
    home.mkdir()
    work.mkdir()
    return Program(
        work,
        home,
        {
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "PYTHONPATH": str(Path(hsm_signer.__file__).parents[1]),
            "DEVICE_PIN": PIN,
            **softhsm.environment,
        },
    )
