"""`decode`, `verify` and `explain`: what they show, and that it cannot control the terminal."""

import base64
import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.program import Program, Settings, assert_explained, options


def unsigned(claims: Mapping[str, object], header: Mapping[str, object] | None = None) -> str:
    parts = (json.dumps(part).encode() for part in (header or {"alg": "none"}, claims))
    return "".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() + "." for part in parts)


def test_decode_shows_the_same_from_an_argument_and_from_stdin(program: Program, jwt: str) -> None:
    argument = program("decode", jwt, "-o", "json")
    stdin = program("decode", "-o", "json", stdin=jwt + "\n")
    assert (argument.status, argument.stderr) == (0, "")
    assert list(argument.json) == ["header", "claims"]
    assert stdin.stdout == argument.stdout


def test_decode_never_shows_the_signature(program: Program, jwt: str) -> None:
    result = program("decode", jwt)
    assert result.status == 0
    assert jwt.split(".")[2] not in result.stdout


def test_decode_says_times_in_words(program: Program) -> None:
    now = int(time.time())
    jwt = unsigned({"nbf": now - 3 * 86400 - 600, "iat": 0, "exp": now + 2 * 3600 + 600})
    rows = {line.split()[1]: line for line in program("decode", jwt).stdout.splitlines()}
    assert rows["nbf"].endswith("UTC, 3 days ago")
    assert "  1970-01-01 00:00:00 UTC, " in rows["iat"]
    assert rows["exp"].endswith("UTC, in 2 hours")


def test_decode_shows_invalid_times(program: Program) -> None:
    result = program("decode", unsigned({"exp": 10**300, "nbf": "soon", "iat": True}))
    assert (result.status, result.stderr) == (0, "")
    assert "not a valid time" in result.stdout


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_in_a_jwt_controls_the_terminal(program: Program, form: str) -> None:
    # A title, a colour by C0 and by C1, a deletion, a change of direction, and half a character.
    evil = "\x1b]0;title\x07 \x1b[31m \x9b31m \x7f \u202e \ud800 \r\n"
    result = program("decode", unsigned({"name": evil, "deep": [{evil: evil}], evil: 1}, {"alg": evil}), "-o", form)
    assert (result.status, result.stderr) == (0, "")
    assert all(character.isprintable() for line in result.stdout.split("\n") for character in line)


def assertion_of(payload: str) -> str:
    parts = (part.encode() for part in ('{"alg": "RS256"}', payload, "signature"))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.mark.parametrize(
    "payload",
    [
        f'{{"nbf": -{"9" * 4300}, "exp": {"9" * 4300}}}',
        '{"n": 1e999}',
        "[" * 900 + "]" * 900,
        '{"a":' * 900 + "1" + "}" * 900,
    ],
    ids=["4,300 digits", "an infinity", "nested lists", "nested objects"],
)
def test_absurd_numbers_and_nesting_are_refused(program: Program, certificate: Path, payload: str) -> None:
    jwt = assertion_of(payload)
    assert_explained(program("decode", jwt), 2, "jwt_malformed")
    assert_explained(program("verify", "--certificate", str(certificate), stdin=jwt), 2, "jwt_malformed")


def test_verify_calculates_with_invalid_times(program: Program, certificate: Path) -> None:
    jwt = assertion_of(f'{{"nbf": -{"9" * 309}, "exp": {"9" * 309}}}')
    result = program("verify", "--certificate", str(certificate), stdin=jwt)
    assert (result.status, result.stderr) == (1, "")


def test_decode_as_json_keeps_what_it_was_given(program: Program) -> None:
    claims = {"name": "Zoë\x1b[31m\x9b\ud800"}
    assert program("decode", unsigned(claims), "-o", "json").json["claims"] == claims


@pytest.mark.parametrize(
    "text", ["", "e30.e30", "e30=.e30.", "\x1b[31m.e30.e30"], ids=["nothing", "two parts", "padding", "escapes"]
)
def test_decode_explains_what_is_no_jwt_without_quoting_it(program: Program, text: str) -> None:
    result = program("decode", stdin=text)
    assert_explained(result, 2, "jwt_malformed")
    assert "\x1b" not in result.stderr


