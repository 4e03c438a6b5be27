"""Tokens are cached, renewed early by one caller for all, and kept while a renewal fails."""

import gc
import logging
import threading
import traceback
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from hsm_signer.credential.cache import REFRESH_BEFORE, RETRY_AFTER, TokenCache
from hsm_signer.entra.token import AccessToken
from hsm_signer.errors import ConfigError, DeviceTimeout, EntraError, HsmSignerError, NetworkError, PinIncorrect

START = 1_750_000_000
HOUR = 3600
KEY = ("https://graph.microsoft.com/.default", False)


@dataclass
class Clock:
    """Epoch seconds, set by hand."""

    now: float = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> TokenCache:
    return TokenCache(clock)


class Server:
    """Gives numbered tokens, or fails."""

    def __init__(self, clock: Clock, life: int = HOUR, refresh_in: int | None = None) -> None:
        self.asked = 0
        self.failure: BaseException | None = None
        self._clock, self._life, self._refresh_in = clock, life, refresh_in

    def __call__(self) -> AccessToken:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return token(f"token {self.asked}", self._clock.now, self._life, self._refresh_in)


def token(text: str, now: float, life: int = HOUR, refresh_in: int | None = None) -> AccessToken:
    expires_on, refresh_on = int(now) + life, None if refresh_in is None else int(now) + refresh_in
    return AccessToken(text, "Bearer", life, expires_on, refresh_on, "a/.default")


@pytest.fixture
def server(clock: Clock) -> Server:
    return Server(clock)


def challenge(cache: TokenCache, token: AccessToken, claims: str = "{}") -> AccessToken:
    """Have the cache acquire `token` because of a claims challenge."""
    return cache.get(KEY, lambda: token, claims)


def seen(cache: TokenCache, server: Server, clock: Clock, *after: float) -> list[str]:
    """Return the tokens that the cache gives at these moments, in seconds after the start."""
    tokens = []
    for seconds in after:
        clock.now = START + seconds
        tokens.append(cache.get(KEY, server).token)
    return tokens


def test_a_good_token_is_requested_once(cache: TokenCache, server: Server, clock: Clock) -> None:
    assert seen(cache, server, clock, 0, 1, HOUR - REFRESH_BEFORE - 1) == ["token 1"] * 3


def test_a_token_is_renewed_300_seconds_before_it_expires(cache: TokenCache, server: Server, clock: Clock) -> None:
    assert seen(cache, server, clock, 0, HOUR - 300.1, HOUR - 300) == ["token 1", "token 1", "token 2"]


def test_a_token_is_renewed_when_the_server_suggests_it(cache: TokenCache, clock: Clock) -> None:
    server = Server(clock, life=24 * HOUR, refresh_in=12 * HOUR)
    assert seen(cache, server, clock, 0, 12 * HOUR - 1, 12 * HOUR) == ["token 1", "token 1", "token 2"]


def test_a_late_suggestion_does_not_delay_a_renewal(cache: TokenCache, clock: Clock) -> None:
    server = Server(clock, refresh_in=HOUR - 10)
    assert seen(cache, server, clock, 0, HOUR - 300) == ["token 1", "token 2"]


