"""Calls into a module: one at a time and in order, each with a deadline, and Ctrl-C works."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest

from hsm_signer.device.lane import Lane
from hsm_signer.errors import DeviceError, DeviceTimeout

MODULE = "/usr/lib/libvendor.so"
LONG, SHORT = 60.0, 0.05


@pytest.fixture
def lane() -> Lane:
    return Lane(MODULE)


class Stuck:
    """A call that stays inside the module until the test lets it return."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._out = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        self._out.wait()
        return "back"

    def let_out(self) -> None:
        self._out.set()


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    call = Stuck()
    yield call
    call.let_out()


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def interrupt_main() -> None:
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def test_a_call_returns_what_its_function_returns(lane: Lane) -> None:
    assert lane.call("signing", lambda: b"signature", LONG) == b"signature"


def test_all_calls_run_on_one_thread_that_is_not_the_callers(lane: Lane) -> None:
    threads = {lane.call("signing", threading.current_thread, LONG) for _ in range(3)}
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_the_thread_does_not_keep_the_process_from_ending(lane: Lane) -> None:
    assert lane.call("signing", threading.current_thread, LONG).daemon


def test_calls_run_in_the_order_in_which_they_are_made(lane: Lane) -> None:
    order: list[int] = []
    for number in range(50):
        lane.call("signing", partial(order.append, number), LONG)
    assert order == list(range(50))


def test_calls_of_twenty_threads_never_overlap(lane: Lane) -> None:
    inside, most_inside = 0, 0
    alone = threading.Event()

    def enter_and_leave() -> None:
        nonlocal inside, most_inside
        inside += 1
        most_inside = max(most_inside, inside)
        alone.wait(0.0002)  # lets the other threads run, like C code that releases the GIL
        inside -= 1

    with ThreadPoolExecutor(20) as pool:
        for done in [pool.submit(lane.call, "signing", enter_and_leave, LONG) for _ in range(400)]:
            done.result()
    assert most_inside == 1


