"""A key, and how to get to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from hsm_signer.device.lane import Slow, log_slow
from hsm_signer.device.pin.pin import PinRequest, PinSource
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import HsmSignerError

Wait: TypeAlias = Callable[[HsmSignerError], None]
"""Told why there is no device yet; returns when it is time to look again."""


@dataclass(frozen=True)
class KeyAccess:
    """Where a key is, and how to get to it.

    Attributes:
        uri: the device and the key in it.
        pin: asked for a PIN when the device wants a login.
        module: the PKCS#11 module, or None to find it as `find_module` does.
        module_environment: variables set before the module loads.
        timeout: seconds one call into the device may take.
        allow_last_try: log in although one PIN try is left.
        writable: open a session that may change the device.
        pin_record: the directory of the record of refused PINs, or None to keep none.
        confirm: asks a person whether the last try may be taken, where `allow_last_try` says so already; raises
            PinLastTry when not. None: nobody is asked.
        slow: shows a person that a call takes longer than a moment, perhaps because it waits for a touch.
        wait: told why there is no device yet; returns when it is time to look again. None: do not wait for one.
    """

    uri: Pkcs11Uri
    pin: PinSource
    module: Path | None = None
    module_environment: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 60.0
    allow_last_try: bool = False
    writable: bool = False
    pin_record: Path | None = None
    confirm: Callable[[PinRequest], None] | None = None
    slow: Slow = log_slow
    wait: Wait | None = None
