"""Which changes to a file may have changed the PIN in it. On real files, because the kernel sets their times."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hsm_signer.device.pin.pin import Pin, PinRequest
from hsm_signer.device.pin.sources import FilePin
from hsm_signer.system.file_state import same_state

REQUEST = PinRequest("Test card")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pin"
    path.write_text("111111")
    path.chmod(0o600)
    return path


def read(path: Path) -> str:
    """Read the PIN, and return the identity it came with."""
    pin = FilePin(path)(REQUEST)
    return pin.identity


def let_the_clock_move(path: Path) -> None:
    """Wait for the kernel's file clock to tick: all changes within one tick get the same time."""
    probe = path.with_name("probe")
    probe.touch()
    first = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == first:
        time.sleep(0.001)
        probe.touch()


def touch(path: Path) -> None:
    path.touch()


def touch_access_time(path: Path) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.system(f"touch -a {path}")  # noqa: S605  # utimensat(2) with UTIME_OMIT, which Python does not offer


def rewrite(path: Path) -> None:
    path.write_text("222222")


def rewrite_keeping_the_modification_time(path: Path) -> None:
    before = path.stat()
    path.write_text("222222")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def copy_over(path: Path) -> None:
    """As `cp -p other pin`: into the same inode, with the times of the other."""
    other = path.with_name("other")
    other.write_text("222222")
    other.chmod(0o600)
    shutil.copy2(other, path)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("222222")
    shutil.copystat(path, other)
    other.replace(path)


def remove_and_write(path: Path) -> None:
    path.unlink()  # ext4 gives the inode number to the next file
    path.write_text("222222")
    path.chmod(0o600)


@pytest.mark.parametrize("change", [touch, touch_access_time])
def test_touching_a_file_does_not_change_its_state(file: Path, change: Callable[[Path], None]) -> None:
    before = read(file)
    for _ in range(3):
        let_the_clock_move(file)
        change(file)
        assert file.stat().st_ctime_ns != int(before.rpartition("changed ")[2])
        assert same_state(before, FilePin(file).identity)
        assert same_state(before, read(file))


@pytest.mark.parametrize(
    "change",
    [rewrite, rewrite_keeping_the_modification_time, copy_over, replace, remove_and_write],
)
def test_writing_a_file_changes_its_state(file: Path, change: Callable[[Path], None]) -> None:
    before = read(file)
    let_the_clock_move(file)
    change(file)
    assert not same_state(before, FilePin(file).identity)
    assert not same_state(before, read(file))


def test_a_touch_does_not_hide_that_the_file_was_replaced(file: Path) -> None:
    before = read(file)
    replace(file)
    let_the_clock_move(file)
    touch(file)
    assert not same_state(before, read(file))


def test_reading_the_pin_does_not_change_the_state(file: Path) -> None:
    before = read(file)
    let_the_clock_move(file)
    assert read(file) == read(file) == before


def test_every_path_to_a_file_gives_the_same_state(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file.with_name("link")).symlink_to(file)
    (file.parent / "directory").mkdir()
    monkeypatch.chdir(file.parent)
    names = [file, Path("pin"), Path("link"), Path("directory/../pin"), file.parent / "." / "link"]
    assert len({read(name) for name in names}) == 1


def test_removing_a_file_changes_its_state(file: Path) -> None:
    before = read(file)
    file.unlink()
    assert not same_state(before, FilePin(file).identity)


@pytest.mark.parametrize("pin", ["1", "111111", "x" * 255])
def test_the_state_holds_neither_the_pin_nor_its_length(file: Path, pin: str) -> None:
    file.write_text(pin)
    words = read(file).replace(",", "").split()
    assert words[::2] == ["inode", "created", "changed"]
    assert words[1] == str(file.stat().st_ino)
    assert words[5] == str(file.stat().st_ctime_ns)


def test_a_pin_keeps_the_state_its_file_had_when_it_was_read(file: Path) -> None:
    pin = FilePin(file)(REQUEST)
    let_the_clock_move(file)
    rewrite(file)
    assert isinstance(pin, Pin)
    assert not same_state(pin.identity, FilePin(file).identity)


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        ("a source", "a source", True),
        ("a source", "another source", False),
        ("inode 1, created 2, changed 3", "inode 1, created 2, changed 3", True),
        ("inode 1, created 2, changed 3", "inode 1, created 2, changed 4", False),
        ("inode 1, created 2, changed 3", "inode 1, created 2, changed 4, touched", True),
        ("inode 1, created 2, changed 3, touched", "inode 1, created 2, changed 3", True),
        ("inode 1, created 2, changed 3, touched", "inode 1, created 2, changed 4", False),
        ("inode 1, created 2, changed 3", "inode 1, created 9, changed 4, touched", False),
        ("inode 1, created 2, changed 3", "inode 1, created 22, changed 4, touched", False),
        ("a source", "inode 1, created 2, changed 4, touched", False),
        ("inode 1, created 2, changed 3", "a source, touched", False),
    ],
)
def test_two_states_are_the_same_if_the_file_was_at_most_touched_between_them(
    then: str, now: str, expected: bool
) -> None:
    assert same_state(then, now) is expected
