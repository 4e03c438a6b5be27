"""What is wrong below a module is said as it is, with the command that fixes it: on the real stacks, in real runs.

Each starts with an empty home directory, and leaves it empty.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import hsm_signer
from tests.support.stacks.tpm import TpmStack

# Root may write everywhere. Without this capability, modes and owners bind it as they bind every user. It keeps the one
# to read everywhere, because the checkout may be in a home directory that only its owner may enter.
_ORDINARY = "-dac_override"
# The same for reading, once everything is imported: capset(2), CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.
_UNABLE_TO_READ = """
import ctypes, importlib, pkgutil
import hsm_signer, typer
for package in (hsm_signer, typer):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(("__main__", "_winconsole")):
            importlib.import_module(module.name)
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capget(header, sets) == 0
for index in range(3):
    sets[index] &= ~0b110
assert ctypes.CDLL(None).capset(header, sets) == 0
"""
_NOBODY = 65534


@dataclass(frozen=True)
class Person:
    """Somebody with nothing in the home directory.

    Attributes:
        reads_everything: whether root may read every file. If not, its commands can start no process of ours.
    """

    home: Path
    reads_everything: bool = True

    def runs(self, *arguments: str, **environment: str) -> dict[str, Any]:
        """Run the command line with ``-o json``, and return its answer, or its error."""
        within = ("setpriv", f"--bounding-set={_ORDINARY}", f"--inh-caps={_ORDINARY}") if os.geteuid() == 0 else ()
        before = "" if self.reads_everything or os.geteuid() != 0 else _UNABLE_TO_READ
        program = (sys.executable, "-c", f"{before}from hsm_signer.cli import main; main()", *arguments, "-o", "json")
        root = str(Path(hsm_signer.__file__).parents[1])
        done = subprocess.run(
            [*within, *program],
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.home), "PYTHONPATH": root, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        answer: dict[str, Any] = json.loads(done.stdout or done.stderr.splitlines()[-1])
        told: dict[str, Any] = answer.get("error", answer)
        return told

    def tries(self, module: str, **environment: str) -> dict[str, Any]:
        """Run a command that opens a device of a module, and return its error."""
        error = self.runs("device", "show", "--module", module, **environment)
        assert error["hint"]
        assert "Plug The" not in error["hint"]
        return error


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    home = tmp_path / "home"
    home.mkdir()
    yield Person(home)
    assert list(home.iterdir()) == []


@pytest.fixture(scope="module")
def tpm() -> Iterator[TpmStack]:
    with closing(TpmStack()) as tpm:
        yield tpm


def closed(path: Path) -> Path:
    """Give a file or directory to somebody else, who lets nobody else use it."""
    if os.geteuid() == 0:
        os.chown(path, _NOBODY, _NOBODY)
    path.chmod(0o700 if os.geteuid() == 0 else 0)
    return path


class TestTpm:
    def test_a_tpm_with_a_device_is_shown_and_leaves_nothing_at_home(self, person: Person, tpm: TpmStack) -> None:
        modules = person.runs("device", "list", "--module", "tpm2", **tpm.environment)["modules"]
        (device,) = modules[0]["devices"]
        assert device["info"]["label"] == "device tests"
        assert "module-name=tpm2_pkcs11" in device["uri"]

    @pytest.mark.parametrize("command", [("device", "list"), ("device", "show"), ("doctor",), ("key", "list")])
    def test_without_a_store_nothing_is_made(self, person: Person, tpm: TpmStack, command: tuple[str, ...]) -> None:
        reached = {name: value for name, value in tpm.environment.items() if name != "TPM2_PKCS11_STORE"}
        # OpenSC makes its cache where this says.
        person.runs(*command, "--module", "tpm2", XDG_CACHE_HOME=str(person.home.parent), **reached)
        assert list(person.home.iterdir()) == []

    def test_without_a_store_it_is_said_how_to_make_one(self, person: Person, tpm: TpmStack) -> None:
        reached = {name: value for name, value in tpm.environment.items() if name != "TPM2_PKCS11_STORE"}
        error = person.tries("tpm2", **reached)
        assert "has no store" in error["message"]
        assert error["commands"][0] == "tpm2_ptool init"

    def test_a_store_that_does_not_exist(self, person: Person, tpm: TpmStack, tmp_path: Path) -> None:
        store = tmp_path / "nowhere"
        error = person.tries("tpm2", **{**tpm.environment, "TPM2_PKCS11_STORE": str(store)})
        assert error["message"] == f"The store of tpm2-pkcs11, {store} (TPM2_PKCS11_STORE), does not exist."
        assert error["commands"][:2] == [f"mkdir -p {store}", f"tpm2_ptool init --path {store}"]
        assert not store.exists()

    def test_a_store_that_is_read_only(self, person: Person, tpm: TpmStack, tmp_path: Path) -> None:
        store = tmp_path / "store"
        store.mkdir()
        database = store / "tpm2_pkcs11.sqlite3"
        database.write_bytes(Path(tpm.environment["TPM2_PKCS11_STORE"], database.name).read_bytes())
        for path in (database, store):
            closed(path).chmod(0o755 if path is store else 0o444)
        error = person.tries("tpm2", **{**tpm.environment, "TPM2_PKCS11_STORE": str(store)})
        assert f"may not write to the store of tpm2-pkcs11, {store}" in error["message"]
        assert error["commands"][0].startswith("sudo chown -R ")

    def test_a_store_without_a_device(self, person: Person, tpm: TpmStack, tmp_path: Path) -> None:
        store = tmp_path / "store"
        store.mkdir()
        error = person.tries("tpm2", **{**tpm.environment, "TPM2_PKCS11_STORE": str(store)})
        assert error["code"] == "device_not_found"
        assert f"The store of tpm2-pkcs11, {store}, has no device yet." in error["message"]
        assert "addtoken" in error["commands"][-1]

    def test_a_device_file_that_is_for_another_group(self, person: Person, tpm: TpmStack, tmp_path: Path) -> None:
        device = tmp_path / "tpmrm0"
        device.touch()
        closed(device)
        error = person.tries("tpm2", **{**tpm.environment, "TPM2_PKCS11_TCTI": f"device:{device}"})
        assert "may not use the TPM" in error["message"]
        assert error["commands"][0].startswith("sudo usermod -aG ")

    @pytest.mark.parametrize(
        ("tcti", "said"),
        [
            ("foo:bar", "there is no TCTI of this name: libtss2-tcti-foo.so"),
            ("device:/dev/nothing", "/dev/nothing does not exist"),
            ("swtpm:path=/nowhere", "No TPM answers at TPM2_PKCS11_TCTI, which is swtpm:path=/nowhere"),
            ("tabrmd:bus_name=com.example.Nobody,bus_type=session", "tpm2-abrmd does not answer"),
        ],
    )
    def test_a_wrong_tcti(self, person: Person, tpm: TpmStack, tcti: str, said: str) -> None:
        error = person.tries("tpm2", **{**tpm.environment, "TPM2_PKCS11_TCTI": tcti})
        assert said in error["message"]

    @pytest.mark.skipif(Path("/dev/tpmrm0").exists(), reason="this machine has a TPM")
    def test_a_machine_without_one(self, person: Person) -> None:
        error = person.tries("tpm2")
        assert error["message"].startswith("This machine has no TPM that Linux can use")


class TestSoftHsm:
    def configured(self, tmp_path: Path, directory: Path) -> Path:
        file = tmp_path / "softhsm2.conf"
        file.write_text(f"directories.tokendir = {directory}\n")
        return file

    def test_without_a_device(self, person: Person, tmp_path: Path) -> None:
        tokens = tmp_path / "tokens"
        tokens.mkdir()
        file = self.configured(tmp_path, tokens)
        error = person.tries("softhsm2", SOFTHSM2_CONF=str(file))
        assert f"SoftHSM has no device yet, by its configuration {file} (SOFTHSM2_CONF)." in error["message"]
        assert error["commands"] == ["softhsm2-util --init-token --free --label NAME"]

    def test_a_configuration_that_does_not_exist(self, person: Person) -> None:
        error = person.tries("softhsm2", SOFTHSM2_CONF="/nowhere")
        assert error["message"] == "SoftHSM has no configuration: /nowhere (SOFTHSM2_CONF) does not exist."
        assert any("softhsm2.conf" in command for command in error["commands"])

    def test_a_configuration_that_cannot_be_read(self, person: Person, tmp_path: Path) -> None:
        file = closed(self.configured(tmp_path, tmp_path))
        error = replace(person, reads_everything=False).tries("softhsm2", SOFTHSM2_CONF=str(file))
        assert f"may not read SoftHSM's configuration, {file}" in error["message"]

    def test_a_directory_that_does_not_exist(self, person: Person, tmp_path: Path) -> None:
        file = self.configured(tmp_path, tmp_path / "nowhere")
        error = person.tries("softhsm2", SOFTHSM2_CONF=str(file))
        assert error["commands"] == [f"mkdir -p {tmp_path / 'nowhere'}"]

    def test_a_directory_that_cannot_be_used(self, person: Person, tmp_path: Path) -> None:
        tokens = tmp_path / "tokens"
        tokens.mkdir()
        file = self.configured(tmp_path, closed(tokens))
        error = replace(person, reads_everything=False).tries("softhsm2", SOFTHSM2_CONF=str(file))
        assert f"may not use the directory of SoftHSM's devices, {tokens}" in error["message"]


@pytest.mark.parametrize("module", ["ykcs11", "opensc"])
def test_pcscd_that_is_down(person: Person, tmp_path: Path, module: str) -> None:
    nothing = str(tmp_path / "pcscd.comm")
    error = person.tries(module, PCSCLITE_CSOCK_NAME=nothing, XDG_CACHE_HOME=str(tmp_path))
    assert f"pcscd is not running: {nothing} does not exist." in error["message"]
    assert error["commands"][-1] == "sudo systemctl enable --now pcscd.socket"
