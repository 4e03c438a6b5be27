"""The loop keeps a fresh assertion in the file, whatever happens to the device, the key and the file."""

import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from hsm_signer.errors import (
    CertificateUnusable,
    ConfigError,
    DeviceGone,
    DeviceTimeout,
    HsmSignerError,
    OutputError,
    PinIncorrect,
)
from hsm_signer.service.assertion_file import INTERVAL, AssertionFile
from hsm_signer.service.assertion_loop import LOOK_INTERVAL, keep
from hsm_signer.service.assertion_schedule import FileContent
from hsm_signer.system.systemd import ServiceManager

START = 1_750_000_000
MINUTE = 60
GONE = DeviceGone("The device is away.", hint="Plug it in.")


Make = Callable[..., AssertionFile]


@pytest.fixture
def file(make: Make) -> AssertionFile:
    return make()


@dataclass
class Sources:
    """A source whose key in use can change."""

    version: int = 1
    in_use: str = "first"

    def state(self) -> tuple[object, ...]:
        return (self.version,)

    def is_current(self, header: Mapping[str, object], written: float) -> bool:
        return header.get("x5t") == self.in_use

    def change(self, in_use: str) -> None:
        self.version, self.in_use = self.version + 1, in_use


class Done(Exception):
    """The test has seen enough."""


@dataclass
class World:
    """A clock that only waiting moves, a device, and what happened when, in seconds from the start."""

    file: AssertionFile
    now: float = START
    failure: HsmSignerError | None = None
    away: Sequence[tuple[float, float]] = ()
    signed: list[float] = field(default_factory=list)
    lifetime: int = 3600
    waits: list[float] = field(default_factory=list)
    there: list[tuple[float, bool]] = field(default_factory=list)
    sources: Sources | None = None
    events: dict[float, Callable[[], None]] = field(default_factory=dict)

    def sign(self) -> str:
        self.signed.append(self.now - START)
        assert len(self.signed) < 1000, "it signs again and again"
        if self.failure is not None:
            raise self.failure
        if any(start <= self.signed[-1] < end for start, end in self.away):
            raise GONE
        return self.assertion(self.now)

    def assertion(self, issued: float, **changes: object) -> str:
        parties = {"iss": self.file.client_id, "aud": self.file.audience}
        claims = {**parties, "nbf": int(issued), "exp": int(issued) + self.lifetime, **changes}
        header = {"alg": "HS256", "typ": "JWT", "x5t": self.sources.in_use if self.sources else "only"}
        return jwt.encode(header, claims, OctKey.import_key("a key for the tests of a file"))

    def put(self, text: str, mode: int = 0o600) -> None:
        self.file.path.write_text(text)
        self.file.path.chmod(mode)

    def run(self, seconds: float, **settings: object) -> None:
        """Keep the file for so many seconds."""
        end = self.now + seconds

        def wait(seconds: float) -> None:
            self.waits.append(seconds)
            self.there.append((self.now - START, self.file.path.exists()))
            self.now += seconds
            for at in [each for each in self.events if each <= self.now - START]:
                self.events.pop(at)()
            if self.now > end:
                raise Done

        if self.sources is not None:
            settings = {"source": self.sources, **settings}
        with pytest.raises(Done):
            keep(self.file, self.sign, now=lambda: self.now, wait=wait, **settings)  # type: ignore[arg-type]

    def keep(self, *, once: bool = False) -> None:
        """Keep the file until something ends it."""
        keep(self.file, self.sign, once=once, now=lambda: self.now, wait=lambda seconds: None)

    def once(self) -> None:
        def wait(seconds: float) -> None:
            raise AssertionError("nothing is to be waited for")

        settings: dict[str, Any] = {"source": self.sources} if self.sources else {}
        keep(self.file, self.sign, once=True, now=lambda: self.now, wait=wait, **settings)


@pytest.fixture
def world(file: AssertionFile) -> World:
    return World(file)


