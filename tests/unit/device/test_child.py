"""A child process runs the same package as its parent, never one from the current directory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hsm_signer

WHERE = "def main(): print(__file__)"
PROGRAM = """
import os, subprocess
from hsm_signer.device.child import child_command, child_environment
os.chdir("elsewhere")
subprocess.run(child_command("hsm_signer.where"), env=child_environment({}), check=True)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a directory with a copy of the package, and in it a directory with another package of the same name."""
    shutil.copytree(Path(hsm_signer.__file__).parent, tmp_path / "hsm_signer")
    for package in (tmp_path / "hsm_signer", tmp_path / "elsewhere" / "hsm_signer"):
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        (package / "where.py").write_text(WHERE)
    return tmp_path


def test_a_child_runs_the_package_that_started_it(copy: Path) -> None:
    # With -c, sys.path starts with the current directory, so the copy is found before the installed package.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=copy, env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout == f"{copy / 'hsm_signer' / 'where.py'}\n"
