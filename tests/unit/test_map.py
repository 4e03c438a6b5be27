"""CONTRIBUTING's map shows the house as it is."""

import re
import tomllib
from pathlib import Path

import pytest

import hsm_signer

PACKAGE = Path(hsm_signer.__file__).parent
ROOT = PACKAGE.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
ROWS = re.findall(r"^\| *(?:`([\w./]+)`)? *\|", CONTRIBUTING.partition("|---|---|")[2], re.MULTILINE)


def test_the_map_has_each_folder_and_each_module_at_the_top() -> None:
    folders = {path.parent.relative_to(PACKAGE).as_posix() + "/" for path in PACKAGE.rglob("*.py")} - {"./"}
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert set(filter(None, ROWS)) == folders | modules


def test_the_lines_of_the_map_are_the_layers_of_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    drawn = " ".join(re.sub(r"\W.*", "", row) or "/" for row in ROWS).split("/")
    assert [set(floor.split()) for floor in drawn] == [set(re.findall(r"hsm_signer\.(\w+)", layer)) for layer in layers]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:hsm_signer|tests|scripts)/[\w./]*)`", CONTRIBUTING))))
def test_what_contributing_names_exists(path: str) -> None:
    assert (ROOT / path).exists()
