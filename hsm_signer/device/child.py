"""Run a module of this package in another process, and talk to it. No other user can choose what it imports."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from hsm_signer.device.channel import Channel
from hsm_signer.errors import DeviceError
from hsm_signer.system.environment import inherited_environment
from hsm_signer.system.own_process import die_with_parent, keep_memory_private
from hsm_signer.system.threads import NO_THREAD_HINT

_ROOT = str(Path(__file__).resolve().parents[2])


def child_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `main` of one of our modules.

    Args:
        module: the name of the module.
        arguments: nothing secret: other users can read them.
    """
    # -P: import nothing from the current directory, whose owner would otherwise choose our code.
    return [sys.executable, "-P", "-c", f"from {module} import main; main()", *arguments]


def child_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for the child: ours without PINs, `variables`, and the import path.

    The import path begins with the directory that this package was imported from, so the child runs the same code.
    """
    return {**inherited_environment(), **variables, "PYTHONPATH": os.pathsep.join([_ROOT, *filter(None, sys.path)])}


class ChildProcess:
    """Runs `main` of one of our modules in a process that dies with the thread that starts it.

    Args:
        module: the name of the module.
        variables: added to the environment.
        kinds: the messages that it may send.

    Attributes:
        channel: for messages to and from the process.

    Raises:
        DeviceError: the process cannot be started.
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
                        stdout=subprocess.DEVNULL,  # some modules print to it
                        env=child_environment(variables),
                    )
            except OSError as error:
                raise DeviceError(
                    f"No process could be started to serve the device: {error.strerror} ({sys.executable}).",
                    hint=f"{NO_THREAD_HINT} Also check the limit on open files (`ulimit -n`).",
                ) from None
            undo.pop_all()
        self.channel = Channel(ours, *kinds)

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def describe_exit(self) -> str:
        """Return how the process ended, after it closed the channel: "by signal SIGSEGV", "with status 1"."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        status = self._process.returncode
        if status is None:
            return "without an answer"
        if status >= 0:
            return f"with status {status}"
        # Only two of the real-time signals have a name.
        with contextlib.suppress(ValueError):
            return f"by signal {signal.Signals(-status).name}"
        return f"by signal {-status}"

    def kill(self) -> None:
        """Kill the process, and close the channel."""
        self.channel.close()
        self._process.kill()
        # A process in an uninterruptible call into a driver ends only after the call.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)


def parent_channel(*kinds: type) -> Channel:
    """Return the channel to the parent. `main` of a module that `ChildProcess` runs calls this first.

    Args:
        kinds: the messages that the parent may send.
    """
    die_with_parent(int(sys.argv[2]))
    keep_memory_private()
    # The terminal sends these to the whole foreground group, but the parent decides when we end.
    for each in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    return Channel(socket.socket(fileno=int(sys.argv[1])), *kinds)
