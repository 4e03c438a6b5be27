"""A rotation that is killed at any moment leaves a working key, and the next run finishes it.

It is killed before and after each call that changes something: on the device, at Entra, in the key file.
"""

import signal

import pytest

from tests.support.application import Application

GRAPH, ACTIONS = "hsm_signer.entra.graph", "hsm_signer.rotation.actions"

# The calls that change something, and how often one rotation makes them. It writes the key file after naming,
# registering, switching, unregistering and deleting.
CHANGES = [
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
    for module, name, count in CHANGES
    for call in range(1, count + 1)
    for when in ("before", "after")
]


@pytest.mark.parametrize("cut", CUTS)
def test_a_rotation_killed_at_any_moment_leaves_a_working_key_and_the_next_run_finishes_it(
    application: Application, cut: dict[str, object]
) -> None:
    before = application.registered()
    assert application.rotate_until(cut) == -signal.SIGKILL
    assert application.token()
    application.rotate()
    if (
        application.registered() == before
    ):  # killed before the first change, or when only the key file was left to write
        application.rotate()
    assert application.is_tidy()
    assert application.registered() != before


@pytest.mark.parametrize("cut", CUTS)
def test_the_same_holds_where_graph_does_not_list_the_credentials(
    unlisted: Application, cut: dict[str, object]
) -> None:
    assert unlisted.rotate_until(cut) == -signal.SIGKILL
    assert unlisted.token()
    unlisted.rotate()
    assert unlisted.is_tidy()


def test_the_list_of_changes_is_complete(application: Application) -> None:
    # A rotation makes no further call of any kind, so the list above is complete.
    for module, name, count in CHANGES:
        assert application.rotate_until({"module": module, "name": name, "call": count + 1, "when": "before"}) == 0
