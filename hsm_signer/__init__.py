"""Microsoft Entra ID tokens from a private key that never leaves its PKCS#11 device.

from hsm_signer import HsmCredential

with HsmCredential(tenant, client_id, "pkcs11:token=Office;id=%01", pin_source="env:PIN") as credential:
    token = credential.get_token("https://graph.microsoft.com/.default").token
"""

from hsm_signer.version import __version__ as __version__

# As typing's, which takes milliseconds to import. Until the program runs, an interrupt ends in a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from hsm_signer.credential.azure import HsmCredential as HsmCredential
    from hsm_signer.credential.azure_async import AsyncHsmCredential as AsyncHsmCredential
    from hsm_signer.credential.httpx_auth import BearerAuth as BearerAuth
    from hsm_signer.entra.token import AccessToken as AccessToken
    from hsm_signer.errors import HsmSignerError as HsmSignerError

__all__ = ["AccessToken", "AsyncHsmCredential", "BearerAuth", "HsmCredential", "HsmSignerError", "__version__"]

_HOMES = {
    "AccessToken": "hsm_signer.entra.token",
    "AsyncHsmCredential": "hsm_signer.credential.azure_async",
    "BearerAuth": "hsm_signer.credential.httpx_auth",
    "HsmCredential": "hsm_signer.credential.azure",
    "HsmSignerError": "hsm_signer.errors",
}


def __getattr__(name: str) -> object:
    # PEP 562: importing a submodule, or asking for the version, loads nothing else.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
