"""Whether it is time to rotate: for monitoring."""

from dataclasses import dataclass
from datetime import datetime

from hsm_signer.config.keyfile import KeyFile, read_key_file
from hsm_signer.config.profile import Profile, require_settings
from hsm_signer.credential.key_access import key_access
from hsm_signer.device.access import UNATTENDED, Operator
from hsm_signer.device.manage.certificates import read_certificate_by_uri
from hsm_signer.x509.certificate import parse_certificates


@dataclass(frozen=True)
class Due:
    """Whether it is time to rotate.

    Attributes:
        days_left: whole days of validity left to the current key's certificate; negative when it is over.
        unfinished: whether a rotation was begun and not ended.
        due: whether one of them asks for `rotate`.
        until: where nothing can be done before that, epoch seconds: from when on an old key can be removed.
    """

    days_left: int
    unfinished: bool
    due: bool
    until: int | None = None


def check_due(profile: Profile, warn_days: int, now: datetime, operator: Operator = UNATTENDED) -> Due:
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
    require_settings(profile, "key")
    der = read_certificate_by_uri(key_access(profile, profile.key[0], operator))
    (certificate,) = parse_certificates(der, "The certificate of the current key")
    file = read_key_file(profile.key_file) if profile.key_file else None
    unfinished = file is not None and (file.next is not None or bool(file.retired))
    days_left = (certificate.not_after - now).days
    until = _until(file, now, profile.grace) if file else None
    return Due(days_left, unfinished, (unfinished and until is None) or days_left < warn_days, until)


def _until(file: KeyFile, now: datetime, grace: float | None) -> int | None:
    """Return from when on a rotation can be ended, or None where `rotate` has something to do now."""
    times = [key.until if key.registered and key.until else 0 for key in file.retired]
    first = min(times, default=0)
    return first if first > now.timestamp() and grace != 0 and file.next is None else None
