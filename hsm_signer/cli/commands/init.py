"""`init`: the guided set-up of a profile."""

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsm_signer.cli.guide import Defaults, Person, guide
from hsm_signer.cli.operator import terminal_operator
from hsm_signer.cli.options import profile_options
from hsm_signer.cli.output import print_note, print_result
from hsm_signer.cli.terminal import has_terminal
from hsm_signer.cli.text.registration import EXPORT, registration_steps
from hsm_signer.config.profile import Profile, load_profile, missing_settings
from hsm_signer.config.settings import SETTINGS, missing
from hsm_signer.errors import EntraError, NetworkError
from hsm_signer.x509.issuance import DEFAULT_DAYS, MAXIMUM_DAYS, parse_subject
from hsm_signer.x509.requirements import MINIMUM_BITS

if TYPE_CHECKING:
    from hsm_signer.device.device import Device
    from hsm_signer.setup.draft import Draft
    from hsm_signer.setup.guide import Guide
    from hsm_signer.setup.setup import Found, Setup

DEFAULT_LABEL = "hsm-signer"
"""Of a key that is generated."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(profile_options("Device", "Assertion", "Exchange", load=_Given)(init))


class _Given:
    """The options as they were typed. What they mean depends on --replace."""

    def __init__(self, given: Mapping[str, object], *, config: Path | None, name: str | None, defaults: object) -> None:
        self.settings, self.config, self.name = given, config, name

    def draft(self, *, replace: bool) -> "Draft":
        """Return what is known of the profile."""
        from hsm_signer.setup.draft import read_draft

        return read_draft(self.settings, self.config, self.name, replace=replace)

    def reload(self) -> Profile:
        """Return the profile as every other command reads it."""
        return load_profile({}, config=self.config, name=self.name)


def init(
    given: _Given,
    label: Annotated[
        str | None,
        typer.Option(help="Label of the key to use, or to generate. Default: hsm-signer.", metavar="NAME"),
    ] = None,
    bits: Annotated[
        int, typer.Option(help="Size of a key that is generated: 2048, 3072 or 4096.", metavar="BITS")
    ] = MINIMUM_BITS,
    subject: Annotated[
        str | None,
        typer.Option(
            help="Subject of a certificate that is created, such as 'CN=app,O=Contoso'. Default: the key's label.",
            metavar="NAME",
        ),
    ] = None,
    days: Annotated[
        int,
        typer.Option(min=1, max=MAXIMUM_DAYS, help="How long a certificate that is created is valid.", metavar="DAYS"),
    ] = DEFAULT_DAYS,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a profile that exists.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Skip what needs the network.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Take every default and ask nothing. For scripts.")] = False,
) -> None:
    """Set up a profile, step by step: device, key, certificate, app registration.

    Finds what exists, makes what is missing, writes the profile, and checks that everything works.
    Prints the name of the profile. Running it again continues; nothing that exists is overwritten.

    hsm-signer init

    hsm-signer init --yes --tenant contoso.onmicrosoft.com --client-id 11111111-2222-3333-4444-555555555555
    """
    from hsm_signer.setup.contents import Wishes
    from hsm_signer.setup.setup import Setup, wanted_key

    if subject is not None:
        parse_subject(subject)
    answers = guide(yes=yes)
    try:
        draft = _draft(given, answers, replace=replace)
        wishes = Wishes(wanted_key(draft.profile), label, DEFAULT_LABEL, subject, bits, days)
        with Setup(draft, wishes, answers, terminal_operator(wait=draft.profile.wait)) as setup:
            found = setup.run()
            healthy = _check(
                given.reload(), setup, found, answers if has_terminal() and not yes else None, offline=offline
            )
        print_result(draft.place.name)
    except (KeyboardInterrupt, typer.Abort):
        print_note("Stopped. To continue, run the command again.")
        raise
    raise typer.Exit(0 if healthy else 1)


def _draft(given: _Given, answers: "Guide", *, replace: bool) -> "Draft":
    """Return what is known of the profile, once it is clear whether it may be changed."""
    from hsm_signer.setup.draft import conflict_error, overwriting

    draft = given.draft(replace=replace)
    place = draft.place
    if place.hides is not None:
        print_note(f"{place.hides} is not yours to write. From now on, {place.file} is read instead.")
    if draft.exists:
        print_note(f"Continuing profile {place.name!r} of {place.file}")
    if conflicts := draft.conflicts():
        names = ", ".join(SETTINGS[name].label for name in conflicts)
        error = conflict_error(draft)
        if not isinstance(answers, Person) or not answers.confirm(
            f"{error.message} Change the {names} of the profile?", option="--replace", default=False
        ):
            raise error
        draft = overwriting(draft)
    absent = missing_settings(draft.profile, "tenant", "client_id", "scope")
    if isinstance(answers, Defaults):
        absent = [name for name in absent if name != "scope" and name not in draft.suggestions]
    if absent and not isinstance(answers, Person):
        raise missing(*absent)
    return draft


def _check(profile: Profile, setup: "Setup", found: "Found", person: "Guide | None", *, offline: bool) -> bool:
    """Have the certificate registered, if it is not, and run the doctor. Return whether nothing failed."""
    from hsm_signer.cli.text.findings import finding_lines
    from hsm_signer.doctor.doctor import examine

    opened = setup.opened
    assert opened is not None  # noqa: S101  # it has run
    accepted = None if offline else _is_accepted(profile, setup, opened.device, found, person)
    if accepted is None and found.is_new:
        print_note(_steps(profile, setup, found))
    without = ("token",) if accepted is False else ()
    operator = terminal_operator()
    healthy = True
    print_note("")
    with contextlib.closing(
        examine(profile, operator, offline=offline, opened=opened.device, without=without)
    ) as examination:
        for name, verdict in examination:
            healthy = healthy and verdict.status != "failed"
            print_note("\n".join(finding_lines(name, verdict, sys.stderr)), styled=True)
    print_note("")
    if accepted is False:
        print_note(f"Once the certificate is registered, run: {profile.command_line('doctor')}")
    elif healthy and not offline:
        print_note(f"Ready. Get a token with: {profile.command_line('token')}")
    return healthy


def _is_accepted(
    profile: Profile, setup: "Setup", device: "Device", found: "Found", person: "Guide | None"
) -> bool | None:
    """Return whether Entra accepts the certificate, waiting for it if somebody wants to. None: it cannot be known."""
    from hsm_signer.credential.client import resolve_client
    from hsm_signer.credential.identity import identity_on
    from hsm_signer.entra.http import HttpClient
    from hsm_signer.entra.scopes import check_scopes
    from hsm_signer.setup.registration import Registration

    client = resolve_client(profile)
    registration = Registration(
        identity_on(profile, client, device, profile.key[0]),
        check_scopes(client.endpoint, profile.scope),
        HttpClient(timeout=profile.network_timeout, ca_bundle=profile.ca_bundle),
        profile.lifetime,
    )
    try:
        if registration.is_accepted():
            print_note("Entra accepts the certificate.")
            return True
        print_note(f"Entra does not know this certificate yet.\n\n{_steps(profile, setup, found)}\n")
        if person is None or not person.confirm("Wait until Entra accepts it?", option="--yes"):
            return False
        print_note("Waiting until Entra accepts the certificate. Ctrl-C stops waiting; the profile is written.")
        registration.wait()
    except (EntraError, NetworkError):
        return None  # the doctor says why
    print_note("Entra accepts the certificate.")
    return True


def _steps(profile: Profile, setup: "Setup", found: "Found") -> str:
    file = found.file or setup.keep(found.certificate)
    return registration_steps(found.certificate, file, profile.client_id, profile.command_line(*EXPORT))
