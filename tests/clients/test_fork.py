"""A child that is forked from a program with a credential, at the worst moments."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from hsm_signer.testing import EntraEmulator
from tests.support.faulty_module.control import FaultyModule
from tests.support.names import GRAPH, VAULT

# Prints what the parent got before the fork, what the child got, and what the parent got afterwards.
_PROGRAM = """
import json, logging, os, signal, sys, threading
from hsm_signer import HsmCredential
from hsm_signer.device.pin.pin import Pin
from hsm_signer.errors import HsmSignerError

GRAPH, VAULT, moment = sys.argv[1:4]

class Prompt:
    description = identity = "a test"
    attended = True
    parent = os.getpid()
    asked, answer = threading.Event(), threading.Event()

    def __call__(self, request):
        if os.getpid() == self.parent:
            self.asked.set()
            self.answer.wait()
        return Pin(os.environ["DEVICE_PIN"])

def outcome(scope):
    try:
        return credential.get_token(scope).token
    except HsmSignerError as error:
        return error.code

def in_child(*scopes):
    reading, writing = os.pipe()
    if os.fork() == 0:
        signal.alarm(30)  # if it would wait forever, end it now
        os.write(writing, json.dumps([outcome(scope) for scope in scopes]).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        outcomes = json.load(answer)
    os.wait()
    return outcomes

logging.disable()
before = None
with HsmCredential(**json.loads(sys.argv[4]), prompt=Prompt()) as credential:
    if moment == "while it logs in":
        # This thread holds every lock on the way to a token.
        thread = threading.Thread(target=outcome, args=[GRAPH])
        thread.start()
        Prompt.asked.wait()
        child = in_child(GRAPH, VAULT)
        Prompt.answer.set()
        thread.join()
    else:
        Prompt.answer.set()
        if moment == "after its first token":
            before = outcome(GRAPH)
        child = in_child(GRAPH, VAULT)
    print(json.dumps([before, child, [outcome(GRAPH), outcome(VAULT)]]))
"""

MOMENTS = ["before its first use", "while it logs in", "after its first token"]
Run = Callable[..., tuple[str | None, list[str], list[str]]]


@pytest.fixture
def run(arguments: dict[str, Any]) -> Run:
    """Run the program."""
    del arguments["pin_source"]

    def run(moment: str, *, isolated: bool) -> Any:
        settings = json.dumps({**arguments, "isolated": isolated}, default=str)
        # Errors of any thread or destructor, in either process, appear on stderr.
        command = [sys.executable, "-W", "error", "-c", _PROGRAM, GRAPH, VAULT, moment, settings]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    return run


def are_tokens(outcomes: list[str]) -> bool:
    return all(outcome.startswith("eyJ") for outcome in outcomes)


@pytest.mark.parametrize("moment", MOMENTS)
def test_with_an_isolated_device_the_child_gets_its_own_tokens(run: Run, moment: str) -> None:
    _, child, parent = run(moment, isolated=True)
    assert are_tokens(child)
    assert are_tokens(parent)


@pytest.mark.parametrize("moment", MOMENTS[1:])
def test_with_a_device_in_the_parents_process_the_child_fails_at_once_and_the_parent_keeps_its_session(
    run: Run, moment: str, faulty: FaultyModule
) -> None:
    _, child, parent = run(moment, isolated=False)
    assert child[-1] == "device_error"
    assert are_tokens(parent)
    assert faulty.calls("C_Login") == 1


def test_a_child_forked_before_the_first_use_gets_tokens(run: Run) -> None:
    _, child, parent = run(MOMENTS[0], isolated=False)
    assert are_tokens(child)
    assert are_tokens(parent)


def test_the_child_uses_the_parents_cached_token(run: Run, entra: EntraEmulator) -> None:
    before, child, _ = run(MOMENTS[2], isolated=False)
    assert child[0] == before
    assert len(entra.requests) == 2


@pytest.mark.parametrize("isolated", [True, False])
def test_the_child_does_not_send_a_pin_that_was_refused_in_the_parent(
    run: Run, isolated: bool, faulty: FaultyModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEVICE_PIN", "not-the-pin")
    before, child, parent = run(MOMENTS[2], isolated=isolated)
    assert {before, *child, *parent} == {"pin_incorrect"}
    assert faulty.calls("C_Login") == 1
