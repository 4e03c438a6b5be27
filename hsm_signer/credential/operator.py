"""The operator, who may be asked for a PIN, and how a profile and an operator lead to a key."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hsm_signer.config.profile import Profile
from hsm_signer.device.lane import Slow, log_slow
from hsm_signer.device.pin.parse import parse_pin_source
from hsm_signer.device.pin.pin import Pin, PinRequest, PinSource
from hsm_signer.device.pin.sources import FixedLogin, NobodyToAsk
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError, HsmSignerError

if TYPE_CHECKING:
    from hsm_signer.device.access import KeyAccess


@dataclass(frozen=True)
class Operator:
    """How to reach the person at the terminal, if there is one.

    Attributes:
        prompt: asks for the PIN if no other source is set.
        confirm: asks whether to use the last PIN try.
        slow: shows that a call into the device takes long, perhaps because the device waits for a touch.
        wait: called with the reason while there is no device; returns when it is time to look again. None: do not
            wait for a device.
    """

    prompt: PinSource | None = None
    confirm: Callable[[PinRequest], None] | None = None
    slow: Slow = log_slow
    wait: Callable[[HsmSignerError], None] | None = None


UNATTENDED = Operator()
"""Nobody can be asked."""


def key_access(profile: Profile, uri: Pkcs11Uri, operator: Operator = UNATTENDED) -> "KeyAccess":
    """Return how to open one key of a profile.

    Raises:
        ConfigError: the PIN source is malformed.
        PinUnavailable: the PIN source is the prompt, and nobody can be asked.
    """
    from hsm_signer.device.access import KeyAccess

    return KeyAccess(
        uri=uri,
        pin=pin_source(profile, uri, operator.prompt),
        module=profile.module,
        module_environment=profile.module_environment,
        timeout=profile.device_timeout,
        allow_last_try=profile.allow_last_try,
        pin_record=profile.state_directory / "pins" if profile.pin_record else None,
        confirm=operator.confirm,
        slow=operator.slow,
        wait=operator.wait,
    )


def pin_source(profile: Profile, uri: Pkcs11Uri, prompt: PinSource | None) -> PinSource:
    """Return where the PIN for one key of a profile comes from.

    Raises:
        ConfigError: the PIN source is malformed.
        PinUnavailable: the PIN source is the prompt, and nobody can be asked.
    """
    # RFC 7512 section 2.4 leaves this to us. The author of a URI must not choose a program that we run, nor seem to.
    if (uri.pin_source or "").startswith(("|", "command:")):
        raise ConfigError(
            "The pin-source of a URI may not name a program to run.",
            hint="Remove it from the URI, and use --pin-source command:ARGV.",
        )
    if profile.pin_source is not None:
        return parse_pin_source(profile.pin_source, prompt=prompt)
    if uri.pin_source is not None:
        return parse_pin_source(uri.pin_source, prompt=prompt)
    if uri.pin_value is not None:
        return FixedLogin(Pin(uri.pin_value), "the pin-value of the URI")
    return prompt or NobodyToAsk()
