"""A SoftHSM behind p11-kit's server, reached over its socket, like a device on another host.

Debian packages: p11-kit, p11-kit-modules and softhsm2.
"""

import os
import shutil
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from hsm_signer.device.module_search import find_module
from hsm_signer.device.uri import Pkcs11Uri

from .daemon import Daemon
from .softhsm import SoftHsmStack

_SECONDS = 10.0


class P11KitStack:
    """A SoftHSM behind a socket. p11-kit hides mechanisms that its messages cannot carry, such as PS256 in one step.

    A process that lost its connection gets CKR_DEVICE_ERROR until it initializes the module again; one that cannot
    connect gets an empty list of slots.
    """

    def __init__(self) -> None:
        self.name = "p11-kit"
        self.module = find_module(None, Pkcs11Uri(module_name="p11-kit-client"))
        self.has_pss = True
        with ExitStack() as resources:
            self._directory = Path(resources.enter_context(TemporaryDirectory(prefix="p11-kit-")))
            self._behind = SoftHsmStack()
            resources.callback(self._behind.close)
            self.pin = self._behind.pin
            self.wrong_pin = self._behind.wrong_pin
            self.locks = self._behind.locks
            self.key = self._behind.key
            self.always_authenticate_key = self._behind.always_authenticate_key
            self.environment: Mapping[str, str] = {"P11_KIT_SERVER_ADDRESS": f"unix:path={self._socket}"}
            self._line = resources.enter_context(ExitStack())
            self.plug()
            self._resources = resources.pop_all()

    def unplug(self) -> None:
        """Stop the server."""
        self._line.close()

    def plug(self) -> None:
        """Start a server on the same address; return when it answers."""
        program = shutil.which("p11-kit")
        if program is None:
            raise RuntimeError(f"p11-kit is not installed; the packages are named in {__name__}.")
        self._line.enter_context(
            Daemon(
                # The server leaves a process for each connection behind. `timeout`, here without a limit, passes
                # SIGTERM on to all of them.
                *("timeout", "0", program, "server", "--foreground", "--name", str(self._socket)),
                *("--provider", str(self._behind.module), str(Pkcs11Uri(token=Pkcs11Uri.parse(self.key.uri).token))),
                environment={**os.environ, **self._behind.environment},
                output=self._directory / "output",
            )
        )
        deadline = time.monotonic() + _SECONDS
        while not self._answers():
            if time.monotonic() > deadline:
                said = (self._directory / "output").read_text(errors="replace")
                raise RuntimeError(f"p11-kit server was not ready within {_SECONDS:g} s: {said}")
            time.sleep(0.01)

    def reset(self) -> None:
        """Start the server if the last test left it stopped, and restore the token's original files."""
        if not self._answers():
            self.unplug()
            self.plug()
        self._behind.reset()

    def close(self) -> None:
        """Stop the server and remove everything."""
        self._resources.close()

    @property
    def _socket(self) -> Path:
        return self._directory / "socket"

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self._socket))
            except OSError:
                return False
        return True
