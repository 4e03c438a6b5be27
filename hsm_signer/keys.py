"""The keys of a profile, in order of preference: which signs, which rests, and which one a key file names by now."""

import copy
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hsm_signer.assertion import DEFAULT_LIFETIME
from hsm_signer.certificate_source import file_version
from hsm_signer.config import Profile
from hsm_signer.device.pin import Refusal
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import (
    ConfigError,
    DeviceError,
    DeviceGone,
    DeviceNotFound,
    DeviceTimeout,
    KeyNotFound,
    LoginInterrupted,
    ModuleLoadError,
    PinIncorrect,
    PinLocked,
    SignatureInvalid,
)
from hsm_signer.identity import Identity
from hsm_signer.keyfile import read_key_file
from hsm_signer.opening import NOBODY, Operator, open_identity, pin_source

logger = logging.getLogger(__name__)

# With several keys, what makes the next one's turn. A refused PIN, a missed touch or a setting never does.
_NEXT_KEY = (DeviceGone, DeviceNotFound, DeviceTimeout, KeyNotFound, ModuleLoadError, SignatureInvalid)

REST = 30.0
"""Seconds for which a key that failed is passed over while another one works."""


class Keys:
    """The keys of a profile, in order of preference: the first whose device is present and works signs.

    A key is opened when it is first needed. One that fails is passed over for a while and then tried again, so that
    the preferred device is returned to when it is back. Where the profile names a key file, its key is used as long as
    the file says so. Safe to use from several threads.

    Args:
        profile: with a client id and at least one key.
        operator: who can be asked and told.
        isolated: as for `open_identity`.
        monotonic: seconds on a clock that is never set.
    """

    def __init__(
        self,
        profile: Profile,
        operator: Operator = NOBODY,
        *,
        isolated: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._profile = profile
        self._operator = operator
        self._isolated = isolated
        self._monotonic = monotonic
        self._keys = [_Key(uri) for uri in profile.key]
        self._followed: tuple[int, ...] = ()
        self._following = threading.Lock()

    def assertion(self, audience: str, lifetime: int = DEFAULT_LIFETIME) -> str:
        """Return a fresh client assertion, signed by the first key that can. See `Identity.assertion`.

        Raises:
            DeviceError, DeviceTimeout, KeyLookupError: of the last key tried.
            PinError: the device wants a PIN that it did not get. One that was refused is not presented again.
        """
        while True:
            if self._profile.key_file is not None:
                self._follow(self._profile.key_file)
            keys = self._keys
            try:
                return self._attempt(audience, lifetime)
            except DeviceError as error:
                if self._keys is not keys:  # another thread has gone over to the next key, and closed this one
                    continue
                if self._operator.wait is None or not isinstance(error, DeviceNotFound | DeviceGone):
                    raise
                if isinstance(error, LoginInterrupted):  # waiting for the device must not send the PIN again and again
                    raise
                self._operator.wait(error)

    def close(self) -> None:
        """Let go of every device."""
        for key in self._keys:
            key.close()

    def after_fork(self) -> None:
        """Make this, in a forked child, usable: the parent's devices stay the parent's, and are opened anew."""
        self._following = threading.Lock()
        for key in self._keys:
            key.after_fork()

    def _follow(self, file: Path) -> None:
        """Go over to the key that the key file names by now."""
        with self._following:
            try:
                version = file_version(file)
                if version == self._followed:
                    return
                uri = read_key_file(file).current.uri
            except (OSError, ConfigError) as error:
                logger.warning("Going on with the key known so far: %s", error)
                return
            self._followed = version
            (key,) = self._keys
            if uri != key.uri:
                logger.info("the key file names another key")
                # Before the next one is opened: the end of the session that logged in ends the login for all.
                key.close()
                # It is the same device, most likely, and the same PIN.
                self._keys = [_Key(uri, key.refusal)]

    def _attempt(self, audience: str, lifetime: int) -> str:
        now = self._monotonic()
        # Those that rest come last: they are tried before giving up, for one of them may be back.
        *before, last = sorted(self._keys, key=lambda key: key.rests_until > now)
        for key in before:
            try:
                return self._sign(key, audience, lifetime)
            except _NEXT_KEY as error:
                key.rests_until = now + REST
                logger.warning("%s Trying the next key.", error)
        return self._sign(last, audience, lifetime)

    def _sign(self, key: "_Key", audience: str, lifetime: int) -> str:
        try:
            return key.open(self._profile, self._operator, self._isolated).assertion(audience, lifetime)
        except (PinIncorrect, PinLocked) as error:
            key.refusal = Refusal(error)
            key.close()
            raise


_inherited: list[Identity | None] = []
"""Kept for as long as this process lives: what was open when it was forked."""


class _Key:
    """One key, and what has become of it so far."""

    def __init__(self, uri: Pkcs11Uri, refusal: Refusal | None = None) -> None:
        self.uri = uri
        self.rests_until = 0.0
        self.refusal = refusal
        self._identity: Identity | None = None
        self._lock = threading.Lock()

    def open(self, profile: Profile, operator: Operator, isolated: bool) -> Identity:
        with self._lock:
            if self.refusal is not None and self.refusal.stands(pin_source(profile, self.uri, operator.prompt)):
                raise copy.copy(self.refusal.error)
            if self._identity is None:
                try:
                    self._identity = open_identity(profile, self.uri, operator, isolated=isolated)
                except (PinIncorrect, PinLocked) as error:
                    # Under the lock: whoever waits for it must not present the PIN again.
                    self.refusal = Refusal(error)
                    raise
            return self._identity

    def close(self) -> None:
        with self._lock:
            identity, self._identity = self._identity, None
        if identity is not None:
            identity.close()

    def after_fork(self) -> None:
        # A refusal stands: it is the same PIN. The identity is the parent's: it is neither closed nor destroyed, for
        # what it holds leads to the parent's device.
        _inherited.append(self._identity)
        self._identity = None
        self._lock = threading.Lock()
