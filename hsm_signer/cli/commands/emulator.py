"""`emulator`: runs a local stand-in for Entra."""

import contextlib
import json
import shlex
import threading
from pathlib import Path
from typing import Annotated

import typer

from hsm_signer.cli.log import request_logger
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
        typer.Option(
            help="Certificate of the client, PEM or DER. Repeat it for more.", metavar="FILE", show_default=False
        ),
    ],
    tenant: Annotated[str, typer.Option(help="Tenant ID or domain.", metavar="TENANT")] = "emulator.example",
    client_id: Annotated[
        str, typer.Option(help="Client ID of the app registration.", metavar="ID")
    ] = "11111111-2222-4333-8444-555555555555",
    resource: Annotated[
        list[str] | None,
        typer.Option(
            help="API to issue tokens for, by its Application ID URI or client ID, besides Microsoft's well-known "
            "ones. Repeat it for more.",
            metavar="URI",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port. 0 is any free one.")] = 0,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the CA certificate that clients must trust. The file exists while the emulator runs. "
            "Default: in a temporary directory.",
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Serve http. Default: https, with its own CA.")
    ] = False,
    refuse_replay: Annotated[
        bool, typer.Option("--refuse-replay", help="Refuse an assertion whose ID (jti) was used before.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Run a local stand-in for Entra, for tests and trials, until Ctrl-C.

    It listens on loopback only. It checks assertions as Microsoft documents it, and its tokens are valid nowhere else.
    On the same port it serves the part of Microsoft Graph that replaces an application's keys.
    It logs each request on stderr: POST /TENANT/oauth2/v2.0/token 401 AADSTS700027

    hsm-signer emulator --certificate app.pem

    hsm-signer emulator --certificate app.pem --port 8443 --ca-file ca.pem --resource api://orders
    """
    from hsm_signer.testing import EntraEmulator

    tenant, client_id = text_argument(tenant, "--tenant"), text_argument(client_id, "--client-id")
    running = EntraEmulator(
        https=not plain_http, port=port, refuse_replay=refuse_replay, ca_file=ca_file, log=request_logger()
    )
    # Before the start: a script may send its first request as soon as the CA file exists.
    for file in certificate:
        running.register(client_id, read_certificate_file(file), tenant=tenant)
    for each in resource or []:
        running.add_resource(text_argument(each, "--resource").removesuffix("/.default"))
    with running:
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
            # One line: the program that started it reads a line and continues.
            print_result(json.dumps(ready))
        else:
            options = [(f"--{name.replace('_', '-')}", value) for name in _OPTIONS if (value := ready[name])]
            print_result(
                f"Entra emulator at {running.authority}. Use it with:\n"
                f"  hsm-signer token {shlex.join(word for option in options for word in option)}\n"
                f"Microsoft Graph at {ready['graph']}. The application's object ID there: {ready['object_id']}."
            )
        with contextlib.suppress(OSError):  # nobody reads stderr
            print_note("Stop it with Ctrl-C.")
        threading.Event().wait()
