"""Check whether it is time to run `rotate`, for monitoring."""

from dataclasses import dataclass
from datetime import datetime

from hsm_signer.config.keyfile import KeyFile, read_key_file
from hsm_signer.config.profile import Profile, require_settings
from hsm_signer.credential.key_access import key_access
from hsm_signer.device.access import UNATTENDED, Operator
from hsm_signer.device.manage.certificates import read_certificate_by_uri
from hsm_signer.rotation.plan import days_left, is_due
from hsm_signer.x509.certificate import parse_certificates


@dataclass(frozen=True)
class Due:
    """Whether it is time to run `rotate`.

    Attributes:
        days_left: whole days until the current key's certificate expires; negative if it has expired.
        unfinished: whether a rotation was started and not finished.
        due: whether `rotate` has something to do now.
        until: when an old key can be removed, epoch seconds; None if `rotate` does not have to wait.
    """

    days_left: int
    unfinished: bool
    due: bool
    until: int | None = None


def check_due(profile: Profile, warn_days: int, now: datetime, operator: Operator = UNATTENDED) -> Due:
    """Return whether it is time to rotate. Logs in only if the device does not show certificates without a login.

    Args:
        warn_days: the certificate is due this many days before it expires.
        now: the current time, timezone-aware.
        operator: who enters the PIN.

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
    days = days_left(certificate, now)
    until = _until(file, now, profile.grace) if file else None
    return Due(days, unfinished, (unfinished and until is None) or is_due(days, warn_days), until)


def _until(file: KeyFile, now: datetime, grace: float | None) -> int | None:
    """Return when the next old key can be removed, or None if `rotate` has something to do now."""
    times = [key.until if key.registered and key.until else 0 for key in file.retired]
    first = min(times, default=0)
    return first if first > now.timestamp() and grace != 0 and file.next is None else None
