"""The PIN, and the protocol that PIN sources implement.

A source is called before a login to a device. It returns a `Pin`, `PinPad.PROTECTED`, or None for no login.
"""

import hmac
import re
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn, Protocol, TypeAlias

from hsm_signer.errors import PinError, PinUnavailable
from hsm_signer.system.file_state import same_state
from hsm_signer.system.secret import Secret


class Pin(Secret):
    """A PIN. It cannot be pickled, so it reaches no other process by accident. Two are compared in constant time.

    Args:
        identity: the state of the source when the PIN was read, see `PinSource.identity`. If empty, `ask` fills it in.
        accepted: whether the device has accepted it. If so, an interrupted login does not mean that the PIN is wrong.

    Raises:
        PinUnavailable: the text is empty, contains a NUL, or cannot be encoded as UTF-8 (PKCS#11 v3.1 section 5.6.8).
    """

    __slots__ = ("accepted", "identity")

    def __init__(self, text: str, identity: str = "", accepted: bool = False) -> None:
        if not text:
            raise PinUnavailable(
                "The PIN is empty.", hint="Put the PIN into its source. Nothing was sent to the device."
            )
        if "\0" in text or re.search("[\ud800-\udfff]", text):
            raise PinUnavailable(
                "The PIN contains a NUL character, or is not UTF-8 text.",
                hint="Put the PIN into its source, and nothing else. Nothing was sent to the device.",
            )
        super().__init__(text)
        self.identity = identity
        self.accepted = accepted

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pin) and hmac.compare_digest(self._text.encode(), other._text.encode())

    __hash__ = None  # type: ignore[assignment]  # a set or a dictionary would compare by an unkeyed hash of the PIN

    def __reduce__(self) -> NoReturn:
        raise TypeError("A PIN cannot be pickled.")


class PinPad(Enum):
    """Log in without a PIN from the host."""

    PROTECTED = "protected"
    """The device asks on its own pad (CKF_PROTECTED_AUTHENTICATION_PATH)."""


Login: TypeAlias = Pin | PinPad | None


@dataclass(frozen=True)
class PinRequest:
    """The device that requires a PIN, and what a person must know before typing it.

    Args:
        device: the full name of the device.
        name: its short name, for the prompt: `YubiKey PIV #12345678`.
        warning: shown first, for example that a wrong PIN was entered before.
        last_try: whether a wrong PIN now locks the device.
        pad: whether the device has its own PIN pad.
    """

    device: str
    name: str = ""
    warning: str | None = None
    last_try: bool = False
    pad: bool = False


class PinSource(Protocol):
    """Gives the PIN when it is asked for."""

    @property
    def description(self) -> str:
        """What to call the source in a sentence: `the file /etc/x/pin`."""
        ...

    @property
    def identity(self) -> str:
        """The current state of the source, for `file_state.same_state` and the record of refused PINs.

        Only a file shows that it has changed. For the other sources we would have to compare the PIN itself, and we
        keep nothing derived from a PIN.
        """
        ...

    @property
    def attended(self) -> bool:
        """Whether a person types the PIN, so that somebody sees a refusal and can stop."""
        ...

    def __call__(self, request: PinRequest) -> Login:
        """Return what to log in with.

        Raises:
            PinUnavailable: the source cannot give a PIN.
        """
        ...


def ask(source: PinSource, request: PinRequest) -> Login:
    """Ask a source for the login, and store in the PIN the state of the source that it was read from.

    Raises:
        PinUnavailable: the source cannot give a PIN.
    """
    before = source.identity
    login = source(request)
    return Pin(login.reveal(), before, login.accepted) if isinstance(login, Pin) and not login.identity else login


def is_up_to_date(login: Login, source: PinSource) -> bool:
    """Return whether the source has not visibly changed since it gave this PIN."""
    return not isinstance(login, Pin) or same_state(login.identity, source.identity)


def mark_accepted(login: Login) -> Login:
    """Return the login, marked as accepted by the device."""
    return Pin(login.reveal(), login.identity, accepted=True) if isinstance(login, Pin) else login


class PinRefusal:
    """A device's refusal of a PIN, kept in this process so that the PIN is not sent again.

    Args:
        error: the error of the login. Its `source_state` is the state of the source that the PIN was read from.
    """

    def __init__(self, error: PinError) -> None:
        self.error = error
        self._state = error.source_state

    def still_applies(self, source: PinSource) -> bool:
        """Return whether the source may still hold the refused PIN."""
        if not self._state:
            return True
        now = source.identity
        if not same_state(self._state, now):
            return False
        self._state = now  # `touch` has moved the change time
        return True
