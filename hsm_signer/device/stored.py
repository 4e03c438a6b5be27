"""The certificates of keys that a device holds: all but those by which it attests that it generated a key."""

from typing import Any

from pkcs11 import Attribute, ObjectClass
from pkcs11.types import Object, Session

from hsm_signer.device.objects import read_attribute, search
from hsm_signer.x509.certificate import is_attestation


def stored_certificates(session: Session, key_id: bytes | None = None) -> list[tuple[Object, bytes]]:
    """Return certificates and their DER. Runs on the lane.

    Attestation certificates are never among them: they are not for signing in, and must not be deleted. ykcs11 takes an
    order to delete one for an order to delete the key's own certificate.

    Args:
        key_id: only those with this CKA_ID; None means all.
    """
    template: dict[Attribute, Any] = {Attribute.CLASS: ObjectClass.CERTIFICATE}
    if key_id is not None:
        template[Attribute.ID] = key_id
    found = [(each, bytes(read_attribute(each, Attribute.VALUE) or b"")) for each in search(session, template)]
    # PKCS#11 v3.1 section 4.6.3: there may be a URL instead of the value.
    return [(each, der) for each, der in found if der and not is_attestation(der)]


def certificates_with_id(session: Session, key_id: bytes) -> set[bytes]:
    """Return the certificates that stand beside the key with this id, as DER. Runs on the lane."""
    return {der for _, der in stored_certificates(session, key_id)} if key_id else set()
