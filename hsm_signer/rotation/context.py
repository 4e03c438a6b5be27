"""The objects that every step of a rotation works with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from hsm_signer.config.keyfile import KeyFile
from hsm_signer.config.profile import Profile
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.rotation.clock import Clock
from hsm_signer.rotation.device_keys import DeviceKeys
from hsm_signer.rotation.key_credentials import KeyCredentials
from hsm_signer.rotation.request import Report, RotationRequest


@dataclass(frozen=True)
class RotationContext:
    """The objects that every step of a rotation works with.

    Attributes:
        profile: names the key file, the device and the application.
        request: what the caller asked for.
        keys: the keys on the device.
        credentials: the certificates registered at Entra.
        path: the key file.
        write: writes the key file, if the content changed.
        report: informs the caller.
        clock: the time.
    """

    profile: Profile
    request: RotationRequest
    keys: DeviceKeys
    credentials: KeyCredentials
    path: Path
    write: Callable[[KeyFile], None]
    report: Report
    clock: Clock

    def next_subject(self, current: Pkcs11Uri) -> str:
        """Return the subject of the next certificate (RFC 4514)."""
        certificate = x509.load_der_x509_certificate(self.keys.certificate(current).der)
        return self.request.subject or certificate.subject.rfc4514_string()
