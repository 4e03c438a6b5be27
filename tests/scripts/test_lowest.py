"""`scripts/test --lowest` installs the lowest versions that pyproject.toml allows."""

import re
import tomllib
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[2]

# They check the code, and run only in the version of constraints.txt: each release has other rules.
LINTERS = {"import-linter", "mypy", "ruff"}


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(each for extra in project["project"]["optional-dependencies"].values() for each in extra),
        *project["dependency-groups"]["dev"],
    ]
    bounds = dict(pair for each in requirements for pair in re.findall(r"^([a-z0-9-]+)>=([0-9.]+)", each))
    assert len(bounds) == len(set(requirements))
    text = (ROOT / "scripts" / "constraints-lowest.txt").read_text()
    pinned = dict(line.split("==") for line in text.splitlines() if not line.startswith("#"))
    assert {name.replace("_", "-"): Version(version) for name, version in pinned.items()} == {
        name: Version(bound) for name, bound in bounds.items() if name not in LINTERS
    }
