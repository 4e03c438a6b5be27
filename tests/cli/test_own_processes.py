"""Our processes protect their memory, and the programs they start see no PIN. Other programs are left unchanged."""

import resource
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.c_library import compile_library
from tests.support.names import PIN
from tests.support.program import Program, Settings, options

# As soon as it is loaded, it writes down what it finds in its process. Then it refuses to be a module.
SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>

extern char **environ;

__attribute__((constructor)) static void look(void) {
    struct rlimit core;
    FILE *found = fopen(getenv("FOUND"), "w");
    getrlimit(RLIMIT_CORE, &core);
    fprintf(found, "dumpable %d, core %ld\n", prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), (long)core.rlim_cur);
    for (char **variable = environ; *variable; variable++)
        fprintf(found, "%s\n", *variable);
    fclose(found);
}
"""
# With core files of any size, as far as that is allowed.
WITH_CORES = ("sh", "-c", 'ulimit -S -c "$(ulimit -H -c)"; exec "$@"', "sh")
HARD_LIMIT = resource.getrlimit(resource.RLIMIT_CORE)[1]

LIBRARY = """
import sys
from pathlib import Path
from hsm_signer.device.module import load_module
from hsm_signer.errors import ModuleLoadError
try:
    load_module(Path(sys.argv[1]), {}, 60)
except ModuleLoadError:
    pass
"""

COMMANDS = {
    "itself": ["assertion"],
    "a worker": ["assertion-file", "run/assertion", "--once"],
    "a survey": ["device", "list"],
}


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(SOURCE, tmp_path_factory.mktemp("look"))


@pytest.fixture
def found(program: Program) -> Path:
    (program.directory / "run").mkdir(mode=0o700)
    return program.directory / "found"


def settings_of(command: Sequence[str], signing: Settings, module: Path) -> Settings:
    return {"module": str(module)} if command == COMMANDS["a survey"] else {**signing, "module": str(module)}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_process_of_ours_writes_no_core_file_and_cannot_be_traced(
    command: list[str], program: Program, signing: Settings, module: Path, found: Path
) -> None:
    settings = options(settings_of(command, signing, module))
    program(*command, *settings, environment={"FOUND": str(found)}, within=WITH_CORES)
    assert found.read_text().splitlines()[0] == "dumpable 0, core 0"


def test_a_program_that_uses_the_library_is_left_unchanged(program: Program, module: Path, found: Path) -> None:
    program(str(module), environment={"FOUND": str(found)}, python=("-c", LIBRARY), within=WITH_CORES)
    assert found.read_text().splitlines()[0] == f"dumpable 1, core {HARD_LIMIT}"


@pytest.mark.parametrize("command", [COMMANDS["a worker"], COMMANDS["a survey"]], ids=["a worker", "a survey"])
@pytest.mark.parametrize(
    "configured",
    [
        {"HSM_SIGNER_PIN_SOURCE": "env:THE_PIN", "THE_PIN": PIN},
        {"HSM_SIGNER_KEY": "pkcs11:object=good?pin-source=env:THE_PIN", "THE_PIN": PIN},
        {"HSM_SIGNER_KEY": f"pkcs11:object=good?pin-value={PIN}"},
    ],
    ids=["of a PIN source", "of a PIN source in a URI", "of a URI with a PIN"],
)
def test_what_we_start_does_not_inherit_the_variable(
    command: list[str], configured: Settings, program: Program, signing: Settings, module: Path, found: Path
) -> None:
    elsewhere = {name.removeprefix("HSM_SIGNER_").lower(): None for name in configured}
    settings = {name: value for name, value in settings_of(command, signing, module).items() if name not in elsewhere}
    environment = {"DEVICE_PIN": "none", "FOUND": str(found), **configured}
    program(*command, *options(settings), environment=environment)
    seen = found.read_text()
    assert "HOME=" in seen
    assert PIN not in seen
