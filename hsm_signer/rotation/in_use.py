"""Keep the key that programs use from being deleted by accident, and its certificate from being replaced."""

from contextlib import suppress

from hsm_signer.config.keyfile import read_key_file
from hsm_signer.config.profile import Profile
from hsm_signer.crypto import PublicKey
from hsm_signer.device.device import Device
from hsm_signer.device.manage.certificates import read_certificate
from hsm_signer.device.match import matches_device
from hsm_signer.device.signer import DeviceSigner, open_signer
from hsm_signer.errors import CertificateExists, CertificateNotFound, ConfigError, KeyAmbiguous, KeyLookupError


def require_not_in_use(profile: Profile, device: Device, signer: DeviceSigner) -> None:
    """Check that no program uses the certificate stored with a key, so that it can be replaced.

    Raises:
        CertificateExists: the profile's key file names this key as the current one, and it has a certificate.
    """
    with suppress(CertificateNotFound):
        with suppress(KeyAmbiguous):
            read_certificate(device, signer.key.info)
        if _is_in_use(profile, device, signer.public_key):
            raise CertificateExists(
                f"The key {signer.key.info} is in use: {profile.configured_key_file} names it. Programs would use the "
                "new certificate at once, and Entra would refuse them until it is registered.",
                hint="To store a certificate for another key, name that key with --key. To replace this certificate "
                "anyway, add --force.",
            )


def require_deletable(profile: Profile, device: Device, public_key: PublicKey) -> None:
    """Check that programs do not use a key, so that it can be deleted.

    Raises:
        ConfigError: the profile's key file names it as the current one.
    """
    if _is_in_use(profile, device, public_key):
        raise ConfigError(
            f"The key is in use: {profile.configured_key_file} names it.",
            hint="Name the key to delete with --key. To delete this key, first remove the key file.",
        )


def _is_in_use(profile: Profile, device: Device, public_key: PublicKey) -> bool:
    if profile.configured_key_file is None or not profile.configured_key_file.exists():
        return False
    current = read_key_file(profile.configured_key_file).current.uri
    with suppress(KeyLookupError):
        return matches_device(current, device.info) and open_signer(device, current).public_key == public_key
    return False
