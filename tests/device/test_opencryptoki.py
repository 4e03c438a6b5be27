"""The suites of the matrix on openCryptoki's soft token, in a separate pytest because its paths are fixed.

Debian packages: opencryptoki and libopencryptoki0.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stacks.opencryptoki import command, why_not

HERE = Path(__file__).parent
SUITES = ("test_contract", "test_issuance", "test_manage", "test_doctor_on_devices", "opencryptoki_facts")


@pytest.mark.timeout(600)
def test_the_suites_of_the_matrix_pass_on_opencryptoki() -> None:
    if reason := why_not():
        pytest.skip(reason)
    suites = [str(HERE / f"{name}.py") for name in SUITES]
    done = subprocess.run(
        command(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "opencryptoki", *suites),
        cwd=HERE.parents[1],
        env={name: value for name, value in os.environ.items() if not name.startswith("HSM_SIGNER_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
