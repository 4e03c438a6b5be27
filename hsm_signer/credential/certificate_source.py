"""Read the certificate of a key from its device or from a file, and read it again when it may have been renewed."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hsm_signer.config.profile import Profile
from hsm_signer.crypto import PublicKey
from hsm_signer.errors import CertificateNotFound, CertificateUnusable, KeyLookupError
from hsm_signer.system.file_state import file_version
from hsm_signer.x509.certificate import Certificate, parse_certificates

if TYPE_CHECKING:
    from hsm_signer.device.device import Device
    from hsm_signer.device.signer import DeviceSigner

REREAD = 60.0
"""Seconds after which a certificate on a device is read again before it is used. Some devices are slow."""


class CertificateSource(ABC):
    """Returns the certificate of one key."""

    @abstractmethod
    def chain(self) -> tuple[Certificate, ...]:
        """Return the key's certificate, then the certificates of its issuers, if there are any.

        Raises:
            CertificateNotFound, CertificateUnusable, KeyAmbiguous: there is not exactly one that can be read.
            HsmSignerError: the device failed.
        """

    def certificate(self) -> Certificate:
        """Return the key's certificate.

        Raises:
            HsmSignerError: as `chain`.
        """
        return self.chain()[0]


def certificates_of(profile: Profile, device: "Device", signer: "DeviceSigner") -> CertificateSource:
    """Return where the certificate of a key comes from: the profile's file, or the key's device."""
    from hsm_signer.device.manage.certificates import read_certificate

    return certificate_source(
        profile, signer.public_key, lambda: read_certificate(device, signer.key.info), str(device.info)
    )


def certificate_source(
    profile: Profile, public_key: PublicKey, read: Callable[[], bytes], device: str
) -> CertificateSource:
    """Return where the certificate of a key comes from. The key's device may be open in another process.

    Args:
        public_key: the public half of the key.
        read, device: as for `StoredCertificate`.
    """
    if profile.certificate is not None:
        return CertificateFile(profile.certificate, public_key)
    return StoredCertificate(read, device)


class StoredCertificate(CertificateSource):
    """The certificate on a device. It is read again now and then, because it may be renewed while a service runs.

    Args:
        read: returns the certificate, DER.
        device: name of the device, for messages.
        monotonic: seconds on a clock that is never set.
    """

    def __init__(self, read: Callable[[], bytes], device: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._source = f"The certificate on {device}"
        self._monotonic = monotonic
        self._read_at = 0.0
        self._chain: tuple[Certificate, ...] = ()

    def chain(self) -> tuple[Certificate, ...]:
        """Return the certificate. During a renewal the device may have none or two: then return the last one read."""
        now = self._monotonic()
        if not self._chain or now >= self._read_at + REREAD:
            try:
                self._chain = tuple(parse_certificates(self._read(), self._source))
            except KeyLookupError:
                if not self._chain:
                    raise
            self._read_at = now
        return self._chain


class CertificateFile(CertificateSource):
    """The certificates in a file. It is read again when it changes, because it may be renewed while a service runs.

    Args:
        path: PEM or DER; a PEM file may contain a chain.
        public_key: the public half of the key, whose certificate comes first in `chain`.
    """

    def __init__(self, path: Path, public_key: PublicKey) -> None:
        self._path = path
        self._public_key = public_key
        self._version: tuple[int, ...] = ()
        self._chain: tuple[Certificate, ...] = ()

    def chain(self) -> tuple[Certificate, ...]:
        """Return the key's certificate, then the others. If the file cannot be read now, return what was read last."""
        try:
            version = file_version(self._path)
            if version != self._version:
                found = parse_certificates(self._path.read_bytes(), str(self._path))
                # If none is for this key, `require_usable` raises an error.
                self._chain = tuple(sorted(found, key=lambda each: each.public_key != self._public_key))
                self._version = version
        except OSError as error:
            if not self._chain:
                raise CertificateNotFound(
                    f"The certificate {self._path} cannot be read: {error.strerror}.",
                    hint="Check the file that --certificate names.",
                ) from None
        except CertificateUnusable:
            if not self._chain:
                raise
        return self._chain
