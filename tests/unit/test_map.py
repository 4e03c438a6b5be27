"""The maps for readers show the house as it is."""

import re
import tomllib
from pathlib import Path

import hsm_signer

PACKAGE = Path(hsm_signer.__file__).parent
ROOT = PACKAGE.parent


def test_the_readme_shows_the_layers_that_the_import_contract_holds() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    expected = [sorted(re.findall(r"hsm_signer\.(\w+)", layer)) for layer in layers]
    diagram = (ROOT / "README.md").read_text().partition("## Architecture")[2]
    rows = [re.split("  +", line.strip()) for line in diagram.splitlines() if re.match("    [a-z]", line)]
    known = {module for layer in expected for module in layer}
    assert [sorted(known.intersection(row)) for row in rows] == expected


def test_contributings_map_has_every_module_but_those_of_rooms_it_names_whole() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        found.add(name.partition("/")[0] + "/" if name.startswith(("cli/", "testing/")) else name)
    rooms = {name for name in found if not name.endswith("__init__")} - {"__main__"}
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert {name for row in rows for name in re.findall("`([^`]+)`", row)} == rooms
