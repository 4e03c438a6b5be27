"""A program's identity: a key that signs, the certificate that vouches for it, and the client id it acts as."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hsm_signer.assertion import DEFAULT_LIFETIME, AssertionSpec, Thumbprint, build_assertion
from hsm_signer.certificate import Certificate, parse_certificates, require_usable
from hsm_signer.config import Profile, missing
from hsm_signer.crypto import Algorithm, PublicKey, Signer
from hsm_signer.device.lane import Slow
from hsm_signer.device.pin import FixedLogin, NobodyToAsk, Pin, PinRequest, PinSource, parse_pin_source
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import (
    CertificateNotFound,
    CertificateUnusable,
    ConfigError,
    DeviceError,
    DeviceGone,
    DeviceNotFound,
    DeviceTimeout,
    HsmSignerError,
    KeyLookupError,
    KeyNotFound,
    MechanismUnsupported,
    ModuleLoadError,
    PinError,
    PinIncorrect,
    PinLocked,
    SignatureInvalid,
)
from hsm_signer.keyfile import read_key_file

if TYPE_CHECKING:
    from hsm_signer.device.device import Device, KeyReference
    from hsm_signer.device.signer import DeviceSigner

logger = logging.getLogger(__name__)

# With several keys, what makes the next one's turn. A refused PIN, a missed touch or a setting never does.
_NEXT_KEY = (DeviceGone, DeviceNotFound, DeviceTimeout, KeyNotFound, ModuleLoadError, SignatureInvalid)

REREAD = 60.0
"""Seconds after which a certificate on a device is read again before it is used: some devices take their time."""

REST = 30.0
"""Seconds for which a key that failed is passed over while another one works."""


@dataclass(frozen=True)
class Operator:
    """The person at the terminal, as far as there is one.

    Attributes:
        prompt: asks for the PIN where no other source is set.
        confirm: asks whether the last PIN try may be taken.
        slow: shows that a call into the device is taking its time, perhaps for want of a touch.
        wait: told why there is no device yet; returns when it is time to look again. None: do not wait for one.
    """

    prompt: PinSource | None = None
    confirm: Callable[[PinRequest], None] | None = None
    slow: Slow | None = None
    wait: Callable[[HsmSignerError], None] | None = None


NOBODY = Operator()


@dataclass(frozen=True)
class Identity:
    """All an assertion needs but its audience.

    Attributes:
        client_id: of the app registration.
        signer: holds the key.
        certificates: returns the key's certificate first, then any that lead from it to its issuer.
        algorithm: None means PS256 where the device can, else RS256.
        thumbprint: None lets it follow the algorithm.
        send_chain: send the certificates in ``x5c``.
        close: lets go of the device.
        now: the clock, epoch seconds.
    """

    client_id: str
    signer: Signer
    certificates: Callable[[], tuple[Certificate, ...]]
    algorithm: Algorithm | None = Algorithm.RS256
    thumbprint: Thumbprint | None = None
    send_chain: bool = False
    close: Callable[[], None] = lambda: None
    now: Callable[[], float] = time.time
    # Filled once the device has turned out unable to sign what it offers.
    _without_pss: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)

    def assertion(self, audience: str, lifetime: int = DEFAULT_LIFETIME) -> str:
        """Return a fresh client assertion. The device signs once.

        Args:
            audience: the token endpoint that will read it.
            lifetime: seconds.

        Raises:
            CertificateMismatch, CertificateUnusable: the certificate does not vouch for the key now.
            ConfigError: the lifetime is out of range.
            HsmSignerError: whatever the signer raises.
        """
        now = self.now()
        certificates = self.certificates()
        require_usable(certificates[0], self.signer.public_key, datetime.fromtimestamp(now, UTC))
        spec = AssertionSpec(
            client_id=self.client_id,
            audience=audience,
            lifetime=lifetime,
            algorithm=self.algorithm or Algorithm.PS256,
            thumbprint=self.thumbprint,
            chain=tuple(certificate.der for certificate in certificates) if self.send_chain else (),
        )
        if self.algorithm is None:
            if Algorithm.PS256 in self.signer.algorithms and not self._without_pss:
                try:
                    return build_assertion(spec, self.signer, certificates[0], now)
                except (MechanismUnsupported, SignatureInvalid) as error:
                    # Some devices offer PSS and refuse its parameters, or force a salt of another length.
                    logger.warning("%s Signing RS256 from now on.", error)
                    self._without_pss.append(True)
            spec = replace(spec, algorithm=Algorithm.RS256)
        return build_assertion(spec, self.signer, certificates[0], now)


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
                version = _version(file)
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
            key.refusal = error
            key.close()
            raise


_inherited: list[Identity | None] = []
"""Kept for as long as this process lives: what was open when it was forked."""


class _Key:
    """One key, and what has become of it so far."""

    def __init__(self, uri: Pkcs11Uri, refusal: PinError | None = None) -> None:
        self.uri = uri
        self.rests_until = 0.0
        self.refusal = refusal
        self._identity: Identity | None = None
        self._lock = threading.Lock()

    def open(self, profile: Profile, operator: Operator, isolated: bool) -> Identity:
        with self._lock:
            if self.refusal is not None:
                raise type(self.refusal)(self.refusal.message, hint=self.refusal.hint)
            if self._identity is None:
                try:
                    self._identity = open_identity(profile, self.uri, operator, isolated=isolated)
                except (PinIncorrect, PinLocked) as error:
                    # Under the lock: whoever waits for it must not present the PIN again.
                    self.refusal = error
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


def open_identity(profile: Profile, uri: Pkcs11Uri, operator: Operator = NOBODY, *, isolated: bool = False) -> Identity:
    """Open one key of a profile, and return the identity it gives.

    Args:
        isolated: have a process of its own serve the device, which may hang or crash alone.

    Raises:
        ConfigError: the profile has no client id, or its PIN source is malformed.
        DeviceError, DeviceTimeout, PinError, KeyLookupError: the key cannot be used.
    """
    if not profile.client_id:
        raise missing("client_id")
    reference = key_reference(profile, uri, operator)
    with ExitStack() as undo:
        signer: Signer
        if isolated:
            from hsm_signer.device.worker import open_worker

            signer = worker = undo.enter_context(open_worker(reference))
            certificates = _certificates(profile, signer.public_key, worker.certificate, worker.device)
        else:
            from hsm_signer.device.device import open_device

            device = undo.enter_context(open_device(reference))
            signer = device.signer()
            certificates = certificates_of(profile, device, signer)
        certificates()
        return make_identity(profile, signer, certificates, close=undo.pop_all().close)


def make_identity(
    profile: Profile,
    signer: Signer,
    certificates: Callable[[], tuple[Certificate, ...]],
    *,
    close: Callable[[], None] = lambda: None,
    now: Callable[[], float] = time.time,
) -> Identity:
    """Return the identity that a key of a profile gives, once it is open.

    Args:
        certificates: what `certificates_of` returned.
        close: lets go of the device.
        now: the clock, epoch seconds.

    Raises:
        ConfigError: the profile has no client id.
    """
    if not profile.client_id:
        raise missing("client_id")
    return Identity(
        client_id=profile.client_id,
        signer=signer,
        certificates=certificates,
        algorithm=profile.algorithm,
        thumbprint=profile.thumbprint,
        send_chain=profile.send_chain,
        close=close,
        now=now,
    )


def key_reference(profile: Profile, uri: Pkcs11Uri, operator: Operator = NOBODY) -> "KeyReference":
    """Return how to get to one key of a profile.

    Raises:
        ConfigError: the PIN source is malformed.
        PinUnavailable: it is the prompt, and nobody can be asked.
    """
    from hsm_signer.device.device import KeyReference

    return KeyReference(
        uri=uri,
        pin=_pin_source(profile, uri, operator.prompt),
        module=profile.module,
        module_environment=profile.module_environment,
        timeout=profile.device_timeout,
        allow_last_try=profile.allow_last_try,
        pin_record=profile.state_directory / "pins" if profile.pin_record else None,
        confirm=operator.confirm,
        slow=operator.slow,
    )


def _pin_source(profile: Profile, uri: Pkcs11Uri, prompt: PinSource | None) -> PinSource:
    if profile.pin_source is not None:
        return parse_pin_source(profile.pin_source, prompt=prompt, directory=profile.pin_directory)
    if uri.pin_source is not None:
        return parse_pin_source(uri.pin_source, prompt=prompt, from_uri=True)
    if uri.pin_value is not None:
        return FixedLogin(Pin(uri.pin_value), "the pin-value of the URI")
    return prompt or NobodyToAsk()


def certificates_of(
    profile: Profile, device: "Device", signer: "DeviceSigner"
) -> Callable[[], tuple[Certificate, ...]]:
    """Return what returns the certificate of a key, then any that lead from it to its issuer.

    Raises:
        CertificateNotFound, CertificateUnusable, KeyAmbiguous: the device does not hold exactly one that can be read.
    """
    return _certificates(profile, signer.public_key, lambda: device.certificate(signer), str(device.info))


def _certificates(
    profile: Profile, public_key: PublicKey, read: Callable[[], bytes], device: str
) -> Callable[[], tuple[Certificate, ...]]:
    if profile.certificate is not None:
        return CertificateFile(profile.certificate, public_key)
    return StoredCertificate(read, device)


class StoredCertificate:
    """The certificate on a device, read again now and then: it may be renewed under running services.

    Args:
        read: returns it, as DER.
        device: where it is, for messages.
        monotonic: seconds on a clock that is never set.
    """

    def __init__(self, read: Callable[[], bytes], device: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._source = f"The certificate on {device}"
        self._monotonic = monotonic
        self._read_at = 0.0
        self._certificates: tuple[Certificate, ...] = ()

    def __call__(self) -> tuple[Certificate, ...]:
        """Return it. While it is being replaced there may be none, or two; then it is the one known.

        Raises:
            CertificateNotFound, CertificateUnusable, KeyAmbiguous: there is not exactly one that can be read.
            HsmSignerError: the device failed.
        """
        now = self._monotonic()
        if not self._certificates or now >= self._read_at + REREAD:
            try:
                self._certificates = tuple(parse_certificates(self._read(), self._source))
            except KeyLookupError:
                if not self._certificates:
                    raise
            self._read_at = now
        return self._certificates


class CertificateFile:
    """The certificates in a file, read again whenever the file changes: they are renewed under running services.

    Args:
        path: PEM or DER; a PEM file may hold a chain.
        public_key: of the key whose certificate comes first.
    """

    def __init__(self, path: Path, public_key: PublicKey) -> None:
        self._path = path
        self._public_key = public_key
        self._version: tuple[int, ...] = ()
        self._certificates: tuple[Certificate, ...] = ()

    def __call__(self) -> tuple[Certificate, ...]:
        """Return the key's certificate, then the others.

        A file that cannot be read or parsed while it is being replaced does not displace the certificates known.

        Raises:
            CertificateNotFound: the file cannot be read.
            CertificateUnusable: it holds no certificate.
        """
        try:
            version = _version(self._path)
            if version != self._version:
                found = parse_certificates(self._path.read_bytes(), str(self._path))
                # Its own first; one of another key is left to `require_usable`, which says so.
                self._certificates = tuple(sorted(found, key=lambda each: each.public_key != self._public_key))
                self._version = version
        except OSError as error:
            if not self._certificates:
                raise CertificateNotFound(
                    f"The certificate {self._path} cannot be read: {error.strerror}.", hint="Check --certificate."
                ) from None
        except CertificateUnusable:
            if not self._certificates:
                raise
        return self._certificates


def _version(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is written or replaced."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
