"""Whether it is time to rotate: for monitoring."""

from dataclasses import dataclass
from datetime import datetime

from hsm_signer.certificate import parse_certificates
from hsm_signer.config import Profile, missing_key
from hsm_signer.device.certificates import read_certificate
from hsm_signer.keyfile import read_key_file
from hsm_signer.opening import NOBODY, Operator, key_reference


@dataclass(frozen=True)
class Due:
    """Whether it is time to rotate.

    Attributes:
        days_left: whole days of validity left to the current key's certificate; negative when it is over.
        unfinished: whether a rotation was begun and not ended.
        due: whether one of them asks for `rotate`.
    """

    days_left: int
    unfinished: bool
    due: bool


def check_due(profile: Profile, warn_days: int, now: datetime, operator: Operator = NOBODY) -> Due:
    """Tell whether it is time to rotate. Logs in only where the device does not show the certificate without.

    Args:
        warn_days: how many days before its end the certificate is due.
        now: timezone-aware.
        operator: who can be asked for a PIN.

    Raises:
        ConfigError: the profile names no key.
        CertificateNotFound: the key has no certificate on the device.
        DeviceError, DeviceTimeout, PinError: the device cannot be read.
    """
    if not profile.key:
        raise missing_key(profile)
    der = read_certificate(key_reference(profile, profile.key[0], operator))
    (certificate,) = parse_certificates(der, "The certificate of the current key")
    file = read_key_file(profile.key_file) if profile.key_file else None
    unfinished = file is not None and (file.next is not None or bool(file.retired))
    days_left = (certificate.not_after - now).days
    return Due(days_left, unfinished, unfinished or days_left < warn_days)
