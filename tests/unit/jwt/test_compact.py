"""Compact JWTs: base64url and parsing are strict, and no error quotes what it refuses."""

import json
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.util import urlsafe_b64encode

from hsm_signer.errors import JwtError
from hsm_signer.jwt.compact import base64url_decode, base64url_encode, parse_jwt


@given(st.binary())
def test_base64url_is_what_joserfc_writes(data: bytes) -> None:
    assert base64url_encode(data) == urlsafe_b64encode(data).decode()


@given(st.binary())
def test_decoded_base64url_is_what_was_encoded(data: bytes) -> None:
    assert base64url_decode(base64url_encode(data)) == data


def accepts(decode: Callable[[str], object], text: str) -> bool:
    try:
        decode(text)
    except ValueError:
        return False
    return True


@given(st.text("AQgw_-=+/ \n.é"))
def test_accepted_base64url_is_the_only_encoding_of_its_bytes(text: str) -> None:
    assert not accepts(base64url_decode, text) or base64url_encode(base64url_decode(text)) == text


@pytest.mark.parametrize(
    "text",
    ["QQ==", "QUE=", "Q", "QUFBQ", "QR", "QUF", "+w", "/w", "QQ\n", " QQ", "Q Q", "QQ\u0661", "QQ.", "\uff21\uff21"],
)
def test_a_string_that_is_not_strict_base64url_is_refused(text: str) -> None:
    assert not accepts(base64url_decode, text)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=4)


def part(value: object) -> str:
    return urlsafe_b64encode(json.dumps(value).encode()).decode()


@given(json_objects, json_objects, st.binary(max_size=64))
def test_a_jwt_is_parsed_without_loss(header: dict[str, Any], claims: dict[str, Any], signature: bytes) -> None:
    signing_input = f"{part(header)}.{part(claims)}"
    parsed = parse_jwt(f"{signing_input}.{urlsafe_b64encode(signature).decode()}")
    assert (parsed.header, parsed.claims, parsed.signing_input, parsed.signature) == (
        header,
        claims,
        signing_input.encode(),
        signature,
    )


def test_whitespace_around_a_jwt_is_ignored() -> None:
    assert parse_jwt(f" {part({})}.{part({})}.\r\n").claims == {}


SECRET = "s3cret-4711"
HEADER, CLAIMS = part({"alg": "RS256"}), part({"sub": SECRET})


def raw(text: str | bytes) -> str:
    return urlsafe_b64encode(text.encode() if isinstance(text, str) else text).decode()


MALFORMED = {
    "empty": ("", "it has 1 part, not 3"),
    "opaque": (SECRET, "it has 1 part, not 3"),
    "cut off": (f"{HEADER}.{CLAIMS}", "it has 2 parts, not 3"),
    "encrypted": (f"{HEADER}.{CLAIMS}.{CLAIMS}.{CLAIMS}.{CLAIMS}", "it has 5 parts, not 3"),
    "padded": (f"{HEADER}.{raw(SECRET + '!!')}=.", "The claims of the JWT is not base64url: it has padding"),
    "spaced": (f"{HEADER}.{CLAIMS} {SECRET}.", "or characters outside"),
    "standard base64": (f"{HEADER}.+/{CLAIMS}.", "or characters outside"),
    "impossible length": (f"{HEADER}.{CLAIMS}.AAAAA", "The signature of the JWT is not base64url: no base64url string"),
    "stray bits": (f"{HEADER}.{CLAIMS}.QR", "the unused bits of its last character are not zero"),
    "not ascii": (f"{HEADER}.{CLAIMS}é.", "or characters outside"),
    "empty header": (f".{CLAIMS}.", "The header of the JWT is not a JSON object"),
    "not utf-8": (f"{HEADER}.{raw(b'{' + SECRET.encode() + bytes([0xFF]))}.", "The claims of the JWT is not a JSON"),
    "not json": (f"{HEADER}.{raw('{' + SECRET)}.", "The claims of the JWT is not a JSON object"),
    "a list": (f"{HEADER}.{part([SECRET])}.", "The claims of the JWT is not a JSON object"),
    "a string": (f"{part(SECRET)}.{CLAIMS}.", "The header of the JWT is not a JSON object"),
    "a name twice": (f'{HEADER}.{raw(f"""{{"{SECRET}": 1, "{SECRET}": 2}}""")}.', "is not a JSON object"),
    "a name twice within": (
        f'{HEADER}.{raw(f"""{{"a": {{"{SECRET}": 1, "{SECRET}": 1}}}}""")}.',
        "is not a JSON object",
    ),
    "no number": (f'{HEADER}.{raw(f"""{{"{SECRET}": NaN}}""")}.', "is not a JSON object"),
    "infinite": (f'{HEADER}.{raw(f"""{{"{SECRET}": -Infinity}}""")}.', "is not a JSON object"),
    "too large a number": (f'{HEADER}.{raw(f"""{{"{SECRET}": {"1" * 5000}}}""")}.', "is not a JSON object"),
    "too deep": (f"{HEADER}.{raw(SECRET + '[' * 100_000)}.", "is not a JSON object"),
    "deep": (f"{HEADER}.{raw('[' * 100_000)}.", "is not a JSON object"),
}


def shown_by(error: BaseException) -> str:
    """Everything that an error and the errors behind it could show."""
    texts = ["".join(traceback.format_exception(error))]
    cause: BaseException | None = error
    while cause is not None:
        texts.append(f"{cause!r} {cause.args!r} {vars(cause)!r}")
        cause = cause.__context__
    return "".join(texts)


@pytest.mark.parametrize(("text", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_jwt_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(JwtError) as refused:
        parse_jwt(text)
    assert reason in refused.value.message


@pytest.mark.parametrize("text", [text for text, _ in MALFORMED.values()], ids=MALFORMED)
def test_the_error_does_not_contain_what_was_refused(text: str) -> None:
    with pytest.raises(JwtError) as refused:
        parse_jwt(text)
    shown = shown_by(refused.value)
    assert not any(secret in shown for secret in (SECRET, raw(SECRET)[:12], CLAIMS[8:]))


def error_of(text: str) -> JwtError | None:
    try:
        parse_jwt(text)
    except JwtError as refused:
        return refused
    return None


@given(st.lists(st.text() | st.binary().map(raw) | json_values.map(part), max_size=5))
def test_any_string_is_parsed_or_refused_with_a_jwt_error(parts: list[str]) -> None:
    text = ".".join(parts)
    assert error_of(text) is not None or len(parts) == 3


@given(st.text("s3cret47{}[]:,", min_size=8))
def test_no_error_quotes_the_string(text: str) -> None:
    refused = error_of(f"{HEADER}.{raw(text)}.")
    shown = "" if refused is None else shown_by(refused)
    assert (text in shown, raw(text) in shown) == (False, False)
