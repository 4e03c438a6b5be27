"""The one device that a command of `device`, `key` or `certificate` works on."""

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hsm_signer.cli.operator import terminal_operator
from hsm_signer.config.profile import Profile
from hsm_signer.credential.key_access import key_access
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ConfigError

if TYPE_CHECKING:
    from hsm_signer.device.access import KeyAccess
    from hsm_signer.device.device import Device
    from hsm_signer.device.inventory.facts import ModuleFacts


def access_to_one(profile: Profile) -> "KeyAccess":
    """Return how to get to the one key of a profile, or to its device; without a key, to the only device there is.

    Raises:
        ConfigError: the profile names several keys.
    """
    if len(profile.key) > 1:
        raise ConfigError(
            f"{len(profile.key)} keys are configured, but this command works on one.", hint="Name one with --key."
        )
    return key_access(profile, profile.key[0] if profile.key else Pkcs11Uri(), terminal_operator(wait=profile.wait))


def open_one_device(profile: Profile, *, writable: bool = False) -> "Device":
    """Open the device and log in.

    Args:
        writable: whether the session may change what is stored on the device.
    """
    from hsm_signer.device.device import open_device

    return open_device(dataclasses.replace(access_to_one(profile), writable=writable))


def examine_one_device(profile: Profile, *, login: bool) -> "ModuleFacts":
    """Return what is on the device: its module, and in it this device alone."""
    from hsm_signer.device.inventory.inspect import examine

    return examine(access_to_one(profile), datetime.now(UTC), login=login)
