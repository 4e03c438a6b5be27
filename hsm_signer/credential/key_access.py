"""Find out from a profile how to open a key, and where its PIN comes from."""

from hsm_signer.config.profile import Profile
from hsm_signer.device.access import UNATTENDED, KeyAccess, Operator
from hsm_signer.device.pin.parse import parse_pin_source
from hsm_signer.device.pin.pin import Pin, PinSource
from hsm_signer.device.pin.sources import FixedLogin, NoPinSource
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError


def key_access(profile: Profile, uri: Pkcs11Uri, operator: Operator = UNATTENDED) -> KeyAccess:
    """Return how to open one key of a profile.

    Raises:
        ConfigError: the PIN source is malformed.
        PinUnavailable: the PIN source is the prompt, and nobody can be asked.
    """
    return KeyAccess(
        uri=uri,
        pin=pin_source(profile, uri, operator.prompt),
        module=profile.module,
        module_environment=profile.module_environment,
        timeout=profile.device_timeout,
        allow_last_try=profile.allow_last_try,
        pin_record=profile.state_directory / "pins" if profile.pin_record else None,
        operator=operator,
    )


def pin_source(profile: Profile, uri: Pkcs11Uri, prompt: PinSource | None) -> PinSource:
    """Return where the PIN for one key of a profile comes from.

    Raises:
        ConfigError: the PIN source is malformed.
        PinUnavailable: the PIN source is the prompt, and nobody can be asked.
    """
    # RFC 7512 section 2.4 leaves this to us. The author of a URI must not choose a program that we run.
    if (uri.pin_source or "").startswith(("|", "command:")):
        raise ConfigError(
            "The pin-source of a URI must not name a program to run.",
            hint="Remove pin-source from the URI, and use --pin-source command:ARGV.",
        )
    if profile.pin_source is not None:
        return parse_pin_source(profile.pin_source, prompt=prompt)
    if uri.pin_source is not None:
        return parse_pin_source(uri.pin_source, prompt=prompt)
    if uri.pin_value is not None:
        return FixedLogin(Pin(uri.pin_value), "the pin-value of the URI")
    return prompt or NoPinSource()
