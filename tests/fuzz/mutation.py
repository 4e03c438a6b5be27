"""Hostile input: valid input with a few octets changed, or of the right shape with wrong types.

`fuzz` sets how many inputs a test tries: HSM_SIGNER_FUZZ=20 in the environment makes it twenty times as many.
"""

import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from hsm_signer.errors import HsmSignerError
from hsm_signer.system.display import displayable

fuzz = settings(
    max_examples=80 * int(os.environ.get("HSM_SIGNER_FUZZ", "1")),
    deadline=timedelta(seconds=10),  # no input hangs
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

any_text = st.text(st.characters())  # with lone surrogates
_RUNS = [b"", b"\0", b"\xff", b"%", b'"', b"\\", b"{", b"[" * 2000, b"9" * 5000, b"1e999", b"-0", b"\xed\xa0\x80"]
odd_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | any_text
    | st.sampled_from(["", "pkcs11:", "refused", "Bearer", "RS256", 10**400, -1, 0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)


@contextmanager
def only_errors_of_ours() -> Iterator[None]:
    """Suppress our own errors; any other exception fails the test."""
    explained = None
    try:
        yield
    except HsmSignerError as error:
        explained = error
    if explained is not None:
        assert explained.exit_status != HsmSignerError.exit_status  # that status means a bug of ours
        assert displayable(f"{explained.message}{explained.hint}").isprintable()


@st.composite
def mutated(draw: st.DrawFn, *seeds: bytes) -> bytes:
    """One of the seeds, with up to four runs of octets replaced, inserted or removed."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([0, 0, 1, 1, 2, 8, 64]))
        data[start : start + length] = draw(st.binary(max_size=4) | st.sampled_from(_RUNS))
    return bytes(data)


def mutated_text(*seeds: str) -> st.SearchStrategy[str]:
    """One of the seeds, mutated likewise, or any string; undecodable octets are surrogates, as in sys.argv."""
    changed = mutated(*(seed.encode() for seed in seeds))
    return changed.map(lambda raw: raw.decode(errors="surrogateescape")) | any_text


@st.composite
def with_odd_members(draw: st.DrawFn, document: dict[str, Any]) -> bytes:
    """A JSON document with some members, on any level, of another type, missing or added."""

    def change(value: Any) -> Any:
        if draw(st.integers(0, 6)) == 0:
            return draw(odd_json)
        if isinstance(value, dict):
            changed = {name: change(inner) for name, inner in value.items() if draw(st.integers(0, 9))}
            return changed | draw(st.dictionaries(any_text, odd_json, max_size=1))
        if isinstance(value, list):
            return [change(inner) for inner in value]
        return value

    return json.dumps(change(document)).encode()


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
