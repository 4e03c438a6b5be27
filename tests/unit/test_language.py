"""What strangers read is plain English: it avoids the words and phrases listed here."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import hsm_signer
from hsm_signer.cli.app import make_program

PACKAGE = Path(hsm_signer.__file__).parent
ROOT = PACKAGE.parent
PAGES = [ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
SCRIPTS = [path for path in sorted((ROOT / "scripts").iterdir()) if path.suffix in (".py", "")]

# A pattern to avoid, and what to write instead.
AVOID = {
    r"mend(s|ed|ing)?": "fix",
    r"anew|afresh": "again",
    r"whoever": "anybody who, the user",
    r"what (became|becomes) of": "what happened to",
    r"(let|lets|letting) go of": "release, close",
    r"for want of": "without",
    r"in vain": "without success",
    r"(go|goes|going|gone|went) on with": "continue",
    r"(is|are|was) not there": "does not exist, is missing",
    r"(is|are) unwell": "is unavailable",
    r"made out to": "issued for",
    r"said to be": "name who says it",
    r"for ever": "forever",
    r"(begin|begins) again": "run the command again",
    r"take(s|n)? notice": "sees the change",
    r"of (its|their) own accord": "by itself",
    r"lest": "so that … not",
    r"that which": "what",
    r"(device|card|key|module|TPM|token)s? (wants?|tells?)": "requires, reports",
    r"wants? (a|the|its|no) (PIN|login|touch)": "requires",
    r"(not|nor|never|is|are) told\b(?! (to|that|apart))": "not reported",
}
PATTERN = re.compile(rf"\b(?:{'|'.join(f'(?:{each})' for each in AVOID)})\b", re.IGNORECASE)


def avoided(place: str, text: str) -> list[str]:
    """Return what `text` should not say, each with its place and the words around it."""
    text = " ".join(text.split())
    return [f"{place}: …{text[max(0, hit.start() - 40) : hit.end() + 30]}…" for hit in PATTERN.finditer(text)]


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the strings of a module, docstrings too, by line. An f-string is one string, without its values."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments of a module, by line. The lines of a block are one comment."""
    block: list[str] = []
    last = first = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if line != last + 1 and block:
            yield first, " ".join(block)
            block = []
        first = first if block else line
        block.append(token.string.lstrip("# "))
        last = line
    if block:
        yield first, " ".join(block)


def helps(path: str, command: Any) -> Iterator[tuple[str, str]]:
    """Yield the help of a command, of its options and of the commands in it, by name."""
    yield path, command.help or ""
    for parameter in command.params:
        yield f"{path} {parameter.name}", getattr(parameter, "help", None) or ""
    for name, inner in getattr(command, "commands", {}).items():
        yield from helps(f"{path} {name}", inner)


HELPS = list(helps("hsm-signer", typer.main.get_command(make_program([]))))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=name)
def test_messages_docstrings_and_comments(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    texts = [*strings(ast.parse(source)), *comments(source)]
    assert [hit for line, text in texts for hit in avoided(f"{name(path)}:{line}", text)] == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_pages(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    paragraphs = [(text.count("\n", 0, hit.start()) + 1, hit[0]) for hit in re.finditer(r"(?:.+\n?)+", text)]
    assert [hit for line, words in paragraphs for hit in avoided(f"{name(path)}:{line}", words)] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [hit for line, text in enumerate(lines, 1) for hit in avoided(f"{name(path)}:{line}", text)] == []


def test_helps() -> None:
    assert [hit for place, text in HELPS for hit in avoided(place, text)] == []


def test_no_help_leans_on_the_name_of_its_option() -> None:
    assert [place for place, text in HELPS if text.startswith("Of ")] == []


def test_every_option_of_ours_has_a_help() -> None:
    assert [place for place, text in HELPS if not text] == []


@pytest.mark.parametrize(
    "text", ["How to mend it.", "It is made\nout to another tenant.", "The device wants a PIN.", "It went on with it."]
)
def test_what_is_to_be_avoided_is_found(text: str) -> None:
    assert avoided("here", text)


@pytest.mark.parametrize(
    "text", ["A recommended amendment.", "How to tell them apart.", "It is told to stop.", "fastest"]
)
def test_other_words_are_not(text: str) -> None:
    assert avoided("here", text) == []
