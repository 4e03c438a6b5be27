"""Microsoft Entra ID tokens from a private key that never leaves its PKCS#11 device.

from hsm_signer import HsmCredential

with HsmCredential(tenant, client_id, "pkcs11:token=Office;id=%01", pin_source="env:PIN") as credential:
    token = credential.get_token("https://graph.microsoft.com/.default").token
"""

# As typing's, which takes milliseconds to import. Until the program runs, an interrupt ends in a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from hsm_signer.async_credential import AsyncHsmCredential as AsyncHsmCredential
    from hsm_signer.credential import HsmCredential as HsmCredential
    from hsm_signer.entra.token import AccessToken as AccessToken
    from hsm_signer.errors import HsmSignerError as HsmSignerError

__version__ = "0.1.0"

__all__ = ["AccessToken", "AsyncHsmCredential", "HsmCredential", "HsmSignerError", "__version__"]

_HOMES = {
    "AccessToken": "hsm_signer.entra.token",
    "AsyncHsmCredential": "hsm_signer.async_credential",
    "HsmCredential": "hsm_signer.credential",
    "HsmSignerError": "hsm_signer.errors",
}


def __getattr__(name: str) -> object:
    # PEP 562: importing a submodule, or asking for the version, loads nothing else.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
