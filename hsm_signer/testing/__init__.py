"""What your tests need to run against this package without a smart card and without Microsoft.

    from hsm_signer.testing import EntraEmulator, SoftHsm

`EntraEmulator` is a strict stand-in for Entra's token endpoint and for the part of Microsoft Graph that replaces keys.
`SoftHsm` is a PKCS#11 device in software. Both are context managers, use this machine only, and remove what they wrote.
The scripted answers of the emulator (`Throttled`, `Truncated`, ...) are here too. The emulator needs
``pip install 'hsm-signer[testing]'``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from hsm_signer.errors import ConfigError

if TYPE_CHECKING:
    from hsm_signer.testing.entra.answers import Answer as Answer
    from hsm_signer.testing.entra.answers import Disconnected as Disconnected
    from hsm_signer.testing.entra.answers import DripFeed as DripFeed
    from hsm_signer.testing.entra.answers import Endless as Endless
    from hsm_signer.testing.entra.answers import Html as Html
    from hsm_signer.testing.entra.answers import NoAccessToken as NoAccessToken
    from hsm_signer.testing.entra.answers import Redirect as Redirect
    from hsm_signer.testing.entra.answers import Refused as Refused
    from hsm_signer.testing.entra.answers import Slow as Slow
    from hsm_signer.testing.entra.answers import Throttled as Throttled
    from hsm_signer.testing.entra.answers import Truncated as Truncated
    from hsm_signer.testing.entra.answers import Unavailable as Unavailable
    from hsm_signer.testing.entra.authority import TokenRequest as TokenRequest
    from hsm_signer.testing.entra.directory import GraphRefusal as GraphRefusal
    from hsm_signer.testing.entra.emulator import EntraEmulator as EntraEmulator
    from hsm_signer.testing.entra.graph import GraphRequest as GraphRequest
    from hsm_signer.testing.softhsm import SoftHsm as SoftHsm

_ANSWERS = (
    "Answer Disconnected DripFeed Endless Html NoAccessToken Redirect Refused Slow Throttled Truncated Unavailable"
).split()
_HOMES = {
    **dict.fromkeys(_ANSWERS, "hsm_signer.testing.entra.answers"),
    "EntraEmulator": "hsm_signer.testing.entra.emulator",
    "GraphRefusal": "hsm_signer.testing.entra.directory",
    "GraphRequest": "hsm_signer.testing.entra.graph",
    "TokenRequest": "hsm_signer.testing.entra.authority",
    "SoftHsm": "hsm_signer.testing.softhsm",
}
_EXTRA = {"joserfc", "starlette", "trustme", "uvicorn"}


if not TYPE_CHECKING:  # else a type checker would accept every misspelt name

    def __getattr__(name: str) -> object:
        # PEP 562: SoftHsm needs no web server, and the emulator needs no PKCS#11 module.
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            home = import_module(_HOMES[name])
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in _EXTRA:
                raise
            raise ConfigError(
                f"{name} needs the Python package {package}, which is not installed.",
                hint="Run: pip install 'hsm-signer[testing]'",
            ) from error
        return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
