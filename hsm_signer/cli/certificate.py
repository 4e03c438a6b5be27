"""`certificate`: make, request, import, export and show the certificate of a key."""

import dataclasses
import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hsm_signer.assertion import base64url_encode
from hsm_signer.certificate import (
    Certificate,
    certificate_details,
    parse_certificates,
    require_usable,
    select_certificate,
    to_pem,
)
from hsm_signer.cli.operator import reference_to_one
from hsm_signer.cli.options import Output, OutputFileOption, OutputOption, takes_profile
from hsm_signer.cli.output import print_json, print_result, result_writer, to_json
from hsm_signer.cli.registration import graph_body, registration_steps
from hsm_signer.config import Profile
from hsm_signer.crypto import Algorithm
from hsm_signer.errors import CertificateNotFound, DeviceReadOnly

if TYPE_CHECKING:
    from hsm_signer.device.device import Device

logger = logging.getLogger(__name__)

SubjectOption = Annotated[
    str, typer.Option(help="Distinguished name (RFC 4514), as in 'CN=my app,O=Contoso'.", metavar="NAME")
]
AlgorithmOption = Annotated[
    Algorithm, typer.Option(help="Of the signature on it, which has no bearing on those of assertions.")
]
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="Delete those stored beside the key, once the new one is stored.")
]


class Form(StrEnum):
    """Forms in which a certificate is registered."""

    PEM = "pem"
    DER = "der"
    GRAPH = "graph"


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(no_args_is_help=True, help="Make, import and show the certificate of a key.")
    group.command("create")(takes_profile("Device")(create))
    group.command("request")(takes_profile("Device")(request))
    group.command("import")(takes_profile("Device")(import_))
    group.command("export")(takes_profile("Device")(export))
    group.command("show")(takes_profile("Device")(show))
    app.add_typer(group, name="certificate")


def create(
    profile: Profile,
    subject: SubjectOption,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long it is valid.", metavar="DAYS")] = 365,
    algorithm: AlgorithmOption = Algorithm.RS256,
    no_store: Annotated[bool, typer.Option("--no-store", help="Do not store it on the device.")] = False,
    replace: ReplaceOption = False,
    output: OutputOption = Output.TEXT,
    output_file: OutputFileOption = None,
) -> None:
    """Make a self-signed certificate: the device signs it and stores it beside the key. Prints it as PEM.

    Says on stderr how it is registered with the application.
    """
    from hsm_signer.device.certificates import replace_certificates, require_no_certificate
    from hsm_signer.issuance import create_certificate, parse_subject

    parse_subject(subject)  # before anybody is asked for a PIN
    now = datetime.now(UTC)
    with result_writer(output_file) as write, _open(profile, writable=not no_store) as device:
        signer = device.signer()
        if not (no_store or replace):
            require_no_certificate(device, signer.key.info)
        der = create_certificate(signer, algorithm, subject, days, now)
        if not no_store:
            replace_certificates(device, signer.key.info, der)
        (certificate,) = parse_certificates(der, "The new certificate")
        write(_json(certificate, now) if output is Output.JSON else to_pem(der))
    if not no_store:
        _warn_of_another(profile)
    if output is Output.TEXT:
        sys.stderr.write(registration_steps(certificate, output_file, profile.client_id))


def request(
    profile: Profile,
    subject: SubjectOption,
    algorithm: AlgorithmOption = Algorithm.RS256,
    output: OutputOption = Output.TEXT,
    output_file: OutputFileOption = None,
) -> None:
    """Make a request for a certificate (PKCS#10), signed by the device, for a certification authority. Prints PEM."""
    from hsm_signer.issuance import certificate_request, parse_subject

    parse_subject(subject)  # before anybody is asked for a PIN
    with result_writer(output_file) as write, _open(profile) as device:
        pem = to_pem(certificate_request(device.signer(), algorithm, subject), "CERTIFICATE REQUEST")
        write(to_json({"pem": pem.decode("ascii")}) if output is Output.JSON else pem)


