"""What a process of ours asks of its kernel: to show its memory to nobody, and to end with its parent. Linux only."""

import contextlib
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def keep_memory_private() -> None:
    """Keep this process's memory out of core files, and away from other processes of the same user.

    For processes of ours only: a program that uses this package may want its core files.
    """
    # The soft limit alone: what we start inherits it, and may raise it again.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    # core(5): a handler that core_pattern pipes to does not heed the limit. PR_SET_DUMPABLE(2const) closes ptrace and
    # /proc/PID/environ and mem as well. The next execve undoes it.
    _prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends.

    Args:
        parent: the process that started it; if it has ended already, so does this one.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
