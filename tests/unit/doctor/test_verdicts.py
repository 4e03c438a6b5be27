"""Verdicts on what the probes measured."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from hsm_signer.device.objects import Protection
from hsm_signer.doctor.verdicts import (
    Status,
    combined,
    failed,
    judge_certificate,
    judge_clock,
    judge_metadata,
    judge_protection,
    metadata_url,
    ok,
    skipped,
)
from hsm_signer.entra.authority import Endpoint, resolve_endpoint
from hsm_signer.x509.certificate import Certificate

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GUID = "72f988bf-86f1-41af-91ab-2d7cd011db47"
GUARDED = {
    "sensitive": True,
    "extractable": False,
    "never_extractable": True,
    "local": True,
    "always_authenticate": False,
}


def test_of_several_parts_every_failure_is_shown() -> None:
    parts = [failed("One.", "Fix one."), ok("Two."), failed("Three.", None), skipped("Four.")]
    assert combined(parts) == failed("One. Three.", "Fix one.")


def test_of_several_parts_that_work_everything_is_shown() -> None:
    assert combined([ok("One."), ok(""), ok("Three.")]) == ok("One. Three.")


def protection(**changes: bool | None) -> Protection:
    return Protection(**{**GUARDED, **changes})


def test_a_key_that_never_could_leave_the_device_is_well_protected() -> None:
    assert judge_protection(protection()) == ok(
        "Generated on the device; cannot be copied out. The PIN is needed only to log in."
    )


@pytest.mark.parametrize(
    ("changes", "attribute"),
    [
        ({"sensitive": False}, "CKA_SENSITIVE"),
        ({"extractable": True, "never_extractable": False}, "CKA_EXTRACTABLE"),
        ({"never_extractable": False}, "CKA_NEVER_EXTRACTABLE"),
        ({"local": False}, "CKA_LOCAL"),
    ],
)
def test_a_weakly_protected_key_is_a_warning_with_the_reason(changes: dict[str, bool], attribute: str) -> None:
    verdict = judge_protection(protection(**changes))
    assert verdict.status is Status.WARNING
    assert verdict.detail.count("CKA_") == 1
    assert attribute in verdict.detail


def test_an_attribute_that_the_device_does_not_report_is_named_and_no_warning() -> None:
    verdict = judge_protection(protection(local=None, never_extractable=None))
    assert verdict.status is Status.OK
    assert "The device does not report CKA_NEVER_EXTRACTABLE, CKA_LOCAL." in verdict.detail


def test_nothing_good_is_said_about_a_key_of_which_the_device_reports_nothing() -> None:
    verdict = judge_protection(Protection(None, None, None, None, None))
    assert verdict.detail.startswith("The device does not report CKA_SENSITIVE, CKA_EXTRACTABLE,")


@pytest.mark.parametrize(("always", "words"), [(True, "for each signature"), (False, "only to log in")])
def test_the_verdict_says_when_the_pin_is_needed(always: bool, words: str) -> None:
    assert words in judge_protection(protection(always_authenticate=always)).detail


@pytest.mark.parametrize(
    ("left", "status", "words"),
    [
        (timedelta(days=30), Status.OK, "30 days left"),
        (timedelta(days=30, seconds=-1), Status.WARNING, "29 days left"),
        (timedelta(days=1), Status.WARNING, "1 day left"),
    ],
)
def test_a_certificate_in_its_last_month_is_a_warning(left: timedelta, status: Status, words: str) -> None:
    certificate = Certificate(b"", None, "CN=x", NOW - timedelta(days=9), NOW + left, None)
    verdict = judge_certificate(certificate, NOW)
    assert verdict.status is status
    assert words in verdict.detail


@pytest.mark.parametrize(
    ("ahead", "status"),
    [
        (0.9, Status.OK),
        (-5.4, Status.OK),
        (6, Status.WARNING),
        (-300, Status.WARNING),
        (301, Status.FAILED),
        (-86400, Status.FAILED),
        (None, Status.SKIPPED),
    ],
)
def test_a_clock_may_differ_by_as_much_as_entra_allows(ahead: float | None, status: Status) -> None:
    assert judge_clock(ahead).status is status


@pytest.mark.parametrize(("ahead", "words"), [(10, "10 seconds ahead of"), (-10, "10 seconds behind")])
def test_the_verdict_says_whether_the_clock_is_ahead_or_behind(ahead: float, words: str) -> None:
    assert words in judge_clock(ahead).detail


CONTOSO = resolve_endpoint(tenant="contoso.onmicrosoft.com")


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        (CONTOSO, "https://login.microsoftonline.com/contoso.onmicrosoft.com/v2.0/.well-known/openid-configuration"),
        (
            resolve_endpoint(tenant="adfs", authority="https://adfs.example.com"),
            "https://adfs.example.com/adfs/.well-known/openid-configuration",
        ),
        (
            resolve_endpoint(tenant=None, authority="https://contoso.ciamlogin.com"),
            "https://contoso.ciamlogin.com/contoso.onmicrosoft.com/v2.0/.well-known/openid-configuration",
        ),
        (resolve_endpoint(tenant=None, token_endpoint="https://sts.example.com/oauth2/token"), None),
    ],
)
def test_the_url_of_the_openid_configuration(endpoint: Endpoint, url: str | None) -> None:
    assert metadata_url(endpoint) == url


def metadata(token_endpoint: object, issuer: object = "https://login.example.com/v2.0") -> bytes:
    return json.dumps({"issuer": issuer, "token_endpoint": token_endpoint}).encode()


@pytest.mark.parametrize("tenant", ["contoso.onmicrosoft.com", GUID])
def test_a_token_endpoint_agrees_even_if_entra_names_the_tenant_by_its_guid(tenant: str) -> None:
    body = metadata(f"https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token")
    assert judge_metadata(200, body, CONTOSO).status is Status.OK


@pytest.mark.parametrize(
    "theirs",
    [
        f"https://login.microsoftonline.us/{GUID}/oauth2/v2.0/token",
        f"https://login.microsoftonline.com/{GUID}/oauth2/token",
    ],
    ids=["another cloud", "another version"],
)
def test_another_token_endpoint_is_a_failure_that_names_it(theirs: str) -> None:
    verdict = judge_metadata(200, metadata(theirs), CONTOSO)
    assert verdict.status is Status.FAILED
    assert theirs in verdict.detail
    assert "--cloud" in (verdict.fix or "")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff",
        b"[]",
        b"null",
        b'{"issuer": "x"}',
        metadata(1),
        metadata(None),
        b"[" * 100_000,
        metadata("https://[::1/token"),
    ],
    ids=["nothing", "HTML", "no text", "a list", "null", "half", "a number", "none", "too deep", "no URL"],
)
def test_an_answer_that_is_not_an_openid_configuration_is_a_failure(body: bytes) -> None:
    assert "is not an OpenID configuration" in judge_metadata(200, body, CONTOSO).detail


def test_a_status_other_than_200_is_a_failure_that_names_it() -> None:
    assert "answered 400 " in judge_metadata(400, b"{}", CONTOSO).detail


def test_an_issuer_cannot_send_control_characters_to_the_terminal() -> None:
    body = metadata(CONTOSO.token_endpoint, issuer="\x1b[2J" + "x" * 1000)
    detail = judge_metadata(200, body, CONTOSO).detail
    assert detail.isprintable()
    assert len(detail) < 300
