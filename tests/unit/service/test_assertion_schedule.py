"""When the assertion is replaced, decided without a device, a file or a clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.service.assertion_schedule import Failure, FileContent, Wait, Write, next_step

START = 1_750_000_000
MINUTE = 60
CONTENT = FileContent(START, START + 20 * MINUTE, START + 60 * MINUTE)


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
    def test_depends_on_the_assertion_in_the_file(self, minutes: int, step: object) -> None:
        assert next_step(START + minutes * MINUTE, CONTENT, None) == step

    def test_is_to_write_if_there_is_no_assertion(self) -> None:
        assert next_step(START, None, None) == Write()

    @pytest.mark.parametrize(
        ("content", "count", "seconds"),
        [(None, 1, 5), (None, 2, 10), (None, 3, 20), (None, 5, 60), (None, 10000, 60), (CONTENT, 1, 5)],
    )
    def test_after_a_failure_is_to_wait_longer_each_time(
        self, content: FileContent | None, count: int, seconds: float
    ) -> None:
        now = START + 20 * MINUTE
        assert next_step(now, content, Failure(now, count, "away")) == Wait(seconds)
        assert next_step(now + seconds, content, Failure(now, count, "away")) == Write()

    def test_after_a_failure_is_to_look_again_when_the_assertion_expires(self) -> None:
        now = CONTENT.expires - 3
        assert next_step(now, CONTENT, Failure(now, 5, "away")) == Wait(3)
        assert next_step(CONTENT.expires, CONTENT, Failure(now, 5, "away")) == Wait(57)

    def test_after_a_failure_in_the_future_is_to_write(self) -> None:
        # The clock was set back by a year: nobody is to wait for a year.
        assert next_step(START, None, Failure(START + 365 * 24 * 60 * MINUTE, 1, "away")) == Write()

    @given(
        now=st.integers(START - 10**6, START + 10**6),
        content=st.none() | st.just(CONTENT),
        failure=st.none()
        | st.builds(Failure, st.integers(START - 10**6, START + 10**6), st.integers(1, 99), st.just("")),
    )
    def test_never_waits_zero_seconds_or_past_the_expiry(
        self, now: int, content: FileContent | None, failure: Failure | None
    ) -> None:
        match next_step(now, content, failure):
            case Wait(seconds):
                assert seconds > 0
                assert content is None or now >= content.expires or now + seconds <= content.expires
