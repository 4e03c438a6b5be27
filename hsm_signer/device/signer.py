"""The private key on a device that signs, and what is known of it."""

import logging
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pkcs11
from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass
from pkcs11.types import Object, Session, SignMixin, Slot

from hsm_signer.crypto import Algorithm, PublicKey
from hsm_signer.device.failures import PIN_REFUSED, explain_login_failure, is_wrong_role, require_valid_signature
from hsm_signer.device.inventory.facts import Protection
from hsm_signer.device.locate import flags_after
from hsm_signer.device.match import DeviceInfo, KeyInfo, select_key
from hsm_signer.device.mechanisms import USED, SigningPlan, plan, supported
from hsm_signer.device.pin.pin import Pin
from hsm_signer.device.search import search
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import (
    ConfigError,
    KeyNotFound,
    KeyUnfit,
    PinIncorrect,
    PinLocked,
    PinUnavailable,
    TouchMissed,
)

if TYPE_CHECKING:
    from hsm_signer.device.device import Device

logger = logging.getLogger(__name__)

# ykcs11 gives up on a touch after 15 s, OpenSC after 30 s; both then say that nobody is logged in. A login that was
# really lost is noticed at once.
_TOUCH_TIMEOUT = 5.0

_ABSENT = (pkcs11.AttributeTypeInvalid, pkcs11.AttributeSensitive, pkcs11.FunctionFailed)


@dataclass(frozen=True)
class SigningKey:
    """A private RSA key of a device.

    Attributes:
        info: its label and id.
        handle: the object in the session; used on the lane only.
        public_key: its public half.
        mechanisms: those of the device that sign and that a plan may use.
        always_authenticate: CKA_ALWAYS_AUTHENTICATE: it wants the PIN with each signature.
    """

    info: KeyInfo
    handle: SignMixin
    public_key: PublicKey
    mechanisms: frozenset[pkcs11.Mechanism]
    always_authenticate: bool


class DeviceSigner:
    """Signs with one key of one device. Fills the `Signer` seam.

    Args:
        device: open.
        uri: of the key.

    Raises:
        KeyNotFound, KeyAmbiguous: none, or several, match.
        KeyUnfit: it is not an RSA key for signing.
    """

    def __init__(self, device: "Device", uri: Pkcs11Uri) -> None:
        self._device = device
        self._uri = uri
        self._session, self.key = device.call("looking up the key", self._find)
        self.public_key = self.key.public_key
        self.algorithms = supported(self.key.mechanisms)

    def sign(self, algorithm: Algorithm, message: bytes) -> bytes:
        """Return the device's signature over `message`, verified with the public key.

        Raises:
            SignatureInvalid: what the device returned is not this key's signature.
            HsmSignerError: as `sign_unverified`.
        """
        signature = self.sign_unverified(algorithm, message)
        key = f"The key {self.key.info} on {self._device.info}"
        require_valid_signature(self.public_key, algorithm, message, signature, key)
        return signature

    def sign_unverified(self, algorithm: Algorithm, message: bytes) -> bytes:
        """Return what the device returns as its signature over `message`, for a caller that verifies it.

        Raises:
            MechanismUnsupported: the device cannot sign `algorithm`.
            PinError: the key wants the PIN with each signature, and it was refused or is not at hand.
            TouchMissed: the device waited for a touch in vain.
            DeviceError, DeviceTimeout: the call failed, or did not come back.
        """
        signing = plan(algorithm, self.key.mechanisms)
        data = signing.prepare(message, self.public_key.bits)
        if self.key.always_authenticate:
            # The PIN was right at the login; since then it may have been changed, and others have used up the tries.
            self._device.require_pin_tries()
        started = time.monotonic()
        try:
            signature = self._device.call("signing", lambda session: self._sign(session, data, signing))
        except (PinIncorrect, PinLocked) as error:
            # Not this PIN again; and the session is left in an operation that some modules never end.
            self._device.give_up(error)
            raise
        logger.debug("signed %s by CKM_%s in %.3f s", algorithm, signing.mechanism.name, time.monotonic() - started)
        return signature

    def protection(self) -> Protection:
        """Ask the device how the key is guarded.

        Raises:
            DeviceError, DeviceTimeout: as `Device.call`.
        """
        return self._device.call("reading how the key is guarded", lambda session: read_protection(self.key.handle))

    def _find(self, session: Session) -> tuple[Session, SigningKey]:
        return session, find_signing_key(session, self._uri, self._device.info)

    def _sign(self, session: Session, data: bytes, signing: SigningPlan) -> bytes:
        if session is not self._session:
            # The device was opened again; handles belong to a session.
            self._session, self.key = self._find(session)
            if self.key.public_key != self.public_key:
                raise KeyNotFound(
                    f"{self._device.info} is back with another key in place of {self.key.info}.",
                    hint="Start anew, with the certificate of the key that is there now.",
                )
        started = time.monotonic()
        pin = self._context_pin() if self.key.always_authenticate else None
        try:
            return self.key.handle.sign(
                data,
                mechanism=signing.mechanism,
                mechanism_param=signing.parameters,
                pin=None if pin is None else pin.reveal(),
            )
        except pkcs11.UserNotLoggedIn as error:
            if time.monotonic() - started < _TOUCH_TIMEOUT:
                raise
            raise TouchMissed(
                f"{self._device.info} waited for a touch, and none came.",
                hint="Repeat the command, and touch the device while it blinks.",
            ) from error
        except PIN_REFUSED as error:
            # ykcs11 2.7 keeps the PIN, and sends it by itself to a card that was away, whatever the key requires.
            if pin is None and not isinstance(error, (pkcs11.PinIncorrect, pkcs11.PinLocked)):
                raise
            raise explain_login_failure(error, str(self._device.info), flags_after(session.token)) from error
        except pkcs11.PKCS11Error as error:
            if pin is None or not is_wrong_role(error):
                raise
            # openCryptoki stores whatever CKA_ALWAYS_AUTHENTICATE it is given, and knows no CKU_CONTEXT_SPECIFIC.
            raise KeyUnfit(
                f"The key {self.key.info} requires the PIN for each signature, and {self._device.info} offers no such "
                "login.",
                hint="Generate a key without --always-authenticate, or use another device.",
            ) from error

    def _context_pin(self) -> Pin:
        pin = self._device.login_pin()
        if pin is None:
            raise PinUnavailable(
                f"The key {self.key.info} on {self._device.info} wants a PIN with each signature, and there is none.",
                hint="Choose a --pin-source that gives a PIN: a context-specific login through the device's own pad "
                "is not offered by the library this is built on.",
            )
        return pin


