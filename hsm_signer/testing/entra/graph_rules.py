"""What Microsoft Graph accepts when an application replaces its keys, as pure functions.

The rules are those of the pages "application: addKey", "removeKey" and "keyCredential resource type". The pages name no
errors. Public reports show the service's code and wording for a missing object, for an end date that has
passed and for a lifetime beyond the policy (of a password). The other codes follow their pattern, and are unverified.

- An application needs no permission to replace its own keys, and has no other here: other objects are refused.
- The body has the documented members and no others. The only optional member of a credential is `displayName`;
  identifiers and dates come from the certificate.
- An application may remove its last valid certificate, and lock itself out.
"""

import base64
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey

from hsm_signer.testing.entra.directory import DirectoryObject, GraphRefusal, Kind, RegisteredCertificate
from hsm_signer.testing.entra.proof_rules import GraphRefused, check_proof
from hsm_signer.testing.entra.strict_jwt import Malformed, json_object

RESOURCE: Final = "https://graph.microsoft.com"
"""The audience of tokens for Graph."""

PROPERTIES: Final = ("id", "appId", "displayName", "keyCredentials")
"""The properties of an application or a service principal that the emulator has."""

_PATH = re.compile(
    r"/v1\.0/(?P<kind>applications|servicePrincipals)(?:/(?P<id>[\w-]+)|\(appId='(?P<app_id>[\w-]+)'\))"
    r"(?:/(?P<action>addKey|removeKey))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Caller:
    """The application that an access token was issued for."""

    tenant: str
    app_id: str


@dataclass(frozen=True)
class Target:
    """A path: an object by its ID or by its client ID, and what to do with its keys.

    Args:
        action: ``addKey`` or ``removeKey``, or None to read.
    """

    kind: Kind
    id: str | None
    app_id: str | None
    action: str | None

    @classmethod
    def parse(cls, path: str) -> "Target":
        """Read a path. Raises GraphRefused if the emulated part of Graph does not have it."""
        found = _PATH.fullmatch(path)
        if found is None:
            raise refused("BadRequest", f"Resource not found for the segment '{path.rpartition('/')[2]}'.")
        return cls(Kind(found["kind"]), found["id"], found["app_id"], found["action"])

    def find(self, objects: Sequence[DirectoryObject], caller: Caller) -> DirectoryObject:
        """Return the object of a tenant that the path names. It must be the caller's own."""
        for candidate in objects:
            if candidate.kind is self.kind and (candidate.id == self.id or candidate.app_id == self.app_id):
                if candidate.app_id != caller.app_id:
                    raise forbidden()
                return candidate
        raise _not_found(self.id or self.app_id or "")


@dataclass(frozen=True)
class Policy:
    """A tenant's requirements for new certificates (keyCredentialConfiguration resource type).

    Args:
        max_lifetime: the restriction ``asymmetricKeyLifetime``, or None.
        authority: the restriction ``trustedCertificateAuthority``: the CA that must have issued them, or None.
    """

    max_lifetime: timedelta | None = None
    authority: x509.Certificate | None = None

    def check(self, certificate: x509.Certificate) -> None:
        """Raise GraphRefused if the certificate must not be added."""
        lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        if self.max_lifetime is not None and lifetime > self.max_lifetime:
            message = f"Credential lifetime exceeds the max value allowed as per assigned policy '{_POLICY_ID}'."
            raise refused("CredentialInvalidLifetimeAsPerAppPolicy", message, message, "EndDate")
        if self.authority is not None:
            try:
                certificate.verify_directly_issued_by(self.authority)
            except (TypeError, ValueError, InvalidSignature):
                message = f"Credential issuer is not a trusted authority as per assigned policy '{_POLICY_ID}'."
                raise refused("CredentialIssuerNotAllowedAsPerAppPolicy", message, message, "key") from None


_POLICY_ID = str(uuid.uuid5(uuid.NAMESPACE_URL, "appManagementPolicy"))


def refused(code: str, message: str, reason: str | None = None, target: str | None = None) -> GraphRefused:
    """Return the error for an invalid request: status 400."""
    return GraphRefused(GraphRefusal(code, message, 400, reason, target))


def forbidden() -> GraphRefused:
    """Return the error for a caller that may not do this."""
    message = "Insufficient privileges to complete the operation."
    return GraphRefused(GraphRefusal("Authorization_RequestDenied", message, 403))


def check_caller(authorization: str, signing_key: RSAKey, now: float) -> Caller:
    """Return the application that the access token in the ``Authorization`` header was issued for.

    Args:
        signing_key: the key with which the token endpoint signs.

    Raises:
        GraphRefused: there is no token, or it is not for Graph, is not valid now, or is by another token endpoint.
    """
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise _unauthorized("Access token is empty.")
    try:
        claims = jwt.decode(token, signing_key, algorithms=["RS256"]).claims
    except (JoseError, ValueError):
        raise _unauthorized("Access token validation failure. Invalid signature.") from None
    if claims["aud"] != RESOURCE:
        raise _unauthorized("Access token validation failure. Invalid audience.")
    if not claims["nbf"] <= now < claims["exp"]:
        raise _unauthorized("Lifetime validation failed, the token is expired.")
    return Caller(claims["tid"], claims["azp"])


def check_add_key(body: bytes, holder: DirectoryObject, policy: Policy, now: float) -> RegisteredCertificate:
    """Return the certificate that a request to addKey adds to `holder`.

    Raises:
        GraphRefused: it must not be added.
    """
    document = _members(_json(body), "the body", {"keyCredential", "passwordCredential", "proof"})
    credential = document["keyCredential"]
    if not isinstance(credential, dict):
        raise _invalid("keyCredential", "it is not an object")
    _members(credential, "keyCredential", {"type", "usage", "key"}, {"displayName"})
    if document["passwordCredential"] is not None:
        raise _invalid("passwordCredential", "it must be null, except for keys with a password")
    for member, value in (("type", "AsymmetricX509Cert"), ("usage", "Verify")):
        if credential[member] != value:
            raise _invalid(member, f"it is not '{value}'")
    check_proof(_string(document, "proof"), holder, now)
    display_name = _string(credential, "displayName") if "displayName" in credential else None
    added = _certificate(_string(credential, "key"), display_name)
    if now > added.certificate.not_valid_after_utc.timestamp():
        raise refused("KeyCredentialsInvalidEndDate", "Key credential end date is invalid.")
    if now < added.certificate.not_valid_before_utc.timestamp():
        raise refused("KeyCredentialsInvalidStartDate", "Key credential start date is invalid.")
    if any(held.certificate == added.certificate for held in holder.credentials):
        message = "Another object with the same value for property keyCredentials already exists."
        raise refused("Request_MultipleObjectsWithSameKeyValue", message)
    policy.check(added.certificate)
    return added


def check_remove_key(body: bytes, holder: DirectoryObject, now: float) -> RegisteredCertificate:
    """Return the certificate that a request to removeKey removes from `holder`.

    Raises:
        GraphRefused: there is no such certificate, or it may not be removed.
    """
    document = _members(_json(body), "the body", {"keyId", "proof"})
    key_id = _string(document, "keyId")
    check_proof(_string(document, "proof"), holder, now)
    for held in holder.credentials:
        if held.key_id == key_id.lower():
            return held
    raise _not_found(key_id)


def check_select(select: str | None, kind: Kind) -> tuple[str, ...]:
    """Return the properties that ``$select`` asks for (OData 4.01 part 2, section 5.1.3); all if there is none.

    Raises:
        GraphRefused: one of them is unknown.
    """
    if select is None:
        return PROPERTIES
    names = tuple(name.strip() for name in select.split(","))
    for name in names:
        if name not in PROPERTIES:
            resource = f"microsoft.graph.{kind.removesuffix('s')}"
            message = f"Could not find a property named '{name}' on type '{resource}'."
            raise refused("BadRequest", f"Parsing OData Select and Expand failed: {message}")
    return names


def _json(body: bytes) -> dict[str, object]:
    try:
        return json_object(body, "the body")
    except Malformed as malformed:
        message = (
            "Unable to read JSON request payload. Please ensure Content-Type header is set and payload is of valid "
            "JSON format."
        )
        raise refused("BadRequest", message, f"The payload is refused: {malformed}.", "body") from None


def _members(
    document: dict[str, object], what: str, required: set[str], optional: frozenset[str] | set[str] = frozenset()
) -> dict[str, object]:
    if missing := sorted(required - document.keys()):
        raise refused("Request_BadRequest", f"A value is required for '{missing[0]}' in {what}.", target=missing[0])
    if unknown := sorted(document.keys() - required - optional):
        raise refused("Request_BadRequest", f"There is no '{unknown[0]}' in {what}.", target=unknown[0])
    return document


def _string(document: Mapping[str, object], name: str) -> str:
    value = document[name]
    if not isinstance(value, str):
        raise _invalid(name, "it is not a string")
    return value


def _certificate(key: str, display_name: str | None) -> RegisteredCertificate:
    try:
        der = base64.b64decode(key, validate=True)
        certificate = x509.load_der_x509_certificate(der)
        public_key = certificate.public_key()
    except ValueError:
        raise _invalid("key", "it is not standard base64 of a certificate's DER") from None
    if not isinstance(public_key, rsa.RSAPublicKey) or public_key.key_size < 2048:
        raise _invalid("key", "its key is not RSA of 2048 bits or more")
    return RegisteredCertificate(certificate, public_key, display_name)


def _invalid(name: str, reason: str) -> GraphRefused:
    message = f"Invalid value specified for property '{name}' of resource 'KeyCredential'."
    return refused("Request_BadRequest", message, f"'{name}': {reason}.", name)


def _not_found(name: str) -> GraphRefused:
    message = f"Resource '{name}' does not exist or one of its queried reference-property objects are not present."
    return GraphRefused(GraphRefusal("Request_ResourceNotFound", message, 404))


def _unauthorized(message: str) -> GraphRefused:
    return GraphRefused(GraphRefusal("InvalidAuthenticationToken", message, 401))
