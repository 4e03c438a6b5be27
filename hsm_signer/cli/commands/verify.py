"""`verify`: checks a client assertion offline."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hsm_signer.cli.jwt_argument import JwtArgument, read_jwt
from hsm_signer.cli.options import OutputOption, read_certificate_file
from hsm_signer.cli.output import Output, print_as, print_note, sentences
from hsm_signer.cli.text.layout import table
from hsm_signer.jwt.verification import check_assertion, is_access_token
from hsm_signer.x509.certificate import parse_certificates


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(verify)


def verify(
    certificate: Annotated[
        Path, typer.Option(help="The key's certificate, PEM or DER.", metavar="FILE", show_default=False)
    ],
    jwt: JwtArgument = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check an assertion's signature, thumbprint and times offline.

    Exits with 0 if every check passes, else with 1.

    hsm-signer verify --certificate certificate.pem < assertion.jwt
    """
    first = parse_certificates(read_certificate_file(certificate), str(certificate))[0]
    given = read_jwt(jwt)
    checks = check_assertion(given, first, time.time())
    holds = all(check.holds for check in checks)
    text = table([("ok" if check.holds else "FAILED", check.name, check.detail) for check in checks])
    if is_access_token(given):
        print_note(
            "\n".join(
                sentences(
                    f"This is an access token, issued by {given.claims.get('iss')}, not an assertion. The service "
                    "that it is for checks it. To see what is in it: hsm-signer decode"
                )
            )
        )
    print_as(output, {"holds": holds, "checks": [asdict(check) for check in checks]}, text)
    raise typer.Exit(0 if holds else 1)
