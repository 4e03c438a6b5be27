"""`assertion-file`: keeps a fresh assertion in a file."""

import grp
import os
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from hsm_signer.cli.log import report_done
from hsm_signer.cli.operator import terminal_operator
from hsm_signer.cli.options import profile_options
from hsm_signer.cli.output import print_result
from hsm_signer.config.profile import Profile
from hsm_signer.config.values import absolute
from hsm_signer.credential.tokens import Tokens
from hsm_signer.errors import ConfigError
from hsm_signer.jwt.assertion import FILE_LIFETIME
from hsm_signer.service.assertion_file import INTERVAL, AssertionFile
from hsm_signer.service.assertion_loop import keep
from hsm_signer.service.client_variables import client_variables
from hsm_signer.system.private_file import warn_unless_in_memory
from hsm_signer.system.systemd import ServiceManager

_NO_GROUP = 2**32 - 1
"""The highest gid_t means "no group": chown(2)."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(profile_options("Device", "Assertion", lifetime=FILE_LIFETIME)(assertion_file))


def assertion_file(
    profile: Profile,
    path: Annotated[
        Path,
        typer.Argument(help="The file to write. Nobody else may be able to write to its directory.", metavar="PATH"),
    ],
    interval: Annotated[
        int, typer.Option(min=1, help="How often to replace the assertion.", metavar="SECONDS")
    ] = INTERVAL,
    mode: Annotated[
        str | None,
        typer.Option(
            help="Mode of the file: 0600, 0640, 0400 or 0440. Default: 0600, with --group 0640.", metavar="OCTAL"
        ),
    ] = None,
    group: Annotated[str | None, typer.Option(help="Group of the file, by name or number.", metavar="NAME")] = None,
    once: Annotated[bool, typer.Option("--once", help="Exit as soon as the file holds a fresh assertion.")] = False,
    print_env: Annotated[
        bool,
        typer.Option("--print-env", help="Print the variables that other programs need, as shell commands, and exit."),
    ] = False,
) -> None:
    """Keep a fresh assertion in a file, for the Azure SDKs and Terraform.

    These programs read the file named by AZURE_FEDERATED_TOKEN_FILE, and need neither the PIN nor the device.
    While the device is unavailable, the last assertion stays in the file, even after it expires.
    If the device refuses the PIN, the command ends with status 4.
    Under systemd, it reports the first assertion (Type=notify) and that it is alive (WatchdogSec=).

    hsm-signer assertion-file /run/hsm-signer/assertion --group azure-clients

    eval "$(hsm-signer assertion-file /run/hsm-signer/assertion --print-env)"
    """
    with Tokens(profile, terminal_operator(wait=profile.wait and once), isolated=True) as tokens:
        client = tokens.client
        if print_env:
            variables = client_variables(absolute(path, "PATH"), client)
            lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
            print_result(os.fsencode("".join(lines)))  # for a shell, not for people: every byte counts
            return
        file = AssertionFile(
            path,
            client.client_id,
            client.endpoint.audience,
            lifetime=profile.lifetime,
            interval=interval,
            mode=_mode(mode, group),
            group=None if group is None else _group_id(group),
        )
        warn_unless_in_memory(path.parent)
        manager = ServiceManager.from_environment()
        try:
            keep(
                file,
                tokens.assertion,
                source=tokens.keys,
                once=once,
                wait_for_device=profile.wait,
                manager=manager,
                report=report_done,
            )
        finally:
            manager.notify(STOPPING=1)


def _mode(text: str | None, group: str | None) -> int:
    if text is None:
        return 0o600 if group is None else 0o640
    if not re.fullmatch("[0-7]{3,4}", text):
        raise ConfigError(f"--mode {text!r} is not an octal mode.", hint="Give one like 0640.")
    return int(text, 8)


def _group_id(name: str) -> int:
    try:
        if not name.isdecimal():
            return grp.getgrnam(name).gr_gid
        if (number := int(name)) < _NO_GROUP:
            return number
        raise KeyError
    except (KeyError, ValueError):  # ValueError: the number is too long to be read
        raise ConfigError(
            f"There is no group {name!r}.", hint="To list the groups: getent group. You can also give a number."
        ) from None
