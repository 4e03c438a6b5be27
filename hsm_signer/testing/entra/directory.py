"""What the emulated Entra and Graph know (tenants, applications, certificates, resources), and how they refuse."""

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey

from hsm_signer.errors import ConfigError

ADFS: Final = "adfs"
"""The tenant name in the URLs of AD FS, which have no ``/v2.0``. AD FS accepts RS256 with `x5t` only."""


@dataclass(frozen=True)
class RegisteredCertificate:
    """A certificate of an application or a service principal.

    Args:
        display_name: the name that was given with it, or None.
        key_id: GUID by which Graph identifies the credential. Default: a new one.
    """

    certificate: x509.Certificate
    public_key: rsa.RSAPublicKey
    display_name: str | None = None
    key_id: str = field(default_factory=lambda: str(uuid.uuid4()))

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
                "The certificate to register must be in PEM or DER. It is neither.",
                hint="Convert it with: openssl x509 -in FILE -outform DER",
            ) from error
        if not isinstance(public_key, rsa.RSAPublicKey):
            raise ConfigError(
                "The certificate to register has no RSA key, but one of another type.",
                hint="Entra accepts client assertions by RSA keys only. Generate an RSA key of 2048 bits or more.",
            )
        return cls(certificate, public_key)

    @cached_property
    def thumbprints(self) -> dict[str, bytes]:
        """Hash of the DER, by header parameter (RFC 7515 sections 4.1.7 and 4.1.8)."""
        return {
            "x5t": self.certificate.fingerprint(hashes.SHA1()),  # noqa: S303 - RFC 7515 section 4.1.7 says SHA-1
            "x5t#S256": self.certificate.fingerprint(hashes.SHA256()),
        }

    def covers(self, now: float) -> bool:
        """Return whether the certificate is valid at `now`, in seconds since the epoch (RFC 5280 section 4.1.2.5)."""
        start, end = self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc
        return start.timestamp() <= now <= end.timestamp()

    def verifies(self, jwt: str, algorithm: str) -> bool:
        """Return whether this certificate's key made the signature of a compact JWT, with `algorithm`."""
        registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
        # joserfc allows 512 bytes of header by default, too few for 'x5c'.
        registry.max_header_length = registry.max_signature_length = 1 << 16
        pem = self.public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        try:
            jws.deserialize_compact(jwt, RSAKey.import_key(pem), registry=registry)
        except JoseError:
            return False
        return True


Applications = Mapping[str, Collection[RegisteredCertificate]]
"""Registered certificates by client ID."""


class Kind(StrEnum):
    """The two kinds of objects of an app registration, by their names in Graph's paths."""

    APPLICATION = "applications"
    SERVICE_PRINCIPAL = "servicePrincipals"


@dataclass(frozen=True)
class DirectoryObject:
    """An application or a service principal, with its current certificates.

    Args:
        app_id: the client ID, which both have in common.
    """

    kind: Kind
    tenant: str
    app_id: str
    credentials: tuple[RegisteredCertificate, ...] = ()

    @property
    def id(self) -> str:
        """The object ID."""
        return object_id(self.kind, self.tenant, self.app_id)

    @property
    def display_name(self) -> str:
        """The display name."""
        return f"Application {self.app_id}"


def object_id(kind: Kind, tenant: str, app_id: str) -> str:
    """Return the object ID of an application or a service principal: the same in every run."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{tenant}/{kind}/{app_id}"))


@dataclass(frozen=True)
class Directory:
    """What Entra knows when a request arrives.

    Args:
        tenant: as the request's path names it.
        token_endpoint: URL of the request, and the only valid audience.
        applications: those of the tenant, or None when there is no such tenant.
        resources: Application ID URIs of the APIs that have tokens, without a slash at the end.
        spent: client ID and `jti` of the assertions that must not be used again.
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
        message: the description, without the number before it and the IDs after it.
        status: the HTTP status.
        retry_after: the header as sent, or None.
    """

    aadsts: int
    error: str
    message: str
    status: int = 400
    retry_after: str | None = None


@dataclass(frozen=True)
class GraphRefusal:
    """An answer of Microsoft Graph that is an error document.

    Args:
        code: Graph's name for the error.
        message: the service's message.
        status: the HTTP status.
        reason: the reason, which the service itself does not give, or None; for the document's ``details``.
        target: the invalid part of the request, for the same place.
        retry_after: the header as sent, or None.
    """

    code: str
    message: str
    status: int = 400
    reason: str | None = None
    target: str | None = None
    retry_after: str | None = None


class RequestRefused(Exception):
    """A rule refuses the request."""

    def __init__(self, refusal: EntraRefusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


def invalid_request(aadsts: int, message: str) -> RequestRefused:
    """Return the refusal of a request that is wrong for every client."""
    return RequestRefused(EntraRefusal(aadsts, "invalid_request", message))


def invalid_client(aadsts: int, message: str) -> RequestRefused:
    """Return the error for a client that is not authenticated: status 401 (RFC 6749 section 5.2)."""
    return RequestRefused(EntraRefusal(aadsts, "invalid_client", message, 401))


def missing_field(name: str) -> RequestRefused:
    """Return the refusal of a request without a field that Entra requires."""
    return invalid_request(
        90014,
        f"The required field '{name}' is missing from the credential. "
        "Ensure that you have all the necessary parameters for the login request.",
    )
