"""`decode`: shows what a JWT says."""

import time

import typer

from hsm_signer.cli.jwt_argument import JwtArgument, read_jwt
from hsm_signer.cli.options import OutputOption
from hsm_signer.cli.output import Output, print_as
from hsm_signer.cli.text.jwt import jwt_text


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(decode)


def decode(jwt: JwtArgument = None, output: OutputOption = Output.TEXT) -> None:
    """Show the header and the claims of a JWT, with its times in words.

    Checks nothing: a JWT that decodes may be forged or expired. The signature is not shown.

    hsm-signer --profile prod assertion | hsm-signer decode
    """
    parsed = read_jwt(jwt)
    print_as(output, {"header": parsed.header, "claims": parsed.claims}, jwt_text(parsed, time.time()))
