"""A PIN that shows itself to nobody, and what it takes to be a source of one.

A source is called when a device is about to be logged in to, and answers with a `Pin`, with `PinPad.PROTECTED`, or with
None for no login.
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
    """A PIN. It cannot be pickled, so that it goes to no other process by accident. Two compare in constant time.

    Args:
        identity: which state of its source it was read from: see `PinSource.identity`. Left empty, `ask` fills it in.
        accepted: whether the device has accepted it: then a login that is interrupted raises no doubt about the PIN.

    Raises:
        PinUnavailable: the text is empty, holds a NUL, or has no form in UTF-8 (PKCS#11 v3.1 section 5.6.8).
    """

    __slots__ = ("accepted", "identity")

    def __init__(self, text: str, identity: str = "", accepted: bool = False) -> None:
        if not text:
            raise PinUnavailable(
                "The PIN is empty.", hint="Put the PIN into its source. Nothing was sent to the device."
            )
        if "\0" in text or re.search("[\ud800-\udfff]", text):
            raise PinUnavailable(
                "The PIN holds a NUL character, or is not UTF-8 text.",
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
    """What a PIN is wanted for.

    Args:
        device: what to call the device before a person, for example `YubiKey PIV #1234 (Office)`.
        warning: what the person must know first, for example that a wrong PIN was entered before.
        last_try: whether a wrong PIN now locks the device.
        pad: whether the device has a PIN pad of its own.
    """

    device: str
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
        """Which state the source is in now, for `source_state.same_state` and the record of refused PINs.

        Only files show that they have changed. Of the other sources that cannot be seen without looking at the PIN
        itself, and nothing derived from that is kept.
        """
        ...

    @property
    def attended(self) -> bool:
        """Whether a person answers, who can see a refusal and stop."""
        ...

    def __call__(self, request: PinRequest) -> Login:
        """Return what to log in with.

        Raises:
            PinUnavailable: the source cannot give a PIN.
        """
        ...


def ask(source: PinSource, request: PinRequest) -> Login:
    """Ask a source; the PIN it gives knows which state of the source it is from.

    Raises:
        PinUnavailable: the source cannot give a PIN.
    """
    before = source.identity
    login = source(request)
    return Pin(login.reveal(), before, login.accepted) if isinstance(login, Pin) and not login.identity else login


def is_up_to_date(login: Login, source: PinSource) -> bool:
    """Decide whether a source still gives the PIN that it gave, as far as can be seen."""
    return not isinstance(login, Pin) or same_state(login.identity, source.identity)


def mark_accepted(login: Login) -> Login:
    """Return a login as one that the device has accepted."""
    return Pin(login.reveal(), login.identity, accepted=True) if isinstance(login, Pin) else login


class PinRefusal:
    """A device's refusal of a PIN, as it is remembered in this process.

    Args:
        error: with the state of the source that the PIN was read from.
    """

    def __init__(self, error: PinError) -> None:
        self.error = error
        self._state = error.source_state

    def still_applies(self, source: PinSource) -> bool:
        """Decide whether the source may still hold the refused PIN."""
        if not self._state:
            return True
        now = source.identity
        if not same_state(self._state, now):
            return False
        self._state = now  # `touch` has moved the change time
        return True
