"""When the assertion is replaced, decided without a device, a file or a clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.service.assertion_schedule import Failure, Held, Wait, Write, next_step

START = 1_750_000_000
MINUTE = 60
HELD = Held(START, START + 20 * MINUTE, START + 60 * MINUTE)


class TestNextStep:
    @pytest.mark.parametrize(
        ("minutes", "step"),
        [
            pytest.param(0, Wait(20 * MINUTE), id="fresh"),
            pytest.param(19, Wait(MINUTE), id="almost due"),
            pytest.param(20, Write(), id="due"),
            pytest.param(59, Write(), id="overdue"),
            pytest.param(60, Write(), id="expired"),
            pytest.param(600, Write(), id="long expired"),
            pytest.param(-1, Write(), id="before it was issued: the clock was set back"),
        ],
    )
    def test_follows_from_what_the_file_holds(self, minutes: int, step: object) -> None:
        assert next_step(START + minutes * MINUTE, HELD, None) == step

    def test_is_to_write_where_there_is_nothing(self) -> None:
        assert next_step(START, None, None) == Write()

    @pytest.mark.parametrize(
        ("held", "count", "seconds"),
        [(None, 1, 5), (None, 2, 10), (None, 3, 20), (None, 5, 60), (None, 10000, 60), (HELD, 1, 5)],
    )
    def test_after_a_failure_is_to_wait_longer_each_time(self, held: Held | None, count: int, seconds: float) -> None:
        now = START + 20 * MINUTE
        assert next_step(now, held, Failure(now, count, "away")) == Wait(seconds)
        assert next_step(now + seconds, held, Failure(now, count, "away")) == Write()

    def test_after_a_failure_is_to_look_when_it_expires(self) -> None:
        now = HELD.expires - 3
        assert next_step(now, HELD, Failure(now, 5, "away")) == Wait(3)
        assert next_step(HELD.expires, HELD, Failure(now, 5, "away")) == Wait(57)

    def test_after_a_failure_in_the_future_is_to_write(self) -> None:
        # The clock was set back by a year: nobody is to wait for a year.
        assert next_step(START, None, Failure(START + 365 * 24 * 60 * MINUTE, 1, "away")) == Write()

    @given(
        now=st.integers(START - 10**6, START + 10**6),
        held=st.none() | st.just(HELD),
        failure=st.none()
        | st.builds(Failure, st.integers(START - 10**6, START + 10**6), st.integers(1, 99), st.just("")),
    )
    def test_never_waits_for_nothing_nor_past_the_expiry(
        self, now: int, held: Held | None, failure: Failure | None
    ) -> None:
        match next_step(now, held, failure):
            case Wait(seconds):
                assert seconds > 0
                assert held is None or now >= held.expires or now + seconds <= held.expires
