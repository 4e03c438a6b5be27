"""What the emulated Entra knows (tenants, their applications with certificates, resources), and how it refuses."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa

from hsm_signer.errors import ConfigError

ADFS: Final = "adfs"
"""The tenant under which AD FS is addressed: no ``/v2.0``, and RS256 with `x5t` only."""


@dataclass(frozen=True)
class RegisteredCertificate:
    """A certificate as an application registration holds it."""

    certificate: x509.Certificate
    public_key: rsa.RSAPublicKey

    @classmethod
    def load(cls, data: bytes) -> "RegisteredCertificate":
        """Read a certificate in PEM or DER.

        Raises:
            ConfigError: it is neither, or its key is not RSA.
        """
        load = x509.load_pem_x509_certificate if b"-----BEGIN" in data else x509.load_der_x509_certificate
        try:
            certificate = load(data)
            public_key = certificate.public_key()
        except ValueError as error:
            raise ConfigError(
                "The certificate to register was expected in PEM or DER, and is neither.",
                hint="Convert it with: openssl x509 -in FILE -outform DER",
            ) from error
        if not isinstance(public_key, rsa.RSAPublicKey):
            raise ConfigError(
                "The certificate to register must hold an RSA key, and holds another kind.",
                hint="Entra accepts client assertions by RSA keys only: make an RSA key of 2048 bits or more.",
            )
        return cls(certificate, public_key)

    @cached_property
    def thumbprints(self) -> dict[str, bytes]:
        """Hash of the DER, by header parameter (RFC 7515 sections 4.1.7 and 4.1.8)."""
        return {
            "x5t": self.certificate.fingerprint(hashes.SHA1()),  # noqa: S303 - RFC 7515 section 4.1.7 says SHA-1
            "x5t#S256": self.certificate.fingerprint(hashes.SHA256()),
        }


Applications = Mapping[str, Collection[RegisteredCertificate]]
"""Registered certificates by client id."""


@dataclass(frozen=True)
class Directory:
    """What Entra knows when a request arrives.

    Args:
        tenant: as the request's path names it.
        token_endpoint: URL the request came to, the only right audience.
        applications: those of the tenant, or None when there is no such tenant.
        resources: application ID URIs that may be asked for, without a slash at the end.
        spent: client id and `jti` of the assertions that may not be used again.
    """

    tenant: str
    token_endpoint: str
    applications: Applications | None
    resources: Collection[str]
    spent: Collection[tuple[str, str]] = ()


@dataclass(frozen=True)
class EntraRefusal:
    """An answer that is an error document.

    Args:
        aadsts: the number behind ``AADSTS``.
        error: the OAuth error code.
        message: the description, without the number before it and the ids behind it.
        status: the HTTP status.
    """

    aadsts: int
    error: str
    message: str
    status: int = 400


class RequestRefused(Exception):
    """Carries a refusal out of the rule that made it."""

    def __init__(self, refusal: EntraRefusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


def invalid_request(aadsts: int, message: str) -> RequestRefused:
    """The request is wrong whoever sends it."""
    return RequestRefused(EntraRefusal(aadsts, "invalid_request", message))


def invalid_client(aadsts: int, message: str) -> RequestRefused:
    """The application did not prove who it is: status 401 (RFC 6749 section 5.2)."""
    return RequestRefused(EntraRefusal(aadsts, "invalid_client", message, 401))


def missing_field(name: str) -> RequestRefused:
    """A field that Entra requires is not there."""
    return invalid_request(
        90014,
        f"The required field '{name}' is missing from the credential. "
        "Ensure that you have all the necessary parameters for the login request.",
    )
