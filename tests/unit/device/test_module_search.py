"""The named module is the one that is loaded, and nobody else can choose or replace it."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hsm_signer.config.settings import SETTINGS
from hsm_signer.config.values import Source
from hsm_signer.device import module_search
from hsm_signer.device.known_modules import KNOWN_MODULES, install_commands
from hsm_signer.device.module_search import ModuleReference, find_module, modules_to_search, no_modules, way_to
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import ModuleLoadError, UriError
from tests.support.ordinary_user import be_ordinary_user

PROXY = Path("p11-kit-proxy.so")
Named = Callable[[Path], tuple[Path | None, Pkcs11Uri]]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A directory where modules are installed, with the proxy and one module."""
    directory = tmp_path / "library"
    directory.mkdir()
    for name in ("p11-kit-proxy.so", "libvendor.so"):
        (directory / name).write_bytes(b"\x7fELF")
    return directory


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """The directory of the machine's p11-kit configuration."""
    directory = tmp_path / "system"
    directory.mkdir()
    return directory


@pytest.fixture(autouse=True)
def _machine(library: Path, system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_search, "_LIBRARY_PATTERNS", (str(library),))
    monkeypatch.setattr(module_search, "_CONFIGURATION_DIRECTORIES", (str(system),))
    nowhere = {name: replace(known, directories=()) for name, known in KNOWN_MODULES.items()}
    monkeypatch.setattr(module_search, "KNOWN_MODULES", nowhere)
    monkeypatch.setattr(module_search, "system_names", lambda: ("debian",))
    be_ordinary_user(monkeypatch)


def configure(directory: Path, name: str, module: Path | str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}.module"
    file.write_text(f"# comment\nmodule: {module}\n")
    return file


