"""The JSON documents that Entra and Graph answer with, as pure functions."""

import base64
import uuid
from collections.abc import Collection
from datetime import UTC, datetime

from cryptography.hazmat.primitives.serialization import Encoding

from hsm_signer.testing.entra.directory import (
    ADFS,
    DirectoryObject,
    EntraRefusal,
    GraphRefusal,
    Kind,
    RegisteredCertificate,
    object_id,
)


def error_document(refusal: EntraRefusal, authority: str, correlation_id: str | None, now: float) -> dict[str, object]:
    """Entra's error document (Microsoft identity platform, "Handling error codes in your application").

    Args:
        authority: URL of the authority host.
        correlation_id: the ``client-request-id`` of the request, or None.
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


_ISSUING_TENANTS = {
    # A placeholder in Entra's own document, which a client replaces by the tenant of a token.
    "common": "{tenantid}",
    "organizations": "{tenantid}",
    # The tenant of all personal accounts.
    "consumers": "9188040d-6c67-4c5b-b112-36a304b66dad",
}


def issuer(authority: str, tenant: str) -> str:
    """The issuer of a tenant's tokens. It is below the emulator's own authority, so that it is never Microsoft's."""
    return f"{authority}/{tenant}" if tenant == ADFS else f"{authority}/{_ISSUING_TENANTS.get(tenant, tenant)}/v2.0"


def instance_discovery(authority: str, host: str, tenant: str) -> dict[str, object]:
    """Where a tenant's metadata is, and by which names clients may know the host ("Custom authority aliases", MSAL)."""
    return {
        "tenant_discovery_endpoint": f"{authority}/{tenant}/v2.0/.well-known/openid-configuration",
        "api-version": "1.1",
        "metadata": [{"preferred_network": host, "preferred_cache": host, "aliases": [host]}],
    }


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
    principal = object_id(Kind.SERVICE_PRINCIPAL, tenant, client_id)
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


def graph_error_document(
    refusal: GraphRefusal, request_id: str, client_request_id: str, now: float
) -> dict[str, object]:
    """Graph's error document (Microsoft Graph, "Error responses and resource types").

    Args:
        request_id: of the answer.
        client_request_id: the ``client-request-id`` of the request, or `request_id` if it has none.
        now: seconds since the epoch.
    """
    error: dict[str, object] = {"code": refusal.code, "message": refusal.message}
    if refusal.reason is not None:
        error["details"] = [{"code": refusal.code, "message": refusal.reason, "target": refusal.target}]
    error["innerError"] = {
        "date": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "request-id": request_id,
        "client-request-id": client_request_id,
    }
    return {"error": error}


def key_credential(held: RegisteredCertificate, *, with_key: bool = False) -> dict[str, object]:
    """One key credential (Microsoft Graph, "keyCredential resource type").

    `customKeyIdentifier` is what the service fills in by itself, the SHA-1 thumbprint in 40 characters of hex. Other
    programs write base64 of it there: the property identifies nothing for certain.

    Args:
        with_key: include the certificate, as Graph does if ``$select`` names the credentials.
    """
    return {
        "customKeyIdentifier": held.thumbprints["x5t"].hex().upper(),
        "displayName": held.display_name,
        "endDateTime": held.certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "key": base64.b64encode(held.certificate.public_bytes(Encoding.DER)).decode("ascii") if with_key else None,
        "keyId": held.key_id,
        "startDateTime": held.certificate.not_valid_before_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "type": "AsymmetricX509Cert",
        "usage": "Verify",
    }


def directory_object(holder: DirectoryObject, names: Collection[str], *, with_keys: bool) -> dict[str, object]:
    """The properties `names` of an application or a service principal.

    Args:
        with_keys: include the certificates.
    """
    document = {
        "id": holder.id,
        "appId": holder.app_id,
        "displayName": holder.display_name,
        "keyCredentials": [key_credential(held, with_key=with_keys) for held in holder.credentials],
    }
    return {name: value for name, value in document.items() if name in names}
