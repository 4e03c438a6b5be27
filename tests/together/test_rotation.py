"""A key is replaced while other programs use it, and Entra refuses none of them."""

import fcntl
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hsm_signer.config.profile import profile_from_arguments
from hsm_signer.credential.tokens import Tokens
from hsm_signer.device.inventory.facts import Contents
from hsm_signer.errors import PinUnavailable
from tests.support.application import Application
from tests.support.faulty_module.control import FaultyModule
from tests.support.listener import Listener, ready
from tests.support.names import GRAPH, PIN, TENANT
from tests.support.program import Program
from tests.together.programs import Busy, current, exchange, thumbprint

# The client of another application, whose key is on the same device.
ANOTHER = "3d1f1d1e-2a58-4f0a-8f1e-3f5ad2a3a002"
CHALLENGE = '{"access_token": {"nbf": {"essential": true, "value": "1750000000"}}}'


NUMBERS = itertools.count(500)


def statuses(application: Application) -> set[int | None]:
    return {request.status for request in application.entra.requests}


class TestAnAssertionFile:
    @pytest.fixture
    def reader(self, application: Application, assertion_file: Path) -> Busy:
        """An SDK that reads the file all the time, and exchanges the assertion in it."""
        return Busy(lambda: exchange(application, assertion_file.read_text()))

    def test_an_assertion_file_is_never_refused_and_has_the_next_key_within_seconds(
        self, application: Application, program: Program, systemd: Listener, assertion_file: Path, reader: Busy
    ) -> None:
        with program.start("assertion-file", str(assertion_file)):
            systemd.wait_for(ready)
            with reader:
                reader.once_more()
                rotated = program("rotate", "--now", "--delete-old-key")
                assert (rotated.status, rotated.stderr) == (0, "")
                reader.wait_for(current(application))
                # No program holds an assertion by the old key any more.
                assert program("rotate", "--grace", "0").status == 0
                reader.once_more()
        assert len(reader.seen) == 2
        assert statuses(application) == {200}
        assert application.is_tidy()

    def test_the_next_run_replaces_an_assertion_file_that_was_not_kept_during_the_rotation(
        self, application: Application, program: Program, assertion_file: Path
    ) -> None:
        assert program("assertion-file", str(assertion_file), "--once").status == 0
        before = exchange(application, assertion_file.read_text())
        assert program("rotate", "--now").status == 0
        assert program("assertion-file", str(assertion_file), "--once").status == 0
        after = exchange(application, assertion_file.read_text())
        assert (after, after != before) == (current(application), True)

    def test_an_assertion_file_is_not_changed_if_the_key_has_not_changed(
        self, application: Application, program: Program, assertion_file: Path
    ) -> None:
        assert program("assertion-file", str(assertion_file), "--once").status == 0
        text = assertion_file.read_text()
        assert program("assertion-file", str(assertion_file), "--once").status == 0
        assert assertion_file.read_text() == text


