"""The client that a profile describes: the app registration, its token endpoint, and the form of its assertions."""

from dataclasses import dataclass

from hsm_signer.config.profile import Profile, require_settings
from hsm_signer.crypto import Algorithm
from hsm_signer.entra.authority import Endpoint, resolve_endpoint
from hsm_signer.errors import ConfigError
from hsm_signer.jwt.assertion import Thumbprint


@dataclass(frozen=True)
class Client:
    """The app registration that a program acts as. All values have been checked.

    Attributes:
        client_id: application (client) ID.
        endpoint: the token endpoint of the app's own tenant.
        algorithm: the signature algorithm. None: PS256 if the device supports it, else RS256.
        thumbprint: the hash that identifies the certificate. None: SHA-1 with RS256, SHA-256 with PS256.
        send_chain: whether assertions contain the certificates (``x5c``).
    """

    client_id: str
    endpoint: Endpoint
    algorithm: Algorithm | None = Algorithm.RS256
    thumbprint: Thumbprint | None = None
    send_chain: bool = False


def resolve_client(profile: Profile, *needed: str) -> Client:
    """Return the client that a profile describes.

    Args:
        profile: has a client ID, and a tenant or what replaces one (see `require_settings`).
        needed: names of other settings that the caller needs, so that one error lists all missing settings.

    Raises:
        ConfigError: a setting is missing, malformed, or contradicts another.
    """
    require_settings(profile, "tenant", "client_id", *needed)
    endpoint = resolve_endpoint(
        tenant=profile.tenant,
        cloud=profile.cloud,
        authority=profile.authority,
        token_endpoint=profile.token_endpoint,
        audience=profile.audience,
    )
    return Client(
        client_id=profile.client_id or "",
        endpoint=endpoint,
        algorithm=_adfs_algorithm(profile) if endpoint.tenant == "adfs" else profile.algorithm,
        thumbprint=profile.thumbprint,
        send_chain=profile.send_chain,
    )


def _adfs_algorithm(profile: Profile) -> Algorithm:
    # AD FS accepts RS256 with x5t only.
    if profile.algorithm is Algorithm.PS256 or profile.thumbprint is Thumbprint.SHA256:
        raise ConfigError(
            "AD FS accepts neither PS256 nor SHA-256 thumbprints.", hint="Use --algorithm RS256 --thumbprint sha1."
        )
    return Algorithm.RS256
