"""The keys of a profile, in order of preference: which signs, which rests, and which one a key file names by now."""

import copy
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hsm_signer.config.keyfile import read_key_file
from hsm_signer.config.profile import Profile
from hsm_signer.credential.client import Client
from hsm_signer.credential.identity import Identity, open_identity
from hsm_signer.credential.key_access import pin_source
from hsm_signer.device.access import UNATTENDED, Operator
from hsm_signer.device.pin.pin import PinRefusal
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import (
    CertificateUnusable,
    ConfigError,
    DeviceError,
    DeviceGone,
    DeviceNotFound,
    DeviceTimeout,
    HsmSignerError,
    KeyNotFound,
    LoginInterrupted,
    ModuleLoadError,
    PinIncorrect,
    PinLocked,
    SignatureInvalid,
)
from hsm_signer.jwt.assertion import DEFAULT_LIFETIME
from hsm_signer.jwt.compact import thumbprints
from hsm_signer.system.file_state import file_version
from hsm_signer.system.fork import reset_after_fork
from hsm_signer.x509.certificate import parse_certificates

logger = logging.getLogger(__name__)

# With several keys, what makes the next one's turn. A refused PIN, a missed touch or a setting never does.
_NEXT_KEY = (DeviceGone, DeviceNotFound, DeviceTimeout, KeyNotFound, ModuleLoadError, SignatureInvalid)

COOLDOWN = 30.0
"""Seconds for which a key that failed is passed over while another one works."""


