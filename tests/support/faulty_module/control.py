"""A device that misbehaves on command: a module that returns errors, hangs, crashes and lies, before a real one.

    with FaultyModule(softhsm.module, softhsm.environment, pin=softhsm.pin) as faulty:
        faulty.rule("C_Sign", rv=Rv.DEVICE_ERROR, times=1)
        ...  # use faulty.path as the module, with faulty.environment
        assert faulty.calls("C_Sign") == 2

Commands take effect at the next call, in every process that has loaded the module, and in its forks.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Self

from pkcs11 import Mechanism, TokenFlag

from .build import build

FUNCTIONS = (
    "C_GetFunctionList",
    "C_Initialize",
    "C_Finalize",
    "C_GetInfo",
    "C_GetSlotList",
    "C_GetSlotInfo",
    "C_GetTokenInfo",
    "C_GetMechanismList",
    "C_GetMechanismInfo",
    "C_OpenSession",
    "C_CloseSession",
    "C_Login",
    "C_Logout",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_FindObjectsFinal",
    "C_GetAttributeValue",
    "C_SignInit",
    "C_Sign(NULL)",
    "C_Sign",
    "C_GenerateKeyPair",
    "C_CreateObject",
    "C_DestroyObject",
)
"""The calls that can be commanded and are counted; all others are only forwarded.

