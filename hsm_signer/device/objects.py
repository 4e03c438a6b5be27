"""The objects on a device: searching for them, reading their attributes, and finding the key that a URI means.

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
    """How a private key is guarded (PKCS#11 v3.1 section 4.9). None stands for what the device does not report.

    Attributes:
        sensitive: CKA_SENSITIVE: it is never shown in clear.
        extractable: CKA_EXTRACTABLE: it can leave the device.
        never_extractable: CKA_NEVER_EXTRACTABLE: it never could leave it.
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

    `Session.get_objects` is not used: if a search cannot begin, as on a lost session, the interpreter ends it later and
    prints a traceback; if one fails midway, the error raised is that of ending it.

    Args:
        template: with CKA_CLASS at least.

    Raises:
        pkcs11.PKCS11Error: what the module returned first.
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
    """Find the one private key for signing that `uri` means.

    Raises:
        KeyNotFound, KeyAmbiguous: none, or several, match.
        KeyUnfit: it is not an RSA key for signing.
    """
    info, handle = find_private_key(session, uri, device, signing=True)
    return signing_key(session, info, handle, device)


def find_private_key(
    session: Session, uri: Pkcs11Uri, device: DeviceInfo, *, signing: bool = False
) -> tuple[KeyInfo, Object]:
    """Find the one private key that `uri` means, of any type.

    Args:
        signing: leave out keys that may not sign, if there are others: on every YubiKey, ykcs11 shows the key that
            attests the others.

    Raises:
        KeyNotFound, KeyAmbiguous: none, or several, match.
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
    """Return the certificates on the device, each with its DER; those with a URL instead are left out.

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
            hint="Entra accepts RSA keys of 2048 bits or more for client assertions.",
        )
    # python-pkcs11 gives an object the method only when CKA_SIGN is true.
    if not isinstance(handle, SignMixin):
        raise KeyUnfit(
            f"The key {info} on {device} may not sign (CKA_SIGN is false).",
            hint="Make a key for signing: hsm-signer key generate.",
        )
    return SigningKey(
        info=info,
        handle=handle,
        public_key=_public_key(session, info, handle, device),
        mechanisms=signing_mechanisms(session.token.slot),
        always_authenticate=bool(read_attribute(handle, Attribute.ALWAYS_AUTHENTICATE)),
    )


def _public_key(session: Session, info: KeyInfo, handle: Object, device: DeviceInfo) -> PublicKey:
    # Most devices keep the public numbers with the private key; some only with the public one.
    for holder in _holders(session, info, handle):
        modulus, exponent = read_attribute(holder, Attribute.MODULUS), read_attribute(holder, Attribute.PUBLIC_EXPONENT)
        if modulus and exponent:
            return PublicKey(modulus=int.from_bytes(modulus, "big"), exponent=int.from_bytes(exponent, "big"))
    raise KeyUnfit(
        f"{device} does not show the public key of {info}, so its signatures could not be verified.",
        hint="Store the public key beside the private one, with the same CKA_ID.",
    )


def _holders(session: Session, info: KeyInfo, handle: Object) -> Iterator[Object]:
    yield handle
    if info.id:
        # A search looks at every object on the device, so only when it is needed.
        yield from search(session, {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: info.id})


def read_protection(key: Object) -> Protection:
    """Return how a private key is guarded."""
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
    """Return an attribute of an object, or None if it has none or does not show it.

    Text that is not UTF-8, such as a label in Latin-1, gets replacement characters. A value that PKCS#11 does not
    define, such as a vendor's own type of key, gives None.
    """
    try:
        return holder[attribute]
    except _ABSENT:
        return None
    except UnicodeDecodeError as error:
        return error.object.decode(errors="replace")
    except (ValueError, struct.error):
        return None
