"""The program in a separate process, with a minimal environment."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hsm_signer
from hsm_signer.testing import SoftHsm
from tests.support.names import PIN, WRONG_PIN

MAIN = ("-c", "from hsm_signer.cli import main; main()")

Settings = Mapping[str, str]


def options(settings: Settings, **changes: str | None) -> list[str]:
    """Return settings as options, with some of them changed or, if None, left out."""
    given = {**settings, **changes}
    return [
        word for name, value in given.items() if value is not None for word in (f"--{name.replace('_', '-')}", value)
    ]


@dataclass(frozen=True)
class Result:
    """How a run ended, and what it printed."""

    status: int
    stdout: str
    stderr: str
    program: "Program" = field(repr=False)
    arguments: tuple[str, ...] = ()
    how: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        document: dict[str, Any] = json.loads(self.stdout)
        return document

    @property
    def error(self) -> dict[str, Any]:
        """The error on stderr of a run with ``-o json``. Warnings may precede it."""
        error: dict[str, Any] = json.loads(self.stderr.splitlines()[-1])["error"]
        return error

    def again(self, *more: str) -> "Result":
        """Run the same command again, with further arguments."""
        return self.program(*self.arguments, *more, **self.how)


@dataclass(frozen=True)
class Program:
    """hsm-signer, as it is installed or from the checkout, without a terminal.

    Attributes:
        directory: where it runs.
        home: HOME.
        environment: all variables that it inherits.
    """

    directory: Path
    home: Path
    environment: Mapping[str, str]

    def __call__(
        self,
        *arguments: str,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
        python: Sequence[str] = MAIN,
        within: Sequence[str] = (),
    ) -> Result:
        """Run it to its end. See `start`."""
        with self.start(*arguments, environment=environment, python=python, within=within) as process:
            stdout, stderr = process.communicate(stdin, timeout=60)
        how = {"stdin": stdin, "environment": environment, "python": python, "within": within}
        return Result(process.returncode, stdout, stderr, self, arguments, how)

    @contextmanager
    def start(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        python: Sequence[str] = MAIN,
        within: Sequence[str] = (),
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> Iterator["subprocess.Popen[str]"]:
        """Start it, and kill all of it at the end.

        Args:
            environment: additional variables.
            python: arguments for the interpreter.
            within: the command that runs the interpreter.
        """
        process = subprocess.Popen(
            [*within, sys.executable, *python, *arguments],
            cwd=self.directory,
            env={**self.environment, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            encoding="utf-8",
            start_new_session=True,  # it must not prompt on the terminal of the person who runs the tests
        )
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


def assert_explained(result: Result, status: int, code: str) -> None:
    """Assert that a failure says what happened and how to fix it, to people and to programs, and shows no secret."""
    as_json = result.again("-o", "json")
    for each in (result, as_json):
        assert each.status == status, each.stderr
        assert each.stdout == ""
        assert "Traceback" not in each.stderr
        assert PIN not in each.stderr
        assert WRONG_PIN not in each.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith("hsm-signer: warning: ")]
    assert [line.partition(": ")[0] for line in lines if not line.startswith("  ")] == ["error", "hint"]
    error = as_json.error
    assert error["code"] == code
    assert error["message"].endswith(".")
    assert f"hint: {error['hint']}" == lines[1]


def program_with(softhsm: SoftHsm, home: Path, **environment: str) -> Program:
    """Return the program with a home directory, a SoftHSM, its PIN in DEVICE_PIN, and additional variables."""
    inherited = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "PYTHONPATH": str(Path(hsm_signer.__file__).parents[1]),
        "DEVICE_PIN": softhsm.pin,
        **softhsm.environment,
    }
    return Program(home, home, {**inherited, **environment})