@pytest.mark.parametrize("life", [10, 60, 300, 599])
def test_a_short_lived_token_is_used_for_half_its_life(cache: TokenCache, clock: Clock, life: int) -> None:
    server = Server(clock, life)
    assert seen(cache, server, clock, 0, life // 2 - 1, life - life // 2) == ["token 1", "token 1", "token 2"]


def test_an_expired_token_is_never_returned(cache: TokenCache, server: Server, clock: Clock) -> None:
    cache.get(KEY, server)
    clock.now, server.failure = START + HOUR, NetworkError("The endpoint is down.")
    with pytest.raises(NetworkError):
        cache.get(KEY, server)


def test_tokens_for_different_keys_are_kept_apart(cache: TokenCache, server: Server) -> None:
    keys = [("a/.default", False), ("a/.default", True), ("b/.default", False)]
    assert [cache.get(key, server).token for key in [*keys, *keys]] == ["token 1", "token 2", "token 3"] * 2


def test_a_claims_challenge_gets_a_new_token_which_is_cached(cache: TokenCache, server: Server, clock: Clock) -> None:
    cache.get(KEY, server)
    answer = challenge(cache, token("from a challenge", clock.now))
    assert (answer.token, cache.get(KEY, server).token) == ("from a challenge",) * 2


def test_repeating_the_same_challenge_gets_another_new_token(cache: TokenCache, server: Server, clock: Clock) -> None:
    assert [cache.get(KEY, server, "{}").token for _ in range(2)] == ["token 1", "token 2"]


def test_a_token_from_a_challenge_is_not_requested_again(cache: TokenCache, server: Server, clock: Clock) -> None:
    challenge(cache, token("from a challenge", clock.now))
    assert (cache.get(KEY, server).token, server.asked) == ("from a challenge", 0)


def test_a_failed_challenge_does_not_return_the_challenged_token(cache: TokenCache, server: Server) -> None:
    cache.get(KEY, server)
    server.failure = NetworkError("The endpoint is down.")
    with pytest.raises(NetworkError):
        cache.get(KEY, server, "{}")


def test_a_failed_challenge_does_not_delay_a_renewal(cache: TokenCache, server: Server, clock: Clock) -> None:
    cache.get(KEY, server)
    clock.now, server.failure = START + HOUR - REFRESH_BEFORE, NetworkError("The endpoint is down.")
    with pytest.raises(NetworkError):
        cache.get(KEY, server, "{}")
    server.failure = None
    assert cache.get(KEY, server).token == "token 3"


def test_a_failure_without_a_token_reaches_the_caller(cache: TokenCache, server: Server) -> None:
    server.failure = EntraError("Refused.", aadsts=700027)
    with pytest.raises(EntraError) as refused:
        cache.get(KEY, server)
    assert refused.value is server.failure


def test_after_a_failure_without_a_token_the_next_caller_tries_again(cache: TokenCache, server: Server) -> None:
    server.failure = NetworkError("The endpoint is down.")
    with pytest.raises(NetworkError):
        cache.get(KEY, server)
    server.failure = None
    assert cache.get(KEY, server).token == "token 2"


def test_the_last_good_token_is_returned_while_its_renewal_fails(
    cache: TokenCache, server: Server, clock: Clock
) -> None:
    cache.get(KEY, server)
    server.failure = NetworkError("The endpoint is down.")
    assert seen(cache, server, clock, HOUR - 300, HOUR - 1) == ["token 1", "token 1"]


def test_a_failed_renewal_is_retried_after_30_seconds_and_not_before(
    cache: TokenCache, server: Server, clock: Clock
) -> None:
    cache.get(KEY, server)
    server.failure = NetworkError("The endpoint is down.")
    due = HOUR - REFRESH_BEFORE
    asked = []
    for after in (due, due + 1, due + RETRY_AFTER - 0.1, due + RETRY_AFTER, due + RETRY_AFTER + 1):
        seen(cache, server, clock, after)
        asked.append(server.asked)
    assert (asked, RETRY_AFTER) == ([2, 2, 2, 3, 3], 30)


def test_after_a_failed_renewal_an_expired_token_is_renewed_without_delay(
    cache: TokenCache, server: Server, clock: Clock
) -> None:
    cache.get(KEY, server)
    server.failure = NetworkError("The endpoint is down.")
    seen(cache, server, clock, HOUR - 1)
    server.failure = None
    assert seen(cache, server, clock, HOUR) == ["token 3"]


def test_when_a_renewal_succeeds_again_the_new_token_is_returned(
    cache: TokenCache, server: Server, clock: Clock
) -> None:
    cache.get(KEY, server)
    server.failure = NetworkError("The endpoint is down.")
    seen(cache, server, clock, HOUR - 300)
    server.failure = None
    assert seen(cache, server, clock, HOUR - 270, HOUR - 269) == ["token 3", "token 3"]


def test_a_failed_renewal_is_logged_without_any_token(
    cache: TokenCache, server: Server, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    cache.get(KEY, server)
    server.failure = NetworkError("The endpoint is down.")
    seen(cache, server, clock, HOUR - 300)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            logging.WARNING,
            "Renewing the token failed. The current token is valid for another 300 s. The endpoint is down.",
        )
    ]