@pytest.mark.parametrize("isolated", [False, True], ids=["in this process", "isolated"])
class TestACredential:
    def test_a_credential_is_never_refused_and_switches_to_the_next_key(
        self, application: Application, program: Program, isolated: bool
    ) -> None:
        with application.tokens(network_timeout=30, isolated=isolated) as tokens:
            challenged = tokens.build_query((GRAPH,), claims=CHALLENGE)

            def ask() -> str:
                # The challenge bypasses the cached tokens, so the device signs each time.
                tokens.get(challenged)
                return exchange(application, tokens.assertion())

            with Busy(ask) as one, Busy(ask) as other:
                one.once_more()
                assert program("rotate", "--now", "--delete-old-key").status == 0
                for each in (one, other):
                    each.wait_for(current(application))
                assert program("rotate", "--grace", "0").status == 0
                for each in (one, other):
                    each.once_more()
        assert len(one.seen) == len(other.seen) == 2
        assert statuses(application) == {200}
        assert application.is_tidy()

    def test_a_credential_with_another_key_on_the_same_device_is_not_affected(
        self, application: Application, program: Program, isolated: bool
    ) -> None:
        key = application.softhsm.add_identity("another", b"\x02")
        assert key.certificate
        application.entra.register(ANOTHER, key.certificate, tenant=TENANT)
        arguments = {"tenant": TENANT, "client_id": ANOTHER, "key": key.uri, **application.settings(network_timeout=30)}
        with (
            application.tokens(network_timeout=30) as follows,
            Tokens(profile_from_arguments(arguments), isolated=isolated) as stays,
        ):
            challenged = stays.build_query((GRAPH,), claims=CHALLENGE)
            with (
                Busy(lambda: stays.get(challenged).token[:3]) as busy,
                Busy(lambda: thumbprint(follows.assertion())) as following,
            ):
                busy.once_more()
                assert program("rotate", "--now", "--grace", "0", "--delete-old-key").status == 0
                busy.once_more()
                following.once_more()
        assert statuses(application) == {200}
        contents: Contents = application.on_device()
        assert {each.label for each in contents.keys} >= {"another"}
        assert len(contents.keys) == 2


class TestAPinThatCanBeReadOnce:
    """A PIN from a descriptor: when it is read again, its number may belong to any other file."""

    @pytest.fixture
    def faulty(self, application: Application) -> Iterator[FaultyModule]:
        """The device's module, which counts logins."""
        softhsm = application.softhsm
        with FaultyModule(softhsm.module, softhsm.environment, pin=PIN) as faulty:
            yield faulty

    @pytest.fixture
    def descriptor(self) -> int:
        reading, writing = os.pipe()
        os.write(writing, PIN.encode())
        os.close(writing)
        # A number that nothing else gets, and that was not read before. The reader closes it.
        number = fcntl.fcntl(reading, fcntl.F_DUPFD_CLOEXEC, next(NUMBERS))
        os.close(reading)
        return number

    @pytest.fixture
    def settings(self, faulty: FaultyModule, descriptor: int) -> dict[str, object]:
        environment = faulty.environment
        return {"pin_source": f"fd:{descriptor}", "module": str(faulty.path), "module_environment": environment}

    @pytest.mark.parametrize(("isolated", "logins"), [(False, 1), (True, 2)], ids=["in this process", "isolated"])
    def test_a_pin_that_was_read_once_also_works_for_the_next_key(
        self,
        application: Application,
        program: Program,
        faulty: FaultyModule,
        settings: dict[str, object],
        descriptor: int,
        isolated: bool,
        logins: int,
    ) -> None:
        with application.tokens(isolated=isolated, **settings) as tokens:
            before = exchange(application, tokens.assertion())
            assert program("rotate", "--now", "--grace", "0", "--delete-old-key").status == 0
            with another_file(descriptor):
                assert before != exchange(application, tokens.assertion()) == current(application)
        assert [login.right for login in faulty.logins()] == [True] * logins

    @pytest.mark.parametrize("isolated", [False, True], ids=["in this process", "isolated"])
    def test_a_pin_is_never_read_from_another_file_with_the_same_number(
        self,
        application: Application,
        faulty: FaultyModule,
        settings: dict[str, object],
        descriptor: int,
        isolated: bool,
    ) -> None:
        with application.tokens(isolated=isolated, **settings) as tokens:
            tokens.assertion()
            tokens.close()
            with another_file(descriptor), pytest.raises(PinUnavailable, match="read before"):
                tokens.assertion()
        assert [login.right for login in faulty.logins()] == [True]


@contextmanager
def another_file(number: int) -> Iterator[None]:
    """Give a descriptor's number, which is free again, to another file."""
    with tempfile.TemporaryFile() as file:
        file.write(b"0815")
        file.seek(0)
        os.dup2(file.fileno(), number)
        yield
        with suppress(OSError):  # if it was read and closed
            os.close(number)
