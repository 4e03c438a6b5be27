"""Entra's error numbers are found, parsed and explained in whole sentences."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.entra.aadsts import is_lasting, lookup, parse_code
from hsm_signer.entra.aadsts_table import TABLE, AadstsError
from hsm_signer.errors import ConfigError, EntraError

DOCUMENTED = [
    700027, 700024, 700023, 700021, 50027, 1000502, 5002738, 700016, 700011, 90002, 900023, 500011, 70011, 1002012,
    7000215, 7000222, 700025, 7000112, 700030, 53003, 50196, 90055,
]  # fmt: skip


@pytest.mark.parametrize("code", DOCUMENTED)
def test_the_numbers_that_a_client_with_a_certificate_gets_are_explained(code: int) -> None:
    assert lookup(code) is not None


def test_an_unknown_number_has_no_explanation() -> None:
    assert lookup(123456) is None


def test_no_number_is_explained_twice() -> None:
    assert len({entry.code for entry in TABLE}) == len(TABLE)


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: str(entry.code))
def test_explanations_are_whole_sentences(entry: AadstsError) -> None:
    assert all(re.fullmatch(r"[A-Z].{10,}\.", text) for text in (entry.meaning, entry.cause, entry.fix))


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: str(entry.code))
def test_explanations_name_only_commands_that_exist(entry: AadstsError) -> None:
    named = set(re.findall(r"`hsm-signer (\w+)", f"{entry.meaning} {entry.cause} {entry.fix}"))
    assert named <= {"token", "assertion", "decode", "certificate"}


@pytest.mark.parametrize(
    "text",
    [
        "AADSTS700027",
        "aadsts700027",
        "700027",
        " 700027\n",
        "AADSTS700027:",
        "AADSTS 700027",
        "AADSTS700027: Client assertion failed.\r\nTrace ID: 1",
    ],
)
def test_a_number_is_parsed_as_people_write_it(text: str) -> None:
    assert parse_code(text) == 700027


@pytest.mark.parametrize(
    "text", ["", "AADSTS", "hello", "AADSTS12", "AADSTS700027x", "1234567890123", "AADSTS-1", "٧٠٠٠٢٧"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not an Entra error number"):
        parse_code(text)


def test_the_error_shows_only_the_beginning_of_a_long_text() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_code("x" * 1000)
    assert len(caught.value.message) < 100


@given(code=st.integers(1000, 999_999_999), prefix=st.sampled_from(["", "AADSTS", "aadsts", "AADSTS "]))
def test_any_number_is_parsed_with_any_prefix(code: int, prefix: str) -> None:
    assert parse_code(f"{prefix}{code}") == code


@pytest.mark.parametrize(
    "code", [500011, 70011, 1002012, 700016, 7000112, 53003, 90002, 501051, 500014, 700023, 700025, 50196]
)
def test_a_refusal_of_the_app_the_scope_or_the_tenant_lasts(code: int) -> None:
    assert is_lasting(EntraError("Refused.", error="invalid_request", aadsts=code))


@pytest.mark.parametrize(
    "code", [700027, 700024, 1000502, 50012, 50027, 5002723, 5002738, 700030, 90055, 7000218, 900144, 123456]
)
def test_a_refusal_that_a_new_assertion_or_certificate_may_end_does_not_last(code: int) -> None:
    assert not is_lasting(EntraError("Refused.", error="unauthorized_client", aadsts=code))


@pytest.mark.parametrize(
    ("error", "lasts"),
    [
        ("invalid_scope", True),
        ("unauthorized_client", True),
        ("unsupported_grant_type", True),
        ("invalid_client", False),
        ("invalid_request", False),
        ("temporarily_unavailable", False),
        (None, False),
    ],
)
def test_a_refusal_without_a_number_lasts_depending_on_its_error(error: str | None, lasts: bool) -> None:
    assert is_lasting(EntraError("Refused.", error=error)) is lasts