def test_a_bug_in_a_renewal_is_not_hidden_by_the_last_good_token(
    cache: TokenCache, server: Server, clock: Clock
) -> None:
    cache.get(KEY, server)
    clock.now, server.failure = START + HOUR - 300, ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cache.get(KEY, server)


class Gate:
    """An acquisition that lasts until the test ends it."""

    def __init__(self) -> None:
        self.asked = 0
        self.begun = threading.Event()
        self._outcome: Future[AccessToken] = Future()

    def __call__(self) -> AccessToken:
        self.asked += 1
        self.begun.set()
        return self._outcome.result()

    def succeed(self, token: AccessToken) -> None:
        self._outcome.set_result(token)

    def fail(self, error: BaseException) -> None:
        self._outcome.set_exception(error)


class WatchedClock(Clock):
    """A clock that knows which threads have looked at it.

    The cache looks at the clock before it decides who acquires, and holds its lock in between. So a thread that has
    looked is sure to take part in the current acquisition.
    """

    def __init__(self) -> None:
        super().__init__()
        self._threads: set[int] = set()
        self._looked = threading.Condition()

    def __call__(self) -> float:
        with self._looked:
            self._threads.add(threading.get_ident())
            self._looked.notify_all()
        return super().__call__()

    def wait_for_threads(self, count: int) -> None:
        with self._looked:
            assert self._looked.wait_for(lambda: len(self._threads) >= count, 60)


CALLERS = 20


@pytest.fixture
def gate() -> Gate:
    return Gate()


def ask_together(gate: Gate, finish: Callable[[TokenCache], None]) -> list[Future[AccessToken]]:
    """Let many threads ask for an expired token, and end the acquisition when all have asked."""
    clock = WatchedClock()
    cache = TokenCache(clock)
    challenge(cache, token("expired", START - HOUR))
    with ThreadPoolExecutor(CALLERS) as pool:
        futures = [pool.submit(cache.get, KEY, gate) for _ in range(CALLERS)]
        clock.wait_for_threads(CALLERS)
        finish(cache)
    return futures


def test_concurrent_callers_share_one_acquisition(gate: Gate) -> None:
    futures = ask_together(gate, lambda _: gate.succeed(token("shared", START)))
    assert ({future.result().token for future in futures}, gate.asked) == ({"shared"}, 1)


def test_concurrent_callers_share_a_failure_so_a_wrong_pin_is_sent_once(gate: Gate) -> None:
    refused = PinIncorrect("The device refused the PIN.")
    futures = ask_together(gate, lambda _: gate.fail(refused))
    assert ({future.exception() for future in futures}, gate.asked) == ({refused}, 1)


def test_an_interrupt_is_raised_in_its_own_thread_and_the_others_get_an_error(gate: Gate) -> None:
    futures = ask_together(gate, lambda _: gate.fail(KeyboardInterrupt()))
    kinds = sorted(type(future.exception()).__name__ for future in futures)
    assert kinds == ["HsmSignerError"] * (CALLERS - 1) + ["KeyboardInterrupt"]


def test_concurrent_callers_whose_acquisition_fails_get_a_good_token_that_a_challenge_brought_meanwhile(
    gate: Gate,
) -> None:
    def finish(cache: TokenCache) -> None:
        challenge(cache, token("from a challenge", START))
        gate.fail(NetworkError("The endpoint is down."))

    assert {future.result().token for future in ask_together(gate, finish)} == {"from a challenge"}


