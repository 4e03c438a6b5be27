"""Find private keys on a device, list their labels and ids, and delete a key pair."""

from pkcs11 import Attribute, ObjectClass
from pkcs11.types import Session

from hsm_signer.device.device import Device
from hsm_signer.device.match import KeyInfo
from hsm_signer.device.objects import find_private_key, private_keys, read_attribute, search
from hsm_signer.device.uri import Pkcs11Uri


def find_key(device: Device, uri: Pkcs11Uri) -> KeyInfo:
    """Return the label and id of the one private key that `uri` names, even if it cannot sign client assertions.

    Raises:
        KeyNotFound, KeyAmbiguous: none, or several, match.
    """
    return device.call("looking up the key", lambda session: find_private_key(session, uri, device.info)[0])


def read_key_names(device: Device) -> frozenset[KeyInfo]:
    """Return the labels and ids of all private keys."""
    template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY}
    found = device.call("looking for keys", lambda session: private_keys(session, template))
    return frozenset(info for info, _ in found)


def delete_key(device: Device, key: KeyInfo) -> None:
    """Delete both halves of a key pair. Its certificates stay.

    Args:
        device: opened writable.
        key: from `find_key`, `DeviceSigner.key.info` or `MadeKey.info`.

    Raises:
        KeyNotFound, KeyAmbiguous: none, or several, private keys have this label and id.
        DeviceReadOnly, DeviceError, DeviceTimeout: the device refused or failed.
    """

    def delete(session: Session) -> None:
        _, private = find_private_key(session, key.selector, device.info)
        modulus = read_attribute(private, Attribute.MODULUS)
        same = {Attribute.ID: key.id} if key.id else {Attribute.LABEL: key.label}
        # The private key last: while it exists, an interrupted deletion can be repeated.
        for public in search(session, {Attribute.CLASS: ObjectClass.PUBLIC_KEY, **same}):
            # Devices allow two key pairs with one id.
            if modulus is None or read_attribute(public, Attribute.MODULUS) == modulus:
                public.destroy()
        private.destroy()

    device.change("deleting a key", delete)