def import_(
    profile: Profile,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="PEM, DER or PKCS#7, alone or with its chain.", show_default=False)
    ],
    replace: ReplaceOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Store the certificate that an authority has issued for the key beside it. Of a chain, only that one."""
    from hsm_signer.device.certificates import replace_certificates, require_no_certificate

    found = parse_certificates(_read(file), str(file))
    now = datetime.now(UTC)
    with _open(profile, writable=True) as device:
        signer = device.signer()
        certificate = select_certificate(found, signer.public_key, str(file))
        require_usable(certificate, signer.public_key, now)
        if not replace:
            require_no_certificate(device, signer.key.info)
        replace_certificates(device, signer.key.info, certificate.der)
    _warn_of_another(profile)
    print_result(_json(certificate, now) if output is Output.JSON else _text(certificate, now))


def export(
    profile: Profile,
    form: Annotated[
        Form, typer.Option(help="pem; der; graph: the body that registers it through Microsoft Graph.")
    ] = Form.PEM,
    output: OutputOption = Output.TEXT,
    output_file: OutputFileOption = None,
) -> None:
    """Write the certificate stored beside the key, to register it. Logs in only where the device hides it.

    Written to a file as PEM, it says on stderr how it is registered with the application.
    """
    with result_writer(output_file) as write:
        certificate = _stored(profile)
        if output is Output.JSON:
            write(_json(certificate, datetime.now(UTC)))
            return
        match form:
            case Form.PEM:
                write(to_pem(certificate.der))
            case Form.DER:
                write(certificate.der)
            case Form.GRAPH:
                write(graph_body(certificate))
    if output_file is not None and form is Form.PEM:
        sys.stderr.write(registration_steps(certificate, output_file, profile.client_id))


def show(
    profile: Profile,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="PEM, DER or PKCS#7. Default: what is stored beside the key.", show_default=False
        ),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show a certificate, with its thumbprints. Logs in only where the device hides it."""
    now = datetime.now(UTC)
    shown = [_stored(profile)] if file is None else parse_certificates(_read(file), str(file))
    if output is Output.JSON:
        print_json({"certificates": [_facts(certificate, now) for certificate in shown]})
    else:
        print_result("\n\n".join(_text(certificate, now) for certificate in shown))


def _open(profile: Profile, *, writable: bool = False) -> "Device":
    from hsm_signer.device.device import open_device

    try:
        return open_device(dataclasses.replace(reference_to_one(profile), writable=writable))
    except DeviceReadOnly as error:
        raise DeviceReadOnly(
            error.message,
            hint="Keep the certificate in a file (certificate create --no-store --output-file FILE) and name that with "
            "--certificate; or store it with the device's own tool: `ykman piv certificates import 9a FILE`, "
            "`yubico-piv-tool -s 9a -a import-certificate -i FILE` (slot 9a is id=%01, 9c is id=%02).",
        ) from error


def _stored(profile: Profile) -> Certificate:
    from hsm_signer.device.certificates import read_certificate

    return parse_certificates(read_certificate(reference_to_one(profile)), "The certificate on the device")[0]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CertificateNotFound(
            f"The certificate {file} cannot be read: {error.strerror}.", hint="Check its name and mode."
        ) from None


def _warn_of_another(profile: Profile) -> None:
    if profile.certificate is not None:
        logger.warning("Assertions still go with the certificate that is configured, %s.", profile.certificate)


def _json(certificate: Certificate, now: datetime) -> str:
    return to_json({**_facts(certificate, now), "pem": to_pem(certificate.der).decode("ascii")})


def _facts(certificate: Certificate, now: datetime) -> dict[str, Any]:
    details = certificate_details(certificate)
    return {
        "subject": certificate.subject,
        "issuer": details.issuer,
        "serial": f"{details.serial:x}",
        "not_before": f"{certificate.not_before:%Y-%m-%dT%H:%M:%SZ}",
        "not_after": f"{certificate.not_after:%Y-%m-%dT%H:%M:%SZ}",
        "days_left": (certificate.not_after - now).days,
        "bits": None if certificate.public_key is None else certificate.public_key.bits,
        "key_usage": None if certificate.key_usage is None else sorted(certificate.key_usage),
        "extended_key_usage": None if details.purposes is None else sorted(details.purposes),
        "sha1": certificate.sha1.hex(),
        "sha256": certificate.sha256.hex(),
        "x5t": base64url_encode(certificate.sha1),
        "x5t#S256": base64url_encode(certificate.sha256),
        "portal": certificate.sha1.hex().upper(),
    }


def _text(certificate: Certificate, now: datetime) -> str:
    from hsm_signer.cli.inventory import row, validity_in_words

    facts = _facts(certificate, now)
    rows = {
        "subject": facts["subject"],
        "issuer": facts["issuer"],
        "serial": facts["serial"],
        "valid": validity_in_words(certificate.not_before, certificate.not_after, facts["days_left"]),
        "key": f"RSA, {facts['bits']} bits" if facts["bits"] else "not RSA",
        "usage": _names(facts["key_usage"]),
        "purpose": _names(facts["extended_key_usage"]),
        "SHA-1": f"{facts['portal']}, as the Entra portal shows it",
        "x5t": facts["x5t"],
        "SHA-256": certificate.sha256.hex().upper(),
        "x5t#S256": facts["x5t#S256"],
    }
    return "\n".join(line for label, value in rows.items() for line in row(0, label, value))


def _names(names: list[str] | None) -> str:
    return "any" if names is None else ", ".join(name.replace("_", " ") for name in names) or "none"
