"""Who may use the TPM of a machine, when no TCTI is set: not everybody is in the group."""

import os
from pathlib import Path

import pytest

from hsm_signer.device.stack import tpm


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a TPM, and a person with a store. Returns the file of the TPM."""
    device = tmp_path / "tpmrm0"
    device.touch()
    (tmp_path / ".tpm2_pkcs11").mkdir()
    monkeypatch.setattr(tpm, "_DEVICE", device)
    monkeypatch.setattr(tpm, "_SYSTEM_STORE", tmp_path / "nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("TPM2_PKCS11_STORE", "TPM2_PKCS11_TCTI", "TCTI"):
        monkeypatch.delenv(name, raising=False)
    return device


def test_who_is_not_in_the_group_is_told_which(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != machine and allowed(path, mode))
    failure = tpm.tpm_failure()
    assert failure.message.endswith(f"may not use the TPM: {machine} is for the group {machine.group()}.")
    assert failure.commands[0].startswith(f"sudo usermod -aG {machine.group()} ")


def test_one_that_can_be_opened_and_does_not_answer(machine: Path) -> None:
    assert tpm.tpm_failure().message == f"The TPM at {machine} does not answer tpm2-pkcs11."


def test_a_machine_without_one(machine: Path) -> None:
    machine.unlink()
    assert tpm.tpm_failure().message.startswith("This machine has no TPM that Linux can use")


def test_a_store_on_its_way_to_be_made_is_not_made_here(machine: Path, tmp_path: Path) -> None:
    (tmp_path / ".tpm2_pkcs11").rmdir()
    missing = tpm.missing_store()
    assert missing is not None
    assert "has no store" in missing.message


def test_a_store_of_fapi_is_left_to_it(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".tpm2_pkcs11").rmdir()
    monkeypatch.setenv("TPM2_PKCS11_BACKEND", "fapi")
    assert tpm.missing_store() is None
