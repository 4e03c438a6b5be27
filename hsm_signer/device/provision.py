"""Writing to a device: making a key pair, and storing a certificate beside it."""

from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pkcs11.constants import CertificateType
from pkcs11.types import Session

from hsm_signer.crypto import PublicKey
from hsm_signer.device.device import Device


def generate_key(device: Device, *, label: str, key_id: bytes, bits: int) -> PublicKey:
    """Make an RSA key pair that never leaves the device: token object, private, sensitive, not extractable, sign only.

    Args:
        device: opened writable.
        label: CKA_LABEL of both halves.
        key_id: CKA_ID of both halves.
        bits: length of the modulus.

    Raises:
        DeviceError, DeviceTimeout: the device did not do it.
    """

    def generate(session: Session) -> PublicKey:
        public, _ = session.generate_keypair(
            KeyType.RSA,
            bits,
            id=key_id,
            label=label,
            store=True,
            capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
            private_template={
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
            },
        )
        modulus, exponent = public[Attribute.MODULUS], public[Attribute.PUBLIC_EXPONENT]
        return PublicKey(modulus=int.from_bytes(modulus, "big"), exponent=int.from_bytes(exponent, "big"))

    return device.call("generating a key", generate, repeat=False)


def store_certificate(device: Device, der: bytes, *, subject: bytes, label: str, key_id: bytes) -> None:
    """Store an X.509 certificate.

    Args:
        device: opened writable.
        der: the certificate.
        subject: DER of its subject name; PKCS#11 v3.1 section 4.6.3 wants it apart.
        label: CKA_LABEL.
        key_id: CKA_ID of the key it certifies.

    Raises:
        DeviceError, DeviceTimeout: the device did not do it.
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

    device.call("storing a certificate", store, repeat=False)
