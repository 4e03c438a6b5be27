"""Fixtures of the command line's tests: a device, the emulator of Entra, and a terminal."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hsm_signer.testing import EntraEmulator, SoftHsm
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.emulator_process import Start
from tests.support.names import CLIENT, PIN, TENANT
from tests.support.program import Program, Settings, options, program_with
from tests.support.terminal import Terminal


def key_uri(label: str) -> str:
    return f"pkcs11:token=office;object={label}"


@pytest.fixture(scope="session")
def softhsm() -> Iterator[SoftHsm]:
    """A SoftHSM whose device `office` holds keys, each with another defect, named by their labels."""
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
    """A key without a defect."""
    return softhsm.add_identity("good", b"\x01")


@pytest.fixture(scope="session")
def certificate(good: SoftHsmKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the certificate of the good key."""
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
    """Settings with which `assertion` succeeds."""
    return {
        "tenant": TENANT,
        "client_id": CLIENT,
        "key": good.uri,
        "module": str(softhsm.module),
        "pin_source": "env:DEVICE_PIN",
    }


@pytest.fixture(scope="session")
def exchange(signing: Settings, entra: EntraEmulator) -> Settings:
    """Settings with which `token` succeeds."""
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
    return replace(program_with(softhsm, home), directory=work)


@pytest.fixture
def start(program: Program, certificate: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(*arguments: str) -> "subprocess.Popen[str]":
            known = options({"tenant": TENANT, "client_id": CLIENT, "certificate": str(certificate)})
            return stack.enter_context(program.start("emulator", *known, *arguments))

        yield start
