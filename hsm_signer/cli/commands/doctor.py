"""`doctor`: checks everything from the configuration to a token, and says how to fix what fails."""

import contextlib
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from hsm_signer.cli.operator import terminal_operator
from hsm_signer.cli.options import OutputOption, profile_options
from hsm_signer.cli.output import Output, print_json, print_result
from hsm_signer.config.profile import Profile


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
    from hsm_signer.cli.text.findings import finding_lines
    from hsm_signer.doctor.doctor import examine

    findings = []
    with contextlib.closing(examine(profile, terminal_operator(wait=profile.wait), offline=offline)) as examination:
        for name, verdict in examination:
            findings.append({"name": name, **asdict(verdict)})
            if output is Output.TEXT:
                print_result("\n".join(finding_lines(name, verdict, sys.stdout)), styled=True)
    healthy = all(finding["status"] != "failed" for finding in findings)
    if output is Output.JSON:
        print_json({"healthy": healthy, "findings": findings})
    raise typer.Exit(0 if healthy else 1)
