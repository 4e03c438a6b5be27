"""`SoftHsm`: a private SoftHSM in a directory, with its own configuration, token, keys and certificates.

    with SoftHsm() as softhsm:
        key = softhsm.add_identity()
        credential = HsmCredential(tenant, client_id, key.uri, pin_source=softhsm.pin_source, module=softhsm.module,
                                   module_environment=softhsm.environment)

It never uses the user's own SoftHSM tokens, because its configuration names the directory.
"""

import datetime
import glob
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes
from cryptography.x509.oid import NameOID

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import Device, open_device
from hsm_signer.device.manage.certificates import store_certificate
from hsm_signer.device.manage.generate import KeySpec, generate_key
from hsm_signer.device.pin.pin import Pin
from hsm_signer.device.pin.sources import FixedLogin
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError

_MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/*-linux-*/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)


@dataclass(frozen=True)
class SoftHsmKey:
    """A key in a `SoftHsm`.

    Attributes:
        uri: what ``--key`` takes.
        label: CKA_LABEL.
        id: CKA_ID.
        public_key: of the type that the ``cryptography`` package uses.
        certificate: DER of the certificate stored beside it, or None.
    """

    uri: str
    label: str
    id: bytes
    public_key: CertificatePublicKeyTypes
    certificate: bytes | None = None


class SoftHsm:
    """A SoftHSM with its own token, as a context manager. `close` removes the directory if `SoftHsm` made it.

    Args:
        directory: where to keep everything; a temporary one when None.
        label: of the token.
        pin: of its user; a random one when None.

    Raises:
        ConfigError: SoftHSM is not installed, or cannot make a token.
    """

    def __init__(self, directory: Path | None = None, *, label: str = "hsm-signer", pin: str | None = None) -> None:
        self.module = _find_module()
        self._temporary = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="softhsm-")) if directory is None else directory.absolute()
        self.label = label
        self.pin = pin or f"{secrets.randbelow(10**8):08}"
        self.configuration = self.directory / "softhsm2.conf"
        self.environment = {"SOFTHSM2_CONF": str(self.configuration)}
        tokens = self.directory / "tokens"
        tokens.mkdir(parents=True, exist_ok=True)
        self.configuration.write_text(
            f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n", encoding="utf-8"
        )
        self._issuer_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.add_token(label)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the directory, unless the caller chose it."""
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def pin_source(self) -> str:
        """What ``--pin-source`` and `HsmCredential` take for the PIN: a file in the directory, mode 0600."""
        file = self.directory / "pin"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(self.pin, encoding="utf-8")
        return f"file:{file}"

    def add_token(self, label: str) -> None:
        """Make another token with the same PIN. Two tokens may have the same label."""
        # softhsm2-util takes PINs as arguments only. These protect nothing but the keys of tests.
        self._util("--init-token", "--free", "--label", label, "--pin", self.pin, "--so-pin", secrets.token_hex(8))

    def add_key(self, label: str = "key", key_id: bytes = b"\x01", *, bits: int = 2048) -> SoftHsmKey:
        """Generate an RSA key in the token. It cannot be copied out."""
        with self._open() as device:
            numbers = generate_key(device, KeySpec(label, key_id, bits)).public_key
        public_key = rsa.RSAPublicNumbers(numbers.exponent, numbers.modulus).public_key()
        return self._key(label, key_id, public_key)

    def import_key(
        self, private_key: PrivateKeyTypes, label: str = "key", key_id: bytes = b"\x01", *, token: str | None = None
    ) -> SoftHsmKey:
        """Import a key of any type that SoftHSM supports into a token."""
        file = self.directory / f"import-{secrets.token_hex(4)}.pem"
        pem = private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.touch(mode=0o600)
        file.write_bytes(pem)
        try:
            self._util(
                *("--import", str(file), "--token", token or self.label),
                *("--label", label, "--id", key_id.hex(), "--pin", self.pin),
            )
        finally:
            file.unlink()
        return self._key(label, key_id, private_key.public_key())  # type: ignore[arg-type]  # certificates take it

    def add_certificate(self, der: bytes, label: str = "key", key_id: bytes = b"\x01") -> None:
        """Store a certificate beside a key."""
        subject = x509.load_der_x509_certificate(der).subject.public_bytes()
        with self._open() as device:
            store_certificate(device, der, subject=subject, label=label, key_id=key_id)

    def add_identity(self, label: str = "key", key_id: bytes = b"\x01", *, bits: int = 2048) -> SoftHsmKey:
        """Generate a key, and store a certificate for it."""
        key = self.add_key(label, key_id, bits=bits)
        der = self.issue_certificate(key.public_key)
        self.add_certificate(der, label, key_id)
        return SoftHsmKey(key.uri, key.label, key.id, key.public_key, der)

    def issue_certificate(
        self,
        public_key: CertificatePublicKeyTypes,
        *,
        subject: str = "hsm-signer test",
        not_before: datetime.datetime | None = None,
        not_after: datetime.datetime | None = None,
        extensions: Sequence[x509.ExtensionType] = (),
    ) -> bytes:
        """Return a certificate for `public_key`, DER, signed by the key of a test CA.

        Args:
            not_before: an hour ago when None.
            not_after: in 30 days when None.
            extensions: all are marked critical.
        """
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hsm-signer test issuer")]))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or now - datetime.timedelta(hours=1))
            .not_valid_after(not_after or now + datetime.timedelta(days=30))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=True)
        return builder.sign(self._issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def _key(self, label: str, key_id: bytes, public_key: CertificatePublicKeyTypes) -> SoftHsmKey:
        return SoftHsmKey(str(Pkcs11Uri(token=self.label, object=label, id=key_id)), label, key_id, public_key)

    def _open(self) -> Device:
        return open_device(
            KeyAccess(
                uri=Pkcs11Uri(token=self.label),
                pin=FixedLogin(Pin(self.pin), "the PIN of the test token"),
                module=self.module,
                module_environment=self.environment,
                writable=True,
            )
        )

    def _util(self, *arguments: str) -> None:
        program = shutil.which("softhsm2-util")
        if program is None:
            raise ConfigError("softhsm2-util is not installed.", hint=_INSTALL)
        done = subprocess.run(  # noqa: S603  # a fixed program, and no shell
            [program, *arguments], env={"PATH": "/usr/bin:/bin", **self.environment}, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise ConfigError(
                f"softhsm2-util {arguments[0]} failed: {(done.stderr or done.stdout).strip()}",
                hint="Check that softhsm2 is installed and that its token directory can be written.",
            )


_INSTALL = "apt-get install softhsm2, dnf install softhsm, or brew install softhsm."


def _find_module() -> Path:
    for pattern in _MODULES:
        for match in sorted(glob.glob(pattern)):
            return Path(match)
    raise ConfigError(f"SoftHSM is not installed: looked for {', '.join(_MODULES)}.", hint=_INSTALL)
