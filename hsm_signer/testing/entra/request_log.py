"""`RequestLog`: one line for each request that the emulator answers, such as ``POST /contoso/... 401 AADSTS700027``."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hsm_signer.entra.redaction import without_tokens
from hsm_signer.system.display import displayable

_LONGEST_PATH = 200


class RequestLog:
    """Wrap an application, and report each of its answers before the client gets it.

    A line has method, path, status and the service's own error code. It has no query and no body: those may contain
    assertions and tokens. A path is shown as it was sent, percent-encoded, so it cannot forge the rest of the line.

    Args:
        application: what answers.
        log: called with each line, on the thread of the server.
    """

    def __init__(self, application: ASGIApp, log: Callable[[str], None]) -> None:
        self._application, self._log = application, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        logged = False

        async def log_and_send(message: Message) -> None:
            nonlocal logged
            if message["type"] == "http.response.start":
                logged = True
                self._log(_line(scope, message["status"]))
            await send(message)

        await self._application(scope, receive, log_and_send)
        if not logged:
            self._log(_line(scope, scope["state"].get("status", "disconnected")))


def note_error(request: Request, code: str) -> None:
    """Set the error code that the line of a request ends with."""
    request.state.error = code


def note_status(scope: Scope, status: int) -> None:
    """Set the status of an answer that is written to the connection directly."""
    scope["state"]["status"] = status


def _line(scope: Scope, outcome: int | str) -> str:
    sent = displayable(scope["raw_path"].decode("ascii", "backslashreplace"))
    path = "/".join(map(without_tokens, sent.split("/")))
    if len(path) > _LONGEST_PATH:
        path = f"{path[:_LONGEST_PATH]}…"
    method = displayable(scope["method"])[:20]
    return " ".join(filter(None, (method, path, str(outcome), scope["state"].get("error"))))
