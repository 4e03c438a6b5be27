"""The command that forgets refused PINs, as the person who reads the message has to type it."""

import os
import pwd
import shlex
from pathlib import Path

_FORGET = ("hsm-signer", "device", "forget-pin-failures")


def forget_command(directory: Path) -> str:
    """Return the command that forgets what is recorded in a directory.

    Args:
        directory: `pins` in the state directory.
    """
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # systemd's DynamicUser= ends with the service
        user = f"#{os.geteuid()}"
    return format_forget_command(directory.parent, user, is_reader=_has_terminal())


def format_forget_command(state: Path, user: str, *, is_reader: bool) -> str:
    """Return the command; pure.

    Args:
        state: the state directory.
        user: the user whose logins failed.
        is_reader: whether this user reads the message, at a terminal with the same variables. The message of a service
            is read in the journal, by another user.
    """
    if is_reader:
        return shlex.join(_FORGET)
    return shlex.join(["sudo", *(() if user == "root" else ("-u", user)), f"STATE_DIRECTORY={state}", *_FORGET])


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
