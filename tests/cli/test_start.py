"""The first moments of the program, and who gets colours."""

import signal
import subprocess
import sys

import pytest

from tests.cli.conftest import Program

# The signal arrives while a module is imported, as for somebody who presses Ctrl-C at once.
_INTERRUPTED_AT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
wanted, sys.argv[1:] = sys.argv[1], ["--help"]
sys.argv.insert(1, wanted)
from hsm_signer.cli import main
main()
"""


@pytest.mark.parametrize("module", ["hsm_signer.cli.app", "typer", "hsm_signer.errors", "hsm_signer.cli.exchange"])
def test_ctrl_c_during_the_imports_ends_it_without_a_traceback(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED_AT, module], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


def test_an_interrupt_that_is_ignored_stays_ignored() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_AT, "typer"],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert done.returncode != 130


@pytest.mark.parametrize("variable", ["GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS"])
@pytest.mark.parametrize("arguments", [("--help",), ("token", "--help"), ("token", "--nonsense")])
def test_a_pipe_gets_no_colours_whatever_the_environment_says(
    program: Program, variable: str, arguments: tuple[str, ...]
) -> None:
    result = program(*arguments, environment={variable: "1"})
    assert "\x1b" not in result.stdout + result.stderr
