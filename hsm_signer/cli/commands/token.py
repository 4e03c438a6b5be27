"""`token`: gets an access token, the main job."""

import contextlib
import os
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from hsm_signer.cli.log import report_done
from hsm_signer.cli.operator import terminal_operator
from hsm_signer.cli.options import OutputFileOption, profile_options
from hsm_signer.cli.output import result_writer
from hsm_signer.cli.text.layout import to_json
from hsm_signer.config.profile import Profile, require_settings
from hsm_signer.credential.tokens import Tokens
from hsm_signer.entra.token import AccessToken
from hsm_signer.system.strict_json import parse_json

_EXEC_CREDENTIAL_BETA = "client.authentication.k8s.io/v1beta1"


class TokenOutput(StrEnum):
    """Formats of the result."""

    TEXT = "text"
    JSON = "json"
    HEADER = "header"
    EXEC_CREDENTIAL = "exec-credential"


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(profile_options("Device", "Assertion", "Exchange")(token))


def token(
    profile: Profile,
    output: Annotated[
        TokenOutput,
        typer.Option(
            "--output",
            "-o",
            help="Format of the result. text is the bare token, header an Authorization header; exec-credential is "
            "for kubectl.",
        ),
    ] = TokenOutput.TEXT,
    output_file: OutputFileOption = None,
) -> None:
    """Get an access token from Entra.

    The device signs a client assertion, and Entra exchanges it for the token.
    Keep the token secret: anybody who has it can act as the application until it expires.

    hsm-signer --profile prod token

    hsm-signer --profile prod token --scope https://vault.azure.net/.default -o json
    """
    require_settings(profile, "tenant", "client_id", "key", "scope")
    with Tokens(profile, terminal_operator(wait=profile.wait)) as tokens:
        query = tokens.build_query(profile.scope)
        with result_writer(output_file) as write:
            obtained = tokens.get(query)
            write(_show_token(obtained, output, tokens))
    if output_file is not None:
        from hsm_signer.cli.text.layout import utc

        report_done(f"Wrote the access token to {output_file}. It is valid until {utc(obtained.expires_on)}.")


def _show_token(token: AccessToken, output: TokenOutput, tokens: Tokens) -> str:
    match output:
        case TokenOutput.TEXT:
            return token.token
        case TokenOutput.HEADER:
            return f"Authorization: {token.token_type} {token.token}"
        case TokenOutput.JSON:
            return to_json(_document(token, tokens))
        case TokenOutput.EXEC_CREDENTIAL:
            return to_json(_exec_credential(token))


def _document(token: AccessToken, tokens: Tokens) -> dict[str, Any]:
    return {
        "access_token": token.token,
        "token_type": token.token_type,
        "expires_in": max(0, token.expires_on - int(time.time())),
        "expires_on": token.expires_on,
        "scope": token.scope,
        "tenant": tokens.client.endpoint.tenant,
        "client_id": tokens.client.client_id,
        "authority": tokens.client.endpoint.authority,
    }


def _exec_credential(token: AccessToken) -> dict[str, Any]:
    expiry = datetime.fromtimestamp(token.expires_on, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": _exec_credential_version(os.environ.get("KUBERNETES_EXEC_INFO", "")),
        "kind": "ExecCredential",
        "status": {"token": token.token, "expirationTimestamp": expiry},
    }


def _exec_credential_version(asked: str) -> str:
    """Return the version that client-go asks for, because it accepts no other. Default: v1.

    https://kubernetes.io/docs/reference/config-api/client-authentication.v1/; v1beta1 has the same status.
    """
    with contextlib.suppress(ValueError, AttributeError):
        if parse_json(asked).get("apiVersion") == _EXEC_CREDENTIAL_BETA:
            return _EXEC_CREDENTIAL_BETA
    return "client.authentication.k8s.io/v1"
