"""The threat model names a test behind each claim, and there is one of that name."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
CLAIMS = [
    row
    for row in MODEL.partition("### What holds")[2].partition("### What does not")[0].splitlines()
    if row[:2] == "| "
]


@cache
def names_in(file: str) -> set[str]:
    """Return the tests of a file, as pytest names them."""
    found = set()
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {f"{prefix}{each.name}" for each in inner if isinstance(each, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("row", [row for row in CLAIMS if not row.startswith("| claim |")])
def test_each_claim_names_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", row)
    assert named
    for file, name in named:
        assert name in names_in(file)


def test_there_are_claims() -> None:
    assert len(CLAIMS) > 30