def test_while_one_caller_renews_a_good_token_the_others_get_it_at_once(
    cache: TokenCache, server: Server, clock: Clock, gate: Gate
) -> None:
    cache.get(KEY, server)
    clock.now = START + HOUR - 300
    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(cache.get, KEY, gate)
        gate.begun.wait()
        meanwhile = cache.get(KEY, server).token
        gate.succeed(token("renewed", clock.now))
        assert (meanwhile, renewing.result().token, server.asked) == ("token 1", "renewed", 1)


def test_an_acquisition_does_not_delay_one_for_another_key(
    cache: TokenCache, server: Server, clock: Clock, gate: Gate
) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(cache.get, KEY, gate)
        gate.begun.wait()
        other = cache.get("another key", server).token
        gate.succeed(token("slow", clock.now))
        assert (other, slow.result().token) == ("token 1", "slow")


def test_the_token_of_a_shared_acquisition_is_cached(cache: TokenCache, server: Server, gate: Gate) -> None:
    with ThreadPoolExecutor(1) as pool:
        leading = pool.submit(cache.get, KEY, gate)
        gate.begun.wait()
        gate.succeed(token("kept", START))
        leading.result()
    assert (cache.get(KEY, server).token, server.asked) == ("kept", 0)


def test_callers_with_the_same_challenge_share_one_acquisition(cache: TokenCache, server: Server, gate: Gate) -> None:
    first = cache.submit(KEY, gate, "{}")
    gate.begun.wait()
    second = cache.submit(KEY, server, "{}")
    gate.succeed(token("shared", START))
    assert ({first.result().token, second.result().token}, server.asked) == ({"shared"}, 0)


def test_different_challenges_get_separate_acquisitions(cache: TokenCache, server: Server, gate: Gate) -> None:
    slow = cache.submit(KEY, gate, "{}")
    other = cache.get(KEY, server, '{"access_token": {}}').token
    gate.succeed(token("slow", START))
    assert (other, slow.result().token) == ("token 1", "slow")


def test_submit_returns_a_cached_token_at_once(cache: TokenCache, server: Server) -> None:
    cache.get(KEY, server)
    found = cache.submit(KEY, server)
    assert (found.done(), found.result().token) == (True, "token 1")


def test_submit_and_get_share_an_acquisition(cache: TokenCache, server: Server, gate: Gate) -> None:
    begun = cache.submit(KEY, gate)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cache.get, KEY, server)
        gate.succeed(token("shared", START))
        assert {begun.result().token, waiting.result().token} == {"shared"}
    assert (gate.asked, server.asked) == (1, 0)


def test_submit_returns_a_failure(cache: TokenCache, server: Server) -> None:
    server.failure = PinIncorrect("The device refused the PIN.")
    assert cache.submit(KEY, server).exception() is server.failure


@pytest.mark.usefixtures("no_more_threads")
def test_if_no_thread_can_start_submit_returns_an_error_and_no_caller_waits_forever(
    cache: TokenCache, server: Server
) -> None:
    for _ in range(2):
        assert "no thread" in str(cache.submit(KEY, server).exception(60)).lower()
    assert cache.get(KEY, server).token == "token 1"


@pytest.mark.usefixtures("no_more_threads")
def test_if_no_thread_can_start_for_a_renewal_the_last_good_token_is_returned(
    cache: TokenCache, server: Server, clock: Clock
) -> None:
    cache.get(KEY, server)
    clock.now = START + HOUR - 300
    assert cache.submit(KEY, server).result(60).token == "token 1"


def test_a_forked_child_keeps_the_tokens(cache: TokenCache, server: Server) -> None:
    cache.get(KEY, server)
    cache.reset_after_fork()
    assert (cache.get(KEY, server).token, server.asked) == ("token 1", 1)


