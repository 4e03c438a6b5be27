"""`certificate`: create, request, import, export and show the certificate of a key."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hsm_signer.cli.one_device import access_to_one, open_one_device
from hsm_signer.cli.options import OutputFileOption, OutputOption, profile_options, read_certificate_file
from hsm_signer.cli.output import Output, print_as, print_note, print_result, result_writer
from hsm_signer.cli.text.certificate import certificate_facts, certificate_json, certificate_text
from hsm_signer.cli.text.layout import to_json
from hsm_signer.cli.text.registration import graph_body, registration_steps
from hsm_signer.config.profile import Profile
from hsm_signer.crypto import Algorithm
from hsm_signer.errors import CertificateNotFound, CertificateUnusable, DeviceReadOnly
from hsm_signer.x509.certificate import (
    Certificate,
    parse_certificates,
    select_certificate,
    to_pem,
)
from hsm_signer.x509.issuance import DEFAULT_DAYS, MAXIMUM_DAYS, certificate_request, create_certificate, parse_subject
from hsm_signer.x509.requirements import require_usable

if TYPE_CHECKING:
    from hsm_signer.device.device import Device
    from hsm_signer.device.signer import DeviceSigner

logger = logging.getLogger(__name__)

SubjectOption = Annotated[
    str, typer.Option(help="Subject of the certificate (RFC 4514), such as 'CN=my app,O=Contoso'.", metavar="NAME")
]
AlgorithmOption = Annotated[
    Algorithm, typer.Option(help="Algorithm of the certificate's own signature. Assertions do not depend on it.")
]
ReplaceOption = Annotated[
    bool,
    typer.Option("--replace", help="Delete the key's other certificates from the device, after the new one is stored."),
]


ForceOption = Annotated[
    bool, typer.Option("--force", help="With --replace: also if the key file names this key as the one in use.")
]


class Form(StrEnum):
    """Forms in which a certificate can be exported."""

    PEM = "pem"
    DER = "der"
    GRAPH = "graph"


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(no_args_is_help=True, help="Create, request, import, export and show the certificate of a key.")
    commands: dict[str, Callable[..., None]] = {
        "create": create,
        "request": request,
        "import": import_,
        "export": export,
        "show": show,
    }
    for name, command in commands.items():
        group.command(name)(profile_options("Device")(command))
    app.add_typer(group, name="certificate")


def create(
    profile: Profile,
    subject: SubjectOption,
    days: Annotated[
        int, typer.Option(min=1, max=MAXIMUM_DAYS, help="How long the certificate is valid.", metavar="DAYS")
    ] = DEFAULT_DAYS,
    algorithm: AlgorithmOption = Algorithm.RS256,
    no_store: Annotated[bool, typer.Option("--no-store", help="Do not store the certificate on the device.")] = False,
    replace: ReplaceOption = False,
    force: ForceOption = False,
    output: OutputOption = Output.TEXT,
    output_file: OutputFileOption = None,
) -> None:
    """Create a self-signed certificate for the key, store it on the device, and print it as PEM.

    On stderr it says how to register the certificate with the app. Until then, Entra refuses the key.

    hsm-signer certificate create --key 'pkcs11:token=Office;object=app' --subject CN=app --output-file app.pem
    """
    from hsm_signer.device.manage.certificates import replace_certificates
    from hsm_signer.device.signer import open_signer

    parse_subject(subject)  # before anybody has to type a PIN
    now = datetime.now(UTC)
    with result_writer(output_file) as write, _open(profile, writable=not no_store) as device:
        signer = open_signer(device)
        if not no_store:
            _require_replaceable(profile, device, signer, replace=replace, force=force)
        der = create_certificate(signer, algorithm, subject, days, now)
        if not no_store:
            replace_certificates(device, signer.key.info, der)
        (certificate,) = parse_certificates(der, "The new certificate")
        write(certificate_json(certificate, now) if output is Output.JSON else to_pem(der))
    if not no_store:
        _warn_of_configured_certificate(profile)
    if output is Output.TEXT:
        print_note(registration_steps(certificate, output_file, profile.client_id))


def request(
    profile: Profile,
    subject: SubjectOption,
    algorithm: AlgorithmOption = Algorithm.RS256,
    output: OutputOption = Output.TEXT,
    output_file: OutputFileOption = None,
) -> None:
    """Create a certificate request (PKCS#10) for a certificate authority (CA), and print it as PEM.

    The device signs the request with the key. Store what the CA returns with certificate import.

    hsm-signer certificate request --key 'pkcs11:token=Office;object=app' --subject CN=app --output-file app.csr
    """
    from hsm_signer.device.signer import open_signer

    parse_subject(subject)  # before anybody has to type a PIN
    with result_writer(output_file) as write, _open(profile) as device:
        pem = to_pem(certificate_request(open_signer(device), algorithm, subject), "CERTIFICATE REQUEST")
        write(to_json({"pem": pem.decode("ascii")}) if output is Output.JSON else pem)


def import_(
    profile: Profile,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="The certificate, alone or with its chain: PEM, DER or PKCS#7.", show_default=False
        ),
    ],
    replace: ReplaceOption = False,
    force: ForceOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Store the certificate that a certificate authority (CA) has issued for the key on the device.

    From a chain, it stores only the key's certificate.

    hsm-signer certificate import --key 'pkcs11:token=Office;object=app' app.crt
    """
    from hsm_signer.device.manage.certificates import replace_certificates
    from hsm_signer.device.signer import open_signer

    found = parse_certificates(read_certificate_file(file), str(file))
    now = datetime.now(UTC)
    with _open(profile, writable=True) as device:
        signer = open_signer(device)
        certificate = select_certificate(found, signer.public_key, str(file))
        if certificate.is_attestation:
            raise CertificateUnusable(
                f"{file} holds only the device's attestation certificate for the key, which cannot be used to sign in.",
                hint="Import one that a CA issued for the key. To request one: hsm-signer certificate request",
            )
        require_usable(certificate, signer.public_key, now)
        _require_replaceable(profile, device, signer, replace=replace, force=force)
        replace_certificates(device, signer.key.info, certificate.der)
    _warn_of_configured_certificate(profile)
    print_result(certificate_json(certificate, now) if output is Output.JSON else certificate_text(certificate, now))


def export(
    profile: Profile,
    form: Annotated[
        Form,
        typer.Option(
            help="Form of the certificate. graph is the body of the Microsoft Graph request that registers it."
        ),
    ] = Form.PEM,
    output: OutputOption = Output.TEXT,
    output_file: OutputFileOption = None,
) -> None:
    """Print the key's certificate from the device, else from the configured file, to register it.

    Logs in only if the device hides the certificate. With --output-file, it also says how to register it.

    hsm-signer certificate export --key 'pkcs11:token=Office;object=app' --output-file app.pem
    """
    with result_writer(output_file) as write:
        certificate = _stored_or_configured(profile)
        if output is Output.JSON:
            write(certificate_json(certificate, datetime.now(UTC)))
            return
        match form:
            case Form.PEM:
                write(to_pem(certificate.der))
            case Form.DER:
                write(certificate.der)
            case Form.GRAPH:
                write(graph_body(certificate))
    if output_file is not None and form is Form.PEM:
        print_note(registration_steps(certificate, output_file, profile.client_id))


def show(
    profile: Profile,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="PEM, DER or PKCS#7. Default: the key's certificate on the device.",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show a certificate and its thumbprints.

    Without FILE, it logs in only if the device hides the certificate.

    hsm-signer certificate show app.pem
    """
    now = datetime.now(UTC)
    shown = [_stored(profile)] if file is None else parse_certificates(read_certificate_file(file), str(file))
    document = {"certificates": [certificate_facts(certificate, now) for certificate in shown]}
    print_as(output, document, "\n\n".join(certificate_text(certificate, now) for certificate in shown))


def _require_replaceable(
    profile: Profile, device: "Device", signer: "DeviceSigner", *, replace: bool, force: bool
) -> None:
    from hsm_signer.device.manage.certificates import require_no_certificate
    from hsm_signer.rotation.in_use import require_not_in_use

    if not replace:
        require_no_certificate(device, signer.key.info)
    elif not force:
        require_not_in_use(profile, device, signer)


def _open(profile: Profile, *, writable: bool = False) -> "Device":
    try:
        return open_one_device(profile, writable=writable)
    except DeviceReadOnly as error:
        raise DeviceReadOnly(
            error.message,
            hint="Keep the certificate in a file (certificate create --no-store --output-file FILE) and name it with "
            "--certificate. Or store it with the device's own tool: `ykman piv certificates import 9a FILE`, "
            "`yubico-piv-tool -s 9a -a import-certificate -i FILE` (slot 9a is id=%01, 9c is id=%02).",
        ) from error


def _stored(profile: Profile) -> Certificate:
    from hsm_signer.device.manage.certificates import read_certificate_by_uri

    return parse_certificates(read_certificate_by_uri(access_to_one(profile)), "The certificate on the device")[0]


def _stored_or_configured(profile: Profile) -> Certificate:
    try:
        return _stored(profile)
    except CertificateNotFound:
        # A card whose certificate needs the management key has it in a file.
        if profile.certificate is None:
            raise
        file = profile.certificate
        return parse_certificates(read_certificate_file(file), str(file))[0]


def _warn_of_configured_certificate(profile: Profile) -> None:
    if profile.certificate is not None:
        logger.warning("Assertions still use the configured certificate, %s.", profile.certificate)
