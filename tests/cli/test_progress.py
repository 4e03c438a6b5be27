"""While the network is waited for, a terminal says for whom; with -v, every step is told."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hsm_signer.testing import EntraEmulator, Refused
from tests.support.program import Program, Settings, options
from tests.support.terminal import Terminal


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes a request and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_terminal_shows_for_whom_it_waits_until_the_request_ends(
    program: Program, exchange: Settings, terminal: Terminal, silent: str
) -> None:
    settings = options(exchange, authority=silent, network_timeout="4")
    with program.start("token", *settings, stderr=terminal.program_side) as process:
        terminal.wait_for(f"Still waiting for {silent.removeprefix('http://')}…")
        terminal.wait_for("\r\x1b[K")
        process.communicate(timeout=60)
    assert process.returncode == 6


def test_ctrl_c_removes_what_is_shown(program: Program, exchange: Settings, terminal: Terminal, silent: str) -> None:
    settings = options(exchange, authority=silent)
    with program.start("token", *settings, stderr=terminal.program_side) as process:
        terminal.wait_for("…")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    os.write(terminal.program_side, b"the end")
    terminal.wait_for("the end")
    assert terminal.seen.endswith("…\r\x1b[Kthe end")


def test_a_log_has_one_line_for_it_and_only_with_v(program: Program, exchange: Settings, silent: str) -> None:
    settings = options(exchange, authority=silent, network_timeout="3")
    line = f"hsm-signer: info: Still waiting for {silent.removeprefix('http://')}."
    assert program("-v", "token", *settings).stderr.splitlines().count(line) == 1
    assert line not in program("token", *settings).stderr


def test_with_v_it_says_what_it_uses_and_what_was_answered(
    program: Program, exchange: Settings, entra: EntraEmulator, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[profile.prod]\nlifetime = 600\n")
    config.chmod(0o600)
    entra.answer_next(Refused(90055, "temporarily_unavailable", "Busy.", status=503))
    result = program("-v", "--config", str(config), "--profile", "prod", "token", *options(exchange))
    assert result.status == 0, result.stderr
    said = result.stderr
    host = entra.authority.removeprefix("https://")
    assert f"debug: profile 'prod' of {config}\n" in said
    assert f"debug: loaded {exchange['module']}\n" in said
    assert f"debug: exchanging the assertion at {entra.authority}/" in said
    assert f"debug: POST {host}: 503 in " in said
    assert "Try 2 of 4 in " in said
    assert f"debug: POST {host}: 200 in " in said


def test_with_v_it_says_where_it_looked_for_a_configuration(program: Program, signing: Settings) -> None:
    said = program("-v", "assertion", *options(signing)).stderr
    assert f"debug: no configuration file: looked for {program.home}/.config/hsm-signer/config.toml, /etc/" in said