def test_a_forked_child_does_not_wait_for_its_parents_lock_or_acquisition(
    cache: TokenCache, server: Server, gate: Gate
) -> None:
    begun = cache.submit(KEY, gate)
    gate.begun.wait()
    # As at a fork while another thread is in the cache.
    cache._lock.acquire()
    cache.reset_after_fork()
    assert cache.get(KEY, server).token == "token 1"
    gate.succeed(token("the parent's", START))
    assert begun.result().token == "the parent's"


def refuse(number: int | None = 500011, error: str = "invalid_resource") -> EntraError:
    return EntraError("login.example refused the request.", hint="Check --scope.", error=error, aadsts=number)


def refused(cache: TokenCache, acquire: Callable[[], AccessToken], challenge: str | None = None) -> EntraError:
    """Ask for a token that is refused, and return the error."""
    with pytest.raises(EntraError) as caught:
        cache.get(KEY, acquire, challenge)
    return caught.value


def requests_at(cache: TokenCache, server: Server, clock: Clock, *after: float) -> list[int]:
    """Ask the cache at these moments, in seconds after the start; return the server's count of requests after each."""
    counts = []
    for seconds in after:
        clock.now = START + seconds
        refused(cache, server)
        counts.append(server.asked)
    return counts


class TestRefusal:
    def test_a_lasting_refusal_is_raised_again_without_a_request(self, cache: TokenCache, server: Server) -> None:
        server.failure = refuse()
        first, second = refused(cache, server), refused(cache, server)
        assert server.asked == 1
        assert (str(second), vars(second)) == (str(first), vars(first))

    def test_each_caller_gets_a_copy_with_its_own_traceback(self, cache: TokenCache, server: Server) -> None:
        server.failure = refuse()
        errors = [refused(cache, server) for _ in range(3)]
        for error in errors:
            error.add_note("the caller's own")
        assert len({id(error) for error in errors}) == 3
        assert [error.__notes__.count("the caller's own") for error in errors] == [1, 1, 1]
        # Of three errors, only the first comes from the server.
        assert [innermost_function(error) == "__call__" for error in errors] == [True, False, False]

    def test_a_remembered_refusal_does_not_keep_the_variables_of_the_acquisition_alive(self, cache: TokenCache) -> None:
        class Assertion:
            """An object in the frame that raises."""

        held: list[weakref.ref[Assertion]] = []

        def acquire() -> AccessToken:
            assertion = Assertion()
            held.append(weakref.ref(assertion))
            raise refuse()

        refused(cache, acquire)
        gc.collect()
        assert held[0]() is None
        refused(cache, acquire)
        assert len(held) == 1

    def test_the_server_is_asked_again_after_five_seconds_then_less_and_less_often_down_to_once_a_minute(
        self, cache: TokenCache, server: Server, clock: Clock
    ) -> None:
        server.failure = refuse()
        moments = [0, 4.9, 5, 14.9, 15, 34.9, 35, 74.9, 75, 134.9, 135, 194.9, 195]
        assert requests_at(cache, server, clock, *moments) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]

    def test_a_refusal_long_after_the_last_one_starts_with_the_shortest_pause(
        self, cache: TokenCache, server: Server, clock: Clock
    ) -> None:
        server.failure = refuse()
        requests_at(cache, server, clock, 0, 5, 15)
        assert requests_at(cache, server, clock, HOUR, HOUR + 4.9, HOUR + 5) == [4, 4, 5]

    def test_a_refusal_is_forgotten_when_the_clock_is_set_back(
        self, cache: TokenCache, server: Server, clock: Clock
    ) -> None:
        server.failure = refuse()
        assert requests_at(cache, server, clock, 0, -HOUR) == [1, 2]

    def test_a_refusal_is_forgotten_after_a_success(self, cache: TokenCache, clock: Clock) -> None:
        server = Server(clock, life=10)
        server.failure = refuse()
        requests_at(cache, server, clock, 0, 5)
        server.failure = None
        assert seen(cache, server, clock, 15) == ["token 3"]
        server.failure = refuse()
        # The token has expired, and the first pause is the shortest one again.
        assert requests_at(cache, server, clock, 25, 29.9, 30) == [4, 4, 5]

    def test_a_refusal_is_forgotten_after_a_challenge_got_a_token(
        self, cache: TokenCache, server: Server, clock: Clock
    ) -> None:
        server.failure = refuse()
        requests_at(cache, server, clock, 0, 5)
        challenge(cache, token("from a challenge", clock.now, life=1))
        # If it were remembered, its next pause would be ten seconds.
        assert requests_at(cache, server, clock, 6, 10.9, 11) == [3, 3, 4]

    def test_a_refusal_for_one_key_does_not_affect_another(self, cache: TokenCache, server: Server) -> None:
        server.failure = refuse()
        refused(cache, server)
        server.failure = None
        assert cache.get("another scope, tenant, or continuous access evaluation", server).token == "token 2"

    def test_a_refused_challenge_affects_only_that_challenge(self, cache: TokenCache, server: Server) -> None:
        server.failure = refuse()
        refused(cache, server, "{}")
        refused(cache, server, "{}")
        assert server.asked == 1
        server.failure = None
        assert cache.get(KEY, server).token == "token 2"
        assert cache.get(KEY, server, '{"access_token": {}}').token == "token 3"

    def test_a_refusal_without_a_challenge_does_not_affect_a_challenge(self, cache: TokenCache, server: Server) -> None:
        server.failure = refuse()
        refused(cache, server)
        server.failure = None
        assert cache.get(KEY, server, "{}").token == "token 2"

    def test_a_refused_renewal_does_not_drop_a_token_that_is_still_good(
        self, cache: TokenCache, server: Server, clock: Clock
    ) -> None:
        cache.get(KEY, server)
        server.failure = refuse()
        assert seen(cache, server, clock, HOUR - 300, HOUR - 1) == ["token 1"] * 2
        asked = server.asked
        assert requests_at(cache, server, clock, HOUR, HOUR + 1) == [asked] * 2

    def test_a_refused_renewal_is_never_raised_while_the_token_is_good(
        self, cache: TokenCache, server: Server, clock: Clock
    ) -> None:
        cache.get(KEY, server)
        server.failure = refuse()
        # After the fourth refusal, its pause is longer than the one after a failed renewal.
        moments = [HOUR - 300 + RETRY_AFTER * attempt for attempt in range(10)]
        assert seen(cache, server, clock, *moments) == ["token 1"] * 10

    def test_submit_returns_a_remembered_refusal_at_once(self, cache: TokenCache, server: Server) -> None:
        server.failure = refuse()
        refused(cache, server)
        found = cache.submit(KEY, server)
        assert (found.done(), type(found.exception()), server.asked) == (True, EntraError, 1)

    def test_a_forked_child_remembers_a_refusal(self, cache: TokenCache, server: Server) -> None:
        server.failure = refuse()
        refused(cache, server)
        cache.reset_after_fork()
        refused(cache, server)
        assert server.asked == 1

    def test_fifty_threads_send_one_request_for_a_refusal(self, cache: TokenCache, server: Server) -> None:
        server.failure = refuse()
        with ThreadPoolExecutor(50) as pool:
            numbers = {error.aadsts for error in pool.map(lambda _: refused(cache, server), range(500))}
        assert (numbers, server.asked) == ({500011}, 1)

    @pytest.mark.parametrize(
        "failure",
        [
            # A rotation or a renewed certificate may fix these at any moment.
            refuse(700027, "invalid_client"),
            refuse(700024, "invalid_client"),
            refuse(1000502, "invalid_client"),
            refuse(None, "invalid_client"),
            refuse(123456, "invalid_scope"),
            refuse(90055, "temporarily_unavailable"),
            NetworkError("login.example is throttling: it answered 429."),
            DeviceTimeout("The device did not answer."),
            PinIncorrect("The device refused the PIN."),
            ConfigError("The claims are not a JSON object."),
            HsmSignerError("Something else."),
            ZeroDivisionError(),
        ],
        ids=lambda failure: f"{getattr(failure, 'aadsts', '')} {type(failure).__name__}",
    )
    def test_a_failure_that_may_end_at_any_moment_is_not_remembered(
        self, cache: TokenCache, server: Server, failure: Exception
    ) -> None:
        server.failure = failure
        for _ in range(2):
            with pytest.raises(type(failure)) as caught:
                cache.get(KEY, server)
            assert caught.value is failure
        assert server.asked == 2


