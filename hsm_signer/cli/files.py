"""Files that are named on the command line."""

from pathlib import Path

from hsm_signer.errors import CertificateNotFound


def read_certificate_file(file: Path) -> bytes:
    """Return what a file holds that should be a certificate.

    Raises:
        CertificateNotFound: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise CertificateNotFound(
            f"The certificate {file} cannot be read: {error.strerror}.", hint="Check its name and mode."
        ) from None
