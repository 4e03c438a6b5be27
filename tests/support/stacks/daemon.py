"""A program that runs beside the tests and never outlives them."""

import os
import signal
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Self

# The shell waits for the end of its stdin, which comes when we close it, and also when this process is killed.
_UNTIL_END = '"$@" </dev/null & read -r _; kill $! 2>/dev/null; wait $!'
_SECONDS = 10.0


class Daemon:
    """A running program; a context manager that stops it.

    Args:
        argv: the program and its arguments. It must stay in the foreground, and end on SIGTERM.
        environment: its complete environment.
        output: the file to which its stdout and stderr are appended.
        pass_fds: descriptors it inherits under the same numbers.
    """

    def __init__(
        self, *argv: str, environment: Mapping[str, str], output: Path, pass_fds: Collection[int] = ()
    ) -> None:
        with output.open("ab") as log:
            self._shell = subprocess.Popen(
                ["sh", "-c", _UNTIL_END, "sh", *argv],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                # Ctrl-C goes to the tests only: they stop this program in order.
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the program; returns when it has ended."""
        try:
            self._shell.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._shell.pid, signal.SIGKILL)
            self._shell.wait()
