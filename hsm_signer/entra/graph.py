"""List, add and remove the key credentials of an application through Microsoft Graph.

To call addKey and removeKey on itself, an application needs no permission, but a proof that it has a registered key.
https://learn.microsoft.com/graph/api/application-addkey
"""

import base64
import binascii
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from hsm_signer.entra.graph_service import GraphService
from hsm_signer.entra.redaction import identifier, printable, without_tokens
from hsm_signer.errors import EntraError, NetworkError
from hsm_signer.system.secret import Secret
from hsm_signer.x509.certificate import Certificate

if TYPE_CHECKING:
    from hsm_signer.entra.http import HttpClient
    from hsm_signer.entra.http_answer import HttpResponse


class Holder(StrEnum):
    """The kind of object that has the key credentials, as named in Graph's URLs."""

    APPLICATION = "applications"
    SERVICE_PRINCIPAL = "servicePrincipals"


@dataclass(frozen=True)
class KeyCredential:
    """A registered certificate.

    Attributes:
        key_id: a GUID, needed to remove the certificate.
        thumbprint: its ``customKeyIdentifier``: the SHA-1 thumbprint, unless somebody chose another value.
        certificate: DER; empty if Graph does not return it.
    """

    key_id: str
    thumbprint: bytes
    certificate: bytes


@dataclass(frozen=True)
class Registration:
    """The credentials of an application or service principal in Graph.

    Attributes:
        object_id: its ID in the directory, which is not the client ID.
        credentials: its certificates.
    """

    object_id: str
    credentials: tuple[KeyCredential, ...]

    @property
    def key_ids(self) -> frozenset[str]:
        """The IDs of all credentials."""
        return frozenset(credential.key_id for credential in self.credentials)

    def find(self, certificate: Certificate) -> str | None:
        """Return the ID of the credential for a certificate, or None."""
        for credential in self.credentials:
            if certificate.der == credential.certificate or certificate.sha1 == credential.thumbprint:
                return credential.key_id
        return None


def demands_an_authority(error: EntraError) -> bool:
    """Return whether Graph refused a certificate because of its issuer."""
    return _is_from_policy(error.error or "") and "Lifetime" not in (error.error or "")


