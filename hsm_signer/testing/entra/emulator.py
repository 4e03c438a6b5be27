"""`EntraEmulator`: a stand-in for Microsoft Entra ID that gives and refuses tokens as Entra does, on this machine only.

    with EntraEmulator() as entra:
        entra.register(client_id, certificate_pem, tenant=tenant)
        trust = ssl.create_default_context(cafile=entra.ca_file)
        response = httpx.post(entra.token_endpoint(tenant), data=form, verify=trust)

`entra_rules` decides, `answers` misbehaves on request, `loopback` serves; here they meet. `graph` does the same for
Microsoft Graph. Nothing is shared with the code that builds assertions.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from joserfc import jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hsm_signer.errors import ConfigError
from hsm_signer.testing.entra.answers import Answer, NoAccessToken, Refused, Script, Throttled, Unavailable
from hsm_signer.testing.entra.directory import ADFS, Directory, EntraRefusal, Kind, RegisteredCertificate, object_id
from hsm_signer.testing.entra.documents import (
    access_token_claims,
    error_document,
    instance_discovery,
    openid_configuration,
)
from hsm_signer.testing.entra.graph import Graph, GraphAnswer, GraphRequest
from hsm_signer.testing.entra.graph_rules import Policy
from hsm_signer.testing.entra.loopback import require_loopback
from hsm_signer.testing.entra.registrations import Delay, Registrations
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
    """A request to a token endpoint, as received.

    Args:
        tenant: from the path.
        form: what was posted; its repr leaves the credential out.
        headers: by name in lower case.
        status: what was answered; None until then, and where the connection was broken off.
    """

    tenant: str
    form: TokenForm
    headers: Mapping[str, str] = field(repr=False)
    status: int | None = None


class EntraEmulator:
    """Emulate Entra's token endpoint, OpenID configuration and signing keys, and Graph's roll-over of keys, strictly.

    Register applications with their certificates, then point a client at `authority`. Tokens verify with any JWT
    library through the published keys; their issuer is this machine, so no service of Microsoft's takes them.
    Applications may be registered before the start, and outlast a stop.

    Args:
        https: serve https with a CA of its own, see `ca_file`; else plain http.
        host: a loopback address.
        port: 0 for any that is free.
        clock: the time in seconds since the epoch: for assertions, tokens and the Date header.
        refuse_replay: refuse an assertion whose `jti` has earned a token before.
        token_lifetime: seconds an access token is good for.
        refresh_in: seconds after which the answer asks for a refresh, or None not to ask.
        forbid_listing: have Graph refuse to tell an application what it holds.

    Raises:
        ConfigError: `host` is not a loopback address.
    """

    def __init__(
        self,
        *,
        https: bool = True,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.time,
        refuse_replay: bool = False,
        token_lifetime: int = 3599,
        refresh_in: int | None = None,
        forbid_listing: bool = False,
    ) -> None:
        require_loopback(host)
        self.requests: list[TokenRequest] = []
        self._https, self._host, self._port = https, host, port
        self._clock = clock
        self._refuse_replay = refuse_replay
        self._lifetimes = {"expires_in": token_lifetime, "ext_expires_in": token_lifetime}
        if refresh_in is not None:
            self._lifetimes["refresh_in"] = refresh_in
        self._registrations = Registrations(clock)
        self._resources = set(WELL_KNOWN_RESOURCES)
        self._spent: set[tuple[str, str]] = set()
        self._script: Script[Throttled | Unavailable | NoAccessToken | Refused] = Script()
        self._graph = Graph(self._registrations, clock, lambda: self._run, forbid_listing=forbid_listing)
        self._running: Running | None = None

    def register(self, client_id: str, certificate: bytes, *, tenant: str, service_principal: bool = False) -> None:
        """Register an application with a certificate, or add one to those it has. The tenant need not exist.

        Args:
            certificate: PEM or DER, of an RSA key.
            service_principal: let the application's service principal hold the certificate.

        Raises:
            ConfigError: the certificate cannot be read or is not RSA, or `tenant` names no single tenant.
        """
        self._registrations.register(
            tenant, client_id, _kind(service_principal), RegisteredCertificate.load(certificate)
        )

    def key_credentials(
        self, client_id: str, *, tenant: str, service_principal: bool = False
    ) -> tuple[RegisteredCertificate, ...]:
        """Return the certificates that an application, or its service principal, holds in Graph's eyes."""
        return self._registrations.credentials(tenant, client_id, _kind(service_principal))

    def object_id(self, client_id: str, *, tenant: str) -> str:
        """Return the application's object id. It follows from tenant and client id, whoever is registered."""
        return object_id(Kind.APPLICATION, tenant, client_id)

    def service_principal_id(self, client_id: str, *, tenant: str) -> str:
        """Return the object id of the application's service principal: the `oid` of its tokens."""
        return object_id(Kind.SERVICE_PRINCIPAL, tenant, client_id)

    def add_resource(self, resource: str) -> None:
        """Let tokens be asked for `resource`, an application ID URI, beside the well-known ones."""
        self._resources.add(resource.removesuffix("/"))

    def answer_next(self, *answers: Answer) -> None:
        """Answer the next token requests so, one answer a request, before ordinary service resumes."""
        self._script.extend(answers)

    def answer_next_graph(self, *answers: GraphAnswer) -> None:
        """Answer the next requests to Graph so, as `answer_next` does for token requests."""
        self._graph.script.extend(answers)

    def delay_propagation(self, *, token_requests: int = 0, seconds: float = 0) -> None:
        """Keep what Graph changes from now on from the token endpoint, until both have passed.

        Meanwhile a new certificate is not known there, and a removed one still is.

        Args:
            token_requests: so many of them see the state before the change.
            seconds: on the emulator's clock.
        """
        self._registrations.delay = Delay(token_requests, seconds)

    def restrict_certificates(self, *, max_lifetime: timedelta | None = None, issuer: bytes | None = None) -> None:
        """Have Graph refuse new certificates as a tenant's app management policy does; without arguments, none.

        Args:
            max_lifetime: from the certificate's first second to its last.
            issuer: certificate of the only authority that is trusted, PEM or DER, of an RSA key.

        Raises:
            ConfigError: the issuer's certificate cannot be read or is not RSA.
        """
        authority = None if issuer is None else RegisteredCertificate.load(issuer).certificate
        self._graph.policy = Policy(max_lifetime, authority)

    @property
    def graph_requests(self) -> list[GraphRequest]:
        """The requests to Graph, as received."""
        return self._graph.requests

    @property
    def graph(self) -> str:
        """URL of Microsoft Graph, without a slash at the end: its paths begin with ``/v1.0``."""
        return self.authority

    @property
    def authority(self) -> str:
        """URL of the authority host, without a slash at the end. ConfigError unless the emulator is running."""
        return self._run.server.authority

    @property
    def ca_file(self) -> Path | None:
        """PEM file of the CA to trust, there while the emulator is running, or None for plain http."""
        return self._run.ca_file

    def token_endpoint(self, tenant: str) -> str:
        """URL to post token requests to, and the audience of assertions. AD FS is the tenant ``adfs``."""
        path = "oauth2/token" if tenant == ADFS else "oauth2/v2.0/token"
        return f"{self.authority}/{tenant}/{path}"

    def start(self) -> None:
        """Make the keys and begin to answer.

        Raises:
            ConfigError: it is running already, or the port is not to be had.
        """
        if self._running is not None:
            raise ConfigError(
                f"The emulator is running already, at {self.authority}.", hint="Use it, or make another EntraEmulator."
            )
        application = Starlette(
            routes=[
                self._graph.route,
                Route("/adfs/oauth2/token", self._token, methods=["GET", "POST"]),
                Route("/{tenant}/oauth2/v2.0/token", self._token, methods=["GET", "POST"]),
                Route("/common/discovery/instance", self._instance_discovery),
                Route("/adfs/.well-known/openid-configuration", self._openid_configuration),
                Route("/{tenant}/v2.0/.well-known/openid-configuration", self._openid_configuration),
                Route("/{tenant}/discovery/v2.0/keys", self._keys),
            ]
        )
        self._running = Running.prepare(application, https=self._https, host=self._host, port=self._port)
        self._running.server.start()

    def stop(self) -> None:
        """End at once, whatever is being answered. Stopping twice does nothing."""
        if self._running is not None:
            self._running.stop()
            self._running = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _run(self) -> Running:
        if self._running is None:
            raise ConfigError("The emulator is not running.", hint="Use it as a context manager, or call start().")
        return self._running

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
                    return self._answer({"token_type": "Bearer", **self._lifetimes})

        return await self._script.answer(received, ordinary, document, self._run.server.stopping)

    def _directory(self, tenant: str) -> Directory:
        return Directory(
            tenant=tenant,
            token_endpoint=self.token_endpoint(tenant),
            applications=self._registrations.look_up(tenant),
            resources=self._resources,
            spent=self._spent,
        )

    def _issue(self, accepted: Accepted, tenant: str) -> Response:
        if self._refuse_replay:
            self._spent.add((accepted.client_id, accepted.jti))
        lifetime = self._lifetimes["expires_in"]
        claims = access_token_claims(
            self.authority, tenant, accepted.client_id, accepted.resource, lifetime, self._clock()
        )
        key = self._run.signing_key
        token = jwt.encode({"alg": "RS256", "kid": key.kid}, claims, key, algorithms=["RS256"])
        return self._answer({"token_type": "Bearer", **self._lifetimes, "access_token": token})

    def _refuse(self, refusal: EntraRefusal, request: Request) -> Response:
        correlation_id = request.headers.get("client-request-id")
        response = self._answer(error_document(refusal, self.authority, correlation_id, self._clock()), refusal.status)
        if refusal.retry_after is not None:
            response.headers["Retry-After"] = refusal.retry_after
        return response

    async def _instance_discovery(self, request: Request) -> Response:
        match = _AUTHORIZATION_ENDPOINT.match(request.query_params.get("authorization_endpoint", ""))
        # A client may reach the emulator by another name, which /etc/hosts gives it.
        if match is None or match["host"] not in (urlsplit(self.authority).hostname, request.url.hostname):
            return self._refuse(unknown_instance(), request)
        return self._answer(instance_discovery(self.authority, match["host"], match["tenant"]))

    async def _openid_configuration(self, request: Request) -> Response:
        tenant = request.path_params.get("tenant", ADFS)
        if tenant not in self._registrations and tenant not in MANY_TENANTS:
            return self._refuse(replace(unknown_tenant(tenant).refusal, error="invalid_tenant"), request)
        return self._answer(openid_configuration(self.authority, tenant, self.token_endpoint(tenant)))

    async def _keys(self, request: Request) -> Response:
        return self._answer({"keys": [self._run.signing_key.as_dict(private=False)]})

    def _answer(self, document: Mapping[str, object], status: int = 200) -> Response:
        # RFC 6749 section 5.1 wants no-store; the Date is the emulator's, so that a client can compare clocks.
        headers = {"Cache-Control": "no-store", "Pragma": "no-cache", "Date": formatdate(self._clock(), usegmt=True)}
        return JSONResponse(document, status, headers)


def _kind(service_principal: bool) -> Kind:
    return Kind.SERVICE_PRINCIPAL if service_principal else Kind.APPLICATION
