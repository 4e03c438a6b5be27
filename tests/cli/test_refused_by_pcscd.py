"""A user whom polkit keeps from pcscd or from a reader, as it does with services and remote logins.

Modules then report no device, or a device that fails.
"""

import os
import pwd
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from hsm_signer.device.module_search import find_module
from hsm_signer.device.uri import Pkcs11Uri
from tests.support.names import CLIENT, TENANT
from tests.support.program import Program, options
from tests.support.refusing_pcscd import (
    READER,
    refusing_clients,
    refusing_the_reader,
    refusing_unheard,
    unanswered_by_polkit,
)
from tests.support.stacks.pcscd import asks_polkit

REFUSALS = {
    "a client": refusing_clients,
    "a client that has not spoken": refusing_unheard,
    "a client who opens the reader": refusing_the_reader,
}
if asks_polkit():
    REFUSALS["a client, as pcscd itself does"] = unanswered_by_polkit


@pytest.fixture(params=REFUSALS)
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Lead modules to a pcscd that refuses."""
    path = tmp_path / "pcscd.comm"
    refusing: AbstractContextManager[None] = REFUSALS[request.param](path)
    with refusing:
        yield {"PCSCLITE_CSOCK_NAME": str(path), "HSM_SIGNER_DEVICE_TIMEOUT": "20"}


@pytest.fixture(params=["ykcs11", "opensc-pkcs11"])
def module(request: pytest.FixtureRequest) -> Path:
    return find_module(None, Pkcs11Uri(module_name=request.param))


def assert_tells_of_polkit(message: str, hint: str) -> None:
    """Assert that the message says who refuses, and the hint how to allow it."""
    assert "pcscd" in message
    assert "refuses this user" in message or "does not let this user open the reader" in message
    assert READER in message or "reader" not in message
    for action in ("org.debian.pcsc-lite.access_pcsc", "org.debian.pcsc-lite.access_card"):
        assert f'"{action}"' in hint
    assert f'subject.user == "{pwd.getpwuid(os.geteuid()).pw_name}"' in hint
    assert "/etc/polkit-1/rules.d/" in hint


def test_a_command_that_looks_for_the_device_says_so(
    program: Program, module: Path, environment: dict[str, str]
) -> None:
    settings = {"tenant": TENANT, "client_id": CLIENT, "key": "pkcs11:id=%01", "module": str(module)}
    result = program("assertion", *options(settings), "-o", "json", environment=environment)
    assert result.status == 3
    assert_tells_of_polkit(result.error["message"], result.error["hint"])


def test_device_list_says_so(program: Program, module: Path, environment: dict[str, str]) -> None:
    result = program("device", "list", "--module", str(module), "-o", "json", environment=environment)
    assert result.status == 0
    problem = next(found["problem"] for found in result.json["modules"] if found["path"] == str(module))
    assert_tells_of_polkit(problem["message"], problem["hint"])


def test_doctor_says_so(program: Program, module: Path, environment: dict[str, str]) -> None:
    result = program(
        "doctor", "--offline", "--module", str(module), "--key", "pkcs11:id=%01", "-o", "json", environment=environment
    )
    finding = next(found for found in result.json["findings"] if found["name"] == "pcscd")
    assert finding["status"] == "failed"
    assert_tells_of_polkit(finding["detail"], finding["fix"])
