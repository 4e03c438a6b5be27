"""PIV cards: which slot a key is in, and which one to use next."""

import pytest

from hsm_signer.device.piv import id_for_next_key, slot_of


@pytest.mark.parametrize(
    ("key_id", "slot"),
    [
        (b"\x01", "9a"),
        (b"\x02", "9c"),
        (b"\x03", "9d"),
        (b"\x04", "9e"),
        (b"\x05", "82"),
        (b"\x18", "95"),
        (b"\x19", None),  # the attesting key
        (b"\x00", None),
        (b"", None),
        (b"\x01\x02", None),
    ],
)
def test_the_id_of_a_key_says_its_slot(key_id: bytes, slot: str | None) -> None:
    assert slot_of(key_id) == slot


@pytest.mark.parametrize(
    ("current", "taken", "chosen"),
    [
        (b"\x01", {b"\x01"}, "9c"),
        (b"\x02", {b"\x02"}, "9a"),
        (b"\x01", {b"\x01", b"\x02"}, "9d"),
        (b"\x01", {b"\x01", b"\x02", b"\x03"}, "9c"),
        (b"\x05", {b"\x05"}, "9a"),
    ],
)
def test_the_next_key_goes_into_a_free_slot_and_never_over_the_current_one(
    current: bytes, taken: set[bytes], chosen: str
) -> None:
    assert slot_of(id_for_next_key(current, frozenset(taken))) == chosen
