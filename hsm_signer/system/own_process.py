"""Protect our own processes: hide their memory, and end them with their parent. Linux only."""

import contextlib
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def keep_memory_private() -> None:
    """Keep this process's memory out of core files, and away from other processes of the same user.

    Call it only in our own processes: a program that uses this package may need its core files.
    """
    # Only the soft limit: programs that we start inherit it, and can raise it again.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    # core(5): a handler that core_pattern pipes to ignores the limit. PR_SET_DUMPABLE(2const) closes ptrace and
    # /proc/PID/environ and mem as well. The next execve undoes it.
    _prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends.

    Args:
        parent: the process that started this one. If it has already ended, this process ends at once.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
