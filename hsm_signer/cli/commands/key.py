"""`key`: generate, list and delete keys on a device."""

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
    group = typer.Typer(no_args_is_help=True, help="Generate, list and delete keys on a device.")
    commands: dict[str, Callable[..., None]] = {"generate": generate, "list": list_keys, "delete": delete}
    for name, command in commands.items():
        group.command(name)(profile_options("Device")(command))
    app.add_typer(group, name="key")


def generate(
    profile: Profile,
    label: Annotated[
        str, typer.Option(help="Name of the key. No other key on the device may have it.", metavar="NAME")
    ],
    key_id: Annotated[
        str | None, typer.Option("--id", help="ID of the key (CKA_ID). Default: one that is free.", metavar="HEX")
    ] = None,
    bits: Annotated[int, typer.Option(help="Size of the key: 2048, 3072 or 4096.", metavar="BITS")] = MINIMUM_BITS,
    always_authenticate: Annotated[
        bool, typer.Option("--always-authenticate", help="Require the PIN with each signature.")
    ] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Generate an RSA key on the device, and print its URI. The key cannot be copied out of the device.

    --key names the device. It is not needed if there is only one.
    Some devices need minutes: the time limit is 300 s, or --device-timeout if that is longer.

    hsm-signer key generate --key pkcs11:token=Office --label app
    """
    from hsm_signer.device.manage.generate import KeySpec, generate_key

    spec = KeySpec(label, None if key_id is None else _bytes_from_hex(key_id), bits, always_authenticate)
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
    next_command = f"hsm-signer certificate create --subject CN=NAME --key {shlex.quote(made.uri)}"
    print_note(f"Next: create its certificate.\n  {next_command}")


def list_keys(profile: Profile, output: OutputOption = Output.TEXT) -> None:
    """List the private keys on a device. Logs in.

    --key names the device. It is not needed if there is only one.

    hsm-signer key list --key pkcs11:token=Office
    """
    from hsm_signer.cli.text.inventory import module_text, plain

    module = examine_one_device(profile, login=True)
    (device,) = module.devices
    assert device.contents is not None  # noqa: S101  # examined after a login
    only_keys = replace(device, contents=replace(device.contents, certificates=()))
    text = module_text(replace(module, devices=(only_keys,)))
    print_as(output, {"keys": plain(device.contents.keys)}, text)


def delete(
    profile: Profile,
    certificate: Annotated[
        bool, typer.Option("--certificate", help="Also delete the key's certificates from the device.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation. For scripts.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Delete a key pair from its device. This cannot be undone.

    --key names the key. The command shows what it will delete, and asks you to type the label of the key.

    hsm-signer key delete --key 'pkcs11:token=Office;object=old' --certificate
    """
    from hsm_signer.device.manage.certificates import certificates_of_key, delete_certificate
    from hsm_signer.device.manage.keys import delete_key, find_key
    from hsm_signer.device.signer import open_signer
    from hsm_signer.rotation.in_use import require_deletable

    uri = access_to_one(profile).uri
    if uri.object is None and uri.id is None:
        raise ConfigError(
            "The URI names no key: it has neither object nor id.", hint="Copy the key's URI from: hsm-signer key list"
        )
    if not yes and not has_terminal():
        raise ConfigError(
            "Deleting a key needs confirmation on a terminal, and there is none.",
            hint="If you are sure that --key names the right key, add --yes.",
        )
    with open_one_device(profile, writable=True) as device:
        key = find_key(device, uri)
        with suppress(KeyUnfit):  # a key that cannot sign for us is not in use
            require_deletable(profile, device, open_signer(device, key.selector).public_key)
        certificates = certificates_of_key(device, key)
        deleted = certificates if certificate else []
        if not yes:
            _confirm(device, key, deleted)
        # The key last: while it is there, a deletion that was cut short can be repeated.
        for each in deleted:
            delete_certificate(device, each.der)
        delete_key(device, key)
    if output is Output.JSON:
        print_json(
            {
                "key": {"label": key.label, "id": key.id.hex()},
                "certificates": [{"subject": each.subject, "sha1": each.sha1.hex()} for each in deleted],
            }
        )
        return
    print_result("\n".join(f"Deleted {line}." for line in _lines(key, deleted)))
    for each in certificates[len(deleted) :]:
        print_note(f"The {_line(each)} is still on the device. With --certificate, it would have been deleted, too.")


def _bytes_from_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ConfigError(
            f"--id {text!r} is not hexadecimal.", hint="Write two digits for each byte, as in 01 or a1b2."
        ) from None


def _confirm(device: "Device", key: "KeyInfo", certificates: "list[Certificate]") -> None:
    typeable = bool(key.label) and key.label.isprintable()
    what, wanted = ("label", key.label) if typeable else ("ID", key.id.hex())
    listing = "".join(f"  {line}\n" for line in _lines(key, certificates))
    question = f"This permanently deletes from {device.info}:\n{listing}"
    if ask(f"{question}To continue, type the {what} of the key: ") != wanted:
        raise ConfigError(f"That is not the {what} of the key. Nothing was deleted.", hint="Run the command again.")


def _lines(key: "KeyInfo", certificates: "list[Certificate]") -> list[str]:
    return [*map(_line, certificates), f"key {key}"]


def _line(certificate: "Certificate") -> str:
    return f"certificate {displayable(certificate.subject)}, SHA-1 {certificate.sha1.hex().upper()}"
