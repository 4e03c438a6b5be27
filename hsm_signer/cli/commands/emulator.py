"""`emulator`: a local stand-in for Entra, for trying things out and for tests."""

import json
import threading
from pathlib import Path
from typing import Annotated

import typer

from hsm_signer.cli.options import OutputOption, read_certificate_file
from hsm_signer.cli.output import Output, print_note, print_result
from hsm_signer.config.values import text_argument

_OPTIONS = ("authority", "tenant", "client_id", "ca_bundle")


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(emulator)


def emulator(
    certificate: Annotated[
        list[Path],
        typer.Option(help="Certificate of the client, PEM or DER. Repeatable.", metavar="FILE", show_default=False),
    ],
    tenant: Annotated[str, typer.Option(help="The tenant it plays.", metavar="TENANT")] = "emulator.example",
    client_id: Annotated[
        str, typer.Option(help="The app registration it knows.", metavar="ID")
    ] = "11111111-2222-4333-8444-555555555555",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="http instead of https with a CA of its own.")
    ] = False,
    refuse_replay: Annotated[bool, typer.Option("--refuse-replay", help="Refuse a jti seen before.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Run a strict local stand-in for Entra, on loopback, until it is interrupted.

    It checks assertions as Entra is documented to, and answers with tokens nobody outside can mistake for Microsoft's.
    On the same port it is the part of Microsoft Graph with which an application rolls its keys.
    """
    from hsm_signer.testing import EntraEmulator

    tenant, client_id = text_argument(tenant, "--tenant"), text_argument(client_id, "--client-id")
    with EntraEmulator(https=not plain_http, port=port, refuse_replay=refuse_replay) as running:
        for file in certificate:
            running.register(client_id, read_certificate_file(file), tenant=tenant)
        ready = {
            "authority": running.authority,
            "tenant": tenant,
            "client_id": client_id,
            "ca_bundle": None if running.ca_file is None else str(running.ca_file),
            "token_endpoint": running.token_endpoint(tenant),
            "graph": running.graph,
            "object_id": running.object_id(client_id, tenant=tenant),
        }
        if output is Output.JSON:
            # One line: whoever started it reads that, and then goes on.
            print_result(json.dumps(ready))
        else:
            options = [f"--{name.replace('_', '-')} {ready[name]}" for name in _OPTIONS if ready[name]]
            print_result(
                f"Entra emulator at {running.authority}. Use it with:\n  hsm-signer token {' '.join(options)}\n"
                f"Microsoft Graph at {ready['graph']}. There the application has the object id {ready['object_id']}."
            )
        print_note("Stop it with Ctrl-C.")
        threading.Event().wait()
