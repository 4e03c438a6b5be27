"""A listener on systemd's notify socket, which tells a test when a service is ready."""

import secrets
import socket
from collections.abc import Callable, Mapping


class Listener:
    """Receives notifications in place of systemd."""

    def __init__(self) -> None:
        self._name = f"hsm-signer-{secrets.token_hex(8)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{self._name}")
        self._socket.settimeout(30)

    @property
    def environment(self) -> Mapping[str, str]:
        return {"NOTIFY_SOCKET": f"@{self._name}"}

    def hear(self) -> dict[str, str]:
        """Return the next message."""
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())

    def wait_for(self, what: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Return the next message for which `what` is true."""
        while not what(message := self.hear()):
            pass
        return message

    def close(self) -> None:
        self._socket.close()


def ready(message: dict[str, str]) -> bool:
    return message.get("READY") == "1"