class Keys:
    """The keys of a profile, in order of preference: the first whose device is present and works signs.

    A key is opened when it is first needed. One that fails is passed over for a while and then tried again, so that
    the preferred device is returned to when it is back. Where the profile names a key file, its key is used as long as
    the file says so. Safe to use from several threads.

    Args:
        profile: with at least one key.
        client: the client of the assertions.
        operator: who can be asked and told.
        isolated: as for `open_identity`.
        monotonic: seconds on a clock that is never set.
    """

    def __init__(
        self,
        profile: Profile,
        client: Client,
        operator: Operator = UNATTENDED,
        *,
        isolated: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._profile = profile
        self._client = client
        self._operator = operator
        self._isolated = isolated
        self._monotonic = monotonic
        self._keys = [_Key(uri) for uri in profile.key]
        self._followed: tuple[int, ...] = ()
        self._following = threading.Lock()
        reset_after_fork(self, Keys.reset_after_fork)

    def assertion(self, audience: str, lifetime: int = DEFAULT_LIFETIME) -> str:
        """Return a fresh client assertion, signed by the first key that can. See `Identity.assertion`.

        Raises:
            DeviceError, DeviceTimeout, KeyLookupError: of the last key tried.
            PinError: the device wants a PIN that it did not get. One that was refused is not presented again.
        """
        while True:
            self._follow()
            keys = self._keys
            try:
                return self._attempt(audience, lifetime)
            except HsmSignerError as error:
                # The key may have been replaced meanwhile, and closed by another thread, or deleted from its device.
                self._follow()
                if self._keys is not keys:
                    continue
                if self._operator.wait is None or not isinstance(error, DeviceNotFound | DeviceGone):
                    raise
                if isinstance(error, LoginInterrupted):  # waiting for the device must not send the PIN again and again
                    raise
                self._operator.wait(error)

    def state(self) -> tuple[object, ...]:
        """Return what changes when the key file or the certificate's file does; empty where there is neither."""
        return tuple(map(_version, filter(None, (self._profile.key_file, self._profile.certificate))))

    def is_current(self, header: Mapping[str, Any], written: float) -> bool:
        """Tell, without the device, whether an assertion is by the key and the certificate in use.

        Where the files do not say, it is, if they are older than the assertion.

        Args:
            header: of the assertion.
            written: when it was written to a file, epoch seconds.
        """
        known = _thumbprints(self._profile)
        if known is None:
            files = filter(None, (self._profile.key_file, self._profile.certificate))
            return all(_changed(file) <= written for file in files)
        return any(header.get(name) == value for each in known for name, value in each.items())

    def close(self) -> None:
        """Let go of every device."""
        for key in self._keys:
            key.close()

    def reset_after_fork(self) -> None:
        """Leave the parent's devices to the parent in a forked child, which opens them again when it needs them."""
        self._following = threading.Lock()
        for key in self._keys:
            key.reset_after_fork()

    def _follow(self) -> None:
        """Go over to the key that the key file names by now."""
        file = self._profile.key_file
        if file is None:
            return
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
                # It is the same device, most likely, and the same PIN.
                self._keys = [_Key(uri, key.refusal, key.retire())]

    def _attempt(self, audience: str, lifetime: int) -> str:
        now = self._monotonic()
        # Those that rest come last: they are tried before giving up, for one of them may be back.
        *before, last = sorted(self._keys, key=lambda key: key.rests_until > now)
        for key in before:
            try:
                return self._sign(key, audience, lifetime)
            except _NEXT_KEY as error:
                key.rests_until = now + COOLDOWN
                logger.warning("%s Trying the next key.", error)
        return self._sign(last, audience, lifetime)

    def _sign(self, key: "_Key", audience: str, lifetime: int) -> str:
        try:
            return key.open(self._profile, self._client, self._operator, self._isolated).assertion(audience, lifetime)
        except (PinIncorrect, PinLocked) as error:
            key.refusal = PinRefusal(error)
            key.close()
            raise


def _thumbprints(profile: Profile) -> list[Mapping[str, str]] | None:
    """Return the thumbprints of the certificates that may be in use, or None where no file says."""
    try:
        if profile.certificate is not None:
            found = parse_certificates(profile.certificate.read_bytes(), str(profile.certificate))
            return [thumbprints(each) for each in found]
        if profile.key_file is not None:
            recorded = read_key_file(profile.key_file).current.thumbprints
            return [recorded] if recorded else None
    except (OSError, ConfigError, CertificateUnusable):
        pass  # it is being replaced
    return None


def _version(file: Path) -> tuple[int, ...]:
    try:
        return file_version(file)
    except OSError:
        return ()


def _changed(file: Path) -> float:
    """Return when a file was last written, replaced, or given another target, epoch seconds; 0 without a file.

    Unlike the time of modification, the kernel's own (st_ctime) is not carried along when a file is moved into place.
    """
    try:
        return max(file.stat().st_ctime, file.lstat().st_ctime)
    except OSError:
        return 0


_inherited: list[Identity | None] = []
"""Kept for as long as this process lives: what was open when it was forked."""


class _Key:
    """One key, and what has become of it so far."""

    def __init__(self, uri: Pkcs11Uri, refusal: PinRefusal | None = None, replaced: Identity | None = None) -> None:
        self.uri = uri
        self.rests_until = 0.0
        self.refusal = refusal
        self._retired = False
        self._replaced = replaced
        self._identity: Identity | None = None
        self._lock = threading.Lock()

    def open(self, profile: Profile, client: Client, operator: Operator, isolated: bool) -> Identity:
        with self._lock:
            if self._retired:
                raise DeviceError(f"The key file no longer names {self.uri.redacted}.", hint="Try again.")
            if self.refusal is not None and self.refusal.still_applies(pin_source(profile, self.uri, operator.prompt)):
                raise copy.copy(self.refusal.error)
            if self._identity is None:
                try:
                    # Another key may be there: `Keys` waits when none is.
                    impatient = replace(operator, wait=None)
                    self._identity = open_identity(
                        profile, client, self.uri, impatient, isolated=isolated, replaced=self._replaced
                    )
                    self._replaced = None
                except (PinIncorrect, PinLocked) as error:
                    # Under the lock: whoever waits for it must not present the PIN again.
                    self.refusal = PinRefusal(error)
                    raise
            return self._identity

    def retire(self) -> Identity | None:
        """Let go of it for good, and return what is open, for the key that takes its place.

        A thread that has chosen it, and not yet opened it, would leave it open behind.
        """
        with self._lock:
            self._retired = True
            opened = self._identity or self._replaced
            self._identity = self._replaced = None
            return opened

    def close(self) -> None:
        with self._lock:
            opened = (self._identity, self._replaced)
            self._identity = self._replaced = None
        for identity in filter(None, opened):
            identity.close()

    def reset_after_fork(self) -> None:
        # A refusal stands: it is the same PIN. The identity is the parent's: it is neither closed nor destroyed, for
        # what it holds leads to the parent's device.
        _inherited.extend((self._identity, self._replaced))
        self._identity = self._replaced = None
        self._lock = threading.Lock()
