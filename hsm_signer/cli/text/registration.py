"""How an administrator registers the first certificate of an application; pure.

Later ones are registered by `rotate`, which proves each request with a key that is registered already.
"""

import base64
import shlex
from pathlib import Path

from hsm_signer.cli.text.layout import to_json
from hsm_signer.system.display import displayable
from hsm_signer.x509.certificate import Certificate

_PLACEHOLDER = "CLIENT_ID"


EXPORT = ("certificate", "export", "--form", "graph")
"""The command that prints the body of the Graph request."""


def registration_steps(
    certificate: Certificate,
    file: Path | None,
    client_id: str | None,
    export: str = shlex.join(["hsm-signer", *EXPORT]),
) -> str:
    """Return the three ways in which an administrator can register a certificate, with the commands to type.

    Args:
        file: the PEM file that holds it; None if it was printed.
        client_id: client ID of the application, if it is known.
        export: the command that prints the body of the Graph request.
    """
    application = client_id or _PLACEHOLDER
    pem = str(file or "certificate.pem")
    shown = displayable(pem)
    saved = "" if file else f" First save the certificate above as {pem}."
    # https://learn.microsoft.com/cli/azure/ad/app/credential: without --append the others are removed, without
    # --end-date the credential ends after a year at the latest.
    azure = [
        *("az", "ad", "app", "credential", "reset", "--id", application, "--cert", f"@{pem}", "--append"),
        *("--end-date", certificate.not_after.isoformat(timespec="seconds")),
    ]
    return f"""\
Next: register this certificate with the app, in one of three ways.{saved}
  Azure CLI (the app keeps its other credentials):
    {displayable(shlex.join(azure))}
  Entra admin center (it then shows the thumbprint {certificate.sha1.hex().upper()}):
    App registrations > your app > Certificates & secrets > Certificates > Upload certificate > {shown}
  Microsoft Graph (only if the app has no certificate yet: this replaces all of them):
    PATCH /v1.0/applications(appId='{displayable(application)}')
    The body is what this prints: {displayable(export)}"""


def graph_body(certificate: Certificate) -> str:
    """Return the body of the Graph request that makes this certificate the only one of the application.

    https://learn.microsoft.com/graph/api/application-update, resource keyCredential
    """
    credential = {
        "type": "AsymmetricX509Cert",
        "usage": "Verify",
        "displayName": certificate.subject,
        "key": base64.b64encode(certificate.der).decode("ascii"),
    }
    return to_json({"keyCredentials": [credential]})
