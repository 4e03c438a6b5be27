"""The log of `emulator`: a line for each request, which no client can forge or stop."""

import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from hsm_signer.testing import SoftHsm
from tests.support.emulator_process import Start, ready
from tests.support.names import TENANT
from tests.support.program import Program, Settings, options


def logged(process: "subprocess.Popen[str]", count: int) -> list[str]:
    """Read so many requests from the log."""
    assert process.stderr is not None
    lines: list[str] = []
    while len(lines) < count:
        line = process.stderr.readline()
        assert line, "the emulator has ended"
        lines += [line.rstrip("\n")] if line != "Stop it with Ctrl-C.\n" else []
    return lines


@pytest.fixture
def process(start: Start) -> "subprocess.Popen[str]":
    return start("--plain-http", "-o", "json")


def test_each_request_is_a_line_with_its_outcome(
    process: "subprocess.Popen[str]", program: Program, signing: Settings
) -> None:
    authority = ready(process)["authority"]
    scope = "https://graph.microsoft.com/.default"
    assert program("token", *options(signing, authority=authority, scope=scope)).status == 0
    httpx.post(f"{authority}/{TENANT}/oauth2/v2.0/token", data={"grant_type": "password"})
    httpx.get(f"{authority}/{TENANT}/v2.0/.well-known/openid-configuration")
    httpx.get(f"{authority}/v1.0/applications/1")
    httpx.get(f"{authority}/nowhere")
    assert logged(process, 5) == [
        f"POST /{TENANT}/oauth2/v2.0/token 200",
        f"POST /{TENANT}/oauth2/v2.0/token 400 AADSTS70003",
        f"GET /{TENANT}/v2.0/.well-known/openid-configuration 200",
        "GET /v1.0/applications/1 401 InvalidAuthenticationToken",
        "GET /nowhere 404",
    ]


def test_an_assertion_by_a_key_that_is_not_registered_is_aadsts700027(
    process: "subprocess.Popen[str]", program: Program, signing: Settings, softhsm: SoftHsm
) -> None:
    stranger = softhsm.import_key(rsa.generate_private_key(65537, 2048), "stranger", b"\x71")
    softhsm.add_certificate(softhsm.issue_certificate(stranger.public_key), "stranger", b"\x71")
    where = {"authority": ready(process)["authority"], "scope": "https://graph.microsoft.com/.default"}
    assert program("token", *options({**signing, **where}, key=stranger.uri)).status == 7
    assert logged(process, 1) == [f"POST /{TENANT}/oauth2/v2.0/token 401 AADSTS700027"]


def test_no_secret_and_no_control_character_gets_in(process: "subprocess.Popen[str]") -> None:
    authority = ready(process)["authority"]
    jwt = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
    httpx.post(f"{authority}/{TENANT}/oauth2/v2.0/token?client_assertion={jwt}", data={"client_assertion": jwt})
    httpx.get(f"{authority}/{jwt}/discovery/v2.0/keys")
    httpx.get(f"{authority}/x%0aGET%20/forged%20200/%1b[31m%e2%80%ae")
    httpx.get(f"{authority}/{'long/' * 100}")
    httpx.get(f"{authority}/v1.0/me", headers={"Authorization": f"Bearer {jwt}"})
    lines = logged(process, 5)
    assert jwt[:10] not in "".join(lines)
    assert [line.split(" ")[1] for line in lines[:3]] == [
        f"/{TENANT}/oauth2/v2.0/token",
        "/[removed]/discovery/v2.0/keys",
        "/x%0aGET%20/forged%20200/%1b[31m%e2%80%ae",
    ]
    assert all(len(line) < 250 and line.isascii() is ("…" not in line) for line in lines)


def test_a_log_that_nobody_reads_stops_no_answer(process: "subprocess.Popen[str]") -> None:
    # A pipe holds 64 KiB (pipe(7)): some 300 of these lines.
    authority = ready(process)["authority"]
    with httpx.Client(timeout=20) as http:
        for _ in range(600):
            assert http.get(f"{authority}/{'long/' * 40}").status_code == 404
        assert process.stderr is not None
        seen = [line for line in logged(process, 100) if "404" in line]
        http.get(f"{authority}/after")
    while (line := logged(process, 1)[0]) != "GET /after 404":
        seen.append(line)
    missing = re.fullmatch(r"(\d+) requests are missing here, because nothing read this log", seen.pop())
    assert missing
    assert len(seen) + int(missing[1]) == 600


def test_a_log_whose_reader_is_gone_stops_no_answer(process: "subprocess.Popen[str]") -> None:
    authority = ready(process)["authority"]
    assert process.stderr is not None
    process.stderr.close()
    for _ in range(3):
        assert httpx.get(f"{authority}/x").status_code == 404
    process.stderr = None


def test_it_is_json_where_the_log_is(program: Program, certificate: Path) -> None:
    arguments = ("--log-format", "json", "emulator", "--certificate", str(certificate), "--plain-http", "-o", "json")
    with program.start(*arguments) as process:
        httpx.get(f"{ready(process)['authority']}/x")
        record = json.loads(logged(process, 1)[0])
    assert (record["level"], record["message"]) == ("info", "GET /x 404")