def find_signing_key(session: Session, uri: Pkcs11Uri, device: DeviceInfo) -> SigningKey:
    """Look up the one private key for signing that `uri` means. Runs on the lane.

    Raises:
        KeyNotFound, KeyAmbiguous: none, or several, match.
        KeyUnfit: it is not an RSA key for signing.
    """
    info, handle = find_private_key(session, uri, device, signing=True)
    return signing_key(session, info, handle, device)


def find_private_key(
    session: Session, uri: Pkcs11Uri, device: DeviceInfo, *, signing: bool = False
) -> tuple[KeyInfo, Object]:
    """Look up the one private key `uri` means, of whatever kind. Runs on the lane.

    Args:
        signing: a key that may not sign is not meant where one that may is there: ykcs11 shows, on every YubiKey, the
            key that attests the others.

    Raises:
        KeyNotFound, KeyAmbiguous: none, or several, match.
    """
    if uri.type not in (None, "private"):
        raise ConfigError(
            f"--key names an object of type {uri.type}; a private key is needed.",
            hint="Leave out the URI's type attribute, or write type=private.",
        )
    # The device searches by what the URI gives, so that a thousand keys cost no more than one.
    template: dict[Attribute, Any] = {Attribute.CLASS: ObjectClass.PRIVATE_KEY}
    if uri.object is not None:
        template[Attribute.LABEL] = uri.object
    if uri.id is not None:
        template[Attribute.ID] = uri.id
    found = private_keys(session, template)
    if not found:
        # For the message; or the device knows a label that is not UTF-8, and not what we make of it.
        found = private_keys(session, {Attribute.CLASS: ObjectClass.PRIVATE_KEY})
    if signing:
        found = [(info, key) for info, key in found if isinstance(key, SignMixin)] or found
    return found[select_key(uri, [info for info, _ in found], device)]


def private_keys(session: Session, template: dict[Attribute, Any]) -> list[tuple[KeyInfo, Object]]:
    """Search for private keys. Runs on the lane."""
    return [(label_and_id(key), key) for key in search(session, template)]


def label_and_id(found: Object) -> KeyInfo:
    """Return what tells an object from others of its kind. Runs on the lane."""
    return KeyInfo(
        label=read_attribute(found, Attribute.LABEL) or "", id=bytes(read_attribute(found, Attribute.ID) or b"")
    )


def signing_key(session: Session, info: KeyInfo, handle: Object, device: DeviceInfo) -> SigningKey:
    """Return what is known of a key that was found; raise KeyUnfit when it cannot sign what Entra accepts."""
    kind = read_attribute(handle, Attribute.KEY_TYPE)
    if kind is not KeyType.RSA:
        raise KeyUnfit(
            f"The key {info} on {device} is of type {getattr(kind, 'name', kind)}, not RSA.",
            hint="Entra accepts RSA keys of 2048 bits or more for client assertions.",
        )
    # python-pkcs11 gives an object the method only when CKA_SIGN is true.
    if not isinstance(handle, SignMixin):
        raise KeyUnfit(f"The key {info} on {device} may not sign (CKA_SIGN is false).", hint="Make a key for signing.")
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
        f"{device} does not give the public numbers of the key {info}, so its signatures could not be checked.",
        hint="Store the public key beside the private one, with the same CKA_ID.",
    )


def _holders(session: Session, info: KeyInfo, handle: Object) -> Iterator[Object]:
    yield handle
    if info.id:
        # A search looks at every object of the device: not before it is needed.
        yield from search(session, {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: info.id})


def read_protection(key: Object) -> Protection:
    """Return how a private key is guarded. Runs on the lane."""
    return Protection(
        sensitive=read_attribute(key, Attribute.SENSITIVE),
        extractable=read_attribute(key, Attribute.EXTRACTABLE),
        never_extractable=read_attribute(key, Attribute.NEVER_EXTRACTABLE),
        local=read_attribute(key, Attribute.LOCAL),
        always_authenticate=read_attribute(key, Attribute.ALWAYS_AUTHENTICATE),
    )


def signing_mechanisms(slot: Slot) -> frozenset[pkcs11.Mechanism]:
    """Return the mechanisms that a plan may use and that sign on the device in `slot`. Runs on the lane."""
    offered = slot.get_mechanisms() & USED
    return frozenset(m for m in offered if slot.get_mechanism_info(m).flags & MechanismFlag.SIGN)


def read_attribute(holder: Object, attribute: Attribute) -> Any:
    """Return an attribute of an object, or None where it has none or does not tell. Runs on the lane.

    Text that is not UTF-8, such as a label in Latin-1, gets replacement characters. A value that PKCS#11 does not
    define, such as a vendor's own type of key, counts as not told.
    """
    try:
        return holder[attribute]
    except _ABSENT:
        return None
    except UnicodeDecodeError as error:
        return error.object.decode(errors="replace")
    except (ValueError, struct.error):
        return None
