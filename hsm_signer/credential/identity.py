"""A program's identity: a key that signs, the certificate that vouches for it, and the client id it acts as."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from hsm_signer.crypto import Algorithm, Signer
from hsm_signer.errors import MechanismUnsupported, SignatureInvalid
from hsm_signer.jwt.assertion import DEFAULT_LIFETIME, AssertionSpec, Thumbprint, build_assertion
from hsm_signer.x509.certificate import Certificate
from hsm_signer.x509.requirements import require_usable

logger = logging.getLogger(__name__)


@dataclass
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
        opened: what the device is open through, for another key on it.
    """

    client_id: str
    signer: Signer
    certificates: Callable[[], tuple[Certificate, ...]]
    algorithm: Algorithm | None = Algorithm.RS256
    thumbprint: Thumbprint | None = None
    send_chain: bool = False
    close: Callable[[], None] = lambda: None
    now: Callable[[], float] = time.time
    opened: object = field(default=None, repr=False, compare=False)
    # Until the device turns out unable to sign what it offers.
    _tries_pss: bool = field(default=True, init=False, repr=False, compare=False)

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
            if Algorithm.PS256 in self.signer.algorithms and self._tries_pss:
                try:
                    return build_assertion(spec, self.signer, certificates[0], now)
                except (MechanismUnsupported, SignatureInvalid) as error:
                    # Some devices offer PSS and refuse its parameters, or force a salt of another length.
                    logger.warning("%s Signing RS256 from now on.", error)
                    self._tries_pss = False
            spec = replace(spec, algorithm=Algorithm.RS256)
        return build_assertion(spec, self.signer, certificates[0], now)
