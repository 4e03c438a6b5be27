"""The contract test on one's own device, as CONTRIBUTING.md runs it. Here that device is a SoftHSM."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.testing import SoftHsm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """The variables that lead to the device, without the source of its PIN."""
    with SoftHsm(label="own") as softhsm:
        key = softhsm.add_identity()
        uri = str(Pkcs11Uri(token="own", id=key.id, module_path=str(softhsm.module)))
        yield {**os.environ, **softhsm.environment, "HSM_SIGNER_TEST_URI": uri, "OWN_PIN": softhsm.pin}


def run(environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    tests = ["tests/device/test_contract.py", "-k", "test_signatures_are_valid or wrong_pin_is_sent"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)


def test_it_signs_and_gets_no_wrong_pin(environment: dict[str, str]) -> None:
    done = run({**environment, "HSM_SIGNER_TEST_PIN_SOURCE": "env:OWN_PIN"})
    assert done.returncode == 0, done.stdout
    assert "1 passed, 2 skipped" in done.stdout


def test_a_missing_source_of_the_pin_is_named(environment: dict[str, str]) -> None:
    done = run(environment)
    assert done.returncode == 4
    assert "HSM_SIGNER_TEST_PIN_SOURCE" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_source_that_gives_no_pin_is_named(environment: dict[str, str]) -> None:
    done = run({**environment, "HSM_SIGNER_TEST_PIN_SOURCE": "none"})
    assert done.returncode == 4
    assert "HSM_SIGNER_TEST_PIN_SOURCE must give a PIN" in done.stdout + done.stderr
