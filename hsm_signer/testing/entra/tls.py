"""The emulator's own CA: the server's certificate, and the file by which clients trust it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import trustme
from cryptography import x509
from cryptography.x509.oid import NameOID

from hsm_signer.errors import ConfigError
from hsm_signer.system.private_file import replacing, unwritable

_ORGANIZATION: Final = "hsm-signer emulator"


def make_certificates(directory: Path, host: str) -> tuple[bytes, Path]:
    """Return the CA's certificate, PEM, and the file with the server's private key and chain."""
    ca = trustme.CA(organization_name=_ORGANIZATION)
    server = directory / "server.pem"
    server.touch(mode=0o600)
    ca.issue_cert(host).private_key_and_cert_chain_pem.write_to_path(server)
    return ca.cert_pem.bytes(), server


@contextlib.contextmanager
def published(ca: bytes, file: Path) -> Iterator[None]:
    """Keep the CA's certificate in a file that everybody may read, until the block ends.

    Raises:
        ConfigError: the file exists, and no emulator wrote it.
        OutputError: it cannot be written.
    """
    try:
        if file.is_file() and not _is_an_emulators(file.read_bytes()):
            raise ConfigError(
                f"{file} exists, and it is not the CA certificate of an emulator. It was not replaced.",
                hint="Name a file that does not exist.",
            )
        with replacing(file, mode=0o644) as stream:
            stream.write(ca)
    except OSError as error:
        raise unwritable(file, error) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if file.read_bytes() == ca:  # else another emulator has replaced it
                file.unlink()


def _is_an_emulators(content: bytes) -> bool:
    try:
        (certificate,) = x509.load_pem_x509_certificates(content)
    except ValueError:
        return False
    names = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return [name.value for name in names] == [_ORGANIZATION]
