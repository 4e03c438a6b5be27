"""NSS's software token. It takes its arguments from p11-kit's configuration, so it is reached through p11-kit's proxy.

Debian packages: libnss3, libnss3-tools, p11-kit-modules and softhsm2.
"""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from hsm_signer.device.module_search import find_module
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.testing import SoftHsm

PIN = "123456"
URI = str(Pkcs11Uri(token="NSS Certificate DB"))
MESSAGE = b"header.claims"

# p11-kit reads no user configuration in a program that root runs, so our configuration replaces the system's, with the
# function that p11-kit has for its own tests. The system's modules stay out of the process.
_PRELUDE = """
import ctypes, os, sys
from datetime import UTC, datetime
from pathlib import Path

from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
import hsm_signer.device.module_search
from hsm_signer.device.inventory.inspect import examine, look_through
from hsm_signer.device.manage.certificates import read_certificate
from hsm_signer.device.pin.sources import EnvironmentPin
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceAmbiguous, HsmSignerError, PinIncorrect

uri, module, configuration, message = sys.argv[1:]
files = [f"{configuration}/{name}".encode() for name in ("pkcs11.conf", "none", "none", "modules", "none")]
ctypes.CDLL(module).p11_kit_override_system_files(*files)
hsm_signer.device.module_search._CONFIGURATION_DIRECTORIES = (f"{configuration}/modules",)
access = KeyAccess(Pkcs11Uri.parse(uri), EnvironmentPin("TEST_PIN"), Path(module))

def named(name):
    return KeyAccess(Pkcs11Uri.parse(f"{uri}?module-name={name}"), EnvironmentPin("TEST_PIN"))
"""


@dataclass(frozen=True)
class Nss:
    """An NSS database with one key.

    Attributes:
        certificate: DER; stored beside the key.
        directory: of p11-kit's configuration.
        run: runs lines of Python in a separate process, with a PIN, and returns the lines they print.
    """

    certificate: bytes
    directory: str
    run: Callable[[str, str], list[str]]


@pytest.fixture(scope="module")
def nss() -> Iterator[Nss]:
    with TemporaryDirectory(prefix="nss-") as name:
        directory = Path(name)
        for subdirectory in ("database", "modules"):
            (directory / subdirectory).mkdir()
        pin, noise = directory / "pin", directory / "noise"
        pin.write_text(PIN, encoding="ascii")
        noise.write_bytes(os.urandom(64))
        environment = {**os.environ, "HOME": name}

        def certutil(*arguments: str) -> bytes:
            database = ("-d", f"sql:{directory / 'database'}", "-f", str(pin))
            return subprocess.run(
                ["certutil", *arguments, *database], env=environment, capture_output=True, check=True, timeout=60
            ).stdout

        certutil("-N")
        # Trust settings are objects of a class that only NSS has.
        certutil(
            *("-S", "-x", "-n", "key", "-s", "CN=hsm-signer test", "-t", "C,C,C"),
            *("-k", "rsa", "-g", "2048", "-z", str(noise)),
        )
        (directory / "pkcs11.conf").write_text("user-config: none\n", encoding="utf-8")
        softokn = find_module(None, Pkcs11Uri(module_name="softokn3"))
        (directory / "modules" / "nss.module").write_text(
            f"module: {softokn}\nx-init-reserved: configdir='sql:{directory / 'database'}'\n", encoding="utf-8"
        )

        def run(lines: str, pin: str) -> list[str]:
            proxy = find_module(Path("p11-kit-proxy"), Pkcs11Uri())
            done = subprocess.run(
                [sys.executable, "-c", _PRELUDE + textwrap.dedent(lines), URI, str(proxy), name, MESSAGE.decode()],
                env={**os.environ, "HOME": name, "TEST_PIN": pin},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=60,
            )
            return done.stdout.splitlines()

        yield Nss(certutil("-L", "-n", "key", "-r"), name, run)


def test_a_key_signs_and_its_certificate_is_read(nss: Nss) -> None:
    signature, certificate = nss.run(
        """
        with open_device(access) as device:
            signer = open_signer(device)
            print(signer.sign(Algorithm.RS256, message.encode()).hex())
            print(read_certificate(device, signer.key.info).hex())
        """,
        PIN,
    )
    public_key = x509.load_der_x509_certificate(nss.certificate).public_key()
    assert isinstance(public_key, rsa.RSAPublicKey)
    public_key.verify(bytes.fromhex(signature), MESSAGE, padding.PKCS1v15(), hashes.SHA256())
    assert bytes.fromhex(certificate) == nss.certificate


def test_objects_of_vendor_classes_are_ignored(nss: Nss) -> None:
    everything, contents = nss.run(
        """
        with open_device(access) as device:
            try:
                device.call("looking at everything", lambda session: list(session.get_objects()))
            except ValueError as error:
                print(error)
        (device,) = examine(access, datetime.now(UTC), login=True).devices
        print(len(device.contents.keys), len(device.contents.certificates))
        """,
        PIN,
    )
    assert "is not a valid ObjectClass" in everything
    assert contents == "1 1"


def test_a_wrong_pin_is_reported(nss: Nss) -> None:
    said = nss.run(
        """
        try:
            open_device(access)
        except PinIncorrect:
            print("refused")
        """,
        "654321",
    )
    assert said == ["refused"]


class TestByName:
    """The URI's module-name: only p11-kit can load the module, and only that module's devices match."""

    @pytest.fixture
    def beside(self, nss: Nss) -> Iterator[None]:
        """Configure another p11-kit module, with a device of the same label."""
        with SoftHsm(label="NSS Certificate DB", pin=PIN) as softhsm, pytest.MonkeyPatch.context() as patch:
            softhsm.add_key()
            patch.setenv("SOFTHSM2_CONF", str(softhsm.configuration))
            file = Path(nss.directory, "modules", "beside.module")
            file.write_text(f"module: {softhsm.module}\n", encoding="utf-8")
            yield
            file.unlink()

    @pytest.mark.usefixtures("beside")
    def test_the_device_belongs_to_the_named_module(self, nss: Nss) -> None:
        said = nss.run(
            """
            for each in (access, named("nss")):
                try:
                    with open_device(each) as device:
                        open_signer(device).sign(Algorithm.RS256, message.encode())
                        print(device.info.manufacturer)
                except DeviceAmbiguous:
                    print("ambiguous")
            """,
            PIN,
        )
        assert said == ["ambiguous", "Mozilla Foundation"]

    @pytest.mark.usefixtures("beside")
    def test_the_inventory_lists_the_modules_devices_with_uris_that_work(self, nss: Nss) -> None:
        said = nss.run(
            """
            for device in look_through(Path("unused"), "nss", 30).devices:
                uri = Pkcs11Uri.parse(device.uri)
                (found,) = examine(KeyAccess(uri, access.pin), datetime.now(UTC), login=False).devices
                print(found.info.label, found.uri == device.uri)
            """,
            PIN,
        )
        assert said == ["NSS Generic Crypto Services True", "NSS Certificate DB True"]

    def test_a_module_that_p11_kit_does_not_serve_is_reported(self, nss: Nss) -> None:
        said = nss.run(
            """
            Path(f"{configuration}/modules/late.module").write_text("module: x.so\\nx-init-reserved: y\\n")
            try:
                open_device(named("late"))
            except HsmSignerError as error:
                print(type(error).__name__, error.message, error.hint)
            Path(f"{configuration}/modules/late.module").unlink()
            """,
            PIN,
        )
        assert said
        assert "ModuleLoadError" in said[0]
        assert "p11-kit list-modules" in said[0]