``C_Sign(NULL)`` asks for the length of a signature (PKCS#11 v3.1 section 5.2), ``C_Sign`` makes one.
"""

_COUNTERS = 4096  # as in module.c
_FOR_EVER = 2**64 - 1
_NO_FLAGS = TokenFlag(0)


class Rv(IntEnum):
    """Some of the values that a call may return (CK_RV, PKCS#11 v3.1 section 6.1); any other integer works too."""

    OK = 0x000
    GENERAL_ERROR = 0x005
    FUNCTION_FAILED = 0x006
    ARGUMENTS_BAD = 0x007
    ATTRIBUTE_TYPE_INVALID = 0x012
    DEVICE_ERROR = 0x030
    DEVICE_REMOVED = 0x032
    FUNCTION_CANCELED = 0x050
    KEY_HANDLE_INVALID = 0x060
    MECHANISM_INVALID = 0x070
    MECHANISM_PARAM_INVALID = 0x071
    OBJECT_HANDLE_INVALID = 0x082
    OPERATION_ACTIVE = 0x090
    OPERATION_NOT_INITIALIZED = 0x091
    PIN_INCORRECT = 0x0A0
    PIN_INVALID = 0x0A1
    PIN_LEN_RANGE = 0x0A2
    PIN_EXPIRED = 0x0A3
    PIN_LOCKED = 0x0A4
    SESSION_CLOSED = 0x0B0
    SESSION_COUNT = 0x0B1
    SESSION_HANDLE_INVALID = 0x0B3
    TOKEN_NOT_PRESENT = 0x0E0
    TOKEN_NOT_RECOGNIZED = 0x0E1
    USER_ALREADY_LOGGED_IN = 0x100
    USER_NOT_LOGGED_IN = 0x101
    USER_PIN_NOT_INITIALIZED = 0x102
    VENDOR_DEFINED = 0x80000000


@dataclass(frozen=True)
class Call:
    """One call that was made.

    Attributes:
        function: its name, as in FUNCTIONS.
        pid: the process that made it.
        entered: when, by `time.monotonic`.
        left: when it returned; None while it hangs, and after a crash.
        rv: what it returned, or None likewise.
    """

    function: str
    pid: int
    entered: float
    left: float | None = None
    rv: int | None = None


@dataclass(frozen=True)
class LoginSeen:
    """One call of C_Login, successful or not.

    Attributes:
        right: whether its PIN was right. A login without a PIN means the PIN pad, where the PIN is always right.
        context_specific: whether it was for one signature (CKU_CONTEXT_SPECIFIC), not for the session.
        pid: the process that made it.
    """

    right: bool
    context_specific: bool
    pid: int


class FaultyModule:
    """Forwards to a real module unless a rule says otherwise. A context manager; `close` removes its directory.

    It uses its own copies of both modules, so several of these and the real module can be loaded in one process.

    Args:
        module: the real module.
        environment: variables that the real module needs before it loads.
        pin: the right PIN of its device.

    Attributes:
        path: the module to load.
        environment: variables that it needs before it loads.
    """

    def __init__(self, module: Path, environment: Mapping[str, str] = MappingProxyType({}), *, pin: str) -> None:
        self.environment = dict(environment)
        self._directory = Path(tempfile.mkdtemp(prefix="faults-"))
        self.path = self._directory / "faults.so"
        shutil.copyfile(module, self._directory / "real.so")
        (self._directory / "pin").write_text(pin, encoding="utf-8")
        (self._directory / "counters").write_bytes(bytes(8 * _COUNTERS))
        self._log = self._directory / "log"
        self._log.touch()
        self._forgotten = 0
        self._next_id = 1
        self._removals = 0
        self.clear()
        shutil.copyfile(build(), self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the directory. Programs that still use the module are only forwarded, and calls that hang return."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def clear(self) -> None:
        """Forward everything again, and forget the calls and logins so far."""
        self._rules: list[str] = []
        self._hidden: tuple[int, ...] = ()
        self._flags = (0, 0)
        self._absent = False
        self._always_authenticate = False
        self._noisy = False
        self._text = b""
        self._write_orders()
        self._forgotten = self._log.stat().st_size

    def rule(
        self,
        call: str,
        *,
        rv: int | None = None,
        after_forward: bool = False,
        hang: float | None = None,
        crash: bool = False,
        corrupt: bool = False,
        times: int | None = None,
        skip: int = 0,
    ) -> None:
        """Make a call misbehave. If several rules apply to a call, the first one wins.

        Args:
            call: one of FUNCTIONS.
            rv: return this instead of forwarding.
            after_forward: forward first; then hang, crash, or return `rv` for what the real module returned.
            hang: seconds, or infinity. A hang ends early when the rule is cleared.
            crash: die by SIGSEGV, after the hang if there is one.
            corrupt: flip a bit in the signature of C_Sign.
            times: for how many calls; None for all. The count starts now and covers all processes.
            skip: after how many calls the rule begins to apply.
        """
        if call not in FUNCTIONS:
            raise ValueError(f"{call} cannot be commanded, only {', '.join(FUNCTIONS)}.")
        if corrupt and call != "C_Sign":
            raise ValueError("Only C_Sign has something to corrupt.")
        if self._next_id == _COUNTERS:
            raise ValueError("That were too many rules.")
        milliseconds = 0 if hang is None else -1 if hang == float("inf") else round(hang * 1000)
        self._rules.append(
            f"rule {self._next_id} {call} {skip} {_FOR_EVER if times is None else times} "
            f"{after_forward:d} {milliseconds} {crash:d} {corrupt:d} {-1 if rv is None else rv}\n"
        )
        self._next_id += 1
        self._write_orders()

    def hide_mechanisms(self, *mechanisms: Mechanism) -> None:
        """Hide exactly these mechanisms of the device."""
        self._hidden = mechanisms
        self._write_orders()

    def flags(self, *, set: TokenFlag = _NO_FLAGS, clear: TokenFlag = _NO_FLAGS) -> None:
        """Set and clear these flags of the device; the others stay as the real device reports them.

        With PROTECTED_AUTHENTICATION_PATH a login without a PIN uses the right one, as if it were typed on the PIN pad.
        """
        self._flags = (set.value, clear.value)
        self._write_orders()

    def absent(self, absent: bool) -> None:
        """Unplug the device, or plug it in. Unplugging ends its sessions and its login for good."""
        self._removals += absent and not self._absent
        self._absent = absent
        self._write_orders()

    def always_authenticate(self, always: bool) -> None:
        """Make every private key require the PIN for each signature (CKA_ALWAYS_AUTHENTICATE), or none.

        This module then checks the PIN of a context-specific login, and does not forward the login to the device.
        """
        self._always_authenticate = always
        self._write_orders()

    def change_pin(self, pin: str) -> None:
        """Set the PIN that `logins` compares later logins with, after the device's PIN was changed."""
        (self._directory / "pin").write_text(pin, encoding="utf-8")

    def noisy(self, noisy: bool) -> None:
        """Make every call print a line to stdout and one to stderr, or none."""
        self._noisy = noisy
        self._write_orders()

    def text(self, text: bytes) -> None:
        """Replace every text of the module, slot, device and objects by this one, as far as it fits.

        Args:
            text: at most 64 octets; empty restores the real texts. Fields of 16 and 32 octets hold the beginning of it.
        """
        if len(text) > 64:
            raise ValueError("That is too long for any of them.")
        self._text = text
        self._write_orders()

    def calls(self, function: str) -> int:
        """Return how often a function was called."""
        if function not in FUNCTIONS:
            raise ValueError(f"{function} is not counted, only {', '.join(FUNCTIONS)}.")
        return sum(call.function == function for call in self.log())

    def log(self) -> list[Call]:
        """Return all calls, in the order they began."""
        calls: dict[str, Call] = {}
        for line in self._lines():
            match line.split():
                case ["enter", number, function, pid, at]:
                    calls[number] = Call(function, int(pid), int(at) / 1e9)
                case ["leave", number, rv, at] if number in calls:
                    call = calls[number]
                    calls[number] = Call(call.function, call.pid, call.entered, int(at) / 1e9, int(rv))
        return list(calls.values())

    def logins(self) -> list[LoginSeen]:
        """Return all logins, in the order they came."""
        words = (line.split() for line in self._lines() if line.startswith("login "))
        return [LoginSeen(right == "1", context == "1", int(pid)) for _, pid, context, right in words]

    def _lines(self) -> list[str]:
        return self._log.read_bytes()[self._forgotten :].decode("ascii").splitlines()

    def _write_orders(self) -> None:
        orders = [
            *self._rules,
            *(f"hide {mechanism:d}\n" for mechanism in self._hidden),
            f"flags {self._flags[0]} {self._flags[1]}\n",
            f"device {self._removals} {self._absent:d}\n",
            f"always-authenticate {self._always_authenticate:d}\n",
            f"noisy {self._noisy:d}\n",
            f"text {self._text.hex()}\n",
        ]
        # Replaced atomically, because a call may be reading the file.
        unfinished = self._directory / "orders.new"
        unfinished.write_text("".join(orders), encoding="ascii")
        os.replace(unfinished, self._directory / "orders")
