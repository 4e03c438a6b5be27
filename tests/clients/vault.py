"""A stub of Azure Key Vault on loopback: it asks for a token like Key Vault, and returns a secret for a valid one."""

import base64
import ssl
from collections import deque
from pathlib import Path
from typing import Self

import httpx
import trustme
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hsm_signer.testing import EntraEmulator
from hsm_signer.testing.entra.loopback import LoopbackServer

SECRET = "the secret of the vault"


class Vault:
    """Answers ``GET /secrets/{name}/``. A context manager.

    https://learn.microsoft.com/azure/key-vault/general/authentication-requests-and-responses

    Args:
        entra: the emulator whose tokens it accepts.
        tenant: the tenant of the vault.
        directory: for its certificate.

    Attributes:
        url: address of the vault.
        ca_file: PEM file of the authority to trust.
        statuses: HTTP statuses of its answers, in order.
        tokens: the valid tokens that it received, in order.
    """

    def __init__(self, entra: EntraEmulator, tenant: str, directory: Path) -> None:
        self.ca_file = directory / "vault-ca.pem"
        self.statuses: list[int] = []
        self.tokens: list[str] = []
        self._entra, self._tenant = entra, tenant
        self._demands: deque[str] = deque()
        self._rejected: set[str] = set()
        ca = trustme.CA()
        ca.cert_pem.write_to_path(self.ca_file)
        certificate = directory / "vault.pem"
        ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
        application = Starlette(routes=[Route("/secrets/{name}/", self._get_secret)])
        self._server = LoopbackServer(application, host="127.0.0.1", port=0, certificate=certificate)
        self.url = self._server.authority

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def demand(self, claims: str) -> None:
        """Refuse the token of the next request and demand `claims` (continuous access evaluation)."""
        self._demands.append(claims)

    # Not async: Starlette then runs it in a thread, and it may wait for the emulator.
    def _get_secret(self, request: Request) -> Response:
        response = self._answer(request)
        self.statuses.append(response.status_code)
        return response

    def _answer(self, request: Request) -> Response:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or not self._is_good(token):
            resource = 'resource="https://vault.azure.net"'
            return _unauthorized(f'Bearer authorization="{self._entra.authority}/{self._tenant}", {resource}')
        if self._demands:
            self._rejected.add(token)
            claims = base64.b64encode(self._demands.popleft().encode()).decode()
            return _unauthorized(
                f'Bearer realm="", authorization_uri="{self._entra.authority}/{self._tenant}", '
                f'error="insufficient_claims", claims="{claims}"'
            )
        self.tokens.append(token)
        name = request.path_params["name"]
        attributes = {"enabled": True, "created": 1_750_000_000, "updated": 1_750_000_000}
        return JSONResponse({"value": SECRET, "id": f"{self.url}/secrets/{name}/1", "attributes": attributes})

    def _is_good(self, token: str) -> bool:
        """Return whether the emulator issued the token for Key Vault, and it was not refused before."""
        trust = ssl.create_default_context(cafile=str(self._entra.ca_file))
        with httpx.Client(verify=trust, trust_env=False) as client:
            keys = client.get(f"{self._entra.authority}/{self._tenant}/discovery/v2.0/keys").json()
        try:
            claims = jwt.decode(token, KeySet.import_key_set(keys), algorithms=["RS256"]).claims
            jwt.JWTClaimsRegistry(
                leeway=60,
                aud={"essential": True, "value": "https://vault.azure.net"},
                tid={"essential": True, "value": self._tenant},
            ).validate(claims)
        except (JoseError, ValueError):
            return False
        return token not in self._rejected


def _unauthorized(challenge: str) -> Response:
    body = {"error": {"code": "Unauthorized", "message": "AKV10000: Request is missing a Bearer or PoP token."}}
    return JSONResponse(body, 401, {"WWW-Authenticate": challenge})
