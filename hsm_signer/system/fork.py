"""What a forked child cannot use: locks that other threads of the parent held, and what belongs to the parent."""

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_resets: "weakref.WeakKeyDictionary[Any, Callable[[Any], None]]" = weakref.WeakKeyDictionary()


def reset_after_fork(owner: T, reset: Callable[[T], None]) -> None:
    """Have `reset(owner)` called in each child that is forked while `owner` lives.

    A lock that another thread of the parent held at the fork is never released in the child: replace it.
    """
    _resets[owner] = reset


_forking = threading.RLock()


@contextlib.contextmanager
def without_forks() -> Iterator[None]:
    """Have other threads wait with their forks, for imports on a thread of ours.

    In a child that is forked meanwhile, the module would stay half imported, and its lock would never be released.
    """
    with _forking:
        yield


class OwnerProcess:
    """The process that made an object which must not be used in a child forked from it, such as a session."""

    def __init__(self) -> None:
        # Compared, not reset by a hook: uWSGI forks without running Python's hooks (its py-call-osafterfork is off).
        self._id = os.getpid()

    @property
    def is_parent(self) -> bool:
        """Whether the current process was forked from the owner since."""
        return self._id != os.getpid()


def _reset_all() -> None:
    for owner, reset in list(_resets.items()):
        reset(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
    os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_forking.release)
