"""`doctor`: checks everything from the configuration to a token, and says how to fix what fails."""

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hsm_signer.cli.operator import terminal_operator
from hsm_signer.cli.options import OutputOption, profile_options
from hsm_signer.cli.output import Output, print_json, print_result
from hsm_signer.config.profile import Profile

if TYPE_CHECKING:
    from hsm_signer.doctor.verdicts import Verdict


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
    Without a configuration, checks what needs none: modules, devices, PINs, keys and certificates.
    Exits with 0 if no check failed, else with 1.

    hsm-signer --profile prod doctor
    """
    from hsm_signer.cli.text.findings import finding_lines
    from hsm_signer.doctor.doctor import examine
    from hsm_signer.doctor.verdicts import skipped

    findings: list[dict[str, object]] = []
    waiting: dict[str, list[str]] = {}
    with contextlib.closing(examine(profile, terminal_operator(wait=profile.wait), offline=offline)) as examination:
        for name, verdict in examination:
            findings.append(_finding(name, verdict))
            if verdict.waits_for is not None:
                waiting.setdefault(verdict.waits_for, []).append(name)
            elif output is Output.TEXT:
                print_result("\n".join(finding_lines(name, verdict, sys.stdout)), styled=True)
    healthy = all(finding["status"] != "failed" for finding in findings)
    if output is Output.JSON:
        print_json({"healthy": healthy, "findings": findings})
    else:
        for cause, names in waiting.items():
            # One row for all that wait for the same thing.
            verdict = skipped(f"Not checked because {cause} failed: {', '.join(names)}.")
            print_result("\n".join(finding_lines(names[0], verdict, sys.stdout)), styled=True)
    raise typer.Exit(0 if healthy else 1)


def _finding(name: str, verdict: "Verdict") -> dict[str, object]:
    """Return a verdict as JSON has it: the commands of a fix are part of it, and by themselves in `commands`."""
    fix = None if verdict.fix is None else "\n".join([verdict.fix, *verdict.commands])
    finding = {"name": name, "status": verdict.status, "detail": verdict.detail, "fix": fix}
    return finding | ({"commands": verdict.commands} if verdict.commands else {})
