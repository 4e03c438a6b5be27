"""A program's identity: a key that signs, the certificate that vouches for it, and the client id it acts as."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hsm_signer.assertion import DEFAULT_LIFETIME, AssertionSpec, Thumbprint, build_assertion
from hsm_signer.certificate import Certificate, parse_certificates, require_usable
from hsm_signer.config import Profile, missing
from hsm_signer.crypto import Algorithm, PublicKey, Signer
from hsm_signer.device.pin import FixedLogin, NobodyToAsk, Pin, PinSource, parse_pin_source
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import (
    CertificateNotFound,
    CertificateUnusable,
    DeviceGone,
    DeviceNotFound,
    KeyNotFound,
    ModuleLoadError,
)

if TYPE_CHECKING:
    from hsm_signer.device.device import Device
    from hsm_signer.device.signer import DeviceSigner

logger = logging.getLogger(__name__)

# With several keys, what makes the next one's turn. A refused PIN never does.
_NEXT_KEY = (DeviceGone, DeviceNotFound, KeyNotFound, ModuleLoadError)


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
            algorithm=self.algorithm or self._best_algorithm(),
            thumbprint=self.thumbprint,
            chain=tuple(certificate.der for certificate in certificates) if self.send_chain else (),
        )
        return build_assertion(spec, self.signer, certificates[0], now)

    def _best_algorithm(self) -> Algorithm:
        return Algorithm.PS256 if Algorithm.PS256 in self.signer.algorithms else Algorithm.RS256


def open_identity(profile: Profile, prompt: PinSource | None) -> Identity:
    """Open the first of the profile's keys whose device is present, and return the identity it gives.

    Args:
        profile: with a client id and at least one key.
        prompt: asks a person for the PIN where no other source is set; None when nobody can be asked.

    Raises:
        ConfigError: the profile has no client id or no key, or its PIN source is malformed.
        DeviceError, DeviceTimeout, PinError, KeyLookupError: of the last key tried.
    """
    if not profile.client_id:
        raise missing("client_id")
    if not profile.key:
        raise missing("key")
    *preferred, last = profile.key
    for uri in preferred:
        try:
            return _open(profile, uri, prompt, profile.client_id)
        except _NEXT_KEY as error:
            logger.warning("%s Trying the next key.", error)
    return _open(profile, last, prompt, profile.client_id)


def _open(profile: Profile, uri: Pkcs11Uri, prompt: PinSource | None, client_id: str) -> Identity:
    from hsm_signer.device.device import KeyReference, open_device

    device = open_device(
        KeyReference(
            uri=uri,
            pin=_pin_source(profile, uri, prompt),
            module=profile.module,
            module_environment=profile.module_environment,
            timeout=profile.device_timeout,
            allow_last_try=profile.allow_last_try,
        )
    )
    try:
        signer = device.signer()
        certificates = _certificates(profile.certificate, device, signer)
    except BaseException:
        device.close()
        raise
    return Identity(
        client_id=client_id,
        signer=signer,
        certificates=certificates,
        algorithm=profile.algorithm,
        thumbprint=profile.thumbprint,
        send_chain=profile.send_chain,
        close=device.close,
    )


def _pin_source(profile: Profile, uri: Pkcs11Uri, prompt: PinSource | None) -> PinSource:
    if profile.pin_source is not None:
        return parse_pin_source(profile.pin_source, prompt=prompt, directory=profile.pin_directory)
    if uri.pin_source is not None:
        return parse_pin_source(uri.pin_source, prompt=prompt, from_uri=True)
    if uri.pin_value is not None:
        return FixedLogin(Pin(uri.pin_value), "the pin-value of the URI")
    return prompt or NobodyToAsk()


def _certificates(file: Path | None, device: "Device", signer: "DeviceSigner") -> Callable[[], tuple[Certificate, ...]]:
    if file is not None:
        return CertificateFile(file, signer.public_key)
    stored = tuple(parse_certificates(device.certificate(signer), f"The certificate on {device.info}"))
    return lambda: stored


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
            status = self._path.stat()
            version = (status.st_mtime_ns, status.st_size, status.st_ino)
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
