"""Notify systemd of the state of a service (sd_notify(3)), and find out whether stderr goes to the journal."""

import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO


def is_journal(stream: IO[str], environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether a stream leads to systemd's journal: JOURNAL_STREAM is its device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


@dataclass(frozen=True)
class ServiceManager:
    """The socket on which systemd listens, and its watchdog.

    Attributes:
        address: the socket, as sd_notify(3) writes it. None: nobody listens.
        watchdog: systemd restarts the service after this many seconds without a notification. None: never.
    """

    address: str | None = None
    watchdog: float | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "ServiceManager":
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, and ignore a watchdog that is for another process."""
        microseconds = environ.get("WATCHDOG_USEC", "")
        # sd_watchdog_enabled(3): without WATCHDOG_PID it is meant for any process that reads it.
        is_ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watched = is_ours and microseconds.isdecimal() and int(microseconds) > 0
        return cls(environ.get("NOTIFY_SOCKET") or None, int(microseconds) / 1e6 if watched else None)

    def notify(self, **state: str | int) -> None:
        """Send assignments such as ``READY=1`` in one datagram, without waiting for a reader.

        It is not an error if nobody listens (sd_notify(3)).

        Args:
            state: values, by the variable names of sd_notify(3).
        """
        if self.address is None or self.address[0] not in "/@":
            return
        # unix(7): the name of an abstract socket begins with NUL.
        address = "\0" + self.address[1:] if self.address[0] == "@" else self.address
        message = "\n".join(f"{name}={' '.join(str(value).splitlines())}" for name, value in state.items())
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(message.encode(), socket.MSG_DONTWAIT, address)
