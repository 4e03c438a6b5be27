"""`key`: make, list and delete keys on a device."""

import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from hsm_signer.cli.one_device import access_to_one, examine_one_device, open_one_device
from hsm_signer.cli.options import OutputOption, profile_options
from hsm_signer.cli.output import Output, print_as, print_json, print_note, print_result
from hsm_signer.cli.terminal import ask, has_terminal
from hsm_signer.config.profile import Profile
from hsm_signer.errors import ConfigError, KeyUnfit
from hsm_signer.system.display import displayable
from hsm_signer.x509.requirements import MINIMUM_BITS

if TYPE_CHECKING:
    from hsm_signer.device.device import Device
    from hsm_signer.device.match import KeyInfo
    from hsm_signer.x509.certificate import Certificate


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(no_args_is_help=True, help="Make, list and delete keys on the device.")
    commands: dict[str, Callable[..., None]] = {"generate": generate, "list": list_keys, "delete": delete}
    for name, command in commands.items():
        group.command(name)(profile_options("Device")(command))
    app.add_typer(group, name="key")


def generate(
    profile: Profile,
    label: Annotated[str, typer.Option(help="Name of the key. No other key of the device has it.", metavar="NAME")],
    key_id: Annotated[
        str | None, typer.Option("--id", help="Its CKA_ID. Default: one that is free.", metavar="HEX")
    ] = None,
    bits: Annotated[int, typer.Option(help="Length: 2048, 3072 or 4096.", metavar="BITS")] = MINIMUM_BITS,
    always_authenticate: Annotated[
        bool, typer.Option("--always-authenticate", help="Have the key want the PIN with each signature.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make an RSA key on the device, which it never leaves, and print its URI.

    --key names the device, and may be left out when there is only one.
    Making a key may take minutes: the device is given 300 s, or --device-timeout where that is more.
    """
    from hsm_signer.device.manage.generate import KeySpec, generate_key

    spec = KeySpec(label, None if key_id is None else _octets(key_id), bits, always_authenticate)
    with open_one_device(profile, writable=True) as device:
        made = generate_key(device, spec)
    if output is Output.JSON:
        print_json(
            {
                "uri": made.uri,
                "label": made.info.label,
                "id": made.info.id.hex(),
                "bits": made.public_key.bits,
                "always_authenticate": spec.always_authenticate,
            }
        )
        return
    print_result(made.uri)
    print_note(f"Next, its certificate: hsm-signer certificate create --key {shlex.quote(made.uri)}")


def list_keys(profile: Profile, output: OutputOption = Output.TEXT) -> None:
    """List the private keys of one device, after a login.

    --key names the device, and may be left out when there is only one.
    """
    from hsm_signer.cli.text.inventory import module_text, plain

    module = examine_one_device(profile, login=True)
    (device,) = module.devices
    assert device.contents is not None  # noqa: S101  # it was looked into
    only_keys = replace(device, contents=replace(device.contents, certificates=()))
    text = module_text(replace(module, devices=(only_keys,)))
    print_as(output, {"keys": plain(device.contents.keys)}, text)


def delete(
    profile: Profile,
    certificate: Annotated[
        bool, typer.Option("--certificate", help="Delete the certificates of the key on the device, too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. For scripts.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Delete the key that --key names from its device, both halves, for good.

    What will be deleted is shown on the terminal, and the label of the key must be typed.
    """
    from hsm_signer.device.manage.certificates import certificates_of_key, delete_certificate
    from hsm_signer.device.manage.keys import delete_key, find_key
    from hsm_signer.device.signer import open_signer
    from hsm_signer.rotation.in_use import require_deletable

    uri = access_to_one(profile).uri
    if uri.object is None and uri.id is None:
        raise ConfigError(
            "No key is named: the URI has neither object nor id.", hint="Copy the URI of --key from key list."
        )
    if not yes and not has_terminal():
        raise ConfigError(
            "The deletion of a key is confirmed on a terminal, and there is none.",
            hint="Give --yes, if you are sure of --key.",
        )
    with open_one_device(profile, writable=True) as device:
        key = find_key(device, uri)
        with suppress(KeyUnfit):  # one that cannot sign for us is not in use
            require_deletable(profile, device, open_signer(device, key.selector).public_key)
        certificates = certificates_of_key(device, key)
        condemned = certificates if certificate else []
        if not yes:
            _confirm(device, key, condemned)
        # The key last: while it is there, a deletion that was cut short can be repeated.
        for each in condemned:
            delete_certificate(device, each.der)
        delete_key(device, key)
    if output is Output.JSON:
        print_json(
            {
                "key": {"label": key.label, "id": key.id.hex()},
                "certificates": [{"subject": each.subject, "sha1": each.sha1.hex()} for each in condemned],
            }
        )
        return
    print_result("\n".join(f"Deleted {line}." for line in _lines(key, condemned)))
    for each in certificates[len(condemned) :]:
        print_note(f"{_line(each)} is still on the device. --certificate would have deleted it too.")


def _octets(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ConfigError(
            f"--id {text!r} is not hexadecimal.", hint="Write two digits an octet, as in 01 or a1b2."
        ) from None


def _confirm(device: "Device", key: "KeyInfo", certificates: "list[Certificate]") -> None:
    typeable = bool(key.label) and key.label.isprintable()
    what, wanted = ("label", key.label) if typeable else ("id", key.id.hex())
    listing = "".join(f"  {line}\n" for line in _lines(key, certificates))
    question = f"This permanently deletes from {device.info}:\n{listing}"
    if ask(f"{question}Type the {what} of the key to go on: ") != wanted:
        raise ConfigError(
            f"What was typed is not the {what} of the key. Nothing was deleted.", hint="Repeat the command."
        )


def _lines(key: "KeyInfo", certificates: "list[Certificate]") -> list[str]:
    return [*map(_line, certificates), f"key {key}"]


def _line(certificate: "Certificate") -> str:
    return f"certificate {displayable(certificate.subject)}, SHA-1 {certificate.sha1.hex().upper()}"
