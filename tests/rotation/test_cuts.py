"""A rotation that is killed at any moment leaves a key that works, and the next run ends it.

The moments are the beginning and the end of everything that leaves a mark: on the device, at Entra, in the key file.
"""

import signal

import pytest

from tests.support.application import Application

GRAPH, ACTIONS = "hsm_signer.entra.graph", "hsm_signer.rotation.actions"

# What leaves a mark, and how often in one rotation. The key file is written after naming, registering, switching,
# unregistering and deleting.
MARKS = [
    ("hsm_signer.rotation.rotation", "write_key_file", 5),
    (ACTIONS, "generate_key", 1),
    ("hsm_signer.device.manage.certificates", "store_certificate", 1),
    (GRAPH, "Graph.add_key", 1),
    (GRAPH, "Graph.remove_key", 1),
    (ACTIONS, "delete_certificate", 1),
    (ACTIONS, "delete_key", 1),
]
CUTS = [
    pytest.param({"module": module, "name": name, "call": call, "when": when}, id=f"{when} {name} {call}")
    for module, name, count in MARKS
    for call in range(1, count + 1)
    for when in ("before", "after")
]


@pytest.mark.parametrize("cut", CUTS)
def test_a_power_cut_leaves_a_key_that_works_and_the_next_run_ends_the_rotation(
    application: Application, cut: dict[str, object]
) -> None:
    before = application.registered()
    assert application.rotate_until(cut) == -signal.SIGKILL
    assert application.token()
    application.rotate()
    if application.registered() == before:  # cut off before anything was begun, or all was done but written
        application.rotate()
    assert application.is_tidy()
    assert application.registered() != before


@pytest.mark.parametrize("cut", CUTS)
def test_the_same_where_graph_does_not_tell_what_is_registered(reticent: Application, cut: dict[str, object]) -> None:
    assert reticent.rotate_until(cut) == -signal.SIGKILL
    assert reticent.token()
    reticent.rotate()
    assert reticent.is_tidy()


def test_what_is_cut_is_what_a_rotation_does(application: Application) -> None:
    # Past the last call of each there is none: the list above is whole.
    for module, name, count in MARKS:
        assert application.rotate_until({"module": module, "name": name, "call": count + 1, "when": "before"}) == 0
