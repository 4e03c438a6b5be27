"""Secret bytes are read only from safe places, and no read takes forever. Real files, pipes and programs."""

import os
import pty
import select
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from hsm_signer.system.secret_input import LIMIT, Unreadable, exposure, read_descriptor, read_file_state, run_command

SECRET = "s3cret-4711"
US, SOMEBODY = 1000, 1001
OUR_GROUPS, ANOTHER_GROUP = {100, 101}, 102
MODES = range(0o1000)


def read_file(path: Path, *, private: bool) -> bytes:
    return read_file_state(path, private=private)[0]


def status(owner: int, group: int, mode: int) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 0, 0, 0, owner, group, 0, 0, 0, 0))


def test_a_file_that_somebody_else_owns_is_exposed_whatever_its_mode() -> None:
    assert all(exposure(status(SOMEBODY, 100, mode), US, OUR_GROUPS) == "it belongs to user 1001" for mode in MODES)


def test_a_file_that_somebody_else_owns_is_exposed_for_root_too() -> None:
    assert exposure(status(SOMEBODY, 0, 0o600), 0, {0}) == "it belongs to user 1001"


def test_a_file_that_others_can_read_or_write_is_exposed_whatever_its_owner() -> None:
    open_modes = [mode for mode in MODES if mode & 0o006]
    for owner, group, mode in product((0, US), (100, ANOTHER_GROUP), open_modes):
        assert exposure(status(owner, group, mode), US, OUR_GROUPS) == "everybody can read or change it"


def test_a_file_that_only_its_owner_can_read_or_write_is_not_exposed() -> None:
    closed_modes = [mode for mode in MODES if not mode & 0o066]
    for owner, group, mode in product((0, US), (100, ANOTHER_GROUP), closed_modes):
        assert exposure(status(owner, group, mode), US, OUR_GROUPS) is None


@pytest.mark.parametrize(
    ("owner", "group", "expected"),
    [
        (0, 101, None),
        (0, ANOTHER_GROUP, "its group 102 can read it"),
        (US, 100, "its group 100 can read it"),
        (US, ANOTHER_GROUP, "its group 102 can read it"),
    ],
)
def test_a_group_may_read_the_file_only_when_root_owns_it_and_we_are_in_the_group(
    owner: int, group: int, expected: str | None
) -> None:
    group_modes = [mode for mode in MODES if mode & 0o060 == 0o040 and not mode & 0o006]
    assert {exposure(status(owner, group, mode), US, OUR_GROUPS) for mode in group_modes} == {expected}


