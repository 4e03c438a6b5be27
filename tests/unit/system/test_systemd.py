"""What we send to systemd's notify socket, received on a socket of the same kind."""

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsm_signer.system.systemd import ServiceManager


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(5)
        yield listener


def test_assignments_arrive_in_one_datagram(listener: socket.socket, tmp_path: Path) -> None:
    listener.bind(str(tmp_path / "notify"))
    ServiceManager.from_environment({"NOTIFY_SOCKET": str(tmp_path / "notify")}).notify(READY=1, STATUS="Good.")
    assert listener.recv(4096) == b"READY=1\nSTATUS=Good."


def test_an_abstract_socket_is_reached(listener: socket.socket) -> None:
    name = f"hsm-signer-{secrets.token_hex(8)}"
    listener.bind(f"\0{name}")
    ServiceManager.from_environment({"NOTIFY_SOCKET": f"@{name}"}).notify(WATCHDOG=1)
    assert listener.recv(4096) == b"WATCHDOG=1"


def test_a_line_break_makes_no_second_assignment(listener: socket.socket, tmp_path: Path) -> None:
    listener.bind(str(tmp_path / "notify"))
    ServiceManager(str(tmp_path / "notify")).notify(STATUS="bad\nREADY=1\r\nmore")
    assert listener.recv(4096) == b"STATUS=bad READY=1 more"


@pytest.mark.parametrize(
    "environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere"}, {"NOTIFY_SOCKET": "vsock:2:1"}]
)
def test_a_missing_listener_is_not_an_error(environ: dict[str, str]) -> None:
    ServiceManager.from_environment(environ).notify(READY=1)


def test_a_listener_that_does_not_read_is_not_waited_for(listener: socket.socket, tmp_path: Path) -> None:
    listener.bind(str(tmp_path / "notify"))
    for _ in range(10_000):  # unix(7): far more than max_dgram_qlen
        ServiceManager(str(tmp_path / "notify")).notify(WATCHDOG=1)
    assert listener.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getppid())}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_interval_is_used_only_if_it_is_for_this_process(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert ServiceManager.from_environment(environ).watchdog == seconds
