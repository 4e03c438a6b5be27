"""`emulator`: a process that says when it is ready, serves other processes, and stops on a signal."""

import json
import shlex
import signal
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.names import CLIENT, TENANT
from tests.support.program import Program, Settings, assert_explained, options

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(program: Program, certificate: Path) -> Iterator[Start]:
    """Start an emulator for the good key, with further arguments; end it with the test."""
    with ExitStack() as stack:

        def start(*arguments: str) -> "subprocess.Popen[str]":
            known = options({"tenant": TENANT, "client_id": CLIENT, "certificate": str(certificate)})
            return stack.enter_context(program.start("emulator", *known, *arguments))

        yield start


def ready(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Read the line that says where it listens."""
    assert process.stdout is not None
    document: dict[str, Any] = json.loads(process.stdout.readline())
    return document


def test_another_process_gets_a_token_with_what_the_json_says(
    start: Start, program: Program, signing: Settings
) -> None:
    document = ready(start("-o", "json"))
    places = ["token_endpoint", "graph", "object_id"]
    assert list(document) == ["authority", "tenant", "client_id", "ca_bundle", *places]
    assert document["token_endpoint"] == f"{document['authority']}/{TENANT}/oauth2/v2.0/token"
    where = {"authority": document["authority"], "ca_bundle": document["ca_bundle"]}
    scope = "https://vault.azure.net/.default"
    result = program("token", *options({**signing, **where}, scope=scope))
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.count(".") == 2


def test_the_application_finds_itself_in_graph_by_the_object_id(
    start: Start, program: Program, signing: Settings
) -> None:
    document = ready(start("-o", "json"))
    where = {"authority": document["authority"], "ca_bundle": document["ca_bundle"]}
    result = program("token", *options({**signing, **where}, scope="https://graph.microsoft.com/.default"))
    with httpx.Client(verify=ssl.create_default_context(cafile=document["ca_bundle"])) as http:
        url = f"{document['graph']}/v1.0/applications/{document['object_id']}"
        found = http.get(url, headers={"Authorization": f"Bearer {result.stdout.strip()}"})
    assert (found.status_code, found.json()["appId"]) == (200, CLIENT)


def test_the_text_for_people_is_a_command_that_works(start: Start, program: Program, signing: Settings) -> None:
    process = start()
    assert process.stdout is not None
    first, command, graph = (process.stdout.readline() for _ in range(3))
    assert first.startswith("Entra emulator at https://127.0.0.1:")
    assert graph.startswith("Microsoft Graph at https://127.0.0.1:")
    name, *arguments = shlex.split(command)
    assert name == "hsm-signer"
    device = {name: signing[name] for name in ("key", "module", "pin_source")}
    result = program(*arguments, *options(device, scope="https://graph.microsoft.com/.default"))
    assert (result.status, result.stderr) == (0, "")


def test_plain_http_needs_no_ca_bundle(start: Start) -> None:
    document = ready(start("--plain-http", "-o", "json"))
    assert document["authority"].startswith("http://127.0.0.1:")
    assert document["ca_bundle"] is None


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_ends_with_the_status_of_the_signal_and_leaves_no_files(
    start: Start, number: signal.Signals, status: int
) -> None:
    process = start("-o", "json")
    ca_bundle = Path(ready(process)["ca_bundle"])
    assert ca_bundle.exists()
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (status, "")
    assert stderr in ("", "Stop it with Ctrl-C.\n")  # said after the document, so perhaps not in time
    assert not ca_bundle.parent.exists()


def test_a_port_in_use_is_explained(start: Start, program: Program, certificate: Path) -> None:
    port = ready(start("--plain-http", "-o", "json"))["authority"].rpartition(":")[2]
    assert_explained(program("emulator", "--certificate", str(certificate), "--port", port), 2, "config_error")


def test_a_missing_certificate_file_is_explained(program: Program) -> None:
    assert_explained(program("emulator", "--certificate", "nowhere.pem"), 5, "certificate_not_found")