class TestKeep:
    def test_writes_at_once_and_then_every_interval(self, world: World) -> None:
        world.run(61 * MINUTE)
        assert world.signed == [0, 20 * MINUTE, 40 * MINUTE, 60 * MINUTE]
        assert world.file.path.read_text() == world.assertion(START + 60 * MINUTE)

    def test_looks_at_the_file_twice_a_minute(self, world: World) -> None:
        world.run(20 * MINUTE)
        assert max(world.waits) == LOOK_INTERVAL

    def test_writes_as_soon_as_the_machine_wakes_up(self, world: World) -> None:
        world.run(MINUTE)
        world.now += 25 * MINUTE
        world.run(MINUTE)
        assert world.signed == [0, world.waits[0] * 3 + 25 * MINUTE]

    def test_writes_a_removed_file_again(self, world: World) -> None:
        world.run(MINUTE)
        world.file.path.unlink()
        world.run(MINUTE)
        assert len(world.signed) == 2

    def test_leaves_the_last_assertion_even_if_it_has_expired_and_logs_that_once(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        # SDKs for JavaScript want the file even while their token is good.
        world.away = [(10 * MINUTE, 70 * MINUTE)]
        world.run(69 * MINUTE)
        assert all(there for _, there in world.there)
        said = [record.getMessage() for record in caplog.records if "expired" in record.getMessage()]
        assert said == [f"The assertion in {world.file.path} expired at 2025-06-15 16:06:40 UTC. It was not removed."]
        world.run(2 * MINUTE)
        assert world.file.path.read_text() == world.assertion(START + world.signed[-1])

    def test_waits_longer_after_each_failure_while_the_device_is_unavailable(self, world: World) -> None:
        world.away = [(10 * MINUTE, 70 * MINUTE)]
        world.run(25 * MINUTE)
        tries = [at - 20 * MINUTE for at in world.signed[1:]]
        assert tries == [0, 5, 15, 35, 75, 135, 195, 255]

    def test_continues_when_the_device_is_back(self, world: World) -> None:
        world.away = [(10 * MINUTE, 90 * MINUTE)]
        world.run(92 * MINUTE)
        assert world.file.read() is not None

    def test_starts_with_the_shortest_pause_again_after_a_success(self, world: World) -> None:
        world.away = [(20 * MINUTE, 22 * MINUTE), (30 * MINUTE, 50 * MINUTE)]
        world.run(45 * MINUTE)
        first, second, third = [at for at in world.signed if at >= 30 * MINUTE][:3]
        assert (second - first, third - second) == (5, 10)

    @pytest.mark.parametrize("failure", [GONE, DeviceTimeout("It hangs."), OutputError("The disk is full.")])
    def test_continues_after_a_temporary_failure(self, world: World, failure: HsmSignerError) -> None:
        world.run(MINUTE)
        world.failure = failure
        world.run(30 * MINUTE)

    @pytest.mark.parametrize(
        "failure", [PinIncorrect("The PIN was refused."), CertificateUnusable("It has expired."), ConfigError("No.")]
    )
    def test_ends_at_the_first_failure_that_somebody_has_to_fix(self, world: World, failure: HsmSignerError) -> None:
        world.run(MINUTE)
        signed = len(world.signed)
        world.failure = failure
        with pytest.raises(type(failure)):
            world.run(30 * MINUTE, wait_for_device=True)
        assert len(world.signed) == signed + 1

    def test_ends_without_the_device_if_there_was_no_assertion_yet(self, world: World) -> None:
        world.failure = GONE
        with pytest.raises(DeviceGone):
            world.run(MINUTE)

    def test_waits_for_a_device_that_was_never_available_if_asked_to(self, world: World) -> None:
        world.failure = GONE
        world.run(MINUTE, wait_for_device=True)
        assert world.signed == [0, 5, 15, 35]

    def test_logs_the_failure_and_when_it_tries_again(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        world.failure = GONE
        world.run(4, wait_for_device=True)
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
            "The device is away. Trying again in 5 s."
        ]

    def test_refuses_assertions_that_it_would_replace_forever(self, world: World) -> None:
        world.lifetime = 600
        with pytest.raises(ConfigError, match="a lifetime of 3600 s"):
            world.run(MINUTE)
        assert world.signed == [0]

    @pytest.mark.parametrize("once", [False, True])
    def test_ends_if_the_file_does_not_get_its_group(self, make: Make, once: bool) -> None:
        # chown(2): -1 leaves the group as it is.
        world = World(make(group=2**32 - 1, mode=0o640))
        with pytest.raises(ConfigError, match="group 4294967295") as caught:
            world.keep(once=once)
        assert caught.value.hint
        assert (world.signed, world.file.path.exists()) == ([], False)

    def test_ends_on_a_file_system_without_modes(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        world = World(make(mode=0o640))
        monkeypatch.setattr(os, "fchmod", lambda descriptor, mode: None)
        with pytest.raises(ConfigError, match=r"mode 0640.*mode 0600"):
            world.keep()
        assert (world.signed, world.file.path.exists()) == ([], False)

    def test_ends_on_a_file_system_that_gives_files_to_somebody_else(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        somebody = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: somebody)
        monkeypatch.setattr("hsm_signer.system.private_file.require_trusted_path", lambda path, what: path)
        with pytest.raises(ConfigError, match=f"owner {somebody}"):
            world.keep()
        assert (world.signed, world.file.path.exists()) == ([], False)

    def test_ends_if_the_file_is_not_as_it_was_written(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        # A network file system may show the mode that it was asked for, until it looks at the server.
        replace = os.replace

        def replaced(*arguments: Any, **directories: Any) -> None:
            replace(*arguments, **directories)
            world.file.path.chmod(0o644)

        monkeypatch.setattr(os, "replace", replaced)
        with pytest.raises(ConfigError, match="mode 0600"):
            world.keep()
        assert world.signed == [0]

    def test_writes_no_newline(self, world: World) -> None:
        world.run(MINUTE)
        assert world.file.path.read_text() == world.assertion(START)


class TestRestart:
    def test_continues_with_the_file_that_it_finds(self, world: World) -> None:
        world.put(world.assertion(START - 5 * MINUTE))
        world.run(16 * MINUTE)
        assert world.signed == [15 * MINUTE]

    @pytest.mark.parametrize("minutes", [50, 59, 70])
    def test_without_the_device_leaves_the_file(self, world: World, minutes: int) -> None:
        last = world.assertion(START - minutes * MINUTE)
        world.put(last)
        world.failure = GONE
        world.run(2 * MINUTE)
        assert world.file.path.read_text() == last

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"iss": "another"}, id="of another client"),
            pytest.param({"aud": "https://login.example/other"}, id="for another audience"),
            pytest.param({"exp": START + 7200}, id="of another lifetime"),
            pytest.param({"exp": "soon"}, id="without times"),
            pytest.param({"nbf": START + 3600, "exp": START + 7200}, id="of the future"),
        ],
    )
    def test_replaces_an_assertion_that_does_not_match_the_settings(
        self, world: World, changes: dict[str, object]
    ) -> None:
        world.put(world.assertion(START, **changes))
        world.run(MINUTE)
        assert world.signed == [0]

    @pytest.mark.parametrize("text", ["", "nonsense", "ÿ", "a.b.c", "{assertion}\n"])
    def test_replaces_content_that_sdks_could_not_use(self, world: World, text: str) -> None:
        world.put(text.format(assertion=world.assertion(START)))
        world.run(MINUTE)
        assert world.signed == [0]

    def test_replaces_a_file_of_another_mode(self, world: World) -> None:
        world.put(world.assertion(START), mode=0o644)
        world.run(MINUTE)
        assert world.signed == [0]
        assert world.file.path.stat().st_mode & 0o777 == 0o600

    def test_replaces_a_file_of_another_group(self, world: World, make: Make) -> None:
        world.put(world.assertion(START))
        another = make(group=world.file.path.stat().st_gid + 1)
        assert another.read() == FileContent(START, START, START + 3600)

    def test_replaces_a_file_of_another_owner(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.put(world.assertion(START))
        somebody = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: somebody)
        assert world.file.read() == FileContent(START, START, START + 3600)

    def test_refuses_a_link(self, world: World, tmp_path: Path) -> None:
        world.put(world.assertion(START))
        world.file.path.rename(tmp_path / "elsewhere")
        world.file.path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OutputError, match="symbolic link"):
            world.run(MINUTE)
        assert world.signed == []

    def test_refuses_a_pipe_without_waiting_for_a_writer(self, world: World) -> None:
        os.mkfifo(world.file.path, 0o600)
        with pytest.raises(OutputError, match="FIFO"):
            world.run(MINUTE)
        assert world.signed == []


