"""Where the certificate of a key is read: on its device or in a file, and again when it may have been renewed."""

import time
from collections.abc import Callable
from pathlib import Path

from hsm_signer.crypto import PublicKey
from hsm_signer.errors import CertificateNotFound, CertificateUnusable, KeyLookupError
from hsm_signer.system.file_state import file_version
from hsm_signer.x509.certificate import Certificate, parse_certificates

REREAD = 60.0
"""Seconds after which a certificate on a device is read again before it is used: some devices take their time."""


class StoredCertificate:
    """The certificate on a device, read again now and then: it may be renewed under running services.

    Args:
        read: returns it, as DER.
        device: where it is, for messages.
        monotonic: seconds on a clock that is never set.
    """

    def __init__(self, read: Callable[[], bytes], device: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._source = f"The certificate on {device}"
        self._monotonic = monotonic
        self._read_at = 0.0
        self._certificates: tuple[Certificate, ...] = ()

    def __call__(self) -> tuple[Certificate, ...]:
        """Return it. While it is being replaced there may be none, or two; then it is the one known.

        Raises:
            CertificateNotFound, CertificateUnusable, KeyAmbiguous: there is not exactly one that can be read.
            HsmSignerError: the device failed.
        """
        now = self._monotonic()
        if not self._certificates or now >= self._read_at + REREAD:
            try:
                self._certificates = tuple(parse_certificates(self._read(), self._source))
            except KeyLookupError:
                if not self._certificates:
                    raise
            self._read_at = now
        return self._certificates


class CertificateFile:
    """The certificates in a file, read again whenever the file changes: they are renewed under running services.

    Args:
        path: PEM or DER; a PEM file may hold a chain.
        public_key: of the key whose certificate comes first.
    """

    def __init__(self, path: Path, public_key: PublicKey) -> None:
        self._path = path
        self._public_key = public_key
        self._version: tuple[int, ...] = ()
        self._certificates: tuple[Certificate, ...] = ()

    def __call__(self) -> tuple[Certificate, ...]:
        """Return the key's certificate, then the others.

        A file that cannot be read or parsed while it is being replaced does not displace the certificates known.

        Raises:
            CertificateNotFound: the file cannot be read.
            CertificateUnusable: it holds no certificate.
        """
        try:
            version = file_version(self._path)
            if version != self._version:
                found = parse_certificates(self._path.read_bytes(), str(self._path))
                # Its own first; one of another key is left to `require_usable`, which says so.
                self._certificates = tuple(sorted(found, key=lambda each: each.public_key != self._public_key))
                self._version = version
        except OSError as error:
            if not self._certificates:
                raise CertificateNotFound(
                    f"The certificate {self._path} cannot be read: {error.strerror}.", hint="Check --certificate."
                ) from None
        except CertificateUnusable:
            if not self._certificates:
                raise
        return self._certificates