def innermost_function(error: EntraError) -> str:
    return traceback.extract_tb(error.__traceback__)[-1].name


class TestTheSizeOfTheCache:
    def test_an_expired_token_is_dropped_when_another_arrives(
        self, cache: TokenCache, server: Server, clock: Clock
    ) -> None:
        expired = weakref.ref(cache.get(KEY, server))
        clock.now = START + HOUR - 1
        cache.get("another", server)
        gc.collect()
        assert expired() is not None
        clock.now = START + HOUR
        cache.get("a third", server)
        gc.collect()
        assert expired() is None

    def test_it_keeps_500_tokens(self, cache: TokenCache, server: Server) -> None:
        for key in range(1000):
            cache.get(key, server)
        for key in reversed(range(1000)):
            cache.get(key, server)
        assert server.asked == 1000 + 500

    def test_the_least_recently_used_token_is_dropped(self, cache: TokenCache, server: Server) -> None:
        for key in range(500):
            cache.get(key, server)
        cache.get(0, server)
        cache.get(500, server)
        assert [cache.get(0, server).token, cache.get(1, server).token] == ["token 1", "token 502"]

    def test_it_remembers_500_refusals(self, cache: TokenCache, server: Server) -> None:
        server.failure = refuse()
        for challenge in [*range(1000), *reversed(range(1000))]:
            refused(cache, server, str(challenge))
        assert server.asked == 1000 + 500

    def test_the_least_recently_raised_refusal_is_forgotten(self, cache: TokenCache, server: Server) -> None:
        server.failure = refuse()
        for challenge in [*range(500), 0, 500]:
            refused(cache, server, str(challenge))
        asked = server.asked
        refused(cache, server, "0")
        assert server.asked == asked
        refused(cache, server, "1")
        assert server.asked == asked + 1

    def test_many_refusals_do_not_push_out_a_token(self, cache: TokenCache, server: Server) -> None:
        cache.get(KEY, server)
        server.failure = refuse()
        for challenge in range(1000):
            refused(cache, server, str(challenge))
        assert cache.get(KEY, server).token == "token 1"

    def test_a_pending_acquisition_is_not_dropped(self, cache: TokenCache, server: Server, gate: Gate) -> None:
        first = cache.submit(KEY, gate)
        for key in range(1000):
            cache.get(key, server)
        second = cache.submit(KEY, server)
        gate.succeed(token("shared", START))
        assert {first.result().token, second.result().token} == {"shared"}

    def test_fifty_threads_get_the_token_of_their_key_and_no_key_is_acquired_twice_at_a_time(
        self, cache: TokenCache, clock: Clock
    ) -> None:
        lock, busy, most = threading.Lock(), Counter[int](), Counter[int]()

        def acquire(key: int) -> AccessToken:
            with lock:
                busy[key] += 1
                most[key] = max(most[key], busy[key])
            try:
                if key % 7 == 0:
                    raise refuse()
                return token(str(key), clock.now)
            finally:
                with lock:
                    busy[key] -= 1

        def ask(number: int) -> bool:
            key = number * 31 % 700
            try:
                return cache.get(key, lambda: acquire(key)).token == str(key)
            except EntraError:
                return key % 7 == 0

        with ThreadPoolExecutor(50) as pool:
            assert all(pool.map(ask, range(7000)))
        assert set(most.values()) == {1}
        assert not cache._pending
