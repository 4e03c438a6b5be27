"""PIV cards (NIST SP 800-73-4), such as a YubiKey: their keys are in fixed slots; pure."""

from hsm_signer.device.match import DeviceInfo

_FIRST = ("9a", "9c", "9d", "9e")
_FIRST_RETIRED, _RETIRED = 0x82, 20


def is_piv(device: DeviceInfo) -> bool:
    """Return whether a device is a PIV card, as ykcs11 and OpenSC describe one."""
    by_ykcs11 = device.manufacturer.startswith("Yubico") and device.model.startswith("YubiKey")
    return by_ykcs11 or device.manufacturer == "piv_II"


def slot_of(key_id: bytes) -> str | None:
    """Return the slot of a key, as ykman names it: "9a". None for an id that is no slot's.

    Args:
        key_id: CKA_ID. ykcs11 and OpenSC number the slots alike: 9a, 9c, 9d, 9e, then the retired ones from 82.
    """
    number = int.from_bytes(key_id, "big") - 1
    if len(key_id) != 1 or not 0 <= number < len(_FIRST) + _RETIRED:
        return None
    return _FIRST[number] if number < len(_FIRST) else f"{_FIRST_RETIRED + number - len(_FIRST):x}"


def id_for_next_key(current: bytes, taken: frozenset[bytes]) -> bytes:
    """Return the id of the slot to generate the next key in: 9a, 9c or 9d, a free one if there is one.

    Args:
        current: id of the key in use, which is never returned.
        taken: ids of all keys on the card.
    """
    slots = [slot for slot in (b"\x01", b"\x02", b"\x03") if slot != current]
    return next((slot for slot in slots if slot not in taken), slots[0])
