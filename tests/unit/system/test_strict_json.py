"""JSON from outside gives a value that can be shown and written, or a ValueError that quotes none of it."""

import json
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.system.strict_json import parse_json

SECRET = "s3cret-4711"

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**300), 10**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_a_value_written_as_json_is_read_back(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a": 1, "a": 2}',
        "NaN",
        "[Infinity]",
        "-Infinity",
        "1e999",
        "[-1e999]",
        "9" * 4300,
        "9" * 5000,
        "-" + "9" * 400,
        "[" * 65 + "]" * 65,
        "[" * 100_000,
        '{"a":' * 900 + "1" + "}" * 900,
        b"\xff",
        "\ud800",
    ],
)
def test_invalid_or_ambiguous_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="not JSON that can be used"):
        parse_json(text)


def test_deeply_nested_json_is_read() -> None:
    assert parse_json("[" * 63 + "]" * 63)


@pytest.mark.parametrize("text", [SECRET, f'{{"{SECRET}": 1, "{SECRET}": 2}}', f'["{SECRET}"', f"[1e999, {SECRET}"])
def test_neither_the_error_nor_its_chain_quotes_the_text(text: str) -> None:
    with pytest.raises(ValueError, match="not JSON") as caught:
        parse_json(text)
    assert caught.value.__context__ is None
    assert SECRET not in "".join(traceback.format_exception(caught.value))
