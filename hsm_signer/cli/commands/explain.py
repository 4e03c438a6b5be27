"""`explain`: says what an Entra error means."""

from typing import Annotated

import typer

from hsm_signer.cli.options import OutputOption
from hsm_signer.cli.output import Output, print_as
from hsm_signer.cli.text.layout import table
from hsm_signer.entra.aadsts import lookup, parse_code


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(explain)


def explain(
    code: Annotated[
        str,
        typer.Argument(metavar="AADSTS…", help="Error number, with or without the letters.", show_default=False),
    ],
    output: OutputOption = Output.TEXT,
) -> None:
    """Explain an Entra error: what it means, what usually causes it, and how to fix it.

    Works offline. For an error that it does not know, it prints the address of Microsoft's explanation.

    hsm-signer explain AADSTS700027
    """
    number = parse_code(code)
    known = lookup(number)
    reference = f"https://login.microsoftonline.com/error?code={number}"
    explanation = {name: getattr(known, name, None) for name in ("meaning", "cause", "fix")}
    document = {"code": number, "known": known is not None, **explanation, "reference": reference}
    if known is None:
        text = f"hsm-signer has no explanation of AADSTS{number}. Microsoft's is at\n{reference}"
    else:
        text = table(
            [(f"AADSTS{number}", known.meaning), ("cause", known.cause), ("fix", known.fix), ("more", reference)]
        )
    print_as(output, document, text)
