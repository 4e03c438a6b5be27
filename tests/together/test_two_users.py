"""Two users and one device: one replaces the key; the other's program uses it, and may only read the key file.

Both users may use the device's files, as with a card. If the tests do not run as root, both are the same user.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hsm_signer.rotation.plan import Step
from tests.support.application import Application, running_application
from tests.support.names import CLIENT, TENANT
from tests.together.programs import Busy, current, exchange

_AS_ANOTHER_USER = """
import json, os, sys

import httpx, pkcs11._pkcs11, ssl  # loaded before the interpreter's files may be out of reach
import hsm_signer.device.device, hsm_signer.rotation.rotation
from hsm_signer.config.profile import profile_from_arguments
from hsm_signer.errors import HsmSignerError
from hsm_signer.rotation.request import RotationRequest
from hsm_signer.rotation.rotation import Rotation
from hsm_signer.credential.tokens import Tokens

profile = profile_from_arguments(json.loads(sys.argv[1]))
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
with Tokens(profile) as tokens:
    for line in sys.stdin:
        if line == "rotate\\n":
            try:
                with Rotation(profile, RotationRequest(propagation=0)) as rotation:
                    rotation.run()
                print("rotated", flush=True)
            except HsmSignerError as error:
                print(error.code, flush=True)
        else:
            print(tokens.assertion(), flush=True)
"""


@pytest.fixture
def application(device_pin: None) -> Iterator[Application]:
    """The usual application, in a directory that another user can reach."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # noqa: S103  # for all to read
        with running_application(Path(directory)) as application:
            share(application)
            yield application


def share(application: Application) -> None:
    """Let every user use the device: SoftHSM creates its files for one user only."""
    application.softhsm.directory.chmod(0o755)
    for file in (application.softhsm.directory / "tokens").rglob("*"):
        file.chmod(0o777 if file.is_dir() else 0o666)


@contextmanager
def another_user(application: Application) -> Iterator["subprocess.Popen[str]"]:
    """A program of another user, which answers a line with an assertion, or with the outcome of a rotation."""
    arguments = {"tenant": TENANT, "client_id": CLIENT, "key": f"file:{application.key_file}", **application.settings()}
    process = subprocess.Popen(
        [sys.executable, "-c", _AS_ANOTHER_USER, json.dumps(arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.communicate(timeout=30)


def ask(process: "subprocess.Popen[str]", line: str = "assertion") -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_program_of_another_user_switches_to_the_next_key_and_is_never_refused(application: Application) -> None:
    def rotate(grace: int) -> None:
        with application.rotation({"grace": grace}, lambda step, text: share(application)) as rotation:
            rotation.run()

    with another_user(application) as other, Busy(lambda: exchange(application, ask(other))) as busy:
        busy.once_more()
        rotate(grace=3600)
        busy.wait_for(current(application))
        rotate(grace=0)
        busy.once_more()
    assert len(busy.seen) == 2
    assert {request.status for request in application.entra.requests} == {200}
    assert application.is_tidy()


def test_a_user_who_cannot_write_in_the_key_files_directory_cannot_replace_the_key(application: Application) -> None:
    application.key_file.parent.chmod(0o555)
    before = application.file, application.seen()
    with another_user(application) as other:
        assert ask(other, "rotate") == "output_error"
        assert exchange(application, ask(other))
    application.key_file.parent.chmod(0o755)
    assert (application.file, application.seen()) == before


def test_only_one_user_can_replace_the_key_at_a_time(application: Application) -> None:
    answers = []

    def meanwhile(step: Step, text: str) -> None:
        share(application)
        if step is Step.SWITCH:
            with another_user(application) as other:
                answers.append(ask(other, "rotate"))

    with application.rotation({}, meanwhile) as rotation:
        rotation.run()
    assert answers == ["output_error" if os.geteuid() == 0 else "config_error"]
    assert application.is_tidy()
