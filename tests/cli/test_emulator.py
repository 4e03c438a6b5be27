"""`emulator`: a process that says when it is ready, serves other processes, and stops on a signal."""

import shlex
import signal
import socket
import ssl
import time
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.emulator_process import Start, ready
from tests.support.names import CLIENT, TENANT
from tests.support.program import Program, Settings, assert_explained, options


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


class TestCaFile:
    def test_it_exists_from_the_first_answer_to_the_end(self, start: Start, tmp_path: Path) -> None:
        file = tmp_path / "the ca.pem"
        process = start("--ca-file", str(file), "-o", "json")
        document = ready(process)
        assert document["ca_bundle"] == str(file)
        assert file.stat().st_mode & 0o777 == 0o644
        with httpx.Client(verify=ssl.create_default_context(cafile=file)) as http:
            assert http.get(f"{document['authority']}/{TENANT}/discovery/v2.0/keys").status_code == 200
        process.terminate()
        process.communicate(timeout=60)
        assert not file.exists()

    def test_a_program_that_waits_for_it_finds_the_application_registered(
        self, start: Start, program: Program, signing: Settings, tmp_path: Path
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        file = tmp_path / "ca.pem"
        start("--ca-file", str(file), "--port", str(port))
        deadline = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < deadline
        where = {"authority": f"https://127.0.0.1:{port}", "ca_bundle": str(file)}
        result = program("token", *options({**signing, **where}, scope="https://storage.azure.com/.default"))
        assert (result.status, result.stderr) == (0, "")

    def test_the_file_of_an_emulator_that_was_killed_is_replaced(self, start: Start, tmp_path: Path) -> None:
        file = tmp_path / "ca.pem"
        first = start("--ca-file", str(file), "-o", "json")
        ready(first)
        first.kill()
        first.wait(60)
        before = file.read_bytes()
        ready(start("--ca-file", str(file), "-o", "json"))
        assert file.read_bytes() != before

    def test_an_emulator_does_not_remove_what_another_has_written_since(self, start: Start, tmp_path: Path) -> None:
        file = tmp_path / "ca.pem"
        first = start("--ca-file", str(file), "-o", "json")
        ready(first)
        ready(start("--ca-file", str(file), "-o", "json"))
        written = file.read_bytes()
        first.terminate()
        first.communicate(timeout=60)
        assert file.read_bytes() == written

    @pytest.mark.parametrize("content", ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", None])
    def test_a_file_that_no_emulator_wrote_is_left_alone(
        self, program: Program, certificate: Path, tmp_path: Path, content: str | None
    ) -> None:
        file = tmp_path / "certificates.pem"
        pem = x509.load_der_x509_certificate(certificate.read_bytes()).public_bytes(Encoding.PEM)
        file.write_bytes(pem if content is None else content.encode())
        before = file.read_bytes()
        result = program("emulator", "--certificate", str(certificate), "--ca-file", str(file))
        assert_explained(result, 2, "config_error")
        assert file.read_bytes() == before

    @pytest.mark.parametrize("path", ["nowhere/ca.pem", ".", "link"])
    def test_a_path_that_cannot_be_written_is_explained(
        self, program: Program, certificate: Path, tmp_path: Path, path: str
    ) -> None:
        (tmp_path / "link").symlink_to("elsewhere")
        result = program("emulator", "--certificate", str(certificate), "--ca-file", str(tmp_path / path))
        assert_explained(result, 74, "output_error")

    def test_plain_http_has_none(self, program: Program, certificate: Path) -> None:
        result = program("emulator", "--certificate", str(certificate), "--plain-http", "--ca-file", "ca.pem")
        assert_explained(result, 2, "config_error")

    def test_a_port_in_use_leaves_the_file_of_the_emulator_that_has_it(
        self, start: Start, program: Program, certificate: Path, tmp_path: Path
    ) -> None:
        file = tmp_path / "ca.pem"
        port = ready(start("--ca-file", str(file), "-o", "json"))["authority"].rpartition(":")[2]
        before = file.read_bytes()
        arguments = ("--certificate", str(certificate), "--port", port, "--ca-file", str(file))
        assert_explained(program("emulator", *arguments), 2, "config_error")
        assert file.read_bytes() == before


class TestResource:
    @pytest.mark.parametrize("named", ["api://orders", "api://orders/", "api://orders/.default"])
    def test_it_gets_tokens(self, start: Start, program: Program, signing: Settings, named: str) -> None:
        document = ready(start("--resource", "api://stock", "--resource", named, "-o", "json"))
        where = {"authority": document["authority"], "ca_bundle": document["ca_bundle"]}
        result = program("token", *options({**signing, **where}, scope="api://orders/.default"))
        assert (result.status, result.stderr) == (0, "")

    def test_without_it_an_api_is_unknown(self, start: Start, program: Program, signing: Settings) -> None:
        document = ready(start("-o", "json"))
        where = {"authority": document["authority"], "ca_bundle": document["ca_bundle"]}
        result = program("token", *options({**signing, **where}, scope="api://orders/.default"))
        assert (result.status, "AADSTS500011" in result.stderr) == (7, True)
