"""Sign with a private key on a device."""

import logging
import time

import pkcs11
from pkcs11.types import Session

from hsm_signer.crypto import Algorithm
from hsm_signer.device.device import Device
from hsm_signer.device.failures import (
    PIN_REFUSED,
    explain_login_failure,
    is_wrong_role,
    key_replaced,
    require_valid_signature,
)
from hsm_signer.device.locate import flags_after
from hsm_signer.device.mechanisms import SigningPlan, plan_signing, supported
from hsm_signer.device.objects import Protection, SigningKey, find_signing_key, read_protection
from hsm_signer.device.pin.pin import Pin
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import KeyUnfit, PinIncorrect, PinLocked, PinUnavailable, TouchMissed

logger = logging.getLogger(__name__)

# ykcs11 waits 15 s for a touch, OpenSC 30 s; both then answer that nobody is logged in. If the login was really lost,
# they answer that at once.
_TOUCH_TIMEOUT = 5.0


def open_signer(device: Device, uri: Pkcs11Uri | None = None) -> "DeviceSigner":
    """Find a private key on an open device, and return a signer for it.

    Args:
        uri: names the key; its device attributes are ignored. None means the URI that the device was opened with.

    Raises:
        KeyNotFound, KeyAmbiguous: none, or several, match.
        KeyUnfit: it is not an RSA key for signing.
        DeviceError, DeviceTimeout, PinError: as `Device.call`.
    """
    wanted = uri or device.uri

    def find(session: Session) -> tuple[Session, SigningKey]:
        return session, find_signing_key(session, wanted, device.info)

    return DeviceSigner(device, wanted, *device.call("looking up the key", find))


class DeviceSigner:
    """Signs with one key of one device. Implements the `Signer` protocol. Made by `open_signer`.

    Attributes:
        key: the private key as the device describes it.
        public_key: its public half.
        algorithms: the algorithms that it can sign with.
    """

    def __init__(self, device: Device, uri: Pkcs11Uri, session: Session, key: SigningKey) -> None:
        self._device = device
        self._uri = uri
        self._session = session
        self.key = key
        self.public_key = key.public_key
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
        """Return the device's signature over `message`, for a caller that verifies it.

        Raises:
            MechanismUnsupported: the device cannot sign `algorithm`.
            PinError: the key requires the PIN for each signature, and the PIN was refused, or there is none to send.
            TouchMissed: nobody touched the device in time.
            DeviceError, DeviceTimeout: the call failed, or did not return in time.
        """
        signing = plan_signing(algorithm, self.key.mechanisms)
        data = signing.prepare(message, self.public_key.bits)
        if self.key.always_authenticate:
            # The PIN was correct at the login. Since then somebody may have changed it, or used up the tries.
            self._device.require_pin_tries()
        started = time.monotonic()
        try:
            signature = self._device.call("signing", lambda session: self._sign(session, data, signing))
        except (PinIncorrect, PinLocked) as error:
            # This PIN must not be sent again, and some modules never end the operation that the session is in.
            self._device.close_after_refusal(error)
            raise
        logger.debug("signed %s by CKM_%s in %.3f s", algorithm, signing.mechanism.name, time.monotonic() - started)
        return signature

    def protection(self) -> Protection:
        """Ask the device how the key is guarded.

        Raises:
            DeviceError, DeviceTimeout: as `Device.call`.
        """
        return self._device.call("reading how the key is guarded", lambda session: read_protection(self.key.handle))

    def _sign(self, session: Session, data: bytes, signing: SigningPlan) -> bytes:
        if session is not self._session:
            # The device was opened again; handles belong to a session.
            self._session, self.key = session, find_signing_key(session, self._uri, self._device.info)
            if self.key.public_key != self.public_key:
                raise key_replaced(f"The key {self.key.info} on {self._device.info}")
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
                f"{self._device.info} waited for a touch, and nobody touched it in time.",
                hint="Run the command again, and touch the device while it blinks.",
            ) from error
        except PIN_REFUSED as error:
            # ykcs11 2.7 keeps the PIN, and itself sends it to a card that was unplugged, for every kind of key.
            if pin is None and not isinstance(error, (pkcs11.PinIncorrect, pkcs11.PinLocked)):
                raise
            raise explain_login_failure(error, self._device.info, flags_after(session.token)) from error
        except pkcs11.PKCS11Error as error:
            if pin is None or not is_wrong_role(error):
                raise
            # openCryptoki accepts CKA_ALWAYS_AUTHENTICATE for a key, but does not implement CKU_CONTEXT_SPECIFIC.
            raise KeyUnfit(
                f"The key {self.key.info} requires the PIN for each signature, but {self._device.info} does not "
                "support such a login (CKU_CONTEXT_SPECIFIC).",
                hint="Generate a key without --always-authenticate, or use another device.",
            ) from error

    def _context_pin(self) -> Pin:
        pin = self._device.login_pin()
        if pin is None:
            raise PinUnavailable(
                f"The key {self.key.info} on {self._device.info} requires the PIN for each signature, but hsm-signer "
                "has no PIN to send.",
                hint="Choose a --pin-source that gives a PIN. The device's own PIN pad cannot be used for such a key: "
                "python-pkcs11 does not support it.",
            )
        return pin
