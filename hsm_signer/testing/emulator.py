"""`EntraEmulator`: a stand-in for Microsoft Entra ID that gives and refuses tokens as Entra does, on this machine only.

    with EntraEmulator() as entra:
        entra.register(client_id, certificate_pem, tenant=tenant)
        trust = ssl.create_default_context(cafile=entra.ca_file)
        response = httpx.post(entra.token_endpoint(tenant), data=form, verify=trust)

`entra_rules` decides, `answers` misbehaves on request, `loopback` serves; here they meet. Nothing is shared with the
code that builds assertions.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Final, Self

import trustme
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hsm_signer.errors import ConfigError
from hsm_signer.testing.answers import Answer, Disconnected, play
from hsm_signer.testing.directory import ADFS, Directory, EntraRefusal, RegisteredCertificate
from hsm_signer.testing.documents import access_token_claims, error_document, openid_configuration
from hsm_signer.testing.entra_rules import MANY_TENANTS, Accepted, TokenForm, check_token_request, unknown_tenant
from hsm_signer.testing.loopback import LoopbackServer, require_loopback

WELL_KNOWN_RESOURCES: Final = (
    "https://graph.microsoft.com",
    "https://vault.azure.net",
    "https://management.azure.com",
    "https://storage.azure.com",
    "https://database.windows.net",
)


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
    """Emulate Entra's token endpoint, OpenID configuration and signing keys, strictly.

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
    ) -> None:
        require_loopback(host)
        self.requests: list[TokenRequest] = []
        self._https, self._host, self._port = https, host, port
        self._clock = clock
        self._refuse_replay = refuse_replay
        self._lifetimes = {"expires_in": token_lifetime, "ext_expires_in": token_lifetime}
        if refresh_in is not None:
            self._lifetimes["refresh_in"] = refresh_in
        self._tenants: dict[str, dict[str, tuple[RegisteredCertificate, ...]]] = {}
        self._resources = set(WELL_KNOWN_RESOURCES)
        self._spent: set[tuple[str, str]] = set()
        self._answers: deque[Answer] = deque()
        self._running: _Running | None = None

    def register(self, client_id: str, certificate: bytes, *, tenant: str) -> None:
        """Register an application with a certificate, or add one to those it has. The tenant need not exist.

        Args:
            certificate: PEM or DER, of an RSA key.

        Raises:
            ConfigError: the certificate cannot be read or is not RSA, or `tenant` names no single tenant.
        """
        if tenant in MANY_TENANTS or not tenant.replace("-", "").replace(".", "").isalnum():
            raise ConfigError(
                f"'{tenant}' is not the name of one tenant.", hint="Use a GUID, a domain, or 'adfs' for AD FS."
            )
        registered = RegisteredCertificate.load(certificate)
        applications = self._tenants.setdefault(tenant, {})
        applications[client_id] = (*applications.get(client_id, ()), registered)

    def add_resource(self, resource: str) -> None:
        """Let tokens be asked for `resource`, an application ID URI, beside the well-known ones."""
        self._resources.add(resource.removesuffix("/"))

    def answer_next(self, *answers: Answer) -> None:
        """Answer the next token requests so, one answer a request, before ordinary service resumes."""
        self._answers.extend(answers)

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
            raise ConfigError(f"The emulator is running already, at {self.authority}.")
        application = Starlette(
            routes=[
                Route("/adfs/oauth2/token", self._token, methods=["GET", "POST"]),
                Route("/{tenant}/oauth2/v2.0/token", self._token, methods=["GET", "POST"]),
                Route("/{tenant}/v2.0/.well-known/openid-configuration", self._openid_configuration),
                Route("/{tenant}/discovery/v2.0/keys", self._keys),
            ]
        )
        with ExitStack() as undo:
            ca_file = certificate = None
            if self._https:
                directory = undo.enter_context(TemporaryDirectory(prefix="hsm-signer-emulator-"))
                ca_file, certificate = _make_certificates(Path(directory), self._host)
            signing_key = RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)
            server = LoopbackServer(application, host=self._host, port=self._port, certificate=certificate)
            self._running = _Running(server, signing_key, ca_file, undo.pop_all())
            server.start()

    def stop(self) -> None:
        """End at once, whatever is being answered. Stopping twice does nothing."""
        if self._running is not None:
            self._running.server.stop()
            self._running.files.close()
            self._running = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _run(self) -> "_Running":
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

        if not self._answers:
            response = ordinary()
        else:
            answer = self._answers.popleft()
            response = await play(answer, ordinary, refuse, self._run.server.stopping)
            if isinstance(answer, Disconnected):
                return response
        received.status = response.status_code
        return response

    def _directory(self, tenant: str) -> Directory:
        return Directory(
            tenant=tenant,
            token_endpoint=self.token_endpoint(tenant),
            applications=self._tenants.get(tenant),
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
        return self._answer(error_document(refusal, self.authority, correlation_id, self._clock()), refusal.status)

    async def _openid_configuration(self, request: Request) -> Response:
        tenant = request.path_params["tenant"]
        if tenant not in self._tenants:
            return self._refuse(replace(unknown_tenant(tenant).refusal, error="invalid_tenant"), request)
        return self._answer(openid_configuration(self.authority, tenant, self.token_endpoint(tenant)))

    async def _keys(self, request: Request) -> Response:
        return self._answer({"keys": [self._run.signing_key.as_dict(private=False)]})

    def _answer(self, document: Mapping[str, object], status: int = 200) -> Response:
        # RFC 6749 section 5.1 wants no-store; the Date is the emulator's, so that a client can compare clocks.
        headers = {"Cache-Control": "no-store", "Pragma": "no-cache", "Date": formatdate(self._clock(), usegmt=True)}
        return JSONResponse(document, status, headers)


@dataclass(frozen=True)
class _Running:
    """What exists only between start and stop."""

    server: LoopbackServer
    signing_key: RSAKey
    ca_file: Path | None
    files: ExitStack


def _make_certificates(directory: Path, host: str) -> tuple[Path, Path]:
    """Return the CA's file, and the file of the server's key and chain."""
    ca = trustme.CA()
    ca_file, certificate = directory / "ca.pem", directory / "server.pem"
    ca.cert_pem.write_to_path(ca_file)
    ca.issue_cert(host).private_key_and_cert_chain_pem.write_to_path(certificate)
    return ca_file, certificate
