"""Error reporters show where our failures happened, but no PIN, no assertion and no token.

sentry-sdk and the standard library's traceback can show the local variables of every frame that an exception
passed through. These tests make them do so, for every entry point and for failures at every stage.
"""

import contextlib
import http.server
import json
import logging
import os
import signal
import socket
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import azure.identity
import httpx
import msal  # type: ignore[import-untyped]
import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from hsm_signer import AsyncHsmCredential, HsmCredential
from hsm_signer.credential.httpx_auth import BearerAuth
from hsm_signer.crypto import Algorithm
from hsm_signer.device.access import KeyAccess
from hsm_signer.device.device import open_device
from hsm_signer.device.pin.parse import parse_pin_source
from hsm_signer.device.pin.pin import Login, Pin, PinRequest
from hsm_signer.device.signer import open_signer
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.device.worker.pool import open_worker
from hsm_signer.entra.authority import resolve_endpoint
from hsm_signer.entra.http import HttpClient
from hsm_signer.entra.token import request_token, token_form
from hsm_signer.errors import NetworkError
from hsm_signer.service.assertion_file import AssertionFile
from hsm_signer.system.secret import Secret
from hsm_signer.testing import (
    Disconnected,
    DripFeed,
    Endless,
    EntraEmulator,
    Html,
    NoAccessToken,
    Redirect,
    Refused,
    Slow,
    SoftHsm,
    Truncated,
    Unavailable,
)
from hsm_signer.testing.softhsm import SoftHsmKey
from tests.support.faulty_module.control import FaultyModule, Rv
from tests.support.names import GRAPH
from tests.support.processes import workers_of_this_process

PIN, TOKEN = "orchard-4711", "opaque+meadow+token"
JWT = "eyJ"  # how each part of a JWT begins that is a JSON object
Arguments = dict[str, Any]
Call = Callable[[], object]


class Outbox(Transport):
    """Stores what sentry-sdk would send."""

    events: list[object]

    def capture_envelope(self, envelope: Envelope) -> None:
        self.events += [item.payload.json for item in envelope.items]


@pytest.fixture(scope="module")
def sentry() -> Iterator[Outbox]:
    outbox = Outbox()
    outbox.events = []
    sentry_sdk.init("http://public@sentry.invalid/1", transport=outbox)
    yield outbox
    sentry_sdk.init()


def frames(error: BaseException) -> Iterator[str]:
    """The frames of an exception and of all exceptions behind it, suppressed or not."""
    seen: list[BaseException] = []
    pending = [error]
    while pending:
        one = pending.pop()
        if one in seen:
            continue
        seen.append(one)
        yield repr((one, one.args, vars(one)))
        for frame, _ in traceback.walk_tb(one.__traceback__):
            yield f"{frame.f_code.co_qualname} {dict(frame.f_locals)!r}"
        pending += [next for next in (one.__cause__, one.__context__) if next is not None]


def report(sentry: Outbox, error: BaseException) -> str:
    """Return what all reporters show of an exception."""
    sentry.events.clear()
    sentry_sdk.capture_exception(error)
    assert sentry.events
    return "\n".join(
        [
            json.dumps(sentry.events),
            *traceback.TracebackException.from_exception(error, capture_locals=True).format(),
            *frames(error),
        ]
    )


def secrets_in(text: str) -> set[str]:
    """Return the secrets in a report."""
    return {secret for secret in (PIN, TOKEN, JWT) if secret in text}


@pytest.fixture
def reported(sentry: Outbox) -> Callable[[Call], str]:
    """Make a failing call, and return the report."""

    def reported(call: Call) -> str:
        # The log lines of the preparation; those of the call itself belong to the report.
        sentry_sdk.get_isolation_scope().clear_breadcrumbs()
        try:
            call()
        except BaseException as error:
            return report(sentry, error)
        raise AssertionError("It did not fail.")

    return reported


def test_without_protection_each_reporter_shows_the_secrets(reported: Callable[[Call], str]) -> None:
    # So that the tests below can fail.
    def fail() -> None:
        pin, assertion, token = f"{PIN}", [JWT], {"text": TOKEN}
        raise ValueError(len(pin), len(assertion), len(token))

    shown = reported(fail)
    assert secrets_in(shown) == {PIN, TOKEN, JWT}
    assert shown.count(PIN) >= 3


