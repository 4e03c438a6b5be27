"""Private files are complete, have their mode from the start, and are in directories where nobody else can write."""

import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hsm_signer.errors import ConfigError, HsmSignerError, OutputError
from hsm_signer.system.private_file import warn_unless_in_memory, write_private


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400])
@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_a_file_gets_the_requested_mode_under_any_umask(file: Path, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_private(file, lambda: "text", mode=mode)
    finally:
        os.umask(before)
    assert mode_of(file) == mode


def test_a_file_gets_the_requested_group(file: Path) -> None:
    # Root may choose any.
    group = 4711 if os.geteuid() == 0 else [os.getegid(), *os.getgroups()][-1]
    write_private(file, lambda: "text", mode=0o640, group=group)
    assert file.stat().st_gid == group


def test_mode_and_group_are_set_before_the_content_is_written(file: Path) -> None:
    seen = []

    def make() -> str:
        (temporary,) = file.parent.iterdir()
        seen.append((mode_of(temporary), temporary.stat().st_size))
        return "text"

    write_private(file, make, mode=0o640)
    assert seen == [(0o640, 0)]


def test_a_file_holds_exactly_the_text(file: Path) -> None:
    write_private(file, lambda: "text", mode=0o600)
    assert file.read_bytes() == b"text"
    assert os.listdir(file.parent) == ["file"]


def test_a_reader_sees_either_all_of_the_old_text_or_all_of_the_new(file: Path) -> None:
    texts = ["a" * 3000, "b" * 5000]
    write_private(file, lambda: texts[0], mode=0o600)
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add((file.read_text(), mode_of(file)))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(300):
            write_private(file, lambda turn=turn: texts[turn % 2], mode=0o600)  # type: ignore[misc]  # its default
    finally:
        done.set()
        reader.join()
    assert seen <= {(text, 0o600) for text in texts}


@pytest.mark.parametrize("error", [HsmSignerError("The device is away."), KeyboardInterrupt()])
def test_a_write_that_fails_half_way_leaves_the_old_file(file: Path, error: BaseException) -> None:
    file.write_text("of before")

    def fail() -> str:
        raise error

    with pytest.raises(type(error)):
        write_private(file, fail, mode=0o600)
    assert os.listdir(file.parent) == ["file"]
    assert file.read_text() == "of before"


def a_fifo(file: Path) -> None:
    os.mkfifo(file)


def a_socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(file))


def a_device(file: Path) -> None:
    # A new node for the null device. Only root may create one, and only root needs the test.
    os.mknod(file, stat.S_IFCHR | 0o600, os.makedev(1, 3)) if os.geteuid() == 0 else file.symlink_to(os.devnull)


def a_link_to_a_file(file: Path) -> None:
    target = file.with_name("target")
    target.write_text("of before")
    file.symlink_to(target)


def a_link_to_nothing(file: Path) -> None:
    file.symlink_to(file.with_name("target"))


def a_link_to_itself(file: Path) -> None:
    file.symlink_to(file)


def a_directory(file: Path) -> None:
    file.mkdir()


def names_and_nodes(directory: Path) -> dict[str, tuple[int, int]]:
    return {each.name: (each.lstat().st_ino, each.lstat().st_mode) for each in directory.iterdir()}


@pytest.mark.parametrize(
    "make",
    [a_fifo, a_socket, a_device, a_link_to_a_file, a_link_to_nothing, a_link_to_itself, a_directory],
    ids=lambda make: make.__name__,
)
def test_only_a_regular_file_is_replaced_and_the_text_is_not_made_for_anything_else(
    file: Path, make: Callable[[Path], None]
) -> None:
    make(file)
    before = names_and_nodes(file.parent)
    with pytest.raises(OutputError, match="not a regular file") as caught:
        write_private(file, lambda: pytest.fail("too early"), mode=0o600)
    assert caught.value.hint is not None
    assert names_and_nodes(file.parent) == before


def test_the_refusal_of_a_link_names_the_file_it_leads_to(file: Path) -> None:
    a_link_to_a_file(file)
    with pytest.raises(OutputError, match="symbolic link") as caught:
        write_private(file, lambda: pytest.fail("too early"), mode=0o600)
    assert str(file.with_name("target")) in str(caught.value.hint)


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_directory_where_others_can_write_is_refused_before_the_text_is_made(file: Path, mode: int) -> None:
    file.parent.chmod(mode)
    with pytest.raises(ConfigError, match=f"{file.parent}: it belongs to user .* mode {mode:04o}"):
        write_private(file, lambda: pytest.fail("too early"), mode=0o600)
    assert os.listdir(file.parent) == []


def test_a_directory_that_others_can_replace_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "shared" / "own"
    directory.mkdir(parents=True, mode=0o700)
    directory.parent.chmod(0o777)
    with pytest.raises(ConfigError, match=f"{directory.parent} belongs to user"):
        write_private(directory / "file", lambda: pytest.fail("too early"), mode=0o600)


def in_no_directory(file: Path) -> Path:
    return file / "nowhere" / "file"


def on_a_directory(file: Path) -> Path:
    file.mkdir()
    return file


@pytest.mark.parametrize("place", [in_no_directory, on_a_directory])
def test_a_file_that_cannot_be_written_is_named_with_a_hint(file: Path, place: Callable[[Path], Path]) -> None:
    with pytest.raises(OutputError) as caught:
        write_private(place(file), lambda: "text", mode=0o600)
    assert str(file) in caught.value.message
    assert caught.value.hint is not None


class TestTheWarningAboutDisks:
    def test_a_directory_on_a_disk_is_warned_about(self, caplog: pytest.LogCaptureFixture) -> None:
        # /proc is neither a disk nor memory (tmpfs): it must count as a disk.
        warn_unless_in_memory(Path("/proc"))
        assert "/proc is not in memory (proc)" in caplog.text

    @pytest.mark.parametrize("directory", ["/dev/shm", "/nowhere"])  # noqa: S108
    def test_a_directory_in_memory_or_of_unknown_kind_is_not_warned_about(
        self, directory: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        warn_unless_in_memory(Path(directory))
        assert caplog.text == ""
