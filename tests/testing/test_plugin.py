"""The pytest plugin and docs/testing.md, as a project that installs the wheel uses them."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")

DOWNSTREAM = """
import sys

import hsm_signer


def test_the_package_comes_from_the_wheel():
    assert hsm_signer.__file__.startswith(sys.prefix)


def test_a_token(hsm_credential, entra_emulator, softhsm_device):
    assert hsm_credential.get_token("https://graph.microsoft.com/.default").token.count(".") == 2
    assert entra_emulator.requests[-1].status == 200
    assert softhsm_device.label == "hsm-signer"


def test_each_test_has_its_own_emulator(entra_emulator, hsm_credential):
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


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of the guide that are in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


TESTS = [block for block in blocks("python") if "def test_" in block]
(PROGRAM,) = (block for block in blocks("python") if "def test_" not in block)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel of this checkout, and otherwise the libraries that we have."""
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


def environment_in(directory: Path) -> dict[str, str]:
    left_out = ("PYTEST", "PYTHONPATH", "HSM_SIGNER")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return {**inherited, "HOME": str(directory)}


def outcome(python: Path, directory: Path, *files: str) -> str:
    """Run pytest on test files with these contents, and return what it prints. All of their tests must pass."""
    for number, text in enumerate(files):
        (directory / f"test_downstream_{number}.py").write_text(text)
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"],
        cwd=directory,
        env=environment_in(directory),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_downstream_test_gets_a_token_with_the_fixtures_alone(python: Path, tmp_path: Path) -> None:
    assert "3 passed" in outcome(python, tmp_path, DOWNSTREAM)
    assert {path.name for path in tmp_path.iterdir()} <= {"test_downstream_0.py", "__pycache__"}


def test_a_run_that_uses_no_fixture_loads_neither_devices_nor_servers(python: Path, tmp_path: Path) -> None:
    outcome(python, tmp_path, NOTHING)


def test_the_tests_of_the_guide_pass_in_one_run(python: Path, tmp_path: Path) -> None:
    count = "".join(TESTS).count("def test_")
    assert f"{count} passed" in outcome(python, tmp_path, *TESTS)


def test_the_first_test_of_the_guide_has_at_most_ten_lines() -> None:
    assert len([line for line in TESTS[0].splitlines() if line]) <= 10


def test_the_script_of_the_guide_gets_a_token_and_leaves_no_emulator(python: Path, tmp_path: Path) -> None:
    (_, script), (transcript,) = blocks("sh"), blocks("console")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (tmp_path / "make_device.py").write_text(PROGRAM)
    path = {"PATH": f"{python.parent}:/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", "-uc", script.replace("8443", str(port))],
        cwd=tmp_path,
        env={**environment_in(tmp_path), **path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "token.jwt").read_text().count(".") == 2
    deadline = time.monotonic() + 30
    while (tmp_path / "ca.pem").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # The emulator may answer before it says how to stop it.
    assert sorted((tmp_path / "emulator.log").read_text().splitlines()) == sorted(transcript.splitlines()[1:])
