"""Exactly one device and one key must match; otherwise the error names every candidate, so that one can be chosen."""

import shlex
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm_signer.device.match import (
    DeviceInfo,
    KeyInfo,
    device_uris,
    key_uris,
    led_by,
    matches_device,
    matches_key,
    select_device,
    select_key,
)
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import DeviceAmbiguous, DeviceNotFound, HsmSignerError, KeyAmbiguous, KeyNotFound

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
OFFICE = DeviceInfo(
    label="Office card",
    manufacturer="Snake Oil, Inc.",
    model="PIV",
    serial="0001",
    slot_id=0,
    slot_description="Reader 00 00",
    slot_manufacturer="Reader Ltd",
    library_manufacturer="OpenSC Project",
    library_description="OpenSC smartcard framework",
    library_version=(0, 23),
)
HOME = replace(OFFICE, label="Home card", serial="0002", slot_id=1, slot_description="Reader 01 00")
SIGNING, BACKUP = KeyInfo("signing", b"\x01"), KeyInfo("backup", b"\x02")

# Few values, so that devices and keys often share some of them.
names = st.sampled_from(["", "a", "b;c, d.", "é/?"])
devices = st.lists(
    st.builds(
        DeviceInfo,
        label=names,
        manufacturer=names,
        model=names,
        serial=st.sampled_from(["", "0000000000000000", "1"]),
        slot_id=st.integers(0, 9),
        slot_description=names,
        slot_manufacturer=names,
        library_manufacturer=names,
        library_description=names,
        library_version=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda device: device.slot_id,
)
keys = st.lists(
    st.builds(KeyInfo, label=names, id=st.sampled_from([b"", b"\x00", b"\x01", b"01"])), min_size=1, max_size=6
)


WAY = Pkcs11Uri(module_name="opensc")


def candidates(error: HsmSignerError) -> list[Pkcs11Uri]:
    """The URIs of the commands, read as a shell does."""
    words = [shlex.split(command) for command in error.commands]
    assert all(option == "--key" for option, _ in words)
    return [Pkcs11Uri.parse(uri) for _, uri in words]


def led(uris: list[Pkcs11Uri]) -> list[Pkcs11Uri]:
    """The URIs with the way to their module, in the order of the alphabet."""
    return sorted((led_by(WAY, uri) for uri in uris), key=str)


@pytest.mark.parametrize(
    "uri",
    [
        Pkcs11Uri(token="Home card"),
        Pkcs11Uri(serial="0002"),
        Pkcs11Uri(slot_id=1),
        Pkcs11Uri(slot_description="Reader 01 00"),
        Pkcs11Uri(token="Home card", serial="0002", manufacturer="Snake Oil, Inc.", library_version=(0, 23)),
    ],
    ids=str,
)
def test_the_one_device_that_matches_is_selected(uri: Pkcs11Uri) -> None:
    assert select_device(uri, [OFFICE, HOME], MODULE) == 1


def test_an_empty_uri_selects_the_only_device() -> None:
    assert select_device(Pkcs11Uri(object="signing", id=b"\x01"), [HOME], MODULE) == 0


def test_slot_0_is_a_slot() -> None:
    assert select_device(Pkcs11Uri(slot_id=0), [HOME, OFFICE], MODULE) == 1


@pytest.mark.parametrize(
    "uri",
    [
        Pkcs11Uri(token="office card"),
        Pkcs11Uri(token=""),
        Pkcs11Uri(token="Office card", manufacturer="Another"),
        Pkcs11Uri(token="Office card", model="Another"),
        Pkcs11Uri(token="Office card", serial="0002"),
        Pkcs11Uri(token="Office card", slot_id=2),
        Pkcs11Uri(token="Office card", slot_description="Another"),
        Pkcs11Uri(token="Office card", slot_manufacturer="Another"),
        Pkcs11Uri(token="Office card", library_manufacturer="Another"),
        Pkcs11Uri(token="Office card", library_description="Another"),
        Pkcs11Uri(token="Office card", library_version=(0, 24)),
    ],
    ids=str,
)
def test_a_single_different_attribute_rules_a_device_out(uri: Pkcs11Uri) -> None:
    assert not matches_device(uri, OFFICE)


def test_if_there_is_no_device_the_message_says_what_was_searched_for_and_where() -> None:
    with pytest.raises(DeviceNotFound) as refused:
        select_device(Pkcs11Uri(token="Office card", object="signing", pin_value="4711"), [], MODULE)
    assert refused.value.message == f"{MODULE} shows no device. Looked for pkcs11:token=Office%20card."


def test_if_no_device_matches_the_message_names_those_present() -> None:
    with pytest.raises(DeviceNotFound) as refused:
        select_device(led_by(WAY, Pkcs11Uri(token="Another")), [OFFICE, HOME], MODULE)
    assert "pkcs11:token=Another." in refused.value.message
    assert candidates(refused.value) == led(device_uris([OFFICE, HOME]))


def test_if_several_devices_match_the_message_names_only_those() -> None:
    third = replace(HOME, label="Third card", slot_id=2, model="Another")
    with pytest.raises(DeviceAmbiguous) as refused:
        select_device(led_by(WAY, Pkcs11Uri(model="PIV")), [OFFICE, third, HOME], MODULE)
    assert "pkcs11:model=PIV." in refused.value.message
    assert candidates(refused.value) == led(device_uris([OFFICE, HOME]))


@given(devices)
def test_the_uri_of_a_device_selects_exactly_that_device(present: list[DeviceInfo]) -> None:
    uris = [Pkcs11Uri.parse(str(uri)) for uri in device_uris(present)]
    assert [select_device(uri, present, MODULE) for uri in uris] == list(range(len(present)))


@given(devices)
def test_the_uri_of_a_device_names_the_slot_only_if_label_and_serial_are_shared(present: list[DeviceInfo]) -> None:
    told_apart = [device for device in present if [(o.label, o.serial) for o in present].count(
        (device.label, device.serial)) == 1]  # fmt: skip
    assert not any(uri.slot_id is not None for uri in device_uris(told_apart))


def test_devices_that_differ_only_in_the_slot_get_uris_with_its_number() -> None:
    alike = [replace(OFFICE, slot_id=number) for number in (7, 8)]
    assert [uri.slot_id for uri in device_uris(alike)] == [7, 8]


def test_devices_with_the_same_label_and_serial_get_uris_with_their_reader() -> None:
    twin = replace(OFFICE, slot_id=1, slot_description="Reader 01 00")
    assert [uri.slot_description for uri in device_uris([OFFICE, twin])] == ["Reader 00 00", "Reader 01 00"]


@pytest.mark.parametrize(
    "uri",
    [Pkcs11Uri(object="backup"), Pkcs11Uri(id=b"\x02"), Pkcs11Uri(object="backup", id=b"\x02")],
    ids=str,
)
def test_the_one_key_that_matches_is_selected(uri: Pkcs11Uri) -> None:
    assert select_key(uri, [SIGNING, BACKUP], OFFICE) == 1


def test_an_empty_uri_selects_the_only_key() -> None:
    assert select_key(Pkcs11Uri(token="Office card"), [BACKUP], OFFICE) == 0


@pytest.mark.parametrize(
    "uri",
    [Pkcs11Uri(object="signing", id=b"\x02"), Pkcs11Uri(object="Signing"), Pkcs11Uri(id=b"01"), Pkcs11Uri(id=b"")],
    ids=str,
)
def test_a_different_label_or_id_rules_a_key_out(uri: Pkcs11Uri) -> None:
    assert not matches_key(uri, SIGNING)


def test_if_no_key_matches_the_message_names_those_on_the_device() -> None:
    with pytest.raises(KeyNotFound) as refused:
        select_key(led_by(WAY, Pkcs11Uri(object="other")), [SIGNING, BACKUP], OFFICE)
    assert "pkcs11:object=other." in refused.value.message
    assert candidates(refused.value) == led(key_uris(OFFICE, [SIGNING, BACKUP]))


def test_the_message_says_if_the_device_has_no_keys() -> None:
    with pytest.raises(KeyNotFound, match="The device has none") as refused:
        select_key(Pkcs11Uri(object="other"), [], OFFICE)
    assert refused.value.hint is not None
    assert "without a login" in refused.value.hint


def test_if_several_keys_match_the_message_names_only_those() -> None:
    renewed = KeyInfo("signing", b"\x03")
    with pytest.raises(KeyAmbiguous) as refused:
        select_key(led_by(WAY, Pkcs11Uri(object="signing")), [SIGNING, BACKUP, renewed], OFFICE)
    assert candidates(refused.value) == led(key_uris(OFFICE, [SIGNING, renewed]))


@given(keys)
def test_the_uri_of_a_key_matches_only_keys_with_the_same_label_and_id(present: list[KeyInfo]) -> None:
    for key, uri in zip(present, key_uris(OFFICE, present), strict=True):
        assert {other for other in present if matches_key(Pkcs11Uri.parse(str(uri)), other)} == {key}


@given(keys)
def test_the_uri_of_a_key_names_its_device(present: list[KeyInfo]) -> None:
    assert all(matches_device(uri, OFFICE) for uri in key_uris(OFFICE, present))


def test_a_key_is_shown_with_its_label_and_id() -> None:
    assert [str(SIGNING), str(KeyInfo("", b""))] == ["'signing', id 01", "'without a label', id none"]


def test_a_device_is_shown_with_its_label_and_its_other_facts() -> None:
    assert [str(OFFICE), str(replace(OFFICE, label="", manufacturer=""))] == [
        "'Office card' (Snake Oil, Inc., PIV, 0001)",
        "'PIV' (PIV, 0001)",
    ]
