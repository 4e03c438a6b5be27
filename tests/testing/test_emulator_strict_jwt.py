"""The strict reading of compact JWTs."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.testing.entra.strict_jwt import Malformed, StrictJwt, decode_base64url, json_object, whole_seconds

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_OBJECTS = st.dictionaries(st.text(), _JSON, max_size=3)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _jwt(header: bytes = b"{}", claims: bytes = b"{}") -> str:
    return f"{_encode(header)}.{_encode(claims)}.{_encode(b'signature')}"


@given(_OBJECTS, _OBJECTS)
def test_every_pair_of_json_objects_is_read_as_written(header: dict[str, object], claims: dict[str, object]) -> None:
    text = _jwt(json.dumps(header).encode(), json.dumps(claims).encode())
    assert StrictJwt.parse(text) == StrictJwt(header, claims)


@given(st.text())
def test_any_string_is_a_jwt_or_malformed(text: str) -> None:
    try:
        jwt = StrictJwt.parse(text)
    except Malformed:
        return
    assert jwt.header is not None


@given(st.binary())
def test_base64url_is_decoded(data: bytes) -> None:
    assert decode_base64url(_encode(data), "it") == data


@given(st.text(st.sampled_from("Ab-_9+/= \n"), max_size=12))
def test_each_value_has_one_base64url_form(text: str) -> None:
    try:
        value = decode_base64url(text, "it")
    except Malformed:
        return
    assert _encode(value) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("YQ==", "padded", id="padding"),
        pytest.param("+/+/", "not base64url", id="the alphabet of base64"),
        pytest.param("YWFh\n", "not base64url", id="a line end"),
        pytest.param("YWFhY", "not base64url", id="a length no encoding has"),
        pytest.param("YR", "stray bits", id="bits behind the last octet"),
    ],
)
def test_invalid_base64url_is_refused(text: str, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        decode_base64url(text, "it")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("e30.e30", "2 parts", id="no signature"),
        pytest.param(_jwt(claims=b'{"exp":1,"exp":2}'), "the claims names a member twice", id="a member twice"),
        pytest.param(_jwt(claims=b'{"a":{"b":1,"b":1}}'), "twice", id="a member twice, deep inside"),
        pytest.param(_jwt(claims=b'{"exp":NaN}'), "NaN", id="not a number"),
        pytest.param(_jwt(claims=b'["exp"]'), "but a array", id="an array"),
        pytest.param(_jwt(header=b"null"), "but a null", id="null"),
        pytest.param(_jwt(header=b"{"), "the header is not JSON", id="cut short"),
        pytest.param(_jwt(header=b'{"a":"\xff"}'), "not JSON in UTF-8", id="not UTF-8"),
        pytest.param(_jwt(header=b"\xef\xbb\xbf{}"), "not JSON", id="a byte order mark"),
        pytest.param(_jwt(claims=b'{"a":' * 100_000), "not JSON", id="nested without end"),
    ],
)
def test_a_string_that_is_not_a_jwt_is_refused(text: str, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        StrictJwt.parse(text)


@pytest.mark.parametrize("value", [1.0, "1", True, None, [1]])
def test_a_time_must_be_an_integer(value: object) -> None:
    with pytest.raises(Malformed, match="not an integer"):
        whole_seconds(value, "the time")


@given(_OBJECTS)
def test_every_json_object_is_read_as_written(value: dict[str, object]) -> None:
    assert json_object(json.dumps(value, ensure_ascii=False).encode(), "it") == value


def test_the_error_does_not_contain_the_jwt() -> None:
    with pytest.raises(Malformed) as caught:
        StrictJwt.parse(_jwt(claims=b'{"secret":'))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
