"""NSS's software token: it takes its arguments from p11-kit's configuration, so p11-kit's proxy is the way to it.

Debian packages: libnss3, libnss3-tools and p11-kit-modules.
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

from hsm_signer.device.module import find_module
from hsm_signer.device.uri import Pkcs11Uri

PIN = "123456"
URI = str(Pkcs11Uri(token="NSS Certificate DB"))
MESSAGE = b"header.claims"

# p11-kit reads no user configuration in a program of root's, so ours takes the place of the system's, by the function
# that p11-kit's own tests have for it. The system's modules stay out of the process.
_PRELUDE = """
import ctypes, os, sys
from datetime import UTC, datetime
from pathlib import Path

from hsm_signer.crypto import Algorithm
from hsm_signer.device.device import KeyReference, open_device
from hsm_signer.device.inventory import examine
from hsm_signer.device.pin_sources import EnvironmentPin
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import PinIncorrect

uri, module, configuration, message = sys.argv[1:]
files = [f"{configuration}/{name}".encode() for name in ("pkcs11.conf", "none", "none", "modules", "none")]
ctypes.CDLL(module).p11_kit_override_system_files(*files)
reference = KeyReference(Pkcs11Uri.parse(uri), EnvironmentPin("TEST_PIN"), Path(module))
"""


@dataclass(frozen=True)
class Nss:
    """An NSS database with one key.

    Attributes:
        certificate: DER; it stands beside the key.
        run: runs lines of Python in a process of their own, with a PIN, and returns the lines they print.
    """

    certificate: bytes
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
        # Its trust is an object of a class that only NSS has.
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
            proxy = find_module(None, Pkcs11Uri())
            done = subprocess.run(
                [sys.executable, "-c", _PRELUDE + textwrap.dedent(lines), URI, str(proxy), name, MESSAGE.decode()],
                env={**environment, "TEST_PIN": pin},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=60,
            )
            return done.stdout.splitlines()

        yield Nss(certutil("-L", "-n", "key", "-r"), run)


def test_signs_and_gives_its_certificate(nss: Nss) -> None:
    signature, certificate = nss.run(
        """
        with open_device(reference) as device:
            signer = device.signer()
            print(signer.sign(Algorithm.RS256, message.encode()).hex())
            print(device.certificate(signer).hex())
        """,
        PIN,
    )
    public_key = x509.load_der_x509_certificate(nss.certificate).public_key()
    assert isinstance(public_key, rsa.RSAPublicKey)
    public_key.verify(bytes.fromhex(signature), MESSAGE, padding.PKCS1v15(), hashes.SHA256())
    assert bytes.fromhex(certificate) == nss.certificate


def test_objects_of_its_own_classes_are_passed_over(nss: Nss) -> None:
    everything, contents = nss.run(
        """
        with open_device(reference) as device:
            try:
                device.call("looking at everything", lambda session: list(session.get_objects()))
            except ValueError as error:
                print(error)
        (device,) = examine(reference, datetime.now(UTC), login=True).devices
        print(len(device.contents.keys), len(device.contents.certificates))
        """,
        PIN,
    )
    assert "is not a valid ObjectClass" in everything
    assert contents == "1 1"


def test_says_that_a_pin_is_wrong(nss: Nss) -> None:
    said = nss.run(
        """
        try:
            open_device(reference)
        except PinIncorrect:
            print("refused")
        """,
        "654321",
    )
    assert said == ["refused"]
