"""Search for objects on a device, read their attributes, and find the key that a URI names.

Everything here runs on the lane.
"""

import contextlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pkcs11._pkcs11 import SearchIter  # type: ignore[attr-defined]  # behind Session.get_objects
from pkcs11.types import Object, Session, SignMixin, Slot

from hsm_signer.crypto import PublicKey
from hsm_signer.device.match import DeviceInfo, KeyInfo, select_key
from hsm_signer.device.mechanisms import USED
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError, KeyUnfit

_BATCH = 10
_ABSENT = (pkcs11.AttributeTypeInvalid, pkcs11.AttributeSensitive, pkcs11.FunctionFailed)


@dataclass(frozen=True)
class SigningKey:
    """A private RSA key of a device.

    Attributes:
        info: its label and id.
        handle: the object in the session; used on the lane only.
        public_key: its public half.
        mechanisms: those of the device that can sign and that `plan_signing` knows.
        always_authenticate: CKA_ALWAYS_AUTHENTICATE: it requires the PIN for each signature.
    """

    info: KeyInfo
    handle: SignMixin
    public_key: PublicKey
    mechanisms: frozenset[pkcs11.Mechanism]
    always_authenticate: bool


@dataclass(frozen=True)
class Protection:
    """How a device protects a private key (PKCS#11 v3.1 section 4.9). None: the device does not report it.

    Attributes:
        sensitive: CKA_SENSITIVE: the device never shows it in clear.
        extractable: CKA_EXTRACTABLE: it can be copied out of the device.
        never_extractable: CKA_NEVER_EXTRACTABLE: it could never be copied out.
        local: CKA_LOCAL: it was generated on the device.
        always_authenticate: CKA_ALWAYS_AUTHENTICATE: it requires the PIN for each signature.
    """

    sensitive: bool | None
    extractable: bool | None
    never_extractable: bool | None
    local: bool | None
    always_authenticate: bool | None


def search(session: Session, template: Mapping[Attribute, Any]) -> list[Object]:
    """Return all objects that have these attributes (PKCS#11 v3.1 section 5.7).

    This does not use `Session.get_objects`: if a search cannot begin, as on a lost session, the interpreter ends it
    later and prints a traceback; if a search fails midway, the error of ending it hides the first one.

    Args:
        template: has CKA_CLASS at least.

    Raises:
        pkcs11.PKCS11Error: the first error of the module.
    """
    operation = SearchIter(session, template, _BATCH)
    try:
        operation.__enter__()
        # All at once: an abandoned search blocks the session.
        return [found for batch in operation for found in batch]
    except BaseException:
        with contextlib.suppress(pkcs11.PKCS11Error):
            operation._finalize()
        raise


def find_signing_key(session: Session, uri: Pkcs11Uri, device: DeviceInfo) -> SigningKey:
    """Find the one private key for signing that `uri` names.

    Raises:
        KeyNotFound, KeyAmbiguous: none, or several, match.
        KeyUnfit: it is not an RSA key for signing.
    """
    info, handle = find_private_key(session, uri, device, signing=True)
    return signing_key(session, info, handle, device)


def find_private_key(
    session: Session, uri: Pkcs11Uri, device: DeviceInfo, *, signing: bool = False
) -> tuple[KeyInfo, Object]:
    """Find the one private key that `uri` names, of any type.

    Args:
        signing: ignore keys that may not sign, if there are others: on every YubiKey, ykcs11 also shows the attestation
            key.

    Raises:
        ConfigError: `uri` names an object of another type.
        KeyNotFound, KeyAmbiguous: no key matches, or several do.
    """
    if uri.type not in (None, "private"):
        raise ConfigError(
            f"--key names an object of type {uri.type}; a private key is needed.",
            hint="Leave out the URI's type attribute, or write type=private.",
        )
    # The device searches by label and id, so that a thousand keys take no longer than one.
    template: dict[Attribute, Any] = {Attribute.CLASS: ObjectClass.PRIVATE_KEY}
    if uri.object is not None:
        template[Attribute.LABEL] = uri.object
    if uri.id is not None:
        template[Attribute.ID] = uri.id
    found = private_keys(session, template)
    if not found:
        # For the message. Or the label on the device is not UTF-8, so that it does not match our spelling of it.
        found = private_keys(session, {Attribute.CLASS: ObjectClass.PRIVATE_KEY})
    if signing:
        found = [(info, key) for info, key in found if isinstance(key, SignMixin)] or found
    return found[select_key(uri, [info for info, _ in found], device)]


