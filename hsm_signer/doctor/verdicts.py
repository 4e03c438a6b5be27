"""What the doctor's measurements mean; pure.

Each function takes what was measured and returns a `Verdict`: sentences of what is so, and one of what to do.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hsm_signer.entra.authority import Endpoint
from hsm_signer.entra.redaction import printable
from hsm_signer.x509.certificate import Certificate
from hsm_signer.x509.requirements import RENEWAL_DAYS

if TYPE_CHECKING:
    from hsm_signer.device.objects import Protection

AGREEMENT = 5
"""Seconds a clock may differ unremarked: a Date counts whole seconds, and the answer was on its way for a while."""

TOLERANCE = 300
"""Seconds beyond which Entra refuses assertions (AADSTS700024)."""


class Status(StrEnum):
    """What became of a probe."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Verdict:
    """What a measurement means.

    Attributes:
        status: how it went.
        detail: what was found, or why nobody looked; sentences, without a PIN, token or assertion.
        fix: what to do about it, or None.
    """

    status: Status
    detail: str
    fix: str | None = None


def ok(detail: str) -> Verdict:
    """Return the verdict that all is well."""
    return Verdict(Status.OK, detail)


def warning(detail: str, fix: str) -> Verdict:
    """Return the verdict that it works, but should be mended."""
    return Verdict(Status.WARNING, detail, fix)


def failed(detail: str, fix: str | None) -> Verdict:
    """Return the verdict that it does not work."""
    return Verdict(Status.FAILED, detail, fix)


def skipped(reason: str, fix: str | None = None) -> Verdict:
    """Return the verdict that nobody looked."""
    return Verdict(Status.SKIPPED, reason, fix)


def combined(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on a check of several parts: all that failed, or what was found by all."""
    failures = [verdict for verdict in verdicts if verdict.status is Status.FAILED]
    if not failures:
        return ok(" ".join(verdict.detail for verdict in verdicts if verdict.detail))
    fixes = [verdict.fix for verdict in failures if verdict.fix]
    return failed(" ".join(verdict.detail for verdict in failures), " ".join(fixes) or None)


def judge_protection(protection: "Protection") -> Verdict:
    """Judge how a private key is guarded. What the device does not tell is named, and not held against it."""
    concerns = [
        concern
        for bad, concern in (
            (protection.sensitive is False, "the device would show it in clear (CKA_SENSITIVE is false)"),
            (protection.extractable is True, "it can be taken out of the device (CKA_EXTRACTABLE is true)"),
            (
                protection.extractable is not True and protection.never_extractable is False,
                "it could be taken out of the device before (CKA_NEVER_EXTRACTABLE is false)",
            ),
            (protection.local is False, "it was not made on the device, so copies may exist (CKA_LOCAL is false)"),
        )
        if bad
    ]
    if concerns:
        return warning(
            f"Of this key: {'; '.join(concerns)}.",
            "Generate a key on the device, never extractable, and register its certificate instead.",
        )
    told = {
        "sensitive": protection.sensitive,
        "not extractable": None if protection.extractable is None else True,
        "never extractable": protection.never_extractable,
        "made on the device": protection.local,
    }
    known = ", ".join(name for name, value in told.items() if value)
    unknown = ", ".join(name for name, value in told.items() if value is None)
    wants = "with each signature" if protection.always_authenticate else "only to log in"
    return ok(
        (f"It is {known}. " if known else "")
        + (f"The device does not tell whether it is {unknown}. " if unknown else "")
        + f"It wants the PIN {wants}."
    )


def judge_certificate(certificate: Certificate, now: datetime) -> Verdict:
    """Judge what is left of the validity of a certificate that can be used.

    Args:
        now: timezone-aware.
    """
    days = (certificate.not_after - now).days
    usage = "any use" if certificate.key_usage is None else "digital signatures"
    detail = (
        f"{certificate.subject}, of this key, for {usage}, valid until {certificate.not_after:%Y-%m-%d}: "
        f"{days} day{'' if days == 1 else 's'} left. SHA-1 {certificate.sha1.hex().upper()}."
    )
    if days < RENEWAL_DAYS:
        return warning(detail, "Make the next certificate, and register it before this one ends.")
    return ok(detail)


def judge_clock(ahead: float | None) -> Verdict:
    """Judge this machine's clock.

    Args:
        ahead: seconds by which it is ahead of the server's, or None where the server does not tell the time.
    """
    if ahead is None:
        return skipped("The server does not tell the time: its answer has no Date.")
    seconds = round(ahead)
    if abs(seconds) <= AGREEMENT:
        return ok(f"It agrees with the server's to within {AGREEMENT} seconds.")
    detail = f"It is {abs(seconds)} seconds {'ahead of' if seconds > 0 else 'behind'} the server's"
    fix = "Set this machine's clock, and let it be kept: timedatectl set-ntp true"
    if abs(seconds) <= TOLERANCE:
        return warning(f"{detail}; beyond {TOLERANCE} Entra refuses assertions.", fix)
    return failed(f"{detail}; Entra allows {TOLERANCE}.", fix)


def metadata_url(endpoint: Endpoint) -> str | None:
    """Return where the OpenID configuration is (OpenID Connect Discovery 1.0 section 4), or None where none is due."""
    if not endpoint.entra:
        return None
    for path, version in (("/oauth2/v2.0/token", "/v2.0"), ("/oauth2/token", "")):
        if endpoint.token_endpoint.endswith(path):
            return f"{endpoint.token_endpoint.removesuffix(path)}{version}/.well-known/openid-configuration"
    return None


def judge_metadata(status: int, body: bytes, endpoint: Endpoint) -> Verdict:
    """Judge the answer to a request for the OpenID configuration."""
    host = urlsplit(endpoint.authority).netloc
    if status != 200:
        return failed(
            f"{host} answered {status} for the OpenID configuration of {endpoint.tenant}.",
            "Check --tenant, and whether --cloud or --authority is the one it lives in.",
        )
    try:
        document = json.loads(body)
        issuer, theirs = document["issuer"], document["token_endpoint"]
        agrees = _place(theirs) == _place(endpoint.token_endpoint)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return failed(
            f"What {host} answered is no OpenID configuration.",
            "Check --authority, and whether a proxy or a login page answered instead.",
        )
    if not agrees:
        return failed(
            f"Tokens for {endpoint.tenant} come from {printable(str(theirs), 200)}, "
            f"and not from {endpoint.token_endpoint}.",
            "Choose the cloud of that address with --cloud, or its host with --authority.",
        )
    return ok(f"Issuer {printable(str(issuer), 200)}; the token endpoint is the one we use.")


def _place(token_endpoint: str) -> tuple[str, list[str]]:
    """Return what must agree of a token endpoint: not the tenant, which Entra gives by its GUID."""
    split = urlsplit(token_endpoint)
    return split.netloc.lower(), split.path.split("/")[2:]
