"""`Graph`: the part of Microsoft Graph with which an application replaces its own keys.

`graph_rules` and `proof_rules` decide about a request. This module reads requests and sends answers.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hsm_signer.testing.entra.answers import Misbehaviour, Script, Throttled, Unavailable
from hsm_signer.testing.entra.directory import GraphRefusal
from hsm_signer.testing.entra.documents import directory_object, graph_error_document, key_credential
from hsm_signer.testing.entra.graph_rules import (
    Policy,
    Target,
    check_add_key,
    check_caller,
    check_remove_key,
    check_select,
    forbidden,
    refused,
)
from hsm_signer.testing.entra.proof_rules import GraphRefused
from hsm_signer.testing.entra.registrations import Registrations
from hsm_signer.testing.entra.request_log import note_error
from hsm_signer.testing.entra.running import Running

GraphAnswer = Misbehaviour | Throttled | Unavailable | GraphRefusal
"""Answers that Graph can give."""


@dataclass
class GraphRequest:
    """A request to Graph, as it was received. Its repr does not show the token or the proof.

    Args:
        path: with the query.
        headers: by name in lower case.
        status: of the answer. None before it, and if the connection was closed instead.
    """

    method: str
    path: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    status: int | None = None


class Graph:
    """Serve Graph's applications and service principals.

    Args:
        registrations: the certificates of each application.
        clock: returns the time in seconds since the epoch.
        running: returns the server and its keys.
        forbid_listing: refuse every request that reads.
    """

    def __init__(
        self,
        registrations: Registrations,
        clock: Callable[[], float],
        running: Callable[[], Running],
        *,
        forbid_listing: bool,
    ) -> None:
        self.requests: list[GraphRequest] = []
        self.script: Script[Throttled | Unavailable | GraphRefusal] = Script()
        self.policy = Policy()
        self.route = Route("/v1.0/{path:path}", self._respond, methods=["GET", "POST", "PATCH", "PUT", "DELETE"])
        self._registrations, self._clock, self._running = registrations, clock, running
        self._forbid_listing = forbid_listing

    async def _respond(self, request: Request) -> Response:
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        body = await request.body()
        received = GraphRequest(request.method, path, body, dict(request.headers))
        self.requests.append(received)

        def ordinary() -> Response:
            try:
                return self._serve(request, body)
            except GraphRefused as refused:
                return self._refuse(refused.refusal, request)

        def document(answer: Throttled | Unavailable | GraphRefusal) -> Response:
            match answer:
                case Throttled(retry_after):
                    message = "Too many requests."
                    answer = GraphRefusal("TooManyRequests", message, 429, retry_after=retry_after)
                case Unavailable(retry_after):
                    message = "The service is temporarily unavailable."
                    answer = GraphRefusal("ServiceUnavailable", message, 503, retry_after=retry_after)
                case GraphRefusal():
                    pass
            return self._refuse(answer, request)

        return await self.script.answer(received, ordinary, document, self._running().server.stopping)

    def _serve(self, request: Request, body: bytes) -> Response:
        now = self._clock()
        caller = check_caller(request.headers.get("authorization", ""), self._running().signing_key, now)
        target = Target.parse(request.scope["path"])
        if request.method != ("POST" if target.action else "GET"):
            message = "Specified HTTP method is not allowed for the request target."
            raise GraphRefused(GraphRefusal("Request_BadRequest", message, 405))
        holder = target.find(self._registrations.objects(caller.tenant), caller)
        if target.action is None:
            if self._forbid_listing:
                raise forbidden()
            select = request.query_params.get("$select")
            names = check_select(select, target.kind)
            shown = directory_object(holder, names, with_keys=select is not None)
            return self._answer(f"{target.kind}/$entity", shown, request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise refused("BadRequest", "Entity only allows writes with a JSON Content-Type header.")
        if target.action == "addKey":
            added = check_add_key(body, holder, self.policy, now)
            self._registrations.add(holder, added)
            return self._answer("microsoft.graph.keyCredential", key_credential(added), request)
        self._registrations.remove(holder, check_remove_key(body, holder, now))
        return Response(status_code=204, headers=self._headers(request))

    def _refuse(self, refusal: GraphRefusal, request: Request) -> Response:
        note_error(request, refusal.code)
        headers = self._headers(request)
        if refusal.code == "InvalidAuthenticationToken":
            headers["WWW-Authenticate"] = 'Bearer realm=""'
        if refusal.retry_after is not None:
            headers["Retry-After"] = refusal.retry_after
        document = graph_error_document(refusal, headers["request-id"], headers["client-request-id"], self._clock())
        return JSONResponse(document, refusal.status, headers)

    def _answer(self, context: str, document: Mapping[str, object], request: Request) -> Response:
        metadata = f"{self._running().server.authority}/v1.0/$metadata#{context}"
        return JSONResponse({"@odata.context": metadata, **document}, headers=self._headers(request))

    def _headers(self, request: Request) -> dict[str, str]:
        request_id = str(uuid.uuid4())
        return {
            "Cache-Control": "no-cache",
            "Date": formatdate(self._clock(), usegmt=True),
            "request-id": request_id,
            "client-request-id": request.headers.get("client-request-id", request_id),
        }