class Graph:
    """The key credentials of one application, or of its service principal.

    Args:
        service: the Graph of the application's cloud.
        client_id: application (client) ID.
        holder: the application or its service principal.
        http: sends the requests.
        token: returns an access token for Graph.
    """

    def __init__(
        self, service: GraphService, client_id: str, holder: Holder, http: "HttpClient", token: Callable[[], Secret]
    ) -> None:
        self._host = urlsplit(service.origin).netloc
        # Both kinds can be addressed by appId, so we do not need the object ID here.
        self._address = f"{service.origin}/v1.0/{holder}(appId='{quote(client_id, safe='')}')"
        self._http = http
        self._token = token

    def registration(self) -> Registration:
        """Return what is registered.

        Raises:
            EntraError: Graph refuses. It may do so if the application does not have Application.Read.All.
            NetworkError: Graph cannot be reached, or its answer is not usable.
        """
        document = self._document(self._http.get(f"{self._address}?$select=id,keyCredentials", self._headers()))
        object_id, entries = document.get("id"), document.get("keyCredentials")
        if not isinstance(object_id, str) or not isinstance(entries, list):
            raise self._unusable("has no id or no keyCredentials")
        return Registration(object_id, tuple(self._credential(entry) for entry in entries))

    def add_key(self, certificate: bytes, proof: Secret) -> KeyCredential:
        """Register one more certificate.

        Args:
            certificate: DER.
            proof: what `build_proof` returned, signed with a registered key.

        Raises:
            EntraError: Graph refuses the proof or the certificate.
            NetworkError: as `registration`. The certificate may be registered anyway.
        """
        encoded = base64.b64encode(certificate).decode("ascii")
        key = {"type": "AsymmetricX509Cert", "usage": "Verify", "key": encoded}
        body = {"keyCredential": key, "passwordCredential": None, "proof": proof}
        answer = self._http.post_json(f"{self._address}/addKey", body, self._headers())
        return self._credential(self._document(answer, proof))

    def remove_key(self, key_id: str, proof: Secret) -> None:
        """Remove a certificate.

        Args:
            key_id: ID of the key credential.
            proof: signed with a registered key, which may be the one to remove.

        Raises:
            EntraError: Graph refuses the proof, or there is no such credential.
            NetworkError: as `registration`. The certificate may be removed anyway.
        """
        body = {"keyId": key_id, "proof": proof}
        answer = self._http.post_json(f"{self._address}/removeKey", body, self._headers())
        if answer.status != 204:
            self._document(answer, proof)

    def _headers(self) -> dict[str, str | Secret]:
        bearer = Secret(f"Bearer {self._token().reveal()}")
        return {"Authorization": bearer, "client-request-id": str(uuid.uuid4())}

    def _document(self, response: "HttpResponse", *secrets: Secret) -> dict[str, Any]:
        document = _json_object(response.body)
        if document is not None and isinstance(document.get("error"), dict):
            raise self._refusal(document["error"], response.status, (self._token(), *secrets))
        if document is None or not 200 <= response.status < 300:
            raise self._unusable(f"is not a Graph document (status {response.status})")
        return document

    def _credential(self, entry: object) -> KeyCredential:
        fields = entry if isinstance(entry, dict) else {}
        if not isinstance(fields.get("keyId"), str):
            raise self._unusable("has a key credential without a keyId")
        return KeyCredential(
            fields["keyId"], _thumbprint(fields.get("customKeyIdentifier")), _binary(fields.get("key"))
        )

    def _refusal(self, error: Mapping[str, Any], status: int, secrets: tuple[Secret, ...]) -> EntraError:
        sent = [secret.reveal() for secret in secrets]
        code = printable(without_tokens(str(error.get("code") or "unknown"), *sent), 80)
        text = printable(without_tokens(str(error.get("message") or ""), *sent), 300)
        inner = error.get("innerError")
        request = identifier(inner.get("request-id")) if isinstance(inner, dict) else None
        return EntraError(
            f"{self._host} refused the request ({status} {code}){f': {text}' if text else '.'}",
            hint=_hint(code),
            error=code,
            correlation_id=request,
        )

    def _unusable(self, complaint: str) -> NetworkError:
        return NetworkError(
            f"The answer of {self._host} {complaint}.", hint="Check --graph, and whether a proxy answered instead."
        )


# https://learn.microsoft.com/graph/errors, and errors that addKey and removeKey really return.
_HINTS = {
    "Authentication_MissingOrMalformed": "Graph also returns this for a proof. Check that --object-id is the "
    "application's object ID, not its client ID, and that the signing key is registered and its certificate valid.",
    "InvalidAuthenticationToken": "Graph does not accept the token. Check --cloud and --graph.",
    "Authorization_RequestDenied": "An application may replace only its own keys. Check that --client-id is "
    "the application that got the token, and --object-id its object ID. Listing keys requires Application.Read.All.",
    "Request_ResourceNotFound": "There is no such application in this tenant. Check --tenant and --client-id; "
    "for keys of a service principal, add --service-principal.",
}


def _hint(code: str) -> str:
    # https://learn.microsoft.com/graph/api/resources/applicationauthenticationmethodpolicy
    if _is_from_policy(code):
        if "Lifetime" in code:
            return "A policy of this tenant limits the lifetime of certificates. Choose fewer --days."
        return "A policy of this tenant does not allow this certificate. It may require one from a trusted CA."
    return _HINTS.get(code, "Microsoft explains Graph's errors at https://learn.microsoft.com/graph/errors.")


def _is_from_policy(code: str) -> bool:
    return code.endswith("AsPerAppPolicy")


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _binary(value: object) -> bytes:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        return b""


def _thumbprint(value: object) -> bytes:
    """Return a ``customKeyIdentifier`` as bytes. Its type is Edm.Binary (base64), but some are hexadecimal."""
    if isinstance(value, str) and len(value) == 40:
        try:
            return bytes.fromhex(value)
        except ValueError:
            pass
    return _binary(value)
