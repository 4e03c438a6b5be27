"""The pytest plugin, as a project that installs the wheel uses it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

DOWNSTREAM = """
import sys

import hsm_signer


def test_it_runs_what_the_wheel_installed():
    assert hsm_signer.__file__.startswith(sys.prefix)


def test_a_token(hsm_credential, entra_emulator, softhsm_device):
    assert hsm_credential.get_token("https://graph.microsoft.com/.default").token.count(".") == 2
    assert entra_emulator.requests[-1].status == 200
    assert softhsm_device.label == "hsm-signer"


def test_another_has_an_emulator_of_its_own(entra_emulator, hsm_credential):
    hsm_credential.get_token("https://vault.azure.net/.default")
    assert len(entra_emulator.requests) == 1
"""

NOTHING = """
import sys

def test_nothing():
    loaded = {name for name in sys.modules if name.partition(".")[0] in ("hsm_signer", "pkcs11", "httpx", "starlette")}
    assert loaded <= {"hsm_signer", "hsm_signer.version", "hsm_signer.errors", "hsm_signer.testing",
                      "hsm_signer.testing.plugin"}
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel of this checkout, and otherwise the libraries that we have."""
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    environment = directory / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, "--disable-pip-version-check", str(wheel)], check=True)
    # A path in a .pth file: our editable install is not found through it, since that is a .pth file itself.
    (site,) = environment.glob("lib/python*/site-packages")
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "libraries.pth").write_text(ours)
    return python


def outcome(python: Path, tests: str, directory: Path) -> str:
    (directory / "test_downstream.py").write_text(tests)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHONPATH"))}
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "test_downstream.py"],
        cwd=directory,
        env={**environment, "HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_downstream_test_gets_a_token_with_the_fixtures_alone(python: Path, tmp_path: Path) -> None:
    assert "3 passed" in outcome(python, DOWNSTREAM, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"test_downstream.py", "__pycache__"}


def test_a_run_that_uses_no_fixture_loads_neither_devices_nor_servers(python: Path, tmp_path: Path) -> None:
    outcome(python, NOTHING, tmp_path)
