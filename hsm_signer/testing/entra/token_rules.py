"""What Entra's token endpoint accepts, as one pure function: `check_token_request`.

The rules are Microsoft's for the client credentials flow with a certificate. Numbers, errors and wording are those seen
in the service's answers. The order is tenant, form, application, assertion, scope: a client that is not authenticated
learns nothing about scopes. `assertion_rules` has the rules for the assertion.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from hsm_signer.testing.entra.assertion_rules import check_assertion
from hsm_signer.testing.entra.directory import (
    ADFS,
    Applications,
    Directory,
    EntraRefusal,
    RequestRefused,
    invalid_client,
    invalid_request,
    missing_field,
)
from hsm_signer.testing.entra.strict_jwt import Malformed

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
"""RFC 7523 section 2.2."""

MANY_TENANTS: Final = frozenset({"common", "organizations", "consumers"})
"""Names that are not one tenant. An application cannot use them."""

WELL_KNOWN_RESOURCES: Final = (
    "https://graph.microsoft.com",
    "https://vault.azure.net",
    "https://management.azure.com",
    "https://management.core.windows.net",  # its older name, which az asks for
    "https://storage.azure.com",
    "https://database.windows.net",
    "https://ossrdbms-aad.database.windows.net",  # Azure Database for PostgreSQL and MySQL
    "https://cognitiveservices.azure.com",
    "6dae42f8-4368-4678-94ff-3960e28e3630",  # AKS
    "499b84ac-1321-427f-aa17-267ca6975798",  # Azure DevOps
)
"""Application ID URIs, or client IDs, of the APIs for which tokens can always be requested."""

# MSAL for Go and for Java append these to every token request. They are for a user's sign-in, and Entra ignores them in
# an application's request.
_IGNORED_SCOPES = {"openid", "offline_access", "profile"}
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_CREDENTIALS = {"client_assertion", "client_secret"}


class TokenForm(Mapping[str, str]):
    """The form of a token request. Its repr shows everything but the credential.

    Args:
        pairs: name and value in the order received.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]] = ()) -> None:
        self._values = dict(pairs)
        self.repeated = sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)

    @classmethod
    def parse(cls, body: bytes) -> "TokenForm":
        """Read an ``application/x-www-form-urlencoded`` body. A parameter without a value is empty."""
        return cls(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shown = {name: "***" if name in _CREDENTIALS else value for name, value in self._values.items()}
        return f"TokenForm({shown})"


@dataclass(frozen=True)
class Accepted:
    """A valid request for a token for `resource`."""

    client_id: str
    resource: str
    jti: str


def check_token_request(form: TokenForm, directory: Directory, now: float) -> Accepted | EntraRefusal:
    """Decide on a token request (RFC 6749 section 4.4, authenticated as in RFC 7523 section 2.2).

    Args:
        form: of the request.
        directory: the state of Entra.
        now: the time, in seconds since the epoch.
    """
    try:
        applications = _check_tenant(directory)
        _check_grant(form)
        client_id, scope = _parameter(form, "client_id"), form.get("scope")
        if not scope:
            raise missing_field("scope")
        if client_id not in applications:
            raise _unknown_application(client_id, directory.tenant)
        jti = check_assertion(_assertion(form), client_id, applications[client_id], directory, now)
        return Accepted(client_id, _check_resource(scope, directory), jti)
    except RequestRefused as refused:
        return refused.refusal
    except Malformed as malformed:
        return EntraRefusal(50027, "invalid_request", f"JWT token is invalid or malformed: {malformed}.")


def _check_tenant(directory: Directory) -> Applications:
    tenant = directory.tenant
    if directory.applications is not None:
        return directory.applications
    if tenant in MANY_TENANTS:
        raise invalid_request(
            50059,
            "No tenant-identifying information found in either the request or implied by any provided credentials.",
        )
    if tenant != ADFS and "." not in tenant and not _GUID.fullmatch(tenant):
        raise invalid_request(
            900023,
            f"Specified tenant identifier '{tenant}' is neither a valid DNS name, nor a valid external domain.",
        )
    raise unknown_tenant(tenant)


def unknown_tenant(tenant: str) -> RequestRefused:
    """Return the error for a tenant that does not exist."""
    return invalid_request(
        90002,
        f"Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID and are signing into the "
        "correct cloud. Check with your subscription administrator, this may happen if there are no active "
        "subscriptions for the tenant.",
    )


def unknown_instance() -> EntraRefusal:
    """Return the error for a host that is not Entra's."""
    return EntraRefusal(50049, "invalid_instance", "Unknown or invalid instance.")


def _unknown_application(client_id: str, tenant: str) -> RequestRefused:
    message = (
        f"Application with identifier '{client_id}' was not found in the directory '{tenant}'. This can happen if the "
        "application has not been installed by the administrator of the tenant or consented to by any user in the "
        "tenant. You may have sent your authentication request to the wrong tenant."
    )
    return RequestRefused(EntraRefusal(700016, "unauthorized_client", message))


def _check_grant(form: TokenForm) -> None:
    if form.repeated:  # RFC 6749 section 3.2: parameters must not be included more than once
        raise invalid_request(90013, f"Invalid input: the parameter '{form.repeated[0]}' is included more than once.")
    grant_type = _parameter(form, "grant_type")
    if grant_type != "client_credentials":
        message = f"The app requested an unsupported grant type '{grant_type}'."
        raise RequestRefused(EntraRefusal(70003, "unsupported_grant_type", message))


def _parameter(form: TokenForm, name: str) -> str:
    if value := form.get(name):
        return value
    raise invalid_request(900144, f"The request body must contain the following parameter: '{name}'.")


def _assertion(form: TokenForm) -> str:
    if form.get("client_secret"):
        raise invalid_client(7000215, "Invalid client secret provided.")
    if not form.get("client_assertion"):
        raise invalid_client(
            7000216,
            "'client_assertion', 'client_secret' or 'request' is required for the 'client_credentials' grant type.",
        )
    if _parameter(form, "client_assertion_type") != ASSERTION_TYPE:
        raise invalid_request(90011, f"Unexpected client assertion type, it must be '{ASSERTION_TYPE}'.")
    return form["client_assertion"]


def _check_resource(scope: str, directory: Directory) -> str:
    scopes = [name for name in scope.split(" ") if name not in _IGNORED_SCOPES]
    for name in scopes or [scope]:
        if not name.removesuffix("/.default") or not name.endswith("/.default"):
            message = (
                f"The provided value for scope {name} is not valid. Client credential flows must have a scope value "
                "with /.default suffixed to the resource identifier (application ID URI)."
            )
            raise RequestRefused(EntraRefusal(1002012, "invalid_scope", message))
    if len(scopes) > 1:
        message = (
            "The provided value for the input parameter 'scope' isn't valid. "
            f"The scope {scope} isn't valid: it names more than one resource."
        )
        raise RequestRefused(EntraRefusal(70011, "invalid_scope", message))
    resource = scopes[0].removesuffix("/.default")
    # "https://management.azure.com//.default" is valid, too: the URI of that resource may end in a slash.
    if resource.removesuffix("/") not in directory.resources:
        message = (
            f"The resource principal named {resource} was not found in the tenant named {directory.tenant}. This can "
            "happen if the application has not been installed by the administrator of the tenant or consented to by "
            "any user in the tenant. You might have sent your authentication request to the wrong tenant."
        )
        raise RequestRefused(EntraRefusal(500011, "invalid_resource", message))
    return resource
