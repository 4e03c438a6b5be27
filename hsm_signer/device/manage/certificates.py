"""Read, store, replace and delete the certificates of keys on a device.

A certificate belongs to the key with the same CKA_ID. Attestation certificates, with which a device proves that it
generated a key, are ignored: they cannot be used to sign in, and must not be deleted. When a program deletes one,
ykcs11 deletes the key's own certificate instead.
"""

from asn1crypto import x509
from pkcs11 import Attribute, ObjectClass
from pkcs11.constants import CertificateType
from pkcs11.types import Object, Session

from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import Device, open_device
from hsm_signer.device.locate import browse
from hsm_signer.device.match import KeyInfo
from hsm_signer.device.objects import read_certificates
from hsm_signer.device.signer import open_signer
from hsm_signer.errors import CertificateExists, CertificateNotFound, CertificateUnusable, KeyAmbiguous, KeyUnfit
from hsm_signer.x509.certificate import Certificate, is_attestation, parse_certificates

_LOOKING = "looking up the certificate"


def read_certificate(device: Device, key: KeyInfo) -> bytes:
    """Return the certificate of a key, as DER.

    Raises:
        CertificateNotFound: there is none.
        KeyAmbiguous: there are several, and only the operator knows which one is registered.
        DeviceError, DeviceTimeout: the device cannot be read.
    """
    found = _read_all(device, key)
    if not found:
        raise CertificateNotFound(
            f"{device.info} holds no certificate with the id of the key ({key}).",
            hint="Create one with `hsm-signer certificate create`, or name the file of an existing one with "
            "--certificate FILE. (A YubiKey's attestation certificate does not count.)",
        )
    if len(found) > 1:
        raise KeyAmbiguous(
            f"{device.info} holds {len(found)} certificates with the id of the key ({key}).",
            hint="List them with `hsm-signer device show`. Name the registered one with --certificate FILE, or delete "
            "the others with: hsm-signer certificate import FILE --replace",
        )
    return found.pop()


def read_certificate_by_uri(access: KeyAccess) -> bytes:
    """Return the certificate of the key that a URI names, as DER; without a login if the device shows it.

    If the URI has an id, this does not check that the private key exists: that would need the login.

    Raises:
        CertificateNotFound, KeyAmbiguous: there is none, or there are several.
        KeyNotFound: there is no such key.
        ModuleLoadError, DeviceError, DeviceTimeout: the device cannot be read.
        PinError: a login was needed, and did not succeed.
    """
    public = read_public_certificate(access)
    if public is not None:
        return public
    with open_device(access) as device:
        return read_certificate(device, open_signer(device).key.info)


def read_public_certificate(access: KeyAccess) -> bytes | None:
    """Return the certificate of the key that a URI means, as DER, or None if finding it takes a login.

    Nothing checks that there is such a private key: that would need the login.

    Raises:
        ModuleLoadError, DeviceError, DeviceTimeout: the device cannot be read.
    """
    key_id = access.uri.id
    if not key_id:
        return None  # the id is an attribute of the private key
    public = browse(access, _LOOKING, lambda module, session: _with_id(session, key_id))
    return public.pop() if len(public) == 1 else None  # none: it may be private


def certificates_of_key(device: Device, key: KeyInfo) -> list[Certificate]:
    """Return the certificates on the device that certify a key, whatever their ids.

    Raises:
        KeyNotFound, KeyAmbiguous: none, or several, private keys have this label and id.
        DeviceError, DeviceTimeout: the device failed.
    """
    try:
        public_key = open_signer(device, key.selector).public_key
    except KeyUnfit:
        return []
    stored = device.call("reading its certificates", lambda session: [der for _, der in _stored(session)])
    return [each for der in dict.fromkeys(stored) for each in _parsed(der) if each.public_key == public_key]


def require_no_certificate(device: Device, key: KeyInfo) -> None:
    """Check that a key has no certificate yet, and has an id, by which its certificate can be found.

    Raises:
        CertificateExists: it has one already.
        KeyUnfit: it has no id.
    """
    if not key.id:
        raise KeyUnfit(
            f"The key {key} on {device.info} has no id, so its certificate could not be found on the device.",
            hint="Keep the certificate in a file (--no-store --output-file FILE), and pass it with --certificate FILE.",
        )
    existing = _read_all(device, key)
    if existing:
        raise CertificateExists(
            f"{device.info} already holds {len(existing)} certificate{'s' if len(existing) != 1 else ''} with the id "
            f"of the key ({key}).",
            hint="Show it with `hsm-signer certificate show`. To store the new one and then delete the old one, add "
            "--replace.",
        )


def store_certificate(device: Device, der: bytes, *, subject: bytes, label: str, key_id: bytes) -> None:
    """Store an X.509 certificate.

    Args:
        device: opened writable.
        der: the certificate.
        subject: DER of its subject name, which PKCS#11 v3.1 section 4.6.3 requires as a separate attribute.
        label: CKA_LABEL.
        key_id: CKA_ID of the key it certifies.

    Raises:
        DeviceReadOnly, DeviceError, DeviceTimeout: the device refused or failed.
    """

    def store(session: Session) -> None:
        session.create_object(
            {
                Attribute.CLASS: ObjectClass.CERTIFICATE,
                Attribute.CERTIFICATE_TYPE: CertificateType.X_509,
                Attribute.TOKEN: True,
                Attribute.ID: key_id,
                Attribute.LABEL: label,
                Attribute.SUBJECT: subject,
                Attribute.VALUE: der,
            }
        )

    device.change("storing a certificate", store)


def replace_certificates(device: Device, key: KeyInfo, der: bytes) -> None:
    """Store the certificate of a key, then delete all others of that key. The key always has a certificate.

    If this is interrupted, call it again.

    Args:
        device: opened writable.
        der: the certificate.

    Raises:
        DeviceError, DeviceTimeout: the device refused or failed.
    """
    if der not in _read_all(device, key):
        # PKCS#11 v3.1 section 4.6.3: CKA_SUBJECT is the DER of the subject.
        subject = x509.Certificate.load(der).subject.dump()
        store_certificate(device, der, subject=subject, label=key.label, key_id=key.id)
    # Read again: some devices have room for only one, so the new one has replaced it.
    for old in _read_all(device, key) - {der}:
        delete_certificate(device, old)


def delete_certificate(device: Device, der: bytes) -> None:
    """Delete a certificate, whatever its id.

    Args:
        device: opened writable.
        der: the certificate.

    Raises:
        CertificateNotFound: it is not on the device, or is an attestation certificate.
        DeviceReadOnly, DeviceError, DeviceTimeout: the device refused or failed.
    """

    def delete(session: Session) -> None:
        stored = [found for found, value in _stored(session) if value == der]
        if not stored:
            raise CertificateNotFound(
                f"{device.info} does not hold the certificate to delete.",
                hint="List what it holds with: hsm-signer device show",
            )
        for found in stored:
            found.destroy()

    device.change("deleting a certificate", delete)


def _read_all(device: Device, key: KeyInfo) -> set[bytes]:
    return device.call(_LOOKING, lambda session: _with_id(session, key.id))


def _with_id(session: Session, key_id: bytes) -> set[bytes]:
    return {der for _, der in _stored(session, key_id)} if key_id else set()


def _stored(session: Session, key_id: bytes | None = None) -> list[tuple[Object, bytes]]:
    found = read_certificates(session, key_id)
    return [(certificate, der) for certificate, der in found if der and not is_attestation(der)]


def _parsed(der: bytes) -> list[Certificate]:
    try:
        return parse_certificates(der, "It")[:1]
    except CertificateUnusable:
        return []
