"""`Authority`: the emulated token endpoint, and the documents by which clients find it and verify its tokens.

`token_rules` decides about a request. This module reads requests and sends answers.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from urllib.parse import urlsplit

from joserfc import jwt
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hsm_signer.testing.entra.answers import NoAccessToken, Refused, Script, Throttled, Unavailable
from hsm_signer.testing.entra.directory import ADFS, Directory, EntraRefusal
from hsm_signer.testing.entra.documents import (
    access_token_claims,
    error_document,
    instance_discovery,
    openid_configuration,
)
from hsm_signer.testing.entra.registrations import Registrations
from hsm_signer.testing.entra.request_log import note_error
from hsm_signer.testing.entra.running import Running
from hsm_signer.testing.entra.token_rules import (
    MANY_TENANTS,
    WELL_KNOWN_RESOURCES,
    Accepted,
    TokenForm,
    check_token_request,
    unknown_instance,
    unknown_tenant,
)

_AUTHORIZATION_ENDPOINT = re.compile(r"https?://\[?(?P<host>[^/\[\]@]+?)\]?(?::\d+)?/(?P<tenant>[\w.-]+)/")


@dataclass
class TokenRequest:
    """A request to a token endpoint, as it was received.

    Args:
        tenant: from the path.
        form: the form in the body. Its repr does not show the credential.
        headers: by name in lower case.
        status: of the answer. None before it, and if the connection was closed instead.
    """

    tenant: str
    form: TokenForm
    headers: Mapping[str, str] = field(repr=False)
    status: int | None = None


@dataclass(frozen=True)
class Lifetimes:
    """The lifetimes in a token response, in seconds.

    Args:
        token: how long the access token is valid.
        refresh_in: when to refresh it, or None to leave that out.
    """

    token: int
    refresh_in: int | None = None

    @property
    def fields(self) -> dict[str, int]:
        """The fields of the token response."""
        fields = {"expires_in": self.token, "ext_expires_in": self.token}
        return fields if self.refresh_in is None else {**fields, "refresh_in": self.refresh_in}


class Authority:
    """Serve Entra's token endpoints, OpenID configuration and signing keys.

    Args:
        registrations: which application holds which certificates.
        clock: the time in seconds since the epoch.
        running: the server and its keys, while requests come in.
        lifetimes: of access tokens.
        refuse_replay: refuse an assertion whose `jti` was used for a token before.

    Attributes:
        requests: the requests to a token endpoint, as received.
        resources: application ID URIs for which it issues tokens, without a slash at the end.
        script: the answers to the next token requests.
        routes: the paths that it serves.
    """

    def __init__(
        self,
        registrations: Registrations,
        clock: Callable[[], float],
        running: Callable[[], Running],
        *,
        lifetimes: Lifetimes,
        refuse_replay: bool,
    ) -> None:
        self.requests: list[TokenRequest] = []
        self.resources = set(WELL_KNOWN_RESOURCES)
        self.script: Script[Throttled | Unavailable | NoAccessToken | Refused] = Script()
        self.routes = [
            Route("/adfs/oauth2/token", self._token, methods=["GET", "POST"]),
            Route("/{tenant}/oauth2/v2.0/token", self._token, methods=["GET", "POST"]),
            Route("/common/discovery/instance", self._instance_discovery),
            Route("/adfs/.well-known/openid-configuration", self._openid_configuration),
            Route("/{tenant}/v2.0/.well-known/openid-configuration", self._openid_configuration),
            Route("/{tenant}/discovery/v2.0/keys", self._keys),
        ]
        self._registrations, self._clock, self._running = registrations, clock, running
        self._lifetimes, self._refuse_replay = lifetimes, refuse_replay
        self._spent: set[tuple[str, str]] = set()

    def token_endpoint(self, tenant: str) -> str:
        """Return the URL of a tenant's token endpoint."""
        path = "oauth2/token" if tenant == ADFS else "oauth2/v2.0/token"
        return f"{self._url}/{tenant}/{path}"

    @property
    def _url(self) -> str:
        return self._running().server.authority

    async def _token(self, request: Request) -> Response:
        tenant = request.path_params.get("tenant", ADFS)
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await request.body()
        form = TokenForm.parse(body) if content_type == "application/x-www-form-urlencoded" else TokenForm()
        received = TokenRequest(tenant, form, dict(request.headers))
        self.requests.append(received)

        def refuse(refusal: EntraRefusal) -> Response:
            return self._refuse(refusal, request)

        def ordinary() -> Response:
            if request.method != "POST":
                message = f"The endpoint only accepts POST requests. Received a {request.method} request."
                return refuse(EntraRefusal(900561, "invalid_request", message))
            outcome = check_token_request(form, self._directory(tenant), self._clock())
            return self._issue(outcome, tenant) if isinstance(outcome, Accepted) else refuse(outcome)

        def document(answer: Throttled | Unavailable | NoAccessToken | Refused) -> Response:
            match answer:
                case Throttled(retry_after):
                    message = "There are too many incoming requests."
                    return refuse(EntraRefusal(90055, "temporarily_unavailable", message, 429, retry_after))
                case Unavailable(retry_after):
                    message = "A transient error has occurred."
                    return refuse(EntraRefusal(90033, "temporarily_unavailable", message, 503, retry_after))
                case Refused(aadsts, error, description, status):
                    return refuse(EntraRefusal(aadsts, error, description, status))
                case NoAccessToken():
                    return self._answer({"token_type": "Bearer", **self._lifetimes.fields})

        return await self.script.answer(received, ordinary, document, self._running().server.stopping)

    def _directory(self, tenant: str) -> Directory:
        return Directory(
            tenant=tenant,
            token_endpoint=self.token_endpoint(tenant),
            applications=self._registrations.look_up(tenant),
            resources=self.resources,
            spent=self._spent,
        )

    def _issue(self, accepted: Accepted, tenant: str) -> Response:
        if self._refuse_replay:
            self._spent.add((accepted.client_id, accepted.jti))
        lifetime = self._lifetimes.token
        claims = access_token_claims(self._url, tenant, accepted.client_id, accepted.resource, lifetime, self._clock())
        key = self._running().signing_key
        token = jwt.encode({"alg": "RS256", "kid": key.kid}, claims, key, algorithms=["RS256"])
        return self._answer({"token_type": "Bearer", **self._lifetimes.fields, "access_token": token})

    def _refuse(self, refusal: EntraRefusal, request: Request) -> Response:
        note_error(request, f"AADSTS{refusal.aadsts}")
        correlation_id = request.headers.get("client-request-id")
        response = self._answer(error_document(refusal, self._url, correlation_id, self._clock()), refusal.status)
        if refusal.retry_after is not None:
            response.headers["Retry-After"] = refusal.retry_after
        return response

    async def _instance_discovery(self, request: Request) -> Response:
        match = _AUTHORIZATION_ENDPOINT.match(request.query_params.get("authorization_endpoint", ""))
        # A client may use another name of the emulator, from /etc/hosts.
        if match is None or match["host"] not in (urlsplit(self._url).hostname, request.url.hostname):
            return self._refuse(unknown_instance(), request)
        return self._answer(instance_discovery(self._url, match["host"], match["tenant"]))

    async def _openid_configuration(self, request: Request) -> Response:
        tenant = request.path_params.get("tenant", ADFS)
        if tenant not in self._registrations and tenant not in MANY_TENANTS:
            return self._refuse(replace(unknown_tenant(tenant).refusal, error="invalid_tenant"), request)
        return self._answer(openid_configuration(self._url, tenant, self.token_endpoint(tenant)))

    async def _keys(self, request: Request) -> Response:
        return self._answer({"keys": [self._running().signing_key.as_dict(private=False)]})

    def _answer(self, document: Mapping[str, object], status: int = 200) -> Response:
        # RFC 6749 section 5.1 requires no-store. The Date is the emulator's, so that a client can compare clocks.
        headers = {"Cache-Control": "no-store", "Pragma": "no-cache", "Date": formatdate(self._clock(), usegmt=True)}
        return JSONResponse(document, status, headers)
