"""The environment variables that tell other programs where an assertion file is."""

from pathlib import Path

from hsm_signer.config.settings import missing
from hsm_signer.credential.client import Client


def client_variables(file: Path, client: Client) -> dict[str, str]:
    """Return the variables of the Azure SDKs (`AZURE_…`) and of Terraform's azurerm provider (`ARM_…`).

    https://learn.microsoft.com/dotnet/api/azure.identity.workloadidentitycredentialoptions,
    https://registry.terraform.io/providers/hashicorp/azurerm/latest/docs/guides/service_principal_oidc

    Args:
        file: the absolute path of the assertion file.

    Raises:
        ConfigError: the client's token endpoint belongs to no tenant.
    """
    endpoint = client.endpoint
    if endpoint.tenant is None:
        raise missing("tenant")
    return {
        "AZURE_FEDERATED_TOKEN_FILE": str(file),
        "AZURE_TENANT_ID": endpoint.tenant,
        "AZURE_CLIENT_ID": client.client_id,
        "AZURE_AUTHORITY_HOST": endpoint.authority,
        "ARM_USE_OIDC": "true",
        "ARM_OIDC_TOKEN_FILE_PATH": str(file),
        "ARM_TENANT_ID": endpoint.tenant,
        "ARM_CLIENT_ID": client.client_id,
    }
