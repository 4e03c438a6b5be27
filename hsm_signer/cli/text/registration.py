"""How the first certificate of an application is registered, when there is none yet to prove anything with; pure."""

import base64
import shlex
from pathlib import Path

from hsm_signer.cli.output import to_json
from hsm_signer.system.display import displayable
from hsm_signer.x509.certificate import Certificate

_PLACEHOLDER = "CLIENT_ID"


def registration_steps(certificate: Certificate, file: Path | None, client_id: str | None) -> str:
    """Return what an administrator does to register a certificate, by each of three ways.

    Args:
        file: what holds it as PEM, or None where it was printed.
        client_id: of the application, if it is known.
    """
    application = client_id or _PLACEHOLDER
    pem = str(file or "certificate.pem")
    shown = displayable(pem)
    saved = "" if file else f" The certificate, as it was printed, is to be in {pem}."
    # https://learn.microsoft.com/cli/azure/ad/app/credential: without --append the others are removed, without
    # --end-date the credential ends after a year at the latest.
    azure = [
        *("az", "ad", "app", "credential", "reset", "--id", application, "--cert", f"@{pem}", "--append"),
        *("--end-date", certificate.not_after.isoformat(timespec="seconds")),
    ]
    return f"""\
An administrator now registers {certificate.subject} in one of these ways.{saved}
  Azure CLI, keeping the other credentials:
    {displayable(shlex.join(azure))}
  Entra admin centre, which will show the thumbprint {certificate.sha1.hex().upper()}:
    App registrations > the application > Certificates & secrets > Certificates > Upload certificate > {shown}
  Microsoft Graph, while no certificate is registered (it replaces all that are):
    PATCH /v1.0/applications(appId='{displayable(application)}')
    with what this prints: hsm-signer certificate export --form graph"""


def graph_body(certificate: Certificate) -> str:
    """Return the body of the request that makes a certificate the only one of its application.

    https://learn.microsoft.com/graph/api/application-update, resource keyCredential
    """
    credential = {
        "type": "AsymmetricX509Cert",
        "usage": "Verify",
        "displayName": certificate.subject,
        "key": base64.b64encode(certificate.der).decode("ascii"),
    }
    return to_json({"keyCredentials": [credential]})
