"""The certificates that stand beside a key, with its CKA_ID: reading them, and putting another in their place."""

from asn1crypto import x509

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import Device, open_device
from hsm_signer.device.locate import browse
from hsm_signer.device.manage.keys import delete_certificate, store_certificate
from hsm_signer.device.match import KeyInfo
from hsm_signer.device.stored import certificates_with_id
from hsm_signer.errors import CertificateExists, KeyUnfit

_LOOKING = "looking up the certificate"


def read_certificate(access: KeyAccess) -> bytes:
    """Return the certificate stored beside a key, as DER; without a login where the device shows it.

    A URI with an id is taken at its word: whether there is such a private key only a login tells.

    Raises:
        CertificateNotFound, KeyAmbiguous: there is none, or there are several.
        KeyNotFound: there is no such key.
        ModuleLoadError, DeviceError, DeviceTimeout: the device cannot be read.
        PinError: a login was needed, and did not succeed.
    """
    if access.uri.id:
        key_id = access.uri.id
        public = browse(access, _LOOKING, lambda module, session: certificates_with_id(session, key_id))
        if len(public) == 1:
            return public.pop()
    # Only the private key tells its id, or the certificate is private: both need the login.
    with open_device(access) as device:
        return device.certificate(device.signer())


def require_no_certificate(device: Device, key: KeyInfo) -> None:
    """Check that a certificate stored beside a key would be the only one, by which it is found.

    Raises:
        CertificateExists: there is one already.
        KeyUnfit: the key has no id, so none would be found.
    """
    if not key.id:
        raise KeyUnfit(
            f"The key {key} on {device.info} has no id, by which a certificate would be found.",
            hint="Keep the certificate in a file (--no-store --output-file FILE), and name it with --certificate.",
        )
    beside = _certificates_beside(device, key)
    if beside:
        raise CertificateExists(
            f"{device.info} holds {len(beside)} certificate{'s' if len(beside) != 1 else ''} with the id of the key "
            f"({key}) already.",
            hint="See it with certificate show. With --replace it is deleted, once the new one is stored.",
        )


def replace_certificates(device: Device, key: KeyInfo, der: bytes) -> None:
    """Store a certificate beside a key, then delete all others that stand there: at no moment is there none.

    A run that was cut off is repeated.

    Args:
        device: opened writable.
        der: the certificate.

    Raises:
        DeviceError, DeviceTimeout: the device did not do it.
    """
    if der not in _certificates_beside(device, key):
        # PKCS#11 v3.1 section 4.6.3: CKA_SUBJECT is the DER of the subject.
        subject = x509.Certificate.load(der).subject.dump()
        store_certificate(device, der, subject=subject, label=key.label, key_id=key.id)
    # Looked up again: some devices have room for one, which the new one has taken.
    for old in _certificates_beside(device, key) - {der}:
        delete_certificate(device, old)


def _certificates_beside(device: Device, key: KeyInfo) -> set[bytes]:
    return device.call(_LOOKING, lambda session: certificates_with_id(session, key.id))
