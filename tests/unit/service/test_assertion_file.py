"""What an assertion file may be configured to be."""

from collections.abc import Callable

import pytest

from hsm_signer.errors import ConfigError
from hsm_signer.jwt.assertion import KEPT_BY_READERS
from hsm_signer.service.assertion_file import AssertionFile

Make = Callable[..., AssertionFile]


class TestArithmetic:
    @pytest.mark.parametrize(("lifetime", "interval"), [(3600, 3000), (600, 1), (1200, 1200), (600, 1200)])
    def test_that_leaves_readers_with_an_expired_assertion_is_refused_with_the_calculation(
        self, make: Make, lifetime: int, interval: int
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            make(lifetime=lifetime, interval=interval)
        assert f"{lifetime} - {interval} = {lifetime - interval} s" in caught.value.message
        assert f"more than {KEPT_BY_READERS} s" in str(caught.value.hint)

    @pytest.mark.parametrize(("lifetime", "interval"), [(3600, 2999), (602, 1), (86400, 1)])
    def test_that_leaves_more_time_than_readers_keep_an_assertion_is_accepted(
        self, make: Make, lifetime: int, interval: int
    ) -> None:
        make(lifetime=lifetime, interval=interval)

    def test_beyond_what_entra_accepts_is_refused(self, make: Make) -> None:
        with pytest.raises(ConfigError, match="86401 s"):
            make(lifetime=86401)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o700, 0o200, 0o000, 0o4600])
def test_a_mode_that_lets_others_read_or_not_ourselves_is_refused(make: Make, mode: int) -> None:
    with pytest.raises(ConfigError, match=f"{mode:04o}"):
        make(mode=mode)
