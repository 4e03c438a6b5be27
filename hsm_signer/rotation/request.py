"""The options of a rotation, and the callback that reports each step."""

from collections.abc import Callable
from dataclasses import dataclass

from hsm_signer.device.manage.generate import KeySpec
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.rotation.plan import Step
from hsm_signer.x509.issuance import DEFAULT_DAYS, parse_subject

Report = Callable[[Step, str], None]
"""Called with a step and a sentence about what happened: after each step, and once when a wait begins."""


@dataclass(frozen=True)
class RotationRequest:
    """The options of a rotation.

    Attributes:
        current: the key in use. Needed only if the key file does not exist yet. If it does, it must name this key.
        next_key: a key on the device to use as the next one, instead of generating one.
        bits: size of the next key. None: same as the current key.
        subject: subject of the next certificate (RFC 4514). None: same as the current one.
        days: validity of the next certificate, in days.
        delete_old: delete the old key and its certificate from the device at the end.
        old_key_id: ID of the old key's credential, needed if Graph does not list credentials.
        propagation: seconds to wait for a change to take effect at Entra.
        warn_days: start a rotation only if the current certificate expires in less than so many days, or if the next
            key is named. None: start one now.
        cancel: give up the rotation that was begun. With `delete_old`, the key given up is deleted from the device.
        adopt: only start a key file that names the current key.

    Raises:
        ConfigError: keys of that size cannot be generated, or the subject is malformed.
    """

    current: Pkcs11Uri | None = None
    next_key: Pkcs11Uri | None = None
    bits: int | None = None
    subject: str | None = None
    days: int = DEFAULT_DAYS
    delete_old: bool = False
    old_key_id: str | None = None
    propagation: float = 600.0
    warn_days: int | None = None
    cancel: bool = False
    adopt: bool = False

    def __post_init__(self) -> None:
        # Checked before the first step, not when the value is needed.
        if self.bits is not None:
            KeySpec("next", bits=self.bits)
        if self.subject is not None:
            parse_subject(self.subject)
