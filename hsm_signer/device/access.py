"""Which key to use, how to open its device, and how to reach the person at the terminal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hsm_signer.device.lane import Slow, log_slow
from hsm_signer.device.pin.pin import PinRequest, PinSource
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import HsmSignerError


@dataclass(frozen=True)
class Operator:
    """How to reach the person at the terminal, if there is one.

    Attributes:
        prompt: asks for the PIN if no other source is set.
        confirm: asks whether to use the last PIN try; raises PinLastTry if not.
        slow: shows that a call into the device takes long, perhaps because the device waits for a touch.
        wait: called with the reason while there is no device; returns when it is time to look again. None: do not
            wait for a device.
    """

    prompt: PinSource | None = None
    confirm: Callable[[PinRequest], None] | None = None
    slow: Slow = log_slow
    wait: Callable[[HsmSignerError], None] | None = None

    def confirm_last_try(self, request: PinRequest) -> PinRequest:
        """Have the operator confirm a try that may lock the device. Then no other warning is needed.

        Raises:
            PinLastTry: the operator says no.
        """
        if not request.last_try or self.confirm is None:
            return request
        self.confirm(request)
        return replace(request, warning=None)


UNATTENDED = Operator()
"""Nobody can be asked."""


@dataclass(frozen=True)
class KeyAccess:
    """Which key to use, and how to open its device.

    Attributes:
        uri: the device, and the key on it.
        pin: asked for the PIN when the device requires a login.
        module: the PKCS#11 module, or None to find it as `find_module` does.
        module_environment: variables set before the module loads.
        timeout: seconds one call into the device may take.
        allow_last_try: log in even if a wrong PIN would lock the device. `operator` is still asked.
        writable: open a session that may change the device.
        pin_record: the directory of the record of refused PINs, or None to keep none.
        operator: the person to ask, and to show what takes long.
    """

    uri: Pkcs11Uri
    pin: PinSource
    module: Path | None = None
    module_environment: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 60.0
    allow_last_try: bool = False
    writable: bool = False
    pin_record: Path | None = None
    operator: Operator = UNATTENDED
