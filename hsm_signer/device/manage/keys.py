"""Changing what is on a device: deleting a key pair; storing, finding and deleting certificates.

Each change is asked for once.
"""

from collections.abc import Callable

import pkcs11
from pkcs11 import Attribute, ObjectClass
from pkcs11.constants import CertificateType
from pkcs11.types import Session

from hsm_signer.device.device import Device
from hsm_signer.device.failures import GONE, explain_refusal
from hsm_signer.device.match import KeyInfo
from hsm_signer.device.objects import find_private_key, private_keys, read_attribute, search
from hsm_signer.device.stored import stored_certificates
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import CertificateNotFound, CertificateUnusable, KeyUnfit
from hsm_signer.x509.certificate import Certificate, parse_certificates


def find_key(device: Device, uri: Pkcs11Uri) -> KeyInfo:
    """Return the label and id of the one private key `uri` means, also of one that cannot sign for us.

    Raises:
        KeyNotFound, KeyAmbiguous: none, or several, match.
    """
    return device.call("looking up the key", lambda session: find_private_key(session, uri, device.info)[0])


def key_labels(device: Device) -> frozenset[str]:
    """Return the labels of all private keys."""
    template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY}
    found = device.call("looking for keys", lambda session: private_keys(session, template))
    return frozenset(info.label for info, _ in found)


def delete_key(device: Device, key: KeyInfo) -> None:
    """Delete both halves of a key pair. Its certificates stay.

    Args:
        device: opened writable.
        key: of `find_key`, `DeviceSigner.key.info` or `MadeKey.info`.

    Raises:
        KeyNotFound, KeyAmbiguous: none, or several, private keys have this label and id.
        DeviceReadOnly, DeviceError, DeviceTimeout: the device did not do it.
    """

    def delete(session: Session) -> None:
        _, private = find_private_key(session, key.selector, device.info)
        modulus = read_attribute(private, Attribute.MODULUS)
        same = {Attribute.ID: key.id} if key.id else {Attribute.LABEL: key.label}
        # The private half last: while it is there, a deletion that was cut short can be repeated.
        for public in search(session, {Attribute.CLASS: ObjectClass.PUBLIC_KEY, **same}):
            # Devices let two pairs have one id.
            if modulus is None or read_attribute(public, Attribute.MODULUS) == modulus:
                public.destroy()
        private.destroy()

    _change(device, "deleting a key", delete)


def certificates_of_key(device: Device, key: KeyInfo) -> list[Certificate]:
    """Return the certificates on the device that certify a key and do not attest it, whatever their ids.

    Raises:
        KeyNotFound, KeyAmbiguous: none, or several, private keys have this label and id.
        DeviceError, DeviceTimeout: the device failed.
    """
    try:
        public_key = device.signer(key.selector).public_key
    except KeyUnfit:
        return []
    stored = device.call("reading its certificates", lambda session: [der for _, der in stored_certificates(session)])
    return [each for der in dict.fromkeys(stored) for each in _parsed(der) if each.public_key == public_key]


def store_certificate(device: Device, der: bytes, *, subject: bytes, label: str, key_id: bytes) -> None:
    """Store an X.509 certificate.

    Args:
        device: opened writable.
        der: the certificate.
        subject: DER of its subject name; PKCS#11 v3.1 section 4.6.3 wants it apart.
        label: CKA_LABEL.
        key_id: CKA_ID of the key it certifies.

    Raises:
        DeviceReadOnly, DeviceError, DeviceTimeout: the device did not do it.
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

    _change(device, "storing a certificate", store)


def delete_certificate(device: Device, der: bytes) -> None:
    """Delete a certificate, wherever on the device it stands.

    Args:
        device: opened writable.
        der: the certificate.

    Raises:
        CertificateNotFound: it is not on the device, or attests a key.
        DeviceReadOnly, DeviceError, DeviceTimeout: the device did not do it.
    """

    def delete(session: Session) -> None:
        stored = [found for found, value in stored_certificates(session) if value == der]
        if not stored:
            raise CertificateNotFound(
                f"{device.info} does not hold the certificate that was to be deleted.",
                hint="See what it holds with device show.",
            )
        for found in stored:
            found.destroy()

    _change(device, "deleting a certificate", delete)


def _change(device: Device, doing: str, change: Callable[[Session], None]) -> None:
    """Have the device do something once, and explain a refusal as one."""

    def guarded(session: Session) -> None:
        try:
            change(session)
        except GONE:
            raise
        except pkcs11.PKCS11Error as error:
            raise explain_refusal(error, doing, str(device.info)) from error

    device.call(doing, guarded, repeat=False)


def _parsed(der: bytes) -> list[Certificate]:
    try:
        return parse_certificates(der, "It")[:1]
    except CertificateUnusable:
        return []