def test_decode_explains_bytes_that_are_no_text(program: Program) -> None:
    binary = ("sh", "-c", r'''printf '\377\376.e30.e30' | "$@"''', "sh")
    result = program("decode", environment={"PYTHONIOENCODING": "utf-8:strict"}, within=binary)
    assert_explained(result, 2, "jwt_malformed")


def test_decode_works_where_the_locale_has_few_characters(program: Program) -> None:
    result = program("decode", unsigned({"name": "Zoë"}), environment={"PYTHONIOENCODING": "ascii"})
    assert (result.status, result.stderr) == (0, "")
    assert r"Zo\xeb" in result.stdout


def test_verify_says_what_it_checked_and_succeeds(program: Program, jwt: str, certificate: Path) -> None:
    result = program("verify", "--certificate", str(certificate), stdin=jwt)
    assert (result.status, result.stderr) == (0, "")
    assert {line.split()[0] for line in result.stdout.splitlines()} == {"ok"}


def test_verify_says_which_check_failed_and_fails(program: Program, jwt: str, certificate: Path) -> None:
    header, _, signature = jwt.split(".")
    claims = unsigned({"exp": 1, "nbf": 0}).split(".")[1]
    result = program("verify", "--certificate", str(certificate), f"{header}.{claims}.{signature}")
    assert (result.status, result.stderr) == (1, "")
    failed = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("FAILED")]
    assert failed == ["signature", "times", "client", "claims"]


def test_verify_says_that_an_access_token_is_one(program: Program, exchange: Settings, certificate: Path) -> None:
    token = program("token", *options(exchange)).stdout.strip()
    result = program("verify", "--certificate", str(certificate), stdin=token)
    assert result.status == 1
    assert result.stderr.startswith("This is an access token, issued by https://")
    assert token.rpartition(".")[2] not in result.stdout + result.stderr
    as_json = program("verify", "--certificate", str(certificate), "-o", "json", stdin=token)
    assert (as_json.status, as_json.json["holds"]) == (1, False)


def test_verify_as_json_says_whether_all_checks_passed(program: Program, jwt: str, certificate: Path) -> None:
    forged = f"{jwt.rpartition('.')[0]}.AAAA"
    result = program("verify", "--certificate", str(certificate), forged, "-o", "json")
    assert result.status == 1
    document = result.json
    assert list(document) == ["holds", "checks"]
    assert document["holds"] is False
    assert [check["name"] for check in document["checks"] if not check["holds"]] == ["signature"]


def test_verify_explains_a_missing_certificate_file(program: Program, jwt: str) -> None:
    result = program("verify", "--certificate", "nowhere.pem", jwt)
    assert_explained(result, 5, "certificate_not_found")


def test_verify_explains_a_file_that_is_no_certificate(program: Program, jwt: str) -> None:
    (program.directory / "letter.txt").write_text("Dear Sir")
    result = program("verify", "--certificate", "letter.txt", jwt)
    assert_explained(result, 5, "certificate_unusable")


@pytest.mark.parametrize("code", ["AADSTS700027", "700027"])
def test_explain_gives_meaning_cause_and_fix(program: Program, code: str) -> None:
    result = program("explain", code)
    assert (result.status, result.stderr) == (0, "")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["AADSTS700027", "cause", "fix", "more"]


@pytest.mark.parametrize(("code", "known"), [("700027", True), ("123456", False)])
def test_explain_as_json_has_the_same_keys_for_every_code(program: Program, code: str, known: bool) -> None:
    document = program("explain", code, "-o", "json").json
    assert list(document) == ["code", "known", "meaning", "cause", "fix", "reference"]
    assert (document["code"], document["known"]) == (int(code), known)
    assert all((document[name] is not None) is known for name in ("meaning", "cause", "fix"))


def test_explain_points_to_microsoft_for_a_code_it_does_not_know(program: Program) -> None:
    result = program("explain", "AADSTS123456")
    assert (result.status, result.stderr) == (0, "")
    assert "https://login.microsoftonline.com/error?code=123456" in result.stdout


def test_explain_refuses_anything_but_an_error_number(program: Program) -> None:
    assert_explained(program("explain", "invalid_client"), 2, "config_error")
