"""Whether a PIN may be sent again after logins with it that the device did not accept."""

import pytest

from hsm_signer.device.pin.attempts import Attempt, Outcome, next_attempt


def begun(times: int, at: float = 100.0) -> Attempt:
    return Attempt(Outcome.BEGUN, times, at)


@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize("times", [0, 1])
def test_the_first_login_and_one_more_after_an_unknown_outcome_are_allowed(times: int, accepted: bool) -> None:
    assert next_attempt(begun(times), accepted=accepted, now=100) == begun(times + 1)


@pytest.mark.parametrize("times", [2, 3, 20])
def test_no_login_is_allowed_after_two_unknown_outcomes(times: int) -> None:
    assert next_attempt(begun(times), accepted=False, now=1e9) is None


@pytest.mark.parametrize("accepted", [False, True])
def test_no_login_is_allowed_after_a_refusal(accepted: bool) -> None:
    assert next_attempt(Attempt(Outcome.REFUSED, 1, 0.0), accepted=accepted, now=1e9) is None


@pytest.mark.parametrize(("times", "pause"), [(2, 1), (3, 2), (4, 4), (10, 256), (11, 300), (5000, 300)])
def test_an_accepted_pin_is_sent_again_after_a_growing_pause(times: int, pause: float) -> None:
    assert next_attempt(begun(times), accepted=True, now=100 + pause - 0.1) is None
    assert next_attempt(begun(times), accepted=True, now=100 + pause) == begun(times + 1, 100 + pause)


def test_setting_the_clock_back_does_not_prolong_the_pause() -> None:
    assert next_attempt(begun(9), accepted=True, now=99) == begun(10, 99)
