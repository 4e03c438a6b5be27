"""Which hosts are this machine."""

import pytest

from hsm_signer.entra.url import is_loopback


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.255.0.3", "::1", "[::1]"])
def test_loopback_hosts_are_recognized(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.example.com", "127.0.0.1.example.com", "128.0.0.1", "::2", "::", "", "1"])
def test_other_hosts_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)
