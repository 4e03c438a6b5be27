"""What a server echoes of what we sent is not shown, however it is written."""

import base64
import json
import textwrap
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.entra.redaction import without_tokens


def part(seed: int, length: int) -> str:
    return base64.urlsafe_b64encode(bytes((seed * 31 + at * 97) % 256 for at in range(length))).decode().rstrip("=")


ASSERTION = f"eyJhbGciOiJSUzI1NiJ9.{part(1, 150)}.{part(2, 256)}"
LONG = 12
"""Characters that must not remain in a row."""


def wrapped(width: int, by: str) -> str:
    return by.join(textwrap.wrap(ASSERTION, width, break_long_words=True))


ECHOES: dict[str, Callable[[], str]] = {
    "as it is": lambda: ASSERTION,
    "wrapped": lambda: wrapped(40, "\n"),
    "wrapped and indented": lambda: wrapped(64, "\r\n    "),
    "spaced": lambda: " ".join(ASSERTION),
    "in JSON": lambda: json.dumps(wrapped(40, "\n")),
    "in JSON by numbers": lambda: "".join(f"\\u{ord(each):04x}" for each in ASSERTION),
    "in a URL": lambda: quote(wrapped(40, "\n")),
    "in a URL by numbers": lambda: "".join(f"%{ord(each):02X}" for each in ASSERTION),
    "in HTML": lambda: wrapped(40, "<br/>\n&nbsp;"),
    "in part": lambda: ASSERTION[100:180],
    "the signature": lambda: wrapped(40, "\n").rpartition(".")[2],
}


def remains(shown: str) -> list[str]:
    """Return the pieces of the assertion that are left, with what may stand between its characters taken out."""
    bare = "".join(each for each in shown if each.isalnum() or each in "._-")
    return [ASSERTION[at : at + LONG] for at in range(len(ASSERTION) - LONG) if ASSERTION[at : at + LONG] in bare]


@pytest.mark.parametrize("echo", ECHOES)
def test_an_echo_is_removed_and_the_words_around_it_stay(echo: str) -> None:
    shown = without_tokens(f"The assertion '{ECHOES[echo]()}' was refused.", ASSERTION)
    assert remains(shown) == []
    assert shown.startswith("The assertion '")
    assert shown.endswith("' was refused.")
    assert "%65%79" not in shown
    assert "\\u0065" not in shown


@given(
    st.lists(st.integers(20, 70), min_size=1, max_size=30), st.sampled_from(["\n", " ", "\t> ", "\\n", "%0A", "&#10;"])
)
def test_no_way_of_wrapping_leaves_a_long_run(widths: list[int], by: str) -> None:
    rest, lines = ASSERTION, []
    for width in widths:
        lines.append(rest[:width])
        rest = rest[width:]
    assert remains(without_tokens(by.join([*lines, rest]), ASSERTION).replace(by, "")) == []


def test_other_text_stays_as_it_is() -> None:
    text = "AADSTS700027: certificate 84E05C1D98BCE3A5421D225B140B36E86A3D5534 not found. 100%, \\n, &amp; stay."
    assert without_tokens(text, ASSERTION) == text
