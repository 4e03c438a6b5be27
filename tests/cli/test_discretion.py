"""The program shows no secrets, and uses the device no more than needed."""

import glob
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsm_signer.testing import EntraEmulator, SoftHsm
from tests.support.names import PIN, WRONG_PIN
from tests.support.program import Program, Settings, options


def secrets(*jwts: str) -> Iterator[str]:
    """Return everything that must not be shown: the PINs, and the secret parts of the JWTs."""
    yield from (PIN, WRONG_PIN)
    for jwt in jwts:
        yield from jwt.split(".")[1:]


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_of_a_token_holds_no_pin_token_or_assertion(
    program: Program, exchange: Settings, entra: EntraEmulator, form: str
) -> None:
    result = program("-v", "--log-format", form, "token", *options(exchange))
    assert result.status == 0
    assert "signed RS256" in result.stderr
    assertion = entra.requests[-1].form["client_assertion"]
    assert [secret for secret in secrets(assertion, result.stdout.strip()) if secret in result.stderr] == []


def test_every_line_of_a_json_log_is_json(program: Program, signing: Settings) -> None:
    result = program("-v", "--log-format", "json", "assertion", *options(signing))
    records = [json.loads(line) for line in result.stderr.splitlines()]
    assert records
    assert all(list(record) == ["time", "level", "logger", "message"] for record in records)


def test_a_refusal_quotes_neither_pin_nor_assertion(program: Program, exchange: Settings, entra: EntraEmulator) -> None:
    result = program("-v", "token", *options(exchange, client_id="nobody"))
    assert result.status == 7
    assertion = entra.requests[-1].form["client_assertion"]
    assert [secret for secret in secrets(assertion) if secret in result.stderr] == []


BROKEN = """
import hsm_signer.cli.commands.token

def show(token, output, tokens):
    raise ValueError(token.token)

hsm_signer.cli.commands.token._show_token = show
hsm_signer.cli.main()
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_bug_is_reported_by_its_place_and_not_by_its_text(
    program: Program, exchange: Settings, entra: EntraEmulator, form: str
) -> None:
    result = program("-v", "token", "-o", form, *options(exchange), python=("-c", BROKEN))
    assert result.status == 70
    assert "ValueError at <string>:5 show" in result.stderr
    assert result.stdout == ""
    assertion = entra.requests[-1].form["client_assertion"]
    assert [secret for secret in ("eyJ", *secrets(assertion)) if secret in result.stderr] == []


def test_a_token_costs_one_signature_and_one_login(
    program: Program, exchange: Settings, softhsm: SoftHsm, spy: Path
) -> None:
    log = program.directory / "calls.log"
    watched = {"PKCS11SPY": str(softhsm.module), "PKCS11SPY_OUTPUT": str(log)}
    result = program("token", *options(exchange, module=str(spy)), environment=watched)
    assert result.status == 0
    calls = re.findall(r"^\d+: (C_\w+)\n(.*?)^Returned: ", log.read_text(), re.MULTILINE | re.DOTALL)
    signatures = [text for name, text in calls if name in ("C_Sign", "C_SignFinal")]
    assert sum("pSignature[*pulSignatureLen] NULL" not in text for text in signatures) == 1
    names = [name for name, _ in calls]
    assert names.count("C_Login") == 1


@pytest.fixture
def spy() -> Path:
    """OpenSC's spy module, which records the calls into another module."""
    found = glob.glob("/usr/lib*/pkcs11/pkcs11-spy.so") + glob.glob("/usr/lib/*/pkcs11/pkcs11-spy.so")
    assert found, "pkcs11-spy.so is missing: apt-get install opensc-pkcs11"
    return Path(found[0])