def test_every_caller_gets_its_own_result(lane: Lane) -> None:
    def doubled(number: int) -> int:
        return lane.call("signing", lambda: 2 * number, LONG)

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(doubled, range(200))) == [2 * number for number in range(200)]


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("its own"), KeyboardInterrupt()], ids=repr)
def test_an_exception_reaches_the_caller_as_it_is(lane: Lane, error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        lane.call("signing", fail, LONG)
    assert caught.value is error


def test_after_an_exception_the_lane_still_works(lane: Lane) -> None:
    with pytest.raises(ZeroDivisionError):
        lane.call("signing", lambda: 1 // 0, LONG)
    assert lane.call("signing", lambda: 1, LONG) == 1


def test_the_error_names_the_call_that_overran(lane: Lane, stuck: Stuck) -> None:
    with pytest.raises(DeviceTimeout) as late:
        lane.call("logging in", stuck, SHORT)
    assert late.value.message == f"The module did not return from logging in within 0.05 s: {MODULE}."


def test_a_call_that_overruns_leaves_the_lane_busy(lane: Lane, stuck: Stuck) -> None:
    with pytest.raises(DeviceTimeout):
        lane.call("logging in", stuck, SHORT)
    assert lane.is_busy


def test_after_a_call_overran_no_more_calls_are_sent_even_if_it_returned(lane: Lane, stuck: Stuck) -> None:
    thread = lane.call("looking", threading.current_thread, LONG)
    with pytest.raises(DeviceTimeout):
        lane.call("logging in", stuck, SHORT)
    sent: list[str] = []
    for _ in range(2):
        with pytest.raises(DeviceTimeout, match=r"An earlier call into the module \(logging in\) did not return"):
            lane.call("signing", lambda: sent.append("signing"), LONG)
        stuck.let_out()
    assert (sent, thread.is_alive()) == ([], True)


def test_a_call_whose_turn_comes_while_the_lane_closes_fails(lane: Lane, stuck: Stuck) -> None:
    with ThreadPoolExecutor(2) as pool:
        pool.submit(lane.call, "logging in", stuck, LONG)
        stuck.entered.wait()
        second = pool.submit(lane.call, "signing", lambda: "sent", LONG)
        while lane._jobs.empty():
            pass
        lane._overrun = "logging in"  # only this part of closing
        stuck.let_out()
        with pytest.raises(DeviceTimeout, match=r"An earlier call into the module \(logging in\) did not return"):
            second.result(LONG)


def test_if_no_thread_can_start_a_call_fails_with_a_hint_and_the_next_one_tries_again(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(DeviceError, match="can't start new thread") as failed:
            lane.call("signing", lambda: "sent", LONG)
    assert "ulimit -u" in str(failed.value.hint)
    assert lane.call("signing", lambda: "sent", LONG) == "sent"


def test_waiting_for_another_call_does_not_count_against_a_calls_deadline(lane: Lane, stuck: Stuck) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lane.call, "signing", stuck, LONG)
        stuck.entered.wait()
        second = pool.submit(lane.call, "signing", lambda: "in time", SHORT)
        threading.Timer(4 * SHORT, stuck.let_out).start()
        assert (first.result(), second.result()) == ("back", "in time")


def test_a_lane_is_busy_only_while_a_call_is_inside(lane: Lane) -> None:
    states = [lane.is_busy, lane.call("signing", lambda: lane.is_busy, LONG), lane.is_busy]
    assert states == [False, True, False]


def interrupted(lane: Lane, stuck: Stuck) -> None:
    """Interrupt the caller of a call that then stays inside the module."""

    def call() -> str:
        # Not at once: a signal that arrives just before a thread blocks does not wake it.
        threading.Timer(SHORT, interrupt_main).start()
        return stuck()

    with pytest.raises(KeyboardInterrupt):
        lane.call("signing", call, LONG)
    stuck.entered.wait()


def test_an_interrupt_frees_the_caller_while_the_call_stays_in_the_module(lane: Lane, stuck: Stuck) -> None:
    interrupted(lane, stuck)
    assert lane.is_busy


def test_the_next_call_waits_until_the_interrupted_one_has_returned(lane: Lane, stuck: Stuck) -> None:
    interrupted(lane, stuck)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(lane.call, "signing", lambda: "sent", LONG)
        with pytest.raises(TimeoutError):
            following.result(SHORT)
        stuck.let_out()
        assert following.result() == "sent"


def test_the_next_call_fails_if_the_interrupted_one_does_not_return(lane: Lane, stuck: Stuck) -> None:
    interrupted(lane, stuck)
    with pytest.raises(DeviceTimeout, match="An interrupted call into the module has not returned"):
        lane.call("signing", lambda: "sent", SHORT)


def test_an_interrupted_call_that_returns_late_does_not_close_the_lane(lane: Lane, stuck: Stuck) -> None:
    interrupted(lane, stuck)
    with pytest.raises(DeviceTimeout):
        lane.call("signing", lambda: "sent", SHORT)
    stuck.let_out()
    assert lane.call("signing", lambda: "sent", LONG) == "sent"


PROGRAM = """
import os, sys, time
from hsm_signer.device.lane import Lane

def hang():
    time.sleep(0.2)  # until the main thread waits
    os.write(1, b"inside\\n")  # print would hold a lock that the interpreter needs to end
    time.sleep(600)

try:
    Lane("module").call("signing", hang, 600)
except KeyboardInterrupt:
    sys.exit("interrupted")
"""


def test_ctrl_c_ends_a_program_at_once_while_a_module_hangs() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "inside\n"
        program.send_signal(signal.SIGINT)
        try:
            assert program.communicate(timeout=20) == ("", "interrupted\n")
        finally:
            program.kill()


class Shown:
    """What a person is shown during a slow call."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self.log.append(f"begin {what}")
        yield
        self.log.append(f"end {what}")


def test_a_quick_call_shows_no_progress(lane: Lane) -> None:
    shown = Shown()
    lane.call("signing", lambda: None, LONG, slow=shown)
    assert shown.log == []


def test_a_slow_call_shows_progress_until_it_ends(lane: Lane, stuck: Stuck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsm_signer.device.lane.MOMENT", SHORT)
    shown = Shown()
    threading.Timer(4 * SHORT, stuck.let_out).start()
    assert lane.call("signing", stuck, LONG, slow=shown) == "back"
    assert shown.log == ["begin signing", "end signing"]
