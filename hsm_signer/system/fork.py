"""Keep objects safe after a fork: a child cannot use locks that the parent's threads held, or the parent's sessions."""

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_resets: "weakref.WeakKeyDictionary[Any, Callable[[Any], None]]" = weakref.WeakKeyDictionary()


def reset_after_fork(owner: T, reset: Callable[[T], None]) -> None:
    """Call `reset(owner)` in each child that is forked while `owner` exists.

    If another thread of the parent held a lock at the fork, it is never released in the child, so replace the lock.
    """
    _resets[owner] = reset


_forking = threading.RLock()


@contextlib.contextmanager
def without_forks() -> Iterator[None]:
    """Make other threads wait before they fork. For imports on a thread of ours.

    In a child that is forked during an import, the module would stay half imported, and its lock never released.
    """
    with _forking:
        yield


class OwnerProcess:
    """The process that created an object, such as a session, that no forked child may use."""

    def __init__(self) -> None:
        # We compare process ids, because uWSGI by default forks without Python's hooks (py-call-osafterfork is off).
        self._id = os.getpid()

    @property
    def is_parent(self) -> bool:
        """Whether the owner is not this process, but the parent that it was forked from."""
        return self._id != os.getpid()


def _reset_all() -> None:
    for owner, reset in list(_resets.items()):
        reset(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
    os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_forking.release)
