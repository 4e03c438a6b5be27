"""Everything that a client assertion needs except its audience: the client, its open key, and the certificate."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hsm_signer.config.profile import Profile
from hsm_signer.credential.certificate_source import CertificateSource, certificate_source, certificates_of
from hsm_signer.credential.client import Client
from hsm_signer.credential.key_access import key_access
from hsm_signer.crypto import Algorithm, Signer
from hsm_signer.device.access import UNATTENDED, Operator
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import CertificateNotFound, KeyNotFound, MechanismUnsupported, SignatureInvalid
from hsm_signer.jwt.assertion import DEFAULT_LIFETIME, AssertionSpec, build_assertion
from hsm_signer.x509.requirements import require_usable

if TYPE_CHECKING:
    from hsm_signer.device.access import KeyAccess
    from hsm_signer.device.device import Device

logger = logging.getLogger(__name__)


@dataclass
class Identity:
    """A client with an open key: signs client assertions.

    Attributes:
        client: issuer and subject of the assertions.
        signer: signs with the key.
        certificates: returns the certificate of the key.
        close: closes the device.
        now: the clock, epoch seconds.
        opened: the open device or worker. If the next key is on the same device, it can use this login.
    """

    client: Client
    signer: Signer
    certificates: CertificateSource
    close: Callable[[], None] = lambda: None
    now: Callable[[], float] = time.time
    opened: object = field(default=None, repr=False, compare=False)
    # Until the device fails to sign with PSS although it offers it.
    _tries_pss: bool = field(default=True, init=False, repr=False, compare=False)

    def assertion(self, audience: str, lifetime: int = DEFAULT_LIFETIME) -> str:
        """Return a new client assertion. The device signs once.

        Args:
            audience: the URL of the token endpoint.
            lifetime: seconds until the assertion expires.

        Raises:
            CertificateMismatch, CertificateUnusable: the certificate is for another key, or cannot be used now.
            ConfigError: the lifetime is out of range.
            HsmSignerError: the signer failed.
        """
        now = self.now()
        chain = self.certificates.chain()
        certificate = chain[0]
        require_usable(certificate, self.signer.public_key, datetime.fromtimestamp(now, UTC))
        spec = AssertionSpec(
            client_id=self.client.client_id,
            audience=audience,
            lifetime=lifetime,
            algorithm=self.client.algorithm or Algorithm.PS256,
            thumbprint=self.client.thumbprint,
            chain=tuple(each.der for each in chain) if self.client.send_chain else (),
        )
        if self.client.algorithm is None:
            if Algorithm.PS256 in self.signer.algorithms and self._tries_pss:
                try:
                    return build_assertion(spec, self.signer, certificate, now)
                except (MechanismUnsupported, SignatureInvalid) as error:
                    # Some devices offer PSS but refuse its parameters, or use a salt of another length.
                    logger.warning("%s Signing with RS256 from now on.", error)
                    self._tries_pss = False
            spec = replace(spec, algorithm=Algorithm.RS256)
        return build_assertion(spec, self.signer, certificate, now)


def open_identity(
    profile: Profile,
    client: Client,
    uri: Pkcs11Uri,
    operator: Operator = UNATTENDED,
    *,
    isolated: bool = False,
    replaced: Identity | None = None,
) -> Identity:
    """Open one key of a profile, and return an identity that signs with it.

    Args:
        isolated: open the device in a separate process, so that a hanging or crashing module does not affect this one.
        replaced: the identity of the previous key; it is closed. If both keys are on one device, the new key uses its
            login or its accepted PIN, because the source may give the PIN only once.

    Raises:
        ConfigError: the profile's PIN source is malformed.
        DeviceError, DeviceTimeout, PinError, KeyLookupError: the key cannot be used.
    """
    access = key_access(profile, uri, operator)
    return (_open_worker if isolated else _open_device)(profile, client, access, replaced)


def _open_device(profile: Profile, client: Client, access: "KeyAccess", replaced: Identity | None) -> Identity:
    from hsm_signer.device.device import Device, open_device

    if replaced is not None:
        if isinstance(replaced.opened, Device) and replaced.opened.serves(access):
            # Some modules do not see what another process has stored until the device is opened again.
            with suppress(KeyNotFound, CertificateNotFound):
                return identity_on(profile, client, replaced.opened, access.uri)
        # Before the next device is opened: closing the session that logged in ends the login for all sessions.
        replaced.close()
    with ExitStack() as undo:
        identity = identity_on(profile, client, undo.enter_context(open_device(access)), access.uri)
        undo.pop_all()
        return identity


def identity_on(profile: Profile, client: Client, device: "Device", uri: Pkcs11Uri) -> Identity:
    """Return the identity that a key on an open device gives a client.

    Raises:
        DeviceError, DeviceTimeout, KeyLookupError: the key or its certificate cannot be used.
    """
    from hsm_signer.device.signer import open_signer

    signer = open_signer(device, uri)
    certificates = certificates_of(profile, device, signer)
    certificates.chain()
    return Identity(client, signer, certificates, close=device.close, opened=device)


def _open_worker(profile: Profile, client: Client, access: "KeyAccess", replaced: Identity | None) -> Identity:
    from hsm_signer.device.worker.pool import WorkerSigner, open_worker

    before = None
    if replaced is not None:
        before = replaced.opened if isinstance(replaced.opened, WorkerSigner) else None
        replaced.close()
    with ExitStack() as undo:
        worker = undo.enter_context(open_worker(access, before=before))
        certificates = certificate_source(profile, worker.public_key, worker.certificate, worker.device)
        certificates.chain()
        return Identity(client, worker, certificates, close=undo.pop_all().close, opened=worker)