class TestAnotherKey:
    """The key file, or the certificate's, says by now that another key is in use."""

    @pytest.fixture
    def sources(self, world: World) -> Sources:
        world.sources = Sources()
        return world.sources

    def test_is_noticed_within_two_seconds_and_signs_at_once(self, world: World, sources: Sources) -> None:
        world.events = {5 * MINUTE: lambda: sources.change("second")}
        world.run(20 * MINUTE)
        assert world.signed == [0, pytest.approx(5 * MINUTE, abs=2)]
        content = world.file.read()
        assert content is not None
        assert content.header["x5t"] == "second"

    def test_is_distinguished_from_a_changed_file_that_names_the_same_key(self, world: World, sources: Sources) -> None:
        world.events = {MINUTE: lambda: sources.change("first"), 2 * MINUTE: lambda: sources.change("first")}
        world.run(10 * MINUTE)
        assert world.signed == [0]

    def test_is_recognized_after_a_restart(self, world: World, sources: Sources) -> None:
        world.put(world.assertion(START - MINUTE))
        sources.change("second")
        world.run(MINUTE)
        assert world.signed == [0]

    def test_is_recognized_with_once(self, world: World, sources: Sources) -> None:
        world.put(world.assertion(START - MINUTE))
        sources.change("second")
        world.once()
        assert world.signed == [0]

    def test_that_cannot_sign_yet_is_tried_with_longer_pauses_while_the_last_assertion_stays(
        self, world: World, sources: Sources
    ) -> None:
        world.away = [(MINUTE, 4 * MINUTE)]
        world.events = {MINUTE: lambda: sources.change("second")}
        world.run(5 * MINUTE)
        tries = [at - MINUTE for at in world.signed[1:]]
        assert tries == [0, 5, 15, 35, 75, 135, 195]
        assert all(there for _, there in world.there)

    def test_that_the_source_never_confirms_does_not_sign_again_and_again(
        self, world: World, sources: Sources, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Written by hand: it names one key, and the certificate of another.
        monkeypatch.setattr(sources, "is_current", lambda header, written: False)
        world.run(10 * MINUTE)
        assert world.signed == [0]

    def test_is_checked_for_without_reading_the_file_each_time(self, world: World, sources: Sources) -> None:
        looks: list[float] = []
        read = world.file.read

        def counted() -> FileContent | None:
            looks.append(world.now)
            return read()

        object.__setattr__(world.file, "read", counted)
        world.run(10 * MINUTE)
        assert max(world.waits) <= 2
        assert len(looks) <= 10 * MINUTE / LOOK_INTERVAL + 3

    def test_is_not_checked_for_if_the_key_cannot_change(self, world: World) -> None:
        world.run(10 * MINUTE)
        assert max(world.waits) == LOOK_INTERVAL


class TestOnce:
    def test_writes_and_ends(self, world: World) -> None:
        world.once()
        assert world.signed == [0]
        assert world.file.read() is not None

    def test_leaves_a_fresh_assertion(self, world: World) -> None:
        world.put(world.assertion(START - 19 * MINUTE))
        world.once()
        assert world.signed == []

    def test_raises_a_failure_even_if_there_is_still_an_assertion(self, world: World) -> None:
        world.put(world.assertion(START - 21 * MINUTE))
        world.failure = GONE
        with pytest.raises(DeviceGone):
            world.once()
        assert world.file.read() is not None


class TestServiceManager:
    @pytest.fixture
    def listener(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(f"\0hsm-signer-{secrets.token_hex(8)}")
            listener.setblocking(False)
            yield listener

    @staticmethod
    def manager(listener: socket.socket, watchdog: float | None = None) -> ServiceManager:
        return ServiceManager("@" + listener.getsockname()[1:].decode(), watchdog)

    @staticmethod
    def heard(listener: socket.socket) -> list[dict[str, str]]:
        messages: list[dict[str, str]] = []
        while True:
            try:
                lines = listener.recv(4096).decode().splitlines()
            except BlockingIOError:
                return messages
            messages.append(dict(line.split("=", 1) for line in lines))

    def test_is_notified_of_the_first_assertion(self, world: World, listener: socket.socket) -> None:
        world.run(1, manager=self.manager(listener))
        assert self.heard(listener) == [
            {"READY": "1", "WATCHDOG": "1", "STATUS": "The assertion is valid until 2025-06-15 16:06:40 UTC."}
        ]

    def test_is_not_notified_as_ready_without_an_assertion(self, world: World, listener: socket.socket) -> None:
        world.failure = GONE
        world.run(4, manager=self.manager(listener), wait_for_device=True)
        assert self.heard(listener) == [{"WATCHDOG": "1", "STATUS": "The file holds no assertion. The device is away."}]

    def test_is_not_notified_as_ready_with_an_expired_assertion(self, world: World, listener: socket.socket) -> None:
        world.put(world.assertion(START - 70 * MINUTE))
        world.failure = GONE
        world.run(1, manager=self.manager(listener))
        expired = "The assertion expired at 2025-06-15 14:56:40 UTC. The device is away."
        assert self.heard(listener) == [{"WATCHDOG": "1", "STATUS": expired}]

    def test_is_notified_of_a_failure_while_the_last_assertion_is_valid(
        self, world: World, listener: socket.socket
    ) -> None:
        world.put(world.assertion(START - 20 * MINUTE))
        world.failure = GONE
        world.run(1, manager=self.manager(listener))
        (state,) = self.heard(listener)
        assert state["READY"] == "1"
        assert state["STATUS"].endswith(" UTC. The device is away.")

    def test_is_notified_twice_within_the_watchdog_time(self, world: World, listener: socket.socket) -> None:
        world.run(30, manager=self.manager(listener, watchdog=10))
        assert max(world.waits) == 5
        assert len(self.heard(listener)) == len(world.waits)


class TestReport:
    @pytest.fixture
    def reports(self) -> list[str]:
        return []

    def test_the_first_assertion_and_each_renewal_are_reported(self, world: World, reports: list[str]) -> None:
        world.run(INTERVAL + 60, report=reports.append)
        first, renewal = reports
        assert first.startswith(f"Wrote an assertion to {world.file.path}. It is valid until 20")
        assert renewal.startswith(f"Renewed the assertion in {world.file.path}. It is valid until 20")

    def test_the_end_of_a_failure_is_reported_with_how_often_it_failed(self, world: World, reports: list[str]) -> None:
        world.away = [(INTERVAL - 60, INTERVAL + 10)]
        world.run(INTERVAL + 60, report=reports.append)
        assert reports[-1].startswith(f"Wrote a new assertion to {world.file.path} after ")
        assert " failures. It is valid until 20" in reports[-1]

    def test_once_reports_a_file_that_is_fresh_already(self, world: World, reports: list[str]) -> None:
        world.put(world.assertion(world.now))
        keep(world.file, world.sign, once=True, report=reports.append, now=lambda: world.now)
        assert [text.partition(":")[0] for text in reports] == [f"The assertion in {world.file.path} is fresh"]
        assert world.signed == []
