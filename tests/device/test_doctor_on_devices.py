"""The doctor on every device of the matrix, as a person runs it: all probes pass, and no PIN is asked for twice."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hsm_signer
from tests.support.faulty_module.control import FaultyModule
from tests.support.fixtures import Running
from tests.support.stacks import Stack, StackKey
from tests.support.stacks.opencryptoki import stacks


@pytest.fixture(params=stacks("softhsm", "tpm", "ykcs11", "opensc"))
def stack(request: pytest.FixtureRequest, running: Running) -> Iterator[Stack]:
    stack = running(request.param)
    stack.reset()
    yield stack
    stack.reset()


def statuses(stack: Stack, counted: FaultyModule, key: StackKey, home: Path) -> dict[str, str]:
    """Return the doctor's verdict for each probe that needs no network."""
    settings = {
        "tenant": "contoso.example",
        "client-id": "8f1c1f3e-7a58-4f0a-8f1e-3f5ad2a3a001",
        "key": key.uri,
        "module": str(counted.path),
        "pin-source": "env:DEVICE_PIN",
    }
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from hsm_signer.cli import main; main()", "doctor", "--offline", "-o", "json"),
            *(f"--{name}={value}" for name, value in settings.items()),
        ],
        env={
            **stack.environment,
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(hsm_signer.__file__).parents[1]),
            "HOME": str(home),
            "DEVICE_PIN": stack.pin,
        },
        stdout=subprocess.PIPE,
        timeout=60,
    )
    document = json.loads(done.stdout)
    assert document["healthy"] is True, document
    assert done.returncode == 0
    return {finding["name"]: finding["status"] for finding in document["findings"]}


def test_a_healthy_device_passes_all_probes_with_one_login(stack: Stack, counted: FaultyModule, tmp_path: Path) -> None:
    found = statuses(stack, counted, stack.key, tmp_path)
    readers = "ok" if stack.name in ("ykcs11", "opensc") else "skipped"
    # The certificates of the stacks are valid for a month.
    assert {name for name, status in found.items() if status == "warning"} <= {"certificate"}
    assert (found["pcscd"], found["login"], found["protection"], found["signature"]) == (readers, "ok", "ok", "ok")
    assert [(login.right, login.context_specific) for login in counted.logins()] == [(True, False)]


@pytest.mark.parametrize("stack", ["softhsm", "ykcs11", "opensc"], indirect=True)  # a TPM has no such key
def test_a_key_that_always_authenticates_gets_the_pin_once_more(
    stack: Stack, counted: FaultyModule, tmp_path: Path
) -> None:
    assert stack.always_authenticate_key is not None
    assert statuses(stack, counted, stack.always_authenticate_key, tmp_path)["signature"] == "ok"
    assert [(login.right, login.context_specific) for login in counted.logins()] == [(True, False), (True, True)]
