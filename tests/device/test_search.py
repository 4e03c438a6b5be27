"""Without --module, every stack's device is found by its URI alone, and every printed URI works when it is pasted."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hsm_signer
from tests.support.fixtures import Running
from tests.support.stacks import Stack
from tests.support.stacks.piv import PivStack
from tests.support.stacks.tpm import TpmStack

_PRINTED = "    'pkcs11:"


@pytest.fixture(params=["softhsm", "tpm", "ykcs11", "opensc"])
def stack(request: pytest.FixtureRequest, running: Running) -> Iterator[Stack]:
    stack = running(request.param)
    stack.reset()
    yield stack
    stack.reset()


def run(stack: Stack, home: Path, *arguments: str) -> str:
    """Run the command line without a module, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", "from hsm_signer.cli import main; main()", *arguments],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": str(Path(hsm_signer.__file__).parents[1]),
            "DEVICE_PIN": stack.pin,
            **stack.environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_key_is_found_without_naming_the_module(stack: Stack, tmp_path: Path) -> None:
    listed = run(stack, tmp_path, "key", "list", "--key", stack.key.uri, "--pin-source", "env:DEVICE_PIN", "-o", "json")
    uris = [key["uri"] for key in json.loads(listed)["keys"]]
    assert uris
    assert all("?module-name=" in uri for uri in uris)


def test_what_device_list_prints_can_be_pasted(stack: Stack, tmp_path: Path) -> None:
    lines = run(stack, tmp_path, "device", "list").splitlines()
    uris = [shlex.split(line)[0] for line in lines if line.startswith(_PRINTED)]
    assert uris
    for uri in uris:
        assert _PRINTED + uri.removeprefix("pkcs11:") in run(stack, tmp_path, "device", "show", "--key", uri)


def test_doctor_without_a_configuration_examines_the_device(stack: Stack, tmp_path: Path) -> None:
    document = json.loads(run(stack, tmp_path, "doctor", "-o", "json"))
    assert document["healthy"] is True
    names = [finding["name"] for finding in document["findings"]]
    assert names[0] == "configuration"
    assert {"module", "device", "pin", "key"} <= set(names)
    devices = [finding for finding in document["findings"] if finding["name"] == "device"]
    assert all(finding["commands"][0].startswith("--key 'pkcs11:") for finding in devices)


@pytest.mark.parametrize("stack", ["tpm", "ykcs11", "opensc"], indirect=True)  # SoftHSM does not count
def test_doctor_without_a_configuration_sends_no_pin(stack: Stack, tmp_path: Path) -> None:
    assert isinstance(stack, TpmStack | PivStack)
    before = stack.presented()
    run(stack, tmp_path, "doctor")
    assert stack.presented() == before
