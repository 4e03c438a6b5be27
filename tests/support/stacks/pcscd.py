"""A separate pcscd for the tests, which does not disturb the machine's own."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO

_NOBODY = 65534
_RUN = Path("/run/pcscd")  # compiled in; pcscd ends if it does not exist and cannot be created


def start_pcscd(
    path: Path, configuration: str, *options: str, environment: Mapping[str, str], output: int | IO[bytes]
) -> "subprocess.Popen[bytes]":
    """Start a pcscd that listens at `path`.

    It gets its socket like from systemd (sd_listen_fds(3)), so that it does not touch the socket of another pcscd. It
    never runs as root, so that it can neither replace the other's process id file nor open USB readers.

    Args:
        configuration: of its readers (reader.conf(5)).
        environment: additional variables.
        output: the file for its stdout and stderr.
    """
    root = os.geteuid() == 0
    if not root and not _RUN.exists():
        sys.exit(f"pcscd needs {_RUN} to exist: sudo mkdir {_RUN}")
    _RUN.mkdir(exist_ok=True)  # not removed afterwards, because another pcscd may be running
    readers = os.memfd_create("reader.conf")  # the user "nobody" cannot read our directory
    os.write(readers, configuration.encode())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        try:
            return subprocess.Popen(
                [
                    *("sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0 </dev/null', "sh"),
                    *(_program(), "--foreground", "--config", f"/proc/self/fd/{readers}", *options),
                ],
                env={"PATH": "/usr/bin:/bin", **environment},
                stdin=listener.fileno(),
                stdout=output,
                stderr=output,
                pass_fds=(readers,),
                user=_NOBODY if root else None,
                group=_NOBODY if root else None,
                extra_groups=() if root else None,
            )
        finally:
            os.close(readers)


@cache
def asks_polkit() -> bool:
    """Return whether this machine's pcscd asks polkit: Debian 12 builds it without polkit, Debian 13 with it."""
    done = subprocess.run([_program(), "--help"], capture_output=True, text=True)
    return "--disable-polkit" in done.stdout + done.stderr


def _program() -> str:
    program = shutil.which("pcscd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        sys.exit("pcscd is needed: apt-get install pcscd")
    return program
