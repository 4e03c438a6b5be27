"""Sign with the first key of a profile that works, and switch when the key file names another key."""

import copy
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
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
from hsm_signer.x509.certificate import Certificate, parse_certificates

logger = logging.getLogger(__name__)

# Errors after which the next key is tried. A wrong PIN, a missed touch or a wrong setting is not among them.
_NEXT_KEY = (DeviceGone, DeviceNotFound, DeviceTimeout, KeyNotFound, ModuleLoadError, SignatureInvalid)

COOLDOWN = 30.0
"""Seconds for which a key that failed is not tried while another key works."""


class Keys:
    """The keys of a profile, in order of preference: the first whose device is present and works signs.

    A key is opened when it is first needed. After a failure it is tried again later, so that a preferred device is used
    again after it was plugged in. If the profile names a key file, the current content of that file decides. Safe to
    use from several threads.

    Args:
        profile: has at least one key.
        client: issuer and subject of the assertions.
        operator: how to reach the person at the terminal.
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
        self._key_file_version: tuple[int, ...] = ()
        self._reloading = threading.Lock()
        reset_after_fork(self, Keys.reset_after_fork)

    def assertion(self, audience: str, lifetime: int = DEFAULT_LIFETIME) -> str:
        """Return a new client assertion, signed with the first key that works. See `Identity.assertion`.

        Raises:
            DeviceError, DeviceTimeout, KeyLookupError: no key works. This is the error of the last one tried.
            PinError: the PIN was refused or is not available. A wrong PIN is not sent again.
        """
        while True:
            self._reload_key_file()
            keys = self._keys
            try:
                return self._attempt(audience, lifetime)
            except HsmSignerError as error:
                # The key may have been replaced meanwhile: closed by another thread, or deleted from its device.
                self._reload_key_file()
                if self._keys is not keys:
                    continue
                if self._operator.wait is None or not isinstance(error, DeviceNotFound | DeviceGone):
                    raise
                if isinstance(error, LoginInterrupted):  # waiting for the device must not send the PIN again and again
                    raise
                self._operator.wait(error)

    def state(self) -> tuple[object, ...]:
        """Return a value that changes when the key file or the certificate file changes; empty without these files."""
        return tuple(map(_version, filter(None, (self._profile.key_file, self._profile.certificate))))

    def is_current(self, header: Mapping[str, Any], written: float) -> bool:
        """Return, without the device, whether an assertion was made with the current key and certificate.

        If the files do not show which certificate is current, assume that it was if the assertion is newer than they.

        Args:
            header: the header of the assertion.
            written: when the assertion was written to a file, epoch seconds.
        """
        known = _thumbprints(self._profile)
        if known is None:
            files = filter(None, (self._profile.key_file, self._profile.certificate))
            return all(_changed(file) <= written for file in files)
        return any(header.get(name) == value for each in known for name, value in each.items())

    def find_certificate(self, header: Mapping[str, Any]) -> tuple[Pkcs11Uri, Certificate] | None:
        """Return which key made an assertion with this header, and its certificate; None if it is no longer open."""
        for key in self._keys:
            certificate = key.certificate()
            if certificate and any(header.get(name) == value for name, value in thumbprints(certificate).items()):
                return key.uri, certificate
        return None

    def close(self) -> None:
        """Close every device."""
        for key in self._keys:
            key.close()

    def reset_after_fork(self) -> None:
        """Forget the parent's open devices in a forked child. The child opens its own when it needs them."""
        self._reloading = threading.Lock()
        for key in self._keys:
            key.reset_after_fork()

    def _reload_key_file(self) -> None:
        """Switch to the key that the key file names now."""
        file = self._profile.key_file
        if file is None:
            return
        with self._reloading:
            try:
                version = file_version(file)
                if version == self._key_file_version:
                    return
                uri = read_key_file(file).current.uri
            except (OSError, ConfigError) as error:
                logger.warning("Still using the key that the key file named before. %s", error)
                return
            self._key_file_version = version
            (key,) = self._keys
            if uri != key.uri:
                logger.info("The key file names another key.")
                # It is most likely on the same device, with the same PIN.
                self._keys = [_Key(uri, key.refusal, key.retire())]

    def _attempt(self, audience: str, lifetime: int) -> str:
        now = self._monotonic()
        # Keys that failed recently come last, but are tried: somebody may have plugged in their device.
        *before, last = sorted(self._keys, key=lambda key: key.next_try_at > now)
        for key in before:
            try:
                return self._sign(key, audience, lifetime)
            except _NEXT_KEY as error:
                key.next_try_at = now + COOLDOWN
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
    """Return the thumbprints of the certificates that may be in use, or None if no file shows them."""
    try:
        if profile.certificate is not None:
            found = parse_certificates(profile.certificate.read_bytes(), str(profile.certificate))
            return [thumbprints(each) for each in found]
        if profile.key_file is not None:
            recorded = read_key_file(profile.key_file).current.thumbprints
            return [recorded] if recorded else None
    except (OSError, ConfigError, CertificateUnusable):
        pass  # the file is being replaced
    return None


def _version(file: Path) -> tuple[int, ...]:
    try:
        return file_version(file)
    except OSError:
        return ()


def _changed(file: Path) -> float:
    """Return when a file or its link was last written or replaced, epoch seconds; 0 if it does not exist.

    This is st_ctime: unlike the modification time, it changes when a file is moved into place.
    """
    try:
        return max(file.stat().st_ctime, file.lstat().st_ctime)
    except OSError:
        return 0


_open_at_fork: list[Identity | None] = []
"""Identities that were open when this process was forked. They must never be destroyed."""


class _Key:
    """One key: its identity when it is open, and its failures."""

    def __init__(self, uri: Pkcs11Uri, refusal: PinRefusal | None = None, replaced: Identity | None = None) -> None:
        self.uri = uri
        self.next_try_at = 0.0
        self.refusal = refusal
        self._retired = False
        self._replaced = replaced
        self._identity: Identity | None = None
        self._lock = threading.Lock()

    def open(self, profile: Profile, client: Client, operator: Operator, isolated: bool) -> Identity:
        with self._lock:
            if self._retired:
                raise DeviceError(f"The key file no longer names {self.uri.redacted}.", hint="Run the command again.")
            if self.refusal is not None and self.refusal.still_applies(pin_source(profile, self.uri, operator.prompt)):
                raise copy.copy(self.refusal.error)
            if self._identity is None:
                try:
                    # Do not wait for this device: another key may work. `Keys` waits if none does.
                    without_wait = replace(operator, wait=None)
                    self._identity = open_identity(
                        profile, client, self.uri, without_wait, isolated=isolated, replaced=self._replaced
                    )
                    self._replaced = None
                except (PinIncorrect, PinLocked) as error:
                    # Under the lock: threads that wait for it must not send the PIN again.
                    self.refusal = PinRefusal(error)
                    raise
            return self._identity

    def certificate(self) -> Certificate | None:
        """Return the certificate of the open key, for messages. It is not opened for that."""
        identity = self._identity
        if identity is not None:
            with suppress(HsmSignerError):
                return identity.certificates.certificate()
        return None

    def retire(self) -> Identity | None:
        """Make sure that this key is not opened again, and return its open identity for the key that replaces it.

        Otherwise a thread that has chosen this key but not opened it yet would open it and leave it open.
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
        # The refusal stays, because the PIN is the same. The identity belongs to the parent: closing or destroying it
        # would act on the parent's device.
        _open_at_fork.extend((self._identity, self._replaced))
        self._identity = self._replaced = None
        self._lock = threading.Lock()
