"""`device`: shows modules, devices, keys and certificates, and forgets refused PINs."""

from pathlib import Path
from typing import Annotated

import typer

from hsm_signer.cli.one_device import examine_one_device
from hsm_signer.cli.operator import show_slow
from hsm_signer.cli.options import OutputOption, profile_options
from hsm_signer.cli.output import Output, print_as, print_json, print_note, print_result
from hsm_signer.config.profile import Profile, load_profile
from hsm_signer.config.settings import SETTINGS
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import PinError
from hsm_signer.system.display import displayable

_LIST_SETTINGS = {
    "module": "PKCS#11 module to list besides those that are searched by default.",
    "device_timeout": SETTINGS["device_timeout"].help,
}


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(no_args_is_help=True, help="Show modules, devices, keys and certificates.")
    group.command("list")(profile_options(settings=_LIST_SETTINGS)(list_devices))
    group.command("show")(profile_options("Device")(show))
    group.command("forget-pin-failures")(forget_pin_failures)
    app.add_typer(group, name="device")


def list_devices(profile: Profile, output: OutputOption = Output.TEXT) -> None:
    """List the PKCS#11 modules of this machine and their devices, with the URI of each device for --key.

    Shows the state of each PIN and which algorithms the device can sign with. Never logs in.
    A module that fails, hangs or crashes is listed with the reason.

    hsm-signer device list
    """
    from hsm_signer.cli.text.inventory import module_text, plain
    from hsm_signer.device.inventory.survey import survey
    from hsm_signer.device.module_search import modules_to_search, no_modules

    modules = modules_to_search(profile.module)
    if not modules:
        raise no_modules()
    surveys = (survey(each, profile.module_environment, profile.device_timeout, show_slow) for each in modules)
    if output is Output.JSON:
        print_json({"modules": [plain(facts) for facts in surveys]})
        return
    for index, facts in enumerate(surveys):
        print_result(("\n" if index else "") + module_text(facts))


def show(
    profile: Profile,
    login: Annotated[
        bool, typer.Option("--login", help="Log in first. Many devices hide private keys until then.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show a device with its keys and certificates.

    --key names the device. It is not needed if there is only one. Without --login, it does not log in.

    hsm-signer device show --login --key pkcs11:token=Office
    """
    from hsm_signer.cli.text.inventory import module_text, plain

    facts = examine_one_device(profile, login=login)
    print_as(output, plain(facts), module_text(facts))


def forget_pin_failures(
    context: typer.Context,
    key: Annotated[
        list[str] | None,
        typer.Option(help="Forget only for the devices that match this URI. Default: for all.", metavar="URI"),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Forget which PINs devices have refused, so that unattended logins send them again.

    Correct the PIN in its source first: each wrong PIN costs a try, and after the last one the device is locked.

    hsm-signer device forget-pin-failures --key pkcs11:token=Office
    """
    from hsm_signer.device.match import matches_device
    from hsm_signer.device.pin.forget_command import format_forget_command
    from hsm_signer.device.pin.refusals import forget_failures

    profile = load_profile({"key": key}, config=context.obj.config, name=context.obj.profile)
    # Not the keys of the profile: the record may belong to another profile's device.
    chosen = profile.key if key else (Pkcs11Uri(),)
    directory = profile.state_directory / "pins"
    try:
        forgotten = forget_failures(directory, lambda device: any(matches_device(uri, device) for uri in chosen))
    except OSError as error:
        raise PinError(
            f"The record of refused PINs in {directory} cannot be removed: {error.strerror}.",
            hint="Run this as the user whose logins failed, with the STATE_DIRECTORY of the service if it is one.",
        ) from None
    lines = [f"Forgot the refused PINs of {displayable(device)}." for device in forgotten]
    print_as(output, {"forgotten": forgotten}, "\n".join(lines) or f"There is nothing to forget in {directory}.")
    if not forgotten and output is Output.TEXT:
        print_note(
            "Nothing was forgotten. Each user and each service has its own record: for a service, run this as its "
            "user\nwith its state directory, for example:\n"
            f"  {format_forget_command(Path('/var/lib/hsm-signer'), 'svc', is_reader=False)}"
        )
