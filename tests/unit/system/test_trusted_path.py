"""Only root and we can replace the file that a trusted path leads to, or any component of that path."""

import os
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from hsm_signer.errors import ConfigError
from hsm_signer.system.trusted_path import (
    make_private_directory,
    others_can_replace,
    read_trusted,
    require_trusted_path,
)

US, STRANGER = 1000, 1001


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "a" / "b" / "file"
    file.parent.mkdir(parents=True)
    file.write_text("content")
    return file


def refused(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        require_trusted_path(path, "configuration")
    return caught.value


def test_a_path_that_only_we_can_change_is_trusted(file: Path) -> None:
    assert require_trusted_path(file, "configuration") == Path(os.path.realpath(file))


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
@pytest.mark.parametrize("above", [0, 1, 2])
def test_each_component_is_checked_and_the_hint_fixes_it(file: Path, above: int, mode: int) -> None:
    weak = [file, *file.parents][above]
    weak.chmod(mode)
    error = refused(file)
    named = weak if above else "it"
    assert error.message == (
        f"Other users could replace the configuration {file}: {named} belongs to user {os.geteuid()} and has mode "
        f"{mode:04o}."
    )
    assert error.hint is not None
    subprocess.run(shlex.split(error.hint.removeprefix("Run: ")), check=True)
    assert require_trusted_path(file, "configuration") == Path(os.path.realpath(file))


def test_a_path_may_lead_through_a_sticky_directory_but_no_file_is_created_in_one(file: Path) -> None:
    file.parent.chmod(0o1777)
    assert require_trusted_path(file, "configuration").name == "file"
    assert "mkdir -m 700" in str(refused(file.parent).hint)


def test_the_directory_of_a_link_is_checked(file: Path, tmp_path: Path) -> None:
    weak = tmp_path / "weak"
    weak.mkdir()
    (weak / "link").symlink_to(file)
    weak.chmod(0o777)
    assert f" {weak} " in refused(weak / "link").message


@pytest.mark.parametrize("relative", [True, False])
def test_the_directories_that_a_link_leads_through_are_checked(file: Path, tmp_path: Path, relative: bool) -> None:
    file.parent.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(os.path.relpath(file, tmp_path) if relative else file)
    assert f" {file.parent} " in refused(link).message


def test_a_link_to_a_directory_is_followed_like_the_kernel_follows_it(file: Path, tmp_path: Path) -> None:
    (tmp_path / "away").symlink_to("a/b")
    assert require_trusted_path(tmp_path / "away" / ".." / "b" / "file", "configuration") == file.resolve()


def test_a_volume_that_kubernetes_projects_is_trusted(tmp_path: Path) -> None:
    # kubelet's AtomicWriter: the file is a link through ..data to the directory of the current version.
    version = tmp_path / "..2026_01_31_12_00_00.123456789"
    version.mkdir()
    (version / "config.toml").write_text("content")
    (tmp_path / "..data").symlink_to(version.name)
    (tmp_path / "config.toml").symlink_to("..data/config.toml")
    content, opened = read_trusted(tmp_path / "config.toml", "configuration")
    assert (content, opened) == (b"content", version.resolve() / "config.toml")


def test_a_relative_path_is_checked_from_the_root_directory_down(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    file.parents[1].chmod(0o777)
    assert f" {file.parents[1]} " in refused(Path("file")).message


def test_links_in_a_circle_and_missing_files_are_ordinary_errors(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for name, reason in (("circle", "Too many levels of symbolic links"), ("missing", "No such file or directory")):
        with pytest.raises(OSError, match=reason):
            require_trusted_path(tmp_path / name, "configuration")


@pytest.mark.parametrize(
    ("kind", "owner", "mode", "is_last", "read_only", "others"),
    [
        (stat.S_IFREG, US, 0o644, True, False, False),
        (stat.S_IFREG, 0, 0o644, True, False, False),
        (stat.S_IFREG, STRANGER, 0o600, True, False, True),
        (stat.S_IFREG, US, 0o1622, True, False, True),
        (stat.S_IFREG, 0, 0o666, True, True, True),
        (stat.S_IFDIR, 0, 0o755, False, False, False),
        (stat.S_IFDIR, STRANGER, 0o700, False, False, True),
        (stat.S_IFDIR, STRANGER, 0o1777, False, False, True),
        (stat.S_IFDIR, STRANGER, 0o755, False, True, True),
        (stat.S_IFDIR, US, 0o775, False, False, True),
        (stat.S_IFDIR, 0, 0o1777, False, False, False),
        (stat.S_IFDIR, 0, 0o1777, True, False, True),
        # A ConfigMap's directory, and an emptyDir's with fsGroup.
        (stat.S_IFDIR, 0, 0o777, False, True, False),
        (stat.S_IFDIR, 0, 0o2777, False, False, True),
        (stat.S_IFLNK, US, 0o777, False, False, False),
        (stat.S_IFLNK, 0, 0o777, False, False, False),
        (stat.S_IFLNK, STRANGER, 0o777, False, False, True),
    ],
)
def test_a_component_is_judged_by_owner_mode_and_mount(
    kind: int, owner: int, mode: int, is_last: bool, read_only: bool, others: bool
) -> None:
    status = os.stat_result((kind | mode, 1, 1, 1, owner, owner, 0, 0, 0, 0))
    assert others_can_replace(status, US, is_last=is_last, read_only=lambda: read_only) is others


@pytest.mark.parametrize("special", ["directory", "fifo", "device"])
def test_only_a_regular_file_is_read(tmp_path: Path, special: str) -> None:
    path = {"directory": tmp_path, "fifo": tmp_path / "fifo", "device": Path(os.devnull)}[special]
    if special == "fifo":
        os.mkfifo(path)  # without a writer: a plain open would wait for one
    with pytest.raises(ConfigError) as caught:
        read_trusted(path, "configuration")
    assert special == "device" or "is not a regular file" in caught.value.message


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestPrivateDirectory:
    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
    def test_it_is_created_with_its_missing_parents_for_us_alone(self, tmp_path: Path, umask: int) -> None:
        before = os.umask(umask)
        try:
            made = make_private_directory(tmp_path / "a" / "b" / "c", "state directory")
        finally:
            os.umask(before)
        assert [mode_of(path) for path in (made, made.parent, made.parent.parent)] == [0o700] * 3

    def test_an_existing_directory_is_not_changed(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir(mode=0o755)
        assert mode_of(make_private_directory(tmp_path / "a", "state directory")) == 0o755

    @pytest.mark.parametrize("mode", [0o777, 0o775, 0o770])
    @pytest.mark.parametrize("missing", ["", "b", "b/c"])
    def test_a_directory_that_others_could_replace_is_refused_and_nothing_is_created(
        self, tmp_path: Path, mode: int, missing: str
    ) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a").chmod(mode)
        with pytest.raises(ConfigError, match=f"Other users could replace the state directory .* mode 0{mode:o}"):
            make_private_directory(tmp_path / "a" / missing, "state directory")
        assert not list((tmp_path / "a").iterdir())

    def test_it_may_be_created_in_a_sticky_directory(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a").chmod(0o1777)
        assert mode_of(make_private_directory(tmp_path / "a" / "b", "state directory")) == 0o700

    def test_a_link_gives_the_directory_it_leads_to(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "link").symlink_to("a")
        assert make_private_directory(tmp_path / "link" / "b", "state directory") == (tmp_path / "a" / "b").resolve()

    def test_a_directory_that_cannot_be_created_is_an_os_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match="Not a directory"):
            make_private_directory(tmp_path / "file" / "b", "state directory")
