"""`rotate`: replace the key, step by step."""

import contextlib
import functools
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from hsm_signer.cli.operator import terminal_operator
from hsm_signer.cli.options import OutputOption, profile_options
from hsm_signer.cli.output import Output, ReaderGone, print_json, print_result
from hsm_signer.cli.text.layout import days_in_words
from hsm_signer.config.profile import Profile
from hsm_signer.config.values import seconds_argument, text_argument, uri_argument
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError, OutputError
from hsm_signer.rotation.plan import Step
from hsm_signer.system.display import displayable
from hsm_signer.x509.issuance import DEFAULT_DAYS, MAXIMUM_DAYS
from hsm_signer.x509.requirements import RENEWAL_DAYS

if TYPE_CHECKING:
    from hsm_signer.config.keyfile import KeyFile
    from hsm_signer.rotation.rotation import Rotation

DUE = 1

_option = functools.partial(typer.Option, rich_help_panel="Rotation")

_MEANING = {
    Step.ADOPT: "start the key file with this key",
    Step.NAME: "choose the next key's label and id, and write them into the key file",
    Step.GENERATE: "generate the next key on the device",
    Step.CERTIFY: "make its certificate and store it on the device",
    Step.REGISTER: "add the certificate to the application (Graph addKey), proved by the current key",
    Step.PROVE: "get a token with the next key, as soon as Entra accepts it",
    Step.SWITCH: "name the next key in the key file as the current one",
    Step.ABANDON: "give up the next key: it is missing on the device",
    Step.CANCEL: "give up the next key, and remove it from the key file",
    Step.FORGET: "remove the key file's entry that lists the current key as retired",
    Step.WAIT: "stop here: the old certificate stays registered until {}; a later run takes the remaining steps",
    Step.UNREGISTER: "remove the old certificate from the application (Graph removeKey), proved by the new key",
    Step.DELETE: "delete the old key and its certificate from the device",
    Step.KEEP: "leave the old key on the device",
}


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(profile_options("Device", "Assertion", "Exchange", "Graph")(rotate))


