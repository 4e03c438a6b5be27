"""`EntraEmulator`: a stand-in for Entra ID that issues and refuses tokens as Entra does, on this machine only.

    with EntraEmulator() as entra:
        entra.register(client_id, certificate_pem, tenant=tenant)
        trust = ssl.create_default_context(cafile=entra.ca_file)
        response = httpx.post(entra.token_endpoint(tenant), data=form, verify=trust)

`authority` answers for Entra, `graph` for Microsoft Graph, and `loopback` serves both. They share no code with what
builds assertions.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Self

from starlette.applications import Starlette
from starlette.types import ASGIApp

from hsm_signer.errors import ConfigError
from hsm_signer.testing.entra.answers import Answer
from hsm_signer.testing.entra.authority import Authority, Lifetimes, TokenRequest
from hsm_signer.testing.entra.directory import Kind, RegisteredCertificate, object_id
from hsm_signer.testing.entra.graph import Graph, GraphAnswer, GraphRequest
from hsm_signer.testing.entra.graph_rules import Policy
from hsm_signer.testing.entra.loopback import require_loopback
from hsm_signer.testing.entra.registrations import Delay, Registrations
from hsm_signer.testing.entra.request_log import RequestLog
from hsm_signer.testing.entra.running import Running


class EntraEmulator:
    """Emulate Entra's token endpoint, OpenID configuration and signing keys, and the part of Graph that replaces keys.

    Register applications with their certificates, then point a client at `authority`. Any JWT library
    verifies the tokens with the published keys. Their issuer is this machine, so no service of Microsoft accepts them.
    Applications can be registered before the start, and stay registered after a stop.

    Args:
        https: serve https with the emulator's own CA (see `ca_file`), or plain http.
        host: a loopback address.
        port: 0 for any free port.
        clock: returns the time in seconds since the epoch, for assertions, tokens and the Date header.
        refuse_replay: refuse an assertion whose `jti` was used for a token before.
        token_lifetime: how long an access token is valid, in seconds.
        refresh_in: the member `refresh_in` of the answer, in seconds, or None to leave it out.
        forbid_listing: have Graph refuse to list an application's certificates.
        ca_file: where to write the CA's certificate; in a temporary directory when None. The file is removed at the
            end. A file of another emulator is replaced, and no other.
        log: called with one line for each request, such as ``POST /contoso/oauth2/v2.0/token 401 AADSTS700027``, from
            the thread of the server, before the client gets the answer.

    Raises:
        ConfigError: `host` is not a loopback address, or `ca_file` is given and `https` is not.
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
        ca_file: Path | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        require_loopback(host)
        if ca_file is not None and not https:
            raise ConfigError(
                f"Plain http has no CA certificate to write to {ca_file}.", hint="Use https, or name no CA file."
            )
        self._https, self._host, self._port = https, host, port
        self._ca_file = None if ca_file is None else ca_file.absolute()
        self._log = log
        self._registrations = Registrations(clock)
        lifetimes = Lifetimes(token_lifetime, refresh_in)
        self._authority = Authority(
            self._registrations, clock, lambda: self._run, lifetimes=lifetimes, refuse_replay=refuse_replay
        )
        self.requests: list[TokenRequest] = self._authority.requests
        self._graph = Graph(self._registrations, clock, lambda: self._run, forbid_listing=forbid_listing)
        self._running: Running | None = None

    def register(self, client_id: str, certificate: bytes, *, tenant: str, service_principal: bool = False) -> None:
        """Register an application with a certificate, or add one to those it has.

        The tenant is created if it does not exist.

        Args:
            certificate: PEM or DER, of an RSA key.
            service_principal: let the application's service principal hold the certificate.

        Raises:
            ConfigError: the certificate cannot be read or is not RSA, or `tenant` is not one tenant.
        """
        self._registrations.register(
            tenant, client_id, _kind(service_principal), RegisteredCertificate.load(certificate)
        )

    def key_credentials(
        self, client_id: str, *, tenant: str, service_principal: bool = False
    ) -> tuple[RegisteredCertificate, ...]:
        """Return the certificates that Graph lists for an application, or for its service principal."""
        return self._registrations.credentials(tenant, client_id, _kind(service_principal))

    def object_id(self, client_id: str, *, tenant: str) -> str:
        """Return the application's object ID. It depends on the tenant and the client ID alone."""
        return object_id(Kind.APPLICATION, tenant, client_id)

    def service_principal_id(self, client_id: str, *, tenant: str) -> str:
        """Return the object ID of the application's service principal: the `oid` of its tokens."""
        return object_id(Kind.SERVICE_PRINCIPAL, tenant, client_id)

    def add_resource(self, resource: str) -> None:
        """Issue tokens for `resource`, an Application ID URI or a client ID, besides the well-known ones."""
        self._authority.resources.add(resource.removesuffix("/"))

    def answer_next(self, *answers: Answer) -> None:
        """Answer the next token requests like this, one answer for each request. After that, answer as usual."""
        self._authority.script.extend(answers)

    def answer_next_graph(self, *answers: GraphAnswer) -> None:
        """Answer the next requests to Graph like this, as `answer_next` does for token requests."""
        self._graph.script.extend(answers)

    def delay_propagation(self, *, token_requests: int = 0, seconds: float = 0) -> None:
        """Hide later changes through Graph from the token endpoint until both limits have passed.

        Until then, it refuses a new certificate and accepts a removed one.

        Args:
            token_requests: how many token requests see the state before the change.
            seconds: on the emulator's clock.
        """
        self._registrations.delay = Delay(token_requests, seconds)

    def restrict_certificates(self, *, max_lifetime: timedelta | None = None, issuer: bytes | None = None) -> None:
        """Have Graph refuse new certificates as a tenant's app management policy does. Without arguments, accept all.

        Args:
            max_lifetime: from the certificate's first second to its last.
            issuer: certificate of the only trusted CA, PEM or DER, of an RSA key.

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
        """URL of Microsoft Graph, without a slash at the end. Its paths begin with ``/v1.0``."""
        return self.authority

    @property
    def authority(self) -> str:
        """URL of the authority host, without a slash at the end. ConfigError unless the emulator is running."""
        return self._run.server.authority

    @property
    def ca_file(self) -> Path | None:
        """PEM file of the CA to trust, which exists while the emulator runs, or None for plain http."""
        return self._run.ca_file

    def token_endpoint(self, tenant: str) -> str:
        """URL for token requests, and the audience of assertions. AD FS is the tenant ``adfs``."""
        return self._authority.token_endpoint(tenant)

    def start(self) -> None:
        """Generate the keys and begin to answer.

        Raises:
            ConfigError: it is running already, the port is not available, or the CA's file is another file.
            OutputError: the CA's file cannot be written.
        """
        if self._running is not None:
            raise ConfigError(
                f"The emulator is running already, at {self.authority}.", hint="Use it, or make another EntraEmulator."
            )
        application: ASGIApp = Starlette(routes=[self._graph.route, *self._authority.routes])
        if self._log is not None:
            application = RequestLog(application, self._log)
        self._running = Running.prepare(
            application, https=self._https, host=self._host, port=self._port, ca_file=self._ca_file
        )
        self._running.server.start()

    def stop(self) -> None:
        """Stop at once, even while requests are answered. A second stop does nothing."""
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


def _kind(service_principal: bool) -> Kind:
    return Kind.SERVICE_PRINCIPAL if service_principal else Kind.APPLICATION
