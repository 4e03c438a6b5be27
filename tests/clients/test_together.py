"""Many threads, many tasks, and cancelled tasks share one signature and one request."""

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.to_thread
import pytest

from hsm_signer import AsyncHsmCredential, HsmCredential
from hsm_signer.errors import HsmSignerError, PinIncorrect
from hsm_signer.testing import EntraEmulator, Slow
from tests.support.faulty_module.control import FaultyModule
from tests.support.names import GRAPH, VAULT

from .conftest import signatures

CROWD = 50
CHALLENGE = '{"access_token": {"nbf": {"essential": true, "value": "1750000000"}}}'

pytestmark = pytest.mark.usefixtures("_slow_device")


Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a program in an event loop of each kind."""

    def run(main: Callable[[], Awaitable[None]]) -> None:
        anyio.run(main, backend=request.param)

    return run


@pytest.fixture
def _slow_device(faulty: FaultyModule) -> None:
    # As slow as a card: all callers have asked before the first signature is made.
    faulty.rule("C_Sign", hang=0.3)


@pytest.fixture
def shared(arguments: dict[str, Any]) -> AsyncHsmCredential:
    return AsyncHsmCredential(**arguments)


class TestThreads:
    @pytest.mark.parametrize("claims", [None, CHALLENGE], ids=["a token", "a challenge"])
    def test_concurrent_calls_cause_one_signature_and_one_request(
        self, claims: str | None, credential: HsmCredential, entra: EntraEmulator, faulty: FaultyModule
    ) -> None:
        together = threading.Barrier(CROWD)

        def ask(_: int) -> str:
            together.wait()
            return credential.get_token(GRAPH, claims=claims).token

        with ThreadPoolExecutor(CROWD) as pool:
            tokens = set(pool.map(ask, range(CROWD)))
        assert (len(tokens), len(entra.requests), signatures(faulty)) == (1, 1, 1)

    def test_concurrent_calls_to_an_isolated_device_cause_one_signature_and_one_request(
        self, arguments: dict[str, Any], entra: EntraEmulator, faulty: FaultyModule
    ) -> None:
        with HsmCredential(**arguments, isolated=True) as credential, ThreadPoolExecutor(CROWD) as pool:
            tokens = set(pool.map(lambda _: credential.get_token(GRAPH).token, range(CROWD)))
        assert (len(tokens), len(entra.requests), signatures(faulty)) == (1, 1, 1)


class TestTasks:
    @pytest.mark.parametrize("claims", [None, CHALLENGE], ids=["a token", "a challenge"])
    def test_concurrent_calls_cause_one_signature_and_one_request(
        self, claims: str | None, run: Run, shared: AsyncHsmCredential, entra: EntraEmulator, faulty: FaultyModule
    ) -> None:
        tokens = set()

        async def ask() -> None:
            tokens.add((await shared.get_token(GRAPH, claims=claims)).token)

        async def main() -> None:
            async with shared, anyio.create_task_group() as group:
                for _ in range(CROWD):
                    group.start_soon(ask)

        run(main)
        assert (len(tokens), len(entra.requests), signatures(faulty)) == (1, 1, 1)

    def test_waiting_tasks_occupy_one_thread_and_none_of_the_programs_own(
        self, run: Run, shared: AsyncHsmCredential
    ) -> None:
        async def main() -> None:
            async with shared, anyio.create_task_group() as group:
                for _ in range(CROWD):
                    group.start_soon(shared.get_token, GRAPH)
                await anyio.wait_all_tasks_blocked()
                ours = [thread for thread in threading.enumerate() if thread.name == "hsm-signer-token"]
                limiter = anyio.to_thread.current_default_thread_limiter()
                assert (len(ours), limiter.borrowed_tokens) == (1, 0)

        run(main)

    def test_tasks_share_a_failure_so_a_wrong_pin_is_sent_once(
        self, run: Run, shared: AsyncHsmCredential, faulty: FaultyModule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DEVICE_PIN", "not-the-pin")
        refused = []

        async def ask() -> None:
            try:
                await shared.get_token(GRAPH)
            except PinIncorrect as error:
                refused.append(error)

        async def main() -> None:
            async with shared, anyio.create_task_group() as group:
                for _ in range(CROWD):
                    group.start_soon(ask)

        run(main)
        assert (len(refused), len(faulty.logins())) == (CROWD, 1)

    def test_tasks_for_another_resource_do_not_wait_for_a_slow_answer(
        self, run: Run, shared: AsyncHsmCredential, entra: EntraEmulator
    ) -> None:
        arrived = []

        async def ask(scope: str) -> None:
            await shared.get_token(scope)
            arrived.append(scope)

        async def main() -> None:
            async with shared, anyio.create_task_group() as group:
                entra.answer_next(Slow(1.5))
                group.start_soon(ask, GRAPH)
                while not entra.requests:
                    await anyio.sleep(0.01)
                group.start_soon(ask, VAULT)

        run(main)
        assert arrived == [VAULT, GRAPH]

    def test_each_task_that_asks_for_an_assertion_gets_its_own(
        self, run: Run, shared: AsyncHsmCredential, faulty: FaultyModule
    ) -> None:
        assertions = set()

        async def main() -> None:
            async with shared, anyio.create_task_group() as group:

                async def ask() -> None:
                    assertions.add(await shared.assertion())

                for _ in range(3):
                    group.start_soon(ask)

        run(main)
        assert (len(assertions), signatures(faulty)) == (3, 3)


class TestCancellation:
    def test_a_cancelled_task_ends_at_once_and_its_signature_is_still_used(
        self, run: Run, shared: AsyncHsmCredential, entra: EntraEmulator, faulty: FaultyModule
    ) -> None:
        async def main() -> None:
            async with shared:
                with anyio.move_on_after(0.05) as scope:
                    await shared.get_token(GRAPH)
                assert scope.cancelled_caught
                await shared.get_token(GRAPH)

        run(main)
        assert (len(entra.requests), signatures(faulty)) == (1, 1)

    def test_cancelling_the_first_task_leaves_the_others_waiting_for_the_same_signature(
        self, run: Run, shared: AsyncHsmCredential, entra: EntraEmulator, faulty: FaultyModule
    ) -> None:
        tokens = []

        async def ask() -> None:
            tokens.append((await shared.get_token(GRAPH)).token)

        async def main() -> None:
            async with shared, anyio.create_task_group() as group:
                with anyio.move_on_after(0.05):
                    group.start_soon(ask)
                    await shared.get_token(GRAPH)
                group.start_soon(ask)

        run(main)
        assert len(tokens) == 2
        assert (len(set(tokens)), len(entra.requests), signatures(faulty)) == (1, 1, 1)

    def test_if_the_event_loop_ends_the_next_loop_gets_the_token(
        self, run: Run, shared: AsyncHsmCredential, entra: EntraEmulator, faulty: FaultyModule
    ) -> None:
        async def leave() -> None:
            with anyio.move_on_after(0.05):
                await shared.get_token(GRAPH)

        async def stay() -> None:
            async with shared:
                await shared.get_token(GRAPH)

        run(leave)
        run(stay)
        assert (len(entra.requests), signatures(faulty)) == (1, 1)


def test_a_closed_credential_can_be_used_again(run: Run, shared: AsyncHsmCredential) -> None:
    async def main() -> None:
        async with shared:
            await shared.get_token(GRAPH)
        await shared.assertion()
        await shared.close()

    run(main)


def test_several_scopes_are_refused_before_any_signature(run: Run, shared: AsyncHsmCredential) -> None:
    async def main() -> None:
        with pytest.raises(HsmSignerError, match="2 resources"):
            await shared.get_token(GRAPH, VAULT)

    run(main)