@pytest.mark.parametrize("owner", [0, US])
@pytest.mark.parametrize("group", [100, 101, ANOTHER_GROUP])
def test_no_group_may_change_the_file(owner: int, group: int) -> None:
    group_modes = [mode for mode in MODES if mode & 0o020 and not mode & 0o006]
    found = {exposure(status(owner, group, mode), US, OUR_GROUPS) for mode in group_modes}
    assert found == {f"its group {group} can change it"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pin"
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_a_private_file_is_read(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert read_file(file, private=True) == SECRET.encode()


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o666])
def test_an_exposed_file_is_refused_with_the_command_that_fixes_it(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(Unreadable, match="everybody can read or change it") as refused:
        read_file(file, private=True)
    assert refused.value.hint == f"Remove everyone else's access: chmod 600 {file}"


def test_the_command_that_fixes_a_file_can_be_pasted_whatever_the_file_is_called(file: Path) -> None:
    odd = file.rename(file.with_name("it's $(id).pin"))
    odd.chmod(0o644)
    with pytest.raises(Unreadable) as refused:
        read_file(odd, private=True)
    subprocess.run(["sh", "-c", str(refused.value.hint).removeprefix("Remove everyone else's access: ")], check=True)
    assert read_file(odd, private=True) == SECRET.encode()


def test_a_private_file_that_others_can_replace_is_refused(file: Path) -> None:
    file.parent.chmod(0o777)
    with pytest.raises(Unreadable, match=f"other users could replace the PIN file {file}: {file.parent} ") as refused:
        read_file(file, private=True)
    assert refused.value.hint == f"Run: chmod go-w {file.parent}"


def test_a_program_that_others_can_replace_is_not_run(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho run > run\n")
    program.chmod(0o777)
    with pytest.raises(Unreadable, match=f"other users could replace the program {program}"):
        run_command([str(program)], 10)
    assert not (tmp_path / "run").exists()


def test_our_own_file_that_our_group_can_read_is_refused_unless_we_are_root(file: Path) -> None:
    os.chown(file, -1, os.getegid())
    file.chmod(0o640)
    try:
        outcome: bytes | str = read_file(file, private=True)
    except Unreadable as error:
        outcome = str(error)
    refusal = f"its group {os.getegid()} can read it"
    assert outcome == (SECRET.encode() if os.geteuid() == 0 else refusal)


def test_a_file_that_our_group_can_change_is_refused_with_the_command_that_fixes_it(file: Path) -> None:
    os.chown(file, -1, os.getegid())
    file.chmod(0o660)
    with pytest.raises(Unreadable, match=f"its group {os.getegid()} can change it") as refused:
        read_file(file, private=True)
    assert refused.value.hint == f"Remove everyone else's access: chmod 600 {file}"


def test_the_hint_for_a_file_that_root_owns_says_to_fix_it_as_root(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat

    def of_root(descriptor: int) -> os.stat_result:
        return os.stat_result((*real(descriptor)[:4], 0, *real(descriptor)[5:]))

    file.chmod(0o660)
    monkeypatch.setattr(os, "fstat", of_root)
    monkeypatch.setattr(os, "geteuid", lambda: US)
    with pytest.raises(Unreadable, match="can change it") as refused:
        read_file(file, private=True)
    assert refused.value.hint == f"As root, let only its group read it: chmod 640 {file}"


def test_a_link_to_an_exposed_file_is_refused(file: Path) -> None:
    file.chmod(0o644)
    link = file.with_name("link")
    link.symlink_to(file)
    with pytest.raises(Unreadable, match="everybody"):
        read_file(link, private=True)


def test_an_exposed_file_is_read_if_the_caller_says_it_need_not_be_private(file: Path) -> None:
    file.chmod(0o644)
    assert read_file(file, private=False) == SECRET.encode()


def test_a_fifo_without_a_writer_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    with pytest.raises(Unreadable, match="not a regular file"):
        read_file(fifo, private=True)


@pytest.mark.parametrize("path", [Path("/"), Path("/dev/null")])
def test_a_directory_and_a_character_device_are_refused(path: Path) -> None:
    with pytest.raises(Unreadable, match="not a regular file"):
        read_file(path, private=True)


def test_a_missing_file_is_reported_as_missing(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="No such file or directory"):
        read_file(tmp_path / "absent", private=True)


def test_a_file_that_is_too_long_is_not_read_to_its_end(file: Path) -> None:
    file.write_bytes(bytes(100_000))
    assert len(read_file(file, private=True)) == LIMIT + 1


def test_no_descriptor_is_left_open(file: Path) -> None:
    before = os.listdir("/dev/fd")
    read_file(file, private=True)
    for path in (Path("/"), file.with_name("absent")):
        with pytest.raises(Unreadable):
            read_file(path, private=True)
    run_command(["/bin/echo"], 10)
    assert os.listdir("/dev/fd") == before


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe: the end to be read, which the code under test closes, and the end to write to."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(writer)


def closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


def test_a_pipe_is_read_to_its_end_and_closed() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"47")
    os.write(writer, b"11")
    os.close(writer)
    assert read_descriptor(reader, 10) == b"4711"
    assert closed(reader)


def test_a_pipe_that_does_not_end_times_out_and_is_closed(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"47")
    with pytest.raises(Unreadable, match=r"had not ended after 0\.05 s"):
        read_descriptor(reader, 0.05)
    assert closed(reader)


def test_a_pipe_that_gives_too_much_is_not_read_to_its_end(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, bytes(LIMIT + 100))
    assert len(read_descriptor(reader, 10)) == LIMIT + 1


def test_the_writing_end_of_a_pipe_is_refused_at_once(pipe: tuple[int, int]) -> None:
    with pytest.raises(Unreadable, match="Bad file descriptor"):
        read_descriptor(os.dup(pipe[1]), 60)


def test_a_descriptor_that_is_not_open_is_refused() -> None:
    with pytest.raises(Unreadable, match="Bad file descriptor"):
        read_descriptor(999_999, 10)


def test_a_terminal_is_refused() -> None:
    controller, terminal = pty.openpty()
    try:
        with pytest.raises(Unreadable, match="terminal"):
            read_descriptor(terminal, 10)
    finally:
        os.close(controller)
        os.close(terminal)


@pytest.fixture
def _standard_input() -> Iterator[None]:
    """Let standard input be a file that holds 4711."""
    saved = os.dup(0)
    with tempfile.TemporaryFile() as source:
        source.write(b"4711")
        source.seek(0)
        os.dup2(source.fileno(), 0)
    yield
    os.dup2(saved, 0)
    os.close(saved)


@pytest.mark.usefixtures("_standard_input")
def test_standard_input_is_empty_after_it_was_read() -> None:
    assert read_descriptor(0, 10) == b"4711"
    assert os.path.samestat(os.fstat(0), os.stat(os.devnull))


def test_a_program_runs_with_its_arguments_and_without_a_shell() -> None:
    assert run_command(["/bin/echo", "a  b", "$HOME;`id`"], 10) == b"a  b $HOME;`id`\n"


@pytest.mark.usefixtures("_standard_input")
def test_a_program_does_not_get_our_input() -> None:
    assert run_command(["/bin/cat"], 10) == b""


def test_a_program_that_fails_is_refused_with_its_exit_status_and_without_its_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(Unreadable, match="ended with status 3") as refused:
        run_command(["/bin/sh", "-c", f"echo {SECRET}; echo {SECRET} >&2; exit 3"], 10)
    assert SECRET not in repr(refused.value) + str(refused.value.hint)
    assert capfd.readouterr() == ("", "")


def test_a_program_that_is_killed_is_refused_with_the_signal() -> None:
    with pytest.raises(Unreadable, match="ended with signal 9"):
        run_command(["/bin/sh", "-c", "kill -9 $$"], 10)


@pytest.mark.parametrize(
    ("name", "mode", "reason"), [("absent", None, "No such file"), ("plain", 0o600, "Permission denied")]
)
def test_a_program_that_cannot_be_started_is_refused(tmp_path: Path, name: str, mode: int | None, reason: str) -> None:
    if mode is not None:
        (tmp_path / name).touch(mode)
    with pytest.raises(Unreadable, match=reason):
        run_command([str(tmp_path / name)], 10)


@pytest.mark.parametrize("script", ["exec sleep 60", "sleep 60 & exit 0", "exec >&-; exec sleep 60"])
def test_a_program_that_takes_too_long_or_leaves_its_output_open_times_out(script: str) -> None:
    with pytest.raises(Unreadable, match=r"had not ended after 0\.2 s"):
        run_command(["/bin/sh", "-c", script], 0.2)


def test_a_program_that_times_out_is_killed_with_all_its_children(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        # Each process holds the FIFO open for writing before the output becomes too long.
        script = f"exec 3>{fifo}; sleep 600 & head -c {LIMIT + 1} /dev/zero; sleep 600"
        assert len(run_command(["/bin/sh", "-c", script], 60)) == LIMIT + 1
        hung_up = select.poll()
        hung_up.register(reader, 0)
        assert hung_up.poll(20_000) == [(reader, select.POLLHUP)]
    finally:
        os.close(reader)
