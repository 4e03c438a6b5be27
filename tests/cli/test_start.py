"""Start-up: Ctrl-C during the imports, and colours on terminals only."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import hsm_signer
from tests.support.program import Program

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


@pytest.mark.parametrize(
    "module", ["hsm_signer.cli.app", "typer", "hsm_signer.errors", "hsm_signer.cli.commands.token"]
)
def test_ctrl_c_during_the_imports_ends_it_without_a_traceback(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED_AT, module], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


def test_nothing_that_takes_long_is_imported_before_an_interrupt_is_handled() -> None:
    root = str(Path(hsm_signer.__file__).parents[1])
    program = f"import sys; sys.path.insert(0, {root!r}); import hsm_signer.cli; print(*sys.modules)"
    # Without site, which imports what each installation wants.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60)
    assert "hsm_signer.cli" in done.stdout.split()
    assert not {"enum", "re", "signal", "typing"} & set(done.stdout.split())


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


def test_python_m_runs_the_same_program(program: Program) -> None:
    as_module, installed = program("--version", python=("-m", "hsm_signer")), program("--version")
    assert (as_module.status, as_module.stdout, as_module.stderr) == (0, installed.stdout, "")
