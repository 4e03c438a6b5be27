"""How this package starts itself in another process, that nobody else chooses what it imports, and talks to it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from hsm_signer.device.worker.channel import Channel
from hsm_signer.errors import DeviceError
from hsm_signer.system.environment import inherited_environment
from hsm_signer.system.own_process import die_with_parent, keep_memory_private

_ROOT = str(Path(__file__).resolve().parents[3])


def child_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `main` of one of our modules.

    Args:
        module: its name. Not the caller's main module again.
        arguments: for all to read.
    """
    # -P: the current directory is not where modules come from, or whoever owns it would choose them.
    return [sys.executable, "-P", "-c", f"from {module} import main; main()", *arguments]


def child_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for it: ours without PINs, `variables`, and where modules are found.

    This very package comes first, wherever it was found; then what else we can import.
    """
    return {**inherited_environment(), **variables, "PYTHONPATH": os.pathsep.join([_ROOT, *filter(None, sys.path)])}


class ChildProcess:
    """Runs `main` of one of our modules in a process that dies with the thread that starts it.

    Args:
        module: the name of the module.
        variables: added to the environment.
        kinds: the messages that may arrive from it.

    Attributes:
        channel: to it.

    Raises:
        DeviceError: it cannot be started.
    """

    def __init__(self, module: str, variables: Mapping[str, str], *kinds: type) -> None:
        with contextlib.ExitStack() as undo:
            try:
                ours, theirs = socket.socketpair()
                undo.enter_context(ours)
                with theirs:
                    self._process = subprocess.Popen(  # noqa: S603  # this Python
                        child_command(module, str(theirs.fileno()), str(os.getpid())),
                        pass_fds=(theirs.fileno(),),
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,  # modules print to it as they like
                        env=child_environment(variables),
                    )
            except OSError as error:
                raise DeviceError(
                    f"No process could be started to serve the device: {error.strerror} ({sys.executable}).",
                    hint="Check the limits on processes and open files (ulimit -u, ulimit -n) and the memory left.",
                ) from None
            undo.pop_all()
        self.channel = Channel(ours, *kinds)

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def describe_exit(self) -> str:
        """Say how a process ended that has closed its end of the channel: "by signal SIGSEGV", "with status 1"."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        status = self._process.returncode
        if status is None:
            return "without an answer"
        if status >= 0:
            return f"with status {status}"
        # Of the real-time signals, only two have a name.
        with contextlib.suppress(ValueError):
            return f"by signal {signal.Signals(-status).name}"
        return f"by signal {-status}"

    def kill(self) -> None:
        """End it at once, and close the channel."""
        self.channel.close()
        self._process.kill()
        # A process in an uninterruptible call into a driver dies when that ends.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)


def parent_channel(*kinds: type) -> Channel:
    """Return, in a process that `ChildProcess` started, the channel to its parent; first of all in `main`.

    Args:
        kinds: the messages that the parent may send.
    """
    die_with_parent(int(sys.argv[2]))
    keep_memory_private()
    # The terminal sends these to the whole foreground group; the parent decides what becomes of us.
    for each in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    return Channel(socket.socket(fileno=int(sys.argv[1])), *kinds)
