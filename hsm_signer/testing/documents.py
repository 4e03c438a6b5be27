"""The JSON documents Entra answers with, as pure functions of what they are about."""

import uuid
from datetime import UTC, datetime

from hsm_signer.testing.directory import EntraRefusal


def error_document(refusal: EntraRefusal, authority: str, correlation_id: str | None, now: float) -> dict[str, object]:
    """Entra's error document (Microsoft identity platform, "Handling error codes in your application").

    Args:
        authority: URL of the authority host.
        correlation_id: what the client sent as ``client-request-id``, if it did.
        now: seconds since the epoch.
    """
    timestamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    trace_id = str(uuid.uuid4())
    correlation_id = correlation_id or str(uuid.uuid4())
    ids = f"Trace ID: {trace_id} Correlation ID: {correlation_id} Timestamp: {timestamp}"
    return {
        "error": refusal.error,
        "error_description": f"AADSTS{refusal.aadsts}: {refusal.message} {ids}",
        "error_codes": [refusal.aadsts],
        "timestamp": timestamp,
        "trace_id": trace_id,
        "correlation_id": correlation_id,
        "error_uri": f"{authority}/error?code={refusal.aadsts}",
    }


def issuer(authority: str, tenant: str) -> str:
    """The issuer of a tenant's tokens: under the emulator's own authority, so that nobody takes it for Microsoft's."""
    return f"{authority}/{tenant}/v2.0"


def openid_configuration(authority: str, tenant: str, token_endpoint: str) -> dict[str, object]:
    """The tenant's metadata (OpenID Connect Discovery 1.0 section 3)."""
    return {
        "issuer": issuer(authority, tenant),
        "authorization_endpoint": token_endpoint.removesuffix("token") + "authorize",
        "token_endpoint": token_endpoint,
        "jwks_uri": f"{authority}/{tenant}/discovery/v2.0/keys",
        "response_types_supported": ["code"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": ["RS256", "PS256"],
    }


def access_token_claims(
    authority: str, tenant: str, client_id: str, resource: str, lifetime: int, now: float
) -> dict[str, object]:
    """The claims of an access token for an application itself (no user), version 2.0.

    Args:
        lifetime: seconds.
        now: seconds since the epoch.
    """
    principal = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{tenant}/{client_id}"))
    return {
        "iss": issuer(authority, tenant),
        "aud": resource,
        "sub": principal,
        "oid": principal,
        "tid": tenant,
        "azp": client_id,
        "azpacr": "2",  # the application authenticated with a certificate
        "idtyp": "app",
        "iat": int(now),
        "nbf": int(now),
        "exp": int(now) + lifetime,
        "jti": str(uuid.uuid4()),
        "ver": "2.0",
    }
