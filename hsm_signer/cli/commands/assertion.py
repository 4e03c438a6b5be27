"""`assertion`: signs a client assertion and prints it."""

import typer

from hsm_signer.cli.log import report_done
from hsm_signer.cli.operator import terminal_operator
from hsm_signer.cli.options import OutputFileOption, OutputOption, profile_options
from hsm_signer.cli.output import Output, result_writer
from hsm_signer.cli.text.layout import to_json
from hsm_signer.config.profile import Profile
from hsm_signer.credential.tokens import Tokens
from hsm_signer.jwt.compact import parse_jwt


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(profile_options("Device", "Assertion")(assertion))


def assertion(
    profile: Profile,
    output: OutputOption = Output.TEXT,
    output_file: OutputFileOption = None,
) -> None:
    """Sign a client assertion and print it. Needs no network: nothing is sent.

    An assertion is a signed JWT that proves the client's identity. Keep it secret until it expires.

    hsm-signer --profile prod assertion --output-file assertion.jwt
    """
    with Tokens(profile, terminal_operator(wait=profile.wait)) as tokens, result_writer(output_file) as write:
        jwt = tokens.assertion()
        if output is Output.TEXT:
            write(jwt)
        else:
            parsed = parse_jwt(jwt)
            write(to_json({"header": parsed.header, "claims": parsed.claims, "jwt": jwt}))
    if output_file is not None:
        from hsm_signer.cli.text.layout import utc

        report_done(f"Wrote the assertion to {output_file}. It is valid until {utc(parse_jwt(jwt).claims['exp'])}.")
