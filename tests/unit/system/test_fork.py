"""A forked child resets what it inherited, and knows what belongs to its parent. Real forks."""

import gc
import os
import weakref
from collections.abc import Callable

from hsm_signer.system.fork import OwnerProcess, reset_after_fork


class Owner:
    def __init__(self) -> None:
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1


def is_true_in_child(condition: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        os._exit(0 if condition() else 1)
    return os.waitpid(child, 0)[1] == 0


def test_a_forked_child_resets_what_it_inherited() -> None:
    owner = Owner()
    reset_after_fork(owner, Owner.reset)
    assert is_true_in_child(lambda: owner.resets == 1)
    assert owner.resets == 0


def test_registering_for_forks_does_not_keep_an_object_alive() -> None:
    owner = Owner()
    reset_after_fork(owner, Owner.reset)
    known = weakref.ref(owner)
    del owner
    gc.collect()
    assert known() is None


def test_only_a_forked_child_sees_that_its_parent_owns_an_object() -> None:
    owner = OwnerProcess()
    assert is_true_in_child(lambda: owner.is_parent)
    assert not owner.is_parent