@pytest.fixture(scope="module")
def softhsm() -> Iterator[SoftHsm]:
    with SoftHsm(label="reports", pin=PIN) as softhsm:
        yield softhsm


@pytest.fixture(scope="module")
def key(softhsm: SoftHsm) -> SoftHsmKey:
    return softhsm.add_identity()


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers a token request with a document, which may depend on the form that was sent."""

    answer: Callable[[bytes], bytes]

    def do_POST(self) -> None:
        form = self.rfile.read(int(self.headers["Content-Length"]))
        body = type(self).answer(form)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Echo", form.decode())
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """Serve a token endpoint, and return its address."""
    handler = type("Handler", (Answers,), {"answer": staticmethod(answer)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/token"
        finally:
            server.shutdown()
            thread.join()


# Failures of the device


def wrong_pin(faulty: FaultyModule) -> None:
    faulty.rule("C_Login", rv=Rv.PIN_INCORRECT)


def broken_login(faulty: FaultyModule) -> None:
    faulty.rule("C_Login", rv=Rv.GENERAL_ERROR)


def broken_session(faulty: FaultyModule) -> None:
    faulty.rule("C_OpenSession", rv=Rv.SESSION_COUNT)


def broken_search(faulty: FaultyModule) -> None:
    faulty.rule("C_FindObjectsInit", rv=Rv.FUNCTION_FAILED)


def broken_signature(faulty: FaultyModule) -> None:
    faulty.rule("C_Sign", rv=Rv.FUNCTION_FAILED)


def corrupt_signature(faulty: FaultyModule) -> None:
    faulty.rule("C_Sign", corrupt=True)


def lost_device(faulty: FaultyModule) -> None:
    faulty.rule("C_SignInit", rv=Rv.DEVICE_REMOVED)


def hanging_signature(faulty: FaultyModule) -> None:
    faulty.rule("C_Sign", hang=60)


def broken_signature_after_its_pin(faulty: FaultyModule) -> None:
    faulty.always_authenticate(True)
    faulty.rule("C_Sign", rv=Rv.FUNCTION_FAILED)


def pin_wrong_for_a_signature(faulty: FaultyModule) -> None:
    faulty.always_authenticate(True)
    faulty.rule("C_Login", rv=Rv.PIN_INCORRECT, skip=1)


def absent_device(faulty: FaultyModule) -> None:
    faulty.absent(True)


DEVICE_FAULTS = [
    wrong_pin,
    broken_login,
    broken_session,
    broken_search,
    broken_signature,
    corrupt_signature,
    lost_device,
    hanging_signature,
    broken_signature_after_its_pin,
    pin_wrong_for_a_signature,
    absent_device,
]


@pytest.fixture
def quick(arguments: Arguments) -> Arguments:
    return {**arguments, "device_timeout": 1, "network_timeout": 0.4}


@pytest.mark.parametrize("fault", DEVICE_FAULTS)
@pytest.mark.parametrize("isolated", [False, True], ids=["here", "isolated"])
def test_the_report_of_a_device_failure_shows_no_secret(
    reported: Callable[[Call], str],
    quick: Arguments,
    faulty: FaultyModule,
    fault: Callable[[FaultyModule], None],
    isolated: bool,
) -> None:
    fault(faulty)
    credential = HsmCredential(**quick, isolated=isolated)
    assert secrets_in(reported(lambda: credential.get_token(GRAPH))) == set()
    credential.close()


# Failures of the PIN's source

PIN_SOURCES = {
    "too long": lambda file: file.write_text(PIN * 200),
    "not text": lambda file: file.write_bytes(PIN.encode() + b"\xff"),
    "with a NUL": lambda file: file.write_text(PIN + "\0"),
    "open to all": lambda file: (file.write_text(PIN), file.chmod(0o644)),
    "missing": lambda file: None,
}


@pytest.mark.parametrize("write", PIN_SOURCES.values(), ids=PIN_SOURCES)
def test_the_report_of_an_unusable_pin_file_shows_no_secret(
    reported: Callable[[Call], str], quick: Arguments, write: Callable[[Path], object], tmp_path: Path
) -> None:
    file = tmp_path / "pin"
    file.touch(0o600)
    write(file)
    source = parse_pin_source(f"file:{file}", prompt=None)
    credential = HsmCredential(**{**quick, "pin_source": f"file:{file}"})
    for call in (lambda: credential.get_token(GRAPH), lambda: source(PinRequest("a device"))):
        assert secrets_in(reported(call)) == set()


@pytest.mark.parametrize("end", ["exit 3", "sleep 60"])
def test_the_report_of_a_failed_pin_command_shows_no_secret(
    reported: Callable[[Call], str], quick: Arguments, end: str, tmp_path: Path
) -> None:
    script = tmp_path / "pin.sh"
    script.write_text(f"echo {PIN}; {end}")
    # A PIN command may take ten seconds.
    credential = HsmCredential(**{**quick, "pin_source": ["/bin/sh", str(script)]})
    with interrupting_after(0.5) if "sleep" in end else contextlib.nullcontext():
        assert secrets_in(reported(lambda: credential.get_token(GRAPH))) == set()


@contextlib.contextmanager
def interrupting_after(seconds: float) -> Iterator[None]:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.join()


# Failures of the network

ANSWERS = [
    Refused(700016, "unauthorized_client", "Application not found."),
    Unavailable(),
    Disconnected(),
    DripFeed(),
    Truncated(),
    Endless(),
    Html(),
    Redirect("https://elsewhere.example/"),
    NoAccessToken(),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_the_report_of_a_failed_token_endpoint_shows_no_secret(
    reported: Callable[[Call], str], quick: Arguments, entra: EntraEmulator, answer: Any
) -> None:
    # Twice: a connection that was made ahead and brings nothing is replaced at once.
    entra.answer_next(answer, answer)
    with HsmCredential(**quick) as credential:
        assert secrets_in(reported(lambda: credential.get_token(GRAPH))) == set()


DOCUMENTS = {
    "another type": {"access_token": TOKEN, "token_type": "mac", "expires_in": 3599},
    "no life": {"access_token": TOKEN, "token_type": "Bearer"},
    "no header could hold it": {"access_token": f"{TOKEN} {TOKEN}", "token_type": "Bearer", "expires_in": 3599},
}


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_the_report_of_an_unusable_token_shows_no_secret(
    reported: Callable[[Call], str], quick: Arguments, document: dict[str, Any]
) -> None:
    with (
        answering(lambda _: json.dumps(document).encode()) as endpoint,
        HsmCredential(**{**quick, "authority": None, "token_endpoint": endpoint}) as credential,
    ):
        assert secrets_in(reported(lambda: credential.get_token(GRAPH))) == set()


@pytest.mark.parametrize(
    "answer",
    [
        lambda form: form,
        lambda form: json.dumps({"error": "invalid_client", "error_description": form.decode()}).encode(),
    ],
)
def test_the_report_of_an_endpoint_that_echoes_the_request_shows_no_secret(
    reported: Callable[[Call], str], quick: Arguments, answer: Callable[[bytes], bytes]
) -> None:
    with (
        answering(answer) as endpoint,
        HsmCredential(**{**quick, "authority": None, "token_endpoint": endpoint}) as credential,
    ):
        assert secrets_in(reported(lambda: credential.get_token(GRAPH))) == set()


def test_the_report_of_an_unreachable_endpoint_shows_no_secret(
    reported: Callable[[Call], str], quick: Arguments
) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}/token"
        with HsmCredential(**{**quick, "authority": None, "token_endpoint": endpoint}) as credential:
            assert secrets_in(reported(lambda: credential.get_token(GRAPH))) == set()


# Every other entry point

Enter = Callable[[Arguments], object]


def get_token_info(arguments: Arguments) -> object:
    with HsmCredential(**arguments) as credential:
        return credential.get_token_info(GRAPH, options={"enable_cae": True})


def assertion(arguments: Arguments) -> object:
    with HsmCredential(**arguments) as credential:
        return credential.assertion()


def for_msal(arguments: Arguments) -> object:
    with HsmCredential(**arguments) as credential:
        return msal.ConfidentialClientApplication(
            arguments["client_id"],
            client_credential={"client_assertion": credential.assertion},
            authority=f"{arguments['authority']}/{arguments['tenant_id']}",
            verify=str(arguments["ca_bundle"]),
            instance_discovery=False,
        ).acquire_token_for_client([GRAPH])


def for_azure_identity(arguments: Arguments) -> object:
    with HsmCredential(**arguments) as credential:
        return azure.identity.ClientAssertionCredential(
            arguments["tenant_id"],
            arguments["client_id"],
            credential.assertion,
            authority=arguments["authority"],
            connection_verify=str(arguments["ca_bundle"]),
            disable_instance_discovery=True,
        ).get_token(GRAPH)


def bearer_auth(arguments: Arguments) -> object:
    with HsmCredential(**arguments) as credential, httpx.Client(auth=BearerAuth(credential, GRAPH)) as client:
        return client.get("https://graph.microsoft.invalid/users")


def from_a_task(ask: Callable[[AsyncHsmCredential], Awaitable[object]]) -> Enter:
    def enter(arguments: Arguments) -> object:
        async def main() -> object:
            async with AsyncHsmCredential(**arguments) as credential:
                return await ask(credential)

        return anyio.run(main)

    return enter


async def bearer_auth_in_a_task(credential: AsyncHsmCredential) -> object:
    async with httpx.AsyncClient(auth=BearerAuth(credential, GRAPH)) as client:
        return await client.get("https://graph.microsoft.invalid/users")


def access(arguments: Arguments) -> KeyAccess:
    return KeyAccess(
        Pkcs11Uri.parse(arguments["key"]),
        parse_pin_source(arguments["pin_source"], prompt=None),
        module=arguments["module"],
        module_environment=arguments["module_environment"],
        timeout=arguments["device_timeout"],
    )


def worker(arguments: Arguments) -> object:
    with open_worker(access(arguments)) as signer:
        return signer.sign(Algorithm.RS256, b"message")


def device(arguments: Arguments) -> object:
    with open_device(access(arguments)) as device:
        return open_signer(device).sign(Algorithm.RS256, b"message")


WAYS_IN = [
    pytest.param(get_token_info, id="get_token_info"),
    pytest.param(assertion, id="assertion"),
    pytest.param(for_msal, id="MSAL"),
    pytest.param(for_azure_identity, id="azure-identity"),
    pytest.param(bearer_auth, id="BearerAuth"),
    pytest.param(from_a_task(lambda credential: credential.get_token(GRAPH)), id="await get_token"),
    pytest.param(from_a_task(lambda credential: credential.get_token_info(GRAPH)), id="await get_token_info"),
    pytest.param(from_a_task(lambda credential: credential.assertion()), id="await assertion"),
    pytest.param(from_a_task(bearer_auth_in_a_task), id="await BearerAuth"),
    pytest.param(worker, id="open_worker"),
    pytest.param(device, id="open_device"),
]


@pytest.mark.parametrize("fault", [wrong_pin, broken_signature_after_its_pin, pin_wrong_for_a_signature])
@pytest.mark.parametrize("enter", WAYS_IN)
def test_the_report_of_a_failure_at_any_entry_point_shows_no_secret(
    reported: Callable[[Call], str],
    quick: Arguments,
    faulty: FaultyModule,
    enter: Enter,
    fault: Callable[[FaultyModule], None],
) -> None:
    fault(faulty)
    assert secrets_in(reported(lambda: enter(quick))) == set()


@pytest.mark.parametrize("answer", [Refused(700016, "unauthorized_client", "Not found."), Disconnected()])
@pytest.mark.parametrize(
    "enter",
    [
        pytest.param(get_token_info, id="get_token_info"),
        pytest.param(bearer_auth, id="BearerAuth"),
        pytest.param(from_a_task(lambda credential: credential.get_token(GRAPH)), id="await get_token"),
        pytest.param(from_a_task(bearer_auth_in_a_task), id="await BearerAuth"),
    ],
)
def test_the_report_of_a_failure_on_any_way_to_a_token_shows_no_secret(
    reported: Callable[[Call], str], quick: Arguments, entra: EntraEmulator, enter: Enter, answer: Any
) -> None:
    # Twice: a connection that was made ahead and brings nothing is replaced at once.
    entra.answer_next(answer, answer)
    assert secrets_in(reported(lambda: enter(quick))) == set()


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_the_report_of_a_failed_token_request_shows_no_secret(
    reported: Callable[[Call], str], document: dict[str, Any]
) -> None:
    form = token_form(client_id="client", scope="read", assertion=Secret(JWT))
    with answering(lambda _: json.dumps(document).encode()) as url:
        endpoint = resolve_endpoint(tenant=None, token_endpoint=url)
        assert secrets_in(reported(lambda: request_token(endpoint, form, HttpClient(timeout=5)))) == set()


def test_the_report_of_an_assertion_for_another_audience_shows_no_secret(
    reported: Callable[[Call], str], quick: Arguments, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    file = AssertionFile(tmp_path / "assertion", quick["client_id"], "https://elsewhere.example/token")
    with HsmCredential(**quick) as credential:
        assert secrets_in(reported(lambda: file.replace(credential.assertion))) == set()


def test_the_report_of_a_worker_that_dies_while_it_gets_the_pin_shows_no_secret(
    reported: Callable[[Call], str], quick: Arguments
) -> None:
    class KillsWorker:
        description = identity = "a test"
        attended = True

        def __call__(self, request: PinRequest) -> Login:
            for worker in workers_of_this_process():
                os.kill(worker, signal.SIGKILL)
                os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
            return Pin(PIN)

    wanted = replace(access(quick), pin=KillsWorker())
    assert secrets_in(reported(lambda: open_worker(wanted))) == set()


# An API that fails during a request with a token


@contextlib.contextmanager
def hanging_up() -> Iterator[str]:
    """Serve an HTTP proxy that closes each connection without an answer, and return its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_the_report_of_an_api_that_hangs_up_shows_no_secret(reported: Callable[[Call], str], quick: Arguments) -> None:
    with (
        hanging_up() as proxy,
        HsmCredential(**quick) as credential,
        httpx.Client(auth=BearerAuth(credential, GRAPH), proxy=proxy) as client,
    ):
        # Through a proxy httpcore keeps the headers in a variable.
        assert secrets_in(reported(lambda: client.get("http://127.0.0.1:9/users"))) == set()