WAYS: dict[str, Named] = {
    "--module": lambda module: (module, Pkcs11Uri()),
    "module-path": lambda module: (None, Pkcs11Uri(module_path=str(module))),
    "module-path and module-name": lambda module: (
        None,
        Pkcs11Uri(module_path=str(module.parent), module_name="vendor"),
    ),
    "module-name": lambda module: (None, Pkcs11Uri(module_name="vendor")),
    "a word": lambda module: (Path(module.name), Pkcs11Uri()),
    "p11-kit's configuration": lambda module: (None, Pkcs11Uri(module_name="configured")),
    "--module and p11-kit's configuration": lambda module: (Path("configured"), Pkcs11Uri()),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_name_a_module_finds_it(library: Path, system: Path, way: str) -> None:
    module = library / "libvendor.so"
    configure(system, "configured", module)
    assert find_module(*WAYS[way](module)) == module


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("weak", ["file", "directory"])
def test_a_module_that_others_can_replace_is_refused_however_it_is_named(
    library: Path, system: Path, way: str, weak: str
) -> None:
    module = library / "libvendor.so"
    configure(system, "configured", module)
    component = module if weak == "file" else library
    component.chmod(0o777)
    with pytest.raises(ModuleLoadError, match=f"could replace the module {module}") as refused:
        find_module(*WAYS[way](module))
    assert refused.value.hint == f"Run: chmod go-w {component}"


@pytest.mark.parametrize(
    "line", ["x-init-reserved: configdir='sql:/srv/nssdb'", "remote: |ssh hsm p11-kit remote /usr/lib/vendor.so"]
)
def test_a_module_that_only_p11_kit_can_load_is_reached_through_its_proxy(
    library: Path, system: Path, line: str
) -> None:
    with configure(system, "nss", library / "libvendor.so").open("a") as file:
        file.write(line + "\n")
    assert find_module(None, Pkcs11Uri(module_name="nss")) == library / "p11-kit-proxy.so"


def test_a_module_with_no_arguments_is_loaded_by_itself(library: Path, system: Path) -> None:
    with configure(system, "trust", library / "libvendor.so").open("a") as file:
        file.write("x-init-reserved:\n")  # like p11-kit-trust.module
    assert find_module(None, Pkcs11Uri(module_name="trust")) == library / "libvendor.so"


def test_a_module_that_only_p11_kit_can_load_is_refused_if_the_proxy_is_missing(library: Path, system: Path) -> None:
    (library / "p11-kit-proxy.so").unlink()
    with configure(system, "nss", library / "libvendor.so").open("a") as file:
        file.write("x-init-reserved: configdir='sql:/srv/nssdb'\n")
    with pytest.raises(ModuleLoadError, match="Only p11-kit can load the module nss") as caught:
        find_module(None, Pkcs11Uri(module_name="nss"))
    assert "p11-kit-modules" in caught.value.commands[0]


@pytest.mark.parametrize("weak", ["module", "configuration"])
def test_the_proxy_is_refused_if_others_can_choose_what_it_loads(
    library: Path, system: Path, tmp_path: Path, weak: str
) -> None:
    module = tmp_path / "module.so"
    module.write_bytes(b"\x7fELF")
    file = configure(system, "configured", module)
    (module if weak == "module" else file).chmod(0o666)
    with pytest.raises(ModuleLoadError, match="Other users could replace"):
        find_module(PROXY, Pkcs11Uri())


def test_the_proxy_does_not_need_a_configured_module_that_is_not_installed(library: Path, system: Path) -> None:
    configure(system, "configured", "/nowhere/module.so")
    assert find_module(PROXY, Pkcs11Uri()) == library / "p11-kit-proxy.so"


def test_a_p11_kit_configuration_that_others_can_write_is_refused(
    library: Path, system: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configure(system, "good", library / "libvendor.so")
    configure(system, "bad", library / "libvendor.so").chmod(0o666)
    assert modules_to_search() == [ModuleReference(library / "libvendor.so", "good")]
    assert "bad.module" in caplog.text
    with pytest.raises(ModuleLoadError, match=r"could replace the p11-kit configuration .*bad\.module"):
        find_module(None, Pkcs11Uri(module_name="bad"))


class TestKnownModules:
    @pytest.fixture
    def ykcs11(self, library: Path) -> Path:
        file = library / "libykcs11.so.2"
        file.write_bytes(b"\x7fELF")
        return file

    def test_are_found_by_name(self, ykcs11: Path) -> None:
        assert find_module(Path("ykcs11"), Pkcs11Uri()) == ykcs11
        assert find_module(None, Pkcs11Uri(module_name="ykcs11")) == ykcs11

    def test_are_named_in_a_profile_too(self, ykcs11: Path, tmp_path: Path) -> None:
        module = SETTINGS["module"].read("ykcs11", Source("module in a profile", tmp_path))
        assert find_module(module, Pkcs11Uri()) == ykcs11

    def test_that_are_not_installed_say_which_package_has_them(self) -> None:
        with pytest.raises(ModuleLoadError, match="The module ykcs11, for a YubiKey, is not installed") as refused:
            find_module(Path("ykcs11"), Pkcs11Uri())
        assert refused.value.commands == ("sudo apt install ykcs11 pcscd  # a YubiKey",)

    def test_a_name_that_is_nearly_right_is_corrected(self) -> None:
        with pytest.raises(ModuleLoadError) as refused:
            find_module(Path("ykcs"), Pkcs11Uri())
        assert refused.value.hint == "Did you mean ykcs11?"

    def test_are_searched_after_those_of_p11_kit(self, ykcs11: Path, library: Path, system: Path) -> None:
        configure(system, "vendor", library / "libvendor.so")
        assert modules_to_search() == [
            ModuleReference(library / "libvendor.so", "vendor"),
            ModuleReference(ykcs11, "ykcs11"),
        ]

    def test_are_searched_once_if_p11_kit_has_them_under_another_name(self, ykcs11: Path, system: Path) -> None:
        configure(system, "yubikey", ykcs11)
        assert modules_to_search() == [ModuleReference(ykcs11, "yubikey")]

    def test_the_one_of_the_command_comes_first_and_once(self, ykcs11: Path, library: Path, system: Path) -> None:
        vendor = configure(system, "vendor", library / "libvendor.so")
        assert vendor.exists()
        assert [module.name for module in modules_to_search(Path("ykcs11"))] == ["ykcs11", "vendor"]
        assert [module.name for module in modules_to_search(ykcs11)] == ["ykcs11", "vendor"]

    def test_the_way_to_a_module_is_its_name_or_else_its_path(self, ykcs11: Path, library: Path) -> None:
        assert way_to(ykcs11) == Pkcs11Uri(module_name="ykcs11")
        assert way_to(library / "libvendor.so") == Pkcs11Uri(module_path=str(library / "libvendor.so"))


@pytest.mark.parametrize(
    ("line", "hidden"),
    [
        ("disable-in: p11-kit-proxy", True),
        ("disable-in: firefox, p11-kit-proxy", True),
        ("disable-in: firefox", False),
        ("enable-in: firefox", True),
        ("enable-in: firefox p11-kit-proxy", False),
    ],
)
def test_what_p11_kit_keeps_from_its_proxy_is_not_searched(
    library: Path, system: Path, line: str, hidden: bool
) -> None:
    with configure(system, "trust", library / "libvendor.so").open("a") as file:
        file.write(line + "\n")
    assert bool(modules_to_search()) is not hidden
    assert find_module(None, Pkcs11Uri(module_name="trust")) == library / "libvendor.so"


def test_without_any_module_the_packages_for_each_kind_of_device_are_named() -> None:
    assert no_modules().commands == (
        "sudo apt install ykcs11 pcscd                           # a YubiKey",
        "sudo apt install libtpm2-pkcs11-1 libtpm2-pkcs11-tools  # a TPM",
        "sudo apt install opensc-pkcs11 pcscd                    # another smart card",
        "sudo apt install softhsm2                               # SoftHSM (keys in files, for tests)",
    )


@pytest.mark.parametrize(
    ("systems", "command"),
    [
        (("ubuntu", "debian"), "sudo apt install ykcs11 pcscd"),
        (("rocky", "rhel", "fedora"), "sudo dnf install yubico-piv-tool pcsc-lite"),
        (("arch",), "sudo pacman -S yubico-piv-tool pcsclite ccid"),
        (("macos",), "brew install yubico-piv-tool"),
        (("plan9",), "sudo apt install ykcs11 pcscd"),
    ],
)
def test_the_packages_are_those_of_this_system(systems: tuple[str, ...], command: str) -> None:
    assert install_commands(["ykcs11"], systems)[0].partition("  #")[0].strip() == command


class TestFilesInTheCurrentDirectory:
    @pytest.fixture
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        here = tmp_path / "here"
        here.mkdir()
        monkeypatch.chdir(here)
        return here

    def test_a_path_means_that_file_and_not_an_installed_module(self, here: Path, library: Path) -> None:
        # pathlib drops the dot, and dlopen would then search for the name.
        path = SETTINGS["module"].read("./libvendor.so", Source("--module"))
        with pytest.raises(ModuleLoadError, match="does not exist"):
            find_module(path, Pkcs11Uri())
        (here / "libvendor.so").write_bytes(b"\x7fELF")
        assert find_module(path, Pkcs11Uri()) == here / "libvendor.so"

    def test_a_plain_name_means_an_installed_module_and_not_a_file_here(self, here: Path, library: Path) -> None:
        (here / "libvendor.so").write_bytes(b"\x7fELF")
        (here / "libother.so").write_bytes(b"\x7fELF")
        read = SETTINGS["module"].read
        assert find_module(read("libvendor.so", Source("--module")), Pkcs11Uri()) == library / "libvendor.so"
        with pytest.raises(ModuleLoadError) as refused:
            find_module(read("libother.so", Source("--module")), Pkcs11Uri())
        assert "./libother.so" in str(refused.value.hint)

    def test_a_path_object_means_a_file(self, here: Path) -> None:
        (here / "libvendor.so").write_bytes(b"\x7fELF")
        path = SETTINGS["module"].read(Path("libvendor.so"), Source("module"))
        assert find_module(path, Pkcs11Uri()) == here / "libvendor.so"

    def test_a_path_in_a_profile_is_relative_to_the_profiles_file(
        self, here: Path, library: Path, tmp_path: Path
    ) -> None:
        path = SETTINGS["module"].read("libvendor.so", Source("module in a profile", tmp_path))
        with pytest.raises(ModuleLoadError, match="does not exist"):
            find_module(path, Pkcs11Uri())


@pytest.mark.parametrize("name", ["../library/libvendor", "/library/libvendor", "a/b"])
def test_a_module_name_with_a_path_in_it_is_refused(name: str) -> None:
    with pytest.raises(UriError, match="is a path"):
        find_module(None, Pkcs11Uri(module_name=name))


@pytest.mark.parametrize("path", ["/nowhere/m.so", "/\0", "/etc/passwd/m.so", "/dev/null", "/"])
def test_a_path_that_is_not_a_file_is_refused(path: str) -> None:
    with pytest.raises(ModuleLoadError) as refused:
        find_module(None, Pkcs11Uri(module_path=path))
    assert refused.value.hint


class TestTheUsersOwnConfiguration:
    @pytest.fixture
    def own(self, library: Path) -> Path:
        return configure(Path(os.environ["HOME"], ".config/pkcs11/modules"), "own", library / "libvendor.so")

    def test_the_users_own_configuration_is_used(self, own: Path, library: Path) -> None:
        assert modules_to_search() == [ModuleReference(library / "libvendor.so", "own")]

    def test_xdg_config_home_is_respected_as_in_p11_kit(
        self, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
        configure(tmp_path / "xdg/pkcs11/modules", "own", library / "libvendor.so")
        assert modules_to_search() == [ModuleReference(library / "libvendor.so", "own")]

    def test_a_configuration_that_cannot_be_reached_is_skipped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Root can reach every directory, but not one below a file.
        monkeypatch.setenv("HOME", "/" + "x" * 300)
        assert modules_to_search() == []

    @pytest.mark.parametrize(
        "ids", [{"getuid": 0, "geteuid": 0}, {"geteuid": 0}, {"getuid": 0}, {"getegid": -1}], ids=repr
    )
    @pytest.mark.usefixtures("own")
    def test_root_and_setuid_programs_ignore_the_users_configuration(
        self, monkeypatch: pytest.MonkeyPatch, ids: dict[str, int]
    ) -> None:
        for name, value in ids.items():
            monkeypatch.setattr(os, name, lambda value=value: value)
        assert modules_to_search() == []