def rotate(
    profile: Profile,
    current: Annotated[
        str | None,
        _option(help="The key in use. Needed only if the key file does not exist yet.", metavar="URI"),
    ] = None,
    next_key: Annotated[
        str | None,
        _option("--next", help="A key on the device to use next, instead of generating one.", metavar="URI"),
    ] = None,
    bits: Annotated[int | None, _option(help="Size of the next key in bits. Default: same as the current key.")] = None,
    subject: Annotated[
        str | None,
        _option(help="Subject of the next certificate. Default: same as the current one.", metavar="NAME"),
    ] = None,
    days: Annotated[
        int,
        _option(help="Validity of the next certificate, in days.", min=1, max=MAXIMUM_DAYS),
    ] = DEFAULT_DAYS,
    delete_old_key: Annotated[
        bool,
        _option("--delete-old-key", help="Delete the old key from the device at the end."),
    ] = False,
    old_key_id: Annotated[
        str | None,
        _option(
            help="ID of the old key's credential at Entra. Needed only if Graph does not list credentials.",
            metavar="ID",
        ),
    ] = None,
    propagation_timeout: Annotated[
        float,
        _option(help="How long to wait for a change to take effect at Entra.", metavar="SECONDS", min=0),
    ] = 600,
    now: Annotated[bool, _option("--now", help="Rotate even if the certificate is not due yet.")] = False,
    adopt: Annotated[
        str | None,
        _option(
            help="Only start the key file: it names this key, which is in use. Nothing is replaced.", metavar="URI"
        ),
    ] = None,
    cancel: Annotated[
        bool,
        _option(
            "--cancel",
            help="Give up a rotation that was begun. The current key stays in use. With --delete-old-key, the next key "
            "is deleted from the device.",
        ),
    ] = False,
    dry_run: Annotated[bool, _option("--dry-run", help="Show the steps without taking them.")] = False,
    check: Annotated[
        bool,
        _option(
            "--check", help="Only check whether it is time to rotate: exit status 1 if it is. Rarely needs a login."
        ),
    ] = False,
    warn_days: Annotated[
        int,
        _option(help="The certificate is due this many days before it expires.", min=0),
    ] = RENEWAL_DAYS,
    output: OutputOption = Output.TEXT,
) -> None:
    """Replace the key without downtime: generate the next one, register it, test it, use it, and remove the old one.

    The profile's key names a key file: key = "file:PATH". Start it with --adopt URI.
    Nothing happens until the certificate is due (--warn-days), unless you add --now or name the next key (--next).
    The old key stays in use until a token was obtained with the new one.
    After that, the old certificate stays registered while programs may hold assertions made with it (--grace).
    rotate does not wait for that. Run it again later to remove the old certificate.
    If rotate is interrupted, run it again: it continues where it stopped. Or give up the next key with --cancel.

    hsm-signer --profile prod rotate --adopt 'pkcs11:token=Office;id=%01'
    hsm-signer --profile prod rotate --delete-old-key
    """
    from hsm_signer.rotation.request import RotationRequest
    from hsm_signer.rotation.rotation import Rotation

    seconds_argument(propagation_timeout, "--propagation-timeout")
    _require_one_task({"--adopt": adopt, "--cancel": cancel, "--check": check, "--now": now})
    _require_one_task({"--adopt": adopt, "--current": current, "--next": next_key})
    _require_one_task({"--cancel": cancel, "--current": current, "--next": next_key})
    if check:
        _check(profile, warn_days, output)
        return
    request = RotationRequest(
        current=_uri(current, "--current") or _uri(adopt, "--adopt"),
        next_key=_uri(next_key, "--next"),
        bits=bits,
        subject=subject,
        days=days,
        delete_old=delete_old_key,
        old_key_id=None if old_key_id is None else text_argument(old_key_id, "--old-key-id"),
        propagation=propagation_timeout,
        warn_days=None if now else warn_days,
        cancel=cancel,
        adopt=adopt is not None,
    )
    steps: list[dict[str, str]] = []

    def report(step: Step, text: str) -> None:
        steps.append({"step": step.value, "detail": text})
        if output is Output.TEXT:
            with contextlib.suppress(ReaderGone):  # a closed pipe is no reason to stop half-way
                print_result(f"{step.value:<11} {displayable(text)}")

    with Rotation(profile, request, terminal_operator(wait=profile.wait), report=report) as rotation:
        try:
            if dry_run:
                for step in rotation.plan():
                    meaning = _MEANING[step].format(_until_when(rotation))
                    report(step, meaning[0].upper() + meaning[1:] + ".")
            else:
                rotation.run()
        except BaseException:
            # stderr explains what ended the run; stdout lists the steps that were taken before it.
            if steps and output is Output.JSON:
                with contextlib.suppress(ReaderGone, OutputError):
                    print_json(_document(rotation.file, steps, dry_run))
            raise
    if output is Output.JSON:
        print_json({**_document(rotation.file, steps, dry_run), "days_left": rotation.days_left})
    elif rotation.days_left is not None:
        print_result(f"{days_in_words(rotation.days_left)} left. Nothing to do; --now rotates anyway.")
    elif not steps and cancel:
        print_result("No rotation was begun. Nothing to do.")
    elif not steps:
        print_result(f"{profile.key_file} names this key already. Nothing to do.")


def _require_one_task(tasks: dict[str, object]) -> None:
    given = [option for option, value in tasks.items() if value]
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join(given)} do not go together.", hint="Use one of them. See: hsm-signer rotate --help"
        )


def _document(file: "KeyFile", steps: list[dict[str, str]], dry_run: bool) -> dict[str, object]:
    return {
        "steps": steps,
        "key": str(file.current.uri),
        "key_id": file.current.key_id,
        "dry_run": dry_run,
        "remaining": [{"key": str(old.uri), "until": _rfc3339(old.until)} for old in file.retired],
    }


def _until_when(rotation: "Rotation") -> str:
    times = [old.until for old in rotation.file.retired if old.until is not None]
    return _utc(min(times)) if times else f"{rotation.grace} s after the switch"


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _rfc3339(seconds: float | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _check(profile: Profile, warn_days: int, output: Output) -> None:
    from hsm_signer.rotation.due import check_due

    found = check_due(profile, warn_days, datetime.now(UTC), terminal_operator(wait=profile.wait))
    if output is Output.JSON:
        print_json(
            {
                "due": found.due,
                "days_left": found.days_left,
                "unfinished": found.unfinished,
                "until": _rfc3339(found.until),
            }
        )
    else:
        state = "A rotation is unfinished. Run rotate." if found.unfinished else ""
        if found.until is not None:
            state = f"The old certificate stays registered until {_utc(found.until)}. Run rotate after that."
        when = f"{days_in_words(found.days_left)} left" if found.days_left >= 0 else "expired"
        print_result(
            f"The certificate of the current key: {when}. {state or ('Run rotate.' if found.due else '')}".strip()
        )
    if found.due:
        raise typer.Exit(DUE)


def _uri(text: str | None, option: str) -> Pkcs11Uri | None:
    return None if text is None else uri_argument(text, option)
