"""A client, and certificates in memory."""

from dataclasses import dataclass

from hsm_signer.credential.certificate_source import CertificateSource
from hsm_signer.credential.client import Client
from hsm_signer.entra.authority import resolve_endpoint
from hsm_signer.x509.certificate import Certificate
from tests.support.names import CLIENT, TENANT

APP = Client(CLIENT, resolve_endpoint(tenant=TENANT))


@dataclass(frozen=True)
class CertificatesInMemory(CertificateSource):
    """Certificates that do not change."""

    certificates: tuple[Certificate, ...]

    def chain(self) -> tuple[Certificate, ...]:
        return self.certificates