def private_keys(session: Session, template: dict[Attribute, Any]) -> list[tuple[KeyInfo, Object]]:
    """Return the private keys that have these attributes."""
    return [(label_and_id(key), key) for key in search(session, template)]


def read_certificates(session: Session, key_id: bytes | None = None) -> list[tuple[Object, bytes]]:
    """Return the certificates on the device, each with its DER. Certificates that are only a URL are left out.

    Args:
        key_id: only those with this CKA_ID; None means all.
    """
    template: dict[Attribute, Any] = {Attribute.CLASS: ObjectClass.CERTIFICATE}
    if key_id is not None:
        template[Attribute.ID] = key_id
    found = [(certificate, read_attribute(certificate, Attribute.VALUE)) for certificate in search(session, template)]
    # PKCS#11 v3.1 section 4.6.3: CKA_VALUE may be absent, or empty, where there is a URL.
    return [(certificate, bytes(value)) for certificate, value in found if value is not None]


def label_and_id(found: Object) -> KeyInfo:
    """Return the label and the id of an object."""
    return KeyInfo(
        label=read_attribute(found, Attribute.LABEL) or "", id=bytes(read_attribute(found, Attribute.ID) or b"")
    )


def signing_key(session: Session, info: KeyInfo, handle: Object, device: DeviceInfo) -> SigningKey:
    """Return what is needed to sign with a key; raise KeyUnfit if it cannot sign what Entra accepts."""
    kind = read_attribute(handle, Attribute.KEY_TYPE)
    if kind is not KeyType.RSA:
        raise KeyUnfit(
            f"The key {info} on {device} is of type {getattr(kind, 'name', kind)}, not RSA.",
            hint="Use an RSA key of 2048 bits or more: Entra accepts no other keys for client assertions.",
        )
    # python-pkcs11 gives an object the method only when CKA_SIGN is true.
    if not isinstance(handle, SignMixin):
        raise KeyUnfit(
            f"The key {info} on {device} is not allowed to sign (CKA_SIGN is false).",
            hint="Generate a key for signing: hsm-signer key generate",
        )
    return SigningKey(
        info=info,
        handle=handle,
        public_key=_public_key(session, info, handle, device),
        mechanisms=signing_mechanisms(session.token.slot),
        always_authenticate=bool(read_attribute(handle, Attribute.ALWAYS_AUTHENTICATE)),
    )


def _public_key(session: Session, info: KeyInfo, handle: Object, device: DeviceInfo) -> PublicKey:
    # Most devices store modulus and public exponent with the private key too; some only with the public key.
    for holder in _holders(session, info, handle):
        modulus, exponent = read_attribute(holder, Attribute.MODULUS), read_attribute(holder, Attribute.PUBLIC_EXPONENT)
        if modulus and exponent:
            return PublicKey(modulus=int.from_bytes(modulus, "big"), exponent=int.from_bytes(exponent, "big"))
    raise KeyUnfit(
        f"{device} does not show the public key of {info}, so hsm-signer cannot verify signatures made with it.",
        hint="Store the public key on the device, with the same CKA_ID as the private key.",
    )


def _holders(session: Session, info: KeyInfo, handle: Object) -> Iterator[Object]:
    yield handle
    if info.id:
        # A search looks at every object on the device, so only when it is needed.
        yield from search(session, {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: info.id})


def read_protection(key: Object) -> Protection:
    """Return how a device protects a private key."""
    return Protection(
        sensitive=read_attribute(key, Attribute.SENSITIVE),
        extractable=read_attribute(key, Attribute.EXTRACTABLE),
        never_extractable=read_attribute(key, Attribute.NEVER_EXTRACTABLE),
        local=read_attribute(key, Attribute.LOCAL),
        always_authenticate=read_attribute(key, Attribute.ALWAYS_AUTHENTICATE),
    )


def signing_mechanisms(slot: Slot) -> frozenset[pkcs11.Mechanism]:
    """Return the mechanisms of the device in `slot` that can sign and that `plan_signing` knows."""
    offered = slot.get_mechanisms() & USED
    return frozenset(m for m in offered if slot.get_mechanism_info(m).flags & MechanismFlag.SIGN)


def read_attribute(holder: Object, attribute: Attribute) -> Any:
    """Return an attribute of an object, or None if the object has none or does not show it.

    In text that is not UTF-8, such as a label in Latin-1, invalid bytes become replacement characters. A value that
    PKCS#11 does not define, such as a vendor's own type of key, becomes None.
    """
    try:
        return holder[attribute]
    except _ABSENT:
        return None
    except UnicodeDecodeError as error:
        return error.object.decode(errors="replace")
    except (ValueError, struct.error):
        return None
