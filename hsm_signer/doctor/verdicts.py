"""Judge the doctor's measurements; pure.

Each function takes a measurement and returns a `Verdict`: what was found, and what to do about it.
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
"""Seconds that a clock may differ: a Date header counts whole seconds, and the answer needs time to arrive."""

TOLERANCE = 300
"""Seconds beyond which Entra refuses assertions (AADSTS700024)."""


class Status(StrEnum):
    """The outcome of a probe."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Verdict:
    """What a measurement means.

    Attributes:
        status: the outcome.
        detail: what was found, or why the probe was skipped, in sentences. No PIN, token or assertion.
        fix: what to do about it, or None.
        commands: what to type for that, or, where nothing is wrong, to use what was found.
        waits_for: the name of the check that failed first, if that is why this one was skipped.
    """

    status: Status
    detail: str
    fix: str | None = None
    commands: tuple[str, ...] = ()
    waits_for: str | None = None


def ok(detail: str, commands: tuple[str, ...] = ()) -> Verdict:
    """Return the verdict that the check passed."""
    return Verdict(Status.OK, detail, commands=commands)


def warning(detail: str, fix: str | None, commands: tuple[str, ...] = ()) -> Verdict:
    """Return the verdict that the check passed, but something should be fixed."""
    return Verdict(Status.WARNING, detail, fix, commands)


def failed(detail: str, fix: str | None, commands: tuple[str, ...] = ()) -> Verdict:
    """Return the verdict that the check failed."""
    return Verdict(Status.FAILED, detail, fix, commands)


def skipped(reason: str, fix: str | None = None, commands: tuple[str, ...] = ()) -> Verdict:
    """Return the verdict that this was not checked."""
    return Verdict(Status.SKIPPED, reason, fix, commands)


def combined(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on a check of several parts: every failure, or if there is none, every detail."""
    failures = [verdict for verdict in verdicts if verdict.status is Status.FAILED]
    if not failures:
        return ok(" ".join(verdict.detail for verdict in verdicts if verdict.detail))
    fixes = [verdict.fix for verdict in failures if verdict.fix]
    commands = tuple(command for verdict in failures for command in verdict.commands)
    return failed(" ".join(verdict.detail for verdict in failures), " ".join(fixes) or None, commands)


def judge_protection(protection: "Protection") -> Verdict:
    """Judge how the device protects a private key. Attributes that it does not report are listed without a warning."""
    concerns = [
        concern
        for bad, concern in (
            (protection.sensitive is False, "the device can show it in clear (CKA_SENSITIVE is false)"),
            (protection.extractable is True, "it can be copied out of the device (CKA_EXTRACTABLE is true)"),
            (
                protection.extractable is not True and protection.never_extractable is False,
                "it could be copied out of the device in the past (CKA_NEVER_EXTRACTABLE is false)",
            ),
            (protection.local is False, "it was not generated on the device, so copies may exist (CKA_LOCAL is false)"),
        )
        if bad
    ]
    if concerns:
        return warning(
            f"This key is not well protected: {'; '.join(concerns)}.",
            "Generate a key on the device (hsm-signer key generate), and register its certificate instead.",
        )
    generated = ["generated on the device"] if protection.local else []
    stays = ["cannot be copied out"] if protection.sensitive and protection.extractable is False else []
    known = "; ".join(generated + stays)
    attributes = {
        "CKA_SENSITIVE": protection.sensitive,
        "CKA_EXTRACTABLE": protection.extractable,
        "CKA_NEVER_EXTRACTABLE": protection.never_extractable,
        "CKA_LOCAL": protection.local,
    }
    unknown = ", ".join(name for name, value in attributes.items() if value is None)
    needed = "for each signature" if protection.always_authenticate else "only to log in"
    return ok(
        (f"{known[0].upper()}{known[1:]}. " if known else "")
        + (f"The device does not report {unknown}. " if unknown else "")
        + f"The PIN is needed {needed}."
    )


def judge_certificate(certificate: Certificate, now: datetime) -> Verdict:
    """Judge the remaining validity of a certificate that can be used.

    Args:
        now: timezone-aware.
    """
    days = (certificate.not_after - now).days
    usage = "any use" if certificate.key_usage is None else "digital signatures"
    detail = (
        f"{certificate.subject} matches this key. Valid until {certificate.not_after:%Y-%m-%d} "
        f"({days} day{'' if days == 1 else 's'} left), for {usage}. SHA-1 {certificate.sha1.hex().upper()}."
    )
    if days < RENEWAL_DAYS:
        return warning(detail, "Create the next certificate, and register it before this one expires.")
    return ok(detail)


def judge_clock(ahead: float | None) -> Verdict:
    """Judge this machine's clock.

    Args:
        ahead: seconds by which it is ahead of the server's, or None if the server's answer has no date.
    """
    if ahead is None:
        return skipped("The server's answer has no Date header to compare with.")
    seconds = round(ahead)
    if abs(seconds) <= AGREEMENT:
        return ok(f"Within {AGREEMENT} seconds of the server's clock.")
    detail = f"This machine's clock is {abs(seconds)} seconds {'ahead of' if seconds > 0 else 'behind'} the server's"
    fix = "Synchronize this machine's clock: timedatectl set-ntp true"
    if abs(seconds) <= TOLERANCE:
        return warning(f"{detail}. Entra refuses assertions if the difference exceeds {TOLERANCE} seconds.", fix)
    return failed(f"{detail}. Entra accepts a difference of {TOLERANCE} seconds at most.", fix)


def metadata_url(endpoint: Endpoint) -> str | None:
    """Return the URL of the OpenID configuration (OpenID Connect Discovery 1.0 section 4), or None if there is none."""
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
            "Check --tenant, and that --cloud or --authority is the cloud of this tenant.",
        )
    try:
        document = json.loads(body)
        issuer, theirs = document["issuer"], document["token_endpoint"]
        agrees = _place(theirs) == _place(endpoint.token_endpoint)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return failed(
            f"The answer of {host} is not an OpenID configuration.",
            "Check --authority, and whether a proxy or a login page answered instead.",
        )
    if not agrees:
        return failed(
            f"The token endpoint of {endpoint.tenant} is {printable(str(theirs), 200)}, not {endpoint.token_endpoint}.",
            "Choose the cloud of that address with --cloud, or its host with --authority.",
        )
    return ok(f"Issuer {printable(str(issuer), 200)}. Its token endpoint is the one in use.")


def _place(token_endpoint: str) -> tuple[str, list[str]]:
    """Return the parts of a token endpoint that must agree. The tenant need not: Entra writes its GUID there."""
    split = urlsplit(token_endpoint)
    return split.netloc.lower(), split.path.split("/")[2:]
