"""Text from outside cannot control the terminal or forge a line when it is shown, and stays legible."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.device.match import DeviceInfo
from hsm_signer.system.display import displayable, displayable_lines

text = st.text(st.characters())  # with lone surrogates


@given(text)
def test_every_character_is_shown_on_one_line(words: str) -> None:
    assert displayable(words).isprintable()


@given(text)
def test_displayable_text_is_not_changed(words: str) -> None:
    assert displayable(displayable(words)) == displayable(words)


@pytest.mark.parametrize("words", ["", "Zoë's Karte №1", "鍵 🔑", r"C:\x1b"])
def test_ordinary_names_are_not_changed(words: str) -> None:
    assert displayable(words) == words


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("\x1b", r"\x1b"),
        ("\n", r"\n"),
        ("\x7f", r"\x7f"),
        ("\x9b", r"\x9b"),
        ("\u202e", r"\u202e"),
        ("\u2066", r"\u2066"),
        ("\u2028", r"\u2028"),
        ("\u200b", r"\u200b"),
        ("\ufeff", r"\ufeff"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_control_and_invisible_characters_are_escaped(character: str, shown: str) -> None:
    assert displayable(f"a{character}b") == f"a{shown}b"


@given(text)
def test_line_breaks_are_kept_where_several_lines_are_allowed(words: str) -> None:
    assert displayable_lines(words).split("\n") == [displayable(line) for line in words.split("\n")]


@given(text, text)
def test_a_device_describes_itself_on_one_line(label: str, other: str) -> None:
    device = DeviceInfo(label, other, other, other, 0, other, other, other, other, (0, 0))
    assert str(device).isprintable()