# Interrupts


def test_the_report_of_an_interrupt_during_a_signature_shows_no_secret(
    reported: Callable[[Call], str], arguments: Arguments, faulty: FaultyModule
) -> None:
    faulty.always_authenticate(True)
    faulty.rule("C_Sign", hang=60)
    with HsmCredential(**arguments) as credential, interrupting_after(0.5):
        assert secrets_in(reported(lambda: credential.get_token(GRAPH))) == set()
    faulty.clear()


def test_the_report_of_an_interrupt_during_a_login_shows_no_secret(
    reported: Callable[[Call], str], arguments: Arguments, faulty: FaultyModule
) -> None:
    faulty.rule("C_Login", hang=60)
    with HsmCredential(**arguments, isolated=True) as credential, interrupting_after(0.8):
        assert secrets_in(reported(lambda: credential.get_token(GRAPH))) == set()


def test_the_report_of_an_interrupt_during_a_request_shows_no_secret(
    reported: Callable[[Call], str], arguments: Arguments, entra: EntraEmulator
) -> None:
    entra.answer_next(Slow(60))
    with HsmCredential(**arguments) as credential, interrupting_after(0.5):
        assert secrets_in(reported(lambda: credential.get_token(GRAPH))) == set()


# Logs


def test_debug_logs_show_no_secret(
    quick: Arguments, entra: EntraEmulator, caplog: pytest.LogCaptureFixture, reported: Callable[[Call], str]
) -> None:
    with caplog.at_level(logging.DEBUG), HsmCredential(**quick) as credential:
        assert credential.get_token(GRAPH).token
    names = {record.name.partition(".")[0] for record in caplog.records}
    assert {"hsm_signer", "httpcore"} <= names
    assert secrets_in(caplog.text) == set()


def test_debug_logs_of_an_endpoint_that_echoes_the_request_show_no_secret(
    quick: Arguments, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {**quick, "authority": None}
    with (
        caplog.at_level(logging.DEBUG),
        answering(lambda form: form) as endpoint,
        HsmCredential(**{**arguments, "token_endpoint": endpoint}) as credential,
        pytest.raises(NetworkError),
    ):
        credential.get_token(GRAPH)
    assert secrets_in(caplog.text) == set()
