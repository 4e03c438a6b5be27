"""`doctor`: checks everything from the configuration to a token, and says how to fix what fails."""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from hsm_signer.cli.operator import terminal_operator
from hsm_signer.cli.options import OutputOption, profile_options
from hsm_signer.cli.output import Output, paint, print_json, print_result
from hsm_signer.cli.text.layout import WIDTH, wrapped
from hsm_signer.config.profile import Profile
from hsm_signer.system.display import displayable

if TYPE_CHECKING:
    from hsm_signer.doctor.verdicts import Verdict

_NAME, _STATUS = len("configuration") + 2, len("skipped") + 2
_COLOURS = {"ok": "32", "warning": "33", "failed": "31", "skipped": "2"}


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(profile_options("Device", "Assertion", "Exchange")(doctor))


def doctor(
    profile: Profile,
    offline: Annotated[bool, typer.Option("--offline", help="Skip the checks that need the network.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check everything from the PKCS#11 module to the access token, and say how to fix what fails.

    Logs in once and signs once. Shows no token and no assertion.
    Exits with 0 if no check failed, else with 1.

    hsm-signer --profile prod doctor
    """
    from hsm_signer.doctor.doctor import examine

    findings = []
    with contextlib.closing(examine(profile, terminal_operator(wait=profile.wait), offline=offline)) as examination:
        for name, verdict in examination:
            findings.append({"name": name, **asdict(verdict)})
            if output is Output.TEXT:
                print_result("\n".join(_lines(name, verdict)), styled=True)
    healthy = all(finding["status"] != "failed" for finding in findings)
    if output is Output.JSON:
        print_json({"healthy": healthy, "findings": findings})
    raise typer.Exit(0 if healthy else 1)


def _lines(name: str, verdict: "Verdict") -> Iterator[str]:
    """Return name, status and detail side by side, and the fix under the detail."""
    indent = " " * (_NAME + _STATUS)
    width = min(shutil.get_terminal_size((WIDTH, 0)).columns, 120)
    detail = _wrap(verdict.detail, width - len(indent))
    status = paint(verdict.status, _COLOURS[verdict.status], sys.stdout) + " " * (_STATUS - len(verdict.status))
    yield f"{name:{_NAME}}{status}{detail[0]}"
    for line in detail[1:] + (_wrap(f"fix: {verdict.fix}", width - len(indent)) if verdict.fix else []):
        yield indent + line


def _wrap(text: str, width: int) -> list[str]:
    return wrapped(displayable(text), width=max(width, 20)) or [""]
