"""The URIs of p11-kit's own parser tests (its test-uri.c): what we parse alike, and where we differ on purpose.

A URI that p11-kit's tools show must work here, or the error must say why it does not.
"""

import pytest

from hsm_signer.device.match import DeviceInfo, KeyInfo, matches_device, matches_key
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import UriError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pkcs11:", Pkcs11Uri()),
        ("PKCS11:", Pkcs11Uri()),
        ("pkcs11:object=Test%20Label", Pkcs11Uri(object="Test Label")),
        ("pkcs11:object=Test%20Label;type=cert", Pkcs11Uri(object="Test Label", type="cert")),
        ("pkcs11:object=;type=cert", Pkcs11Uri(object="", type="cert")),
        ("pkcs11:id=;type=cert", Pkcs11Uri(id=b"", type="cert")),
        ("pkcs11:type=cert", Pkcs11Uri(type="cert")),
        ("pkcs11:id=%54%45%53%54%00", Pkcs11Uri(id=b"TEST\0")),
        (
            "pkcs11:token=Token%20Label;serial=3333;model=Deluxe;manufacturer=Me",
            Pkcs11Uri(token="Token Label", serial="3333", model="Deluxe", manufacturer="Me"),
        ),
        (
            "pkcs11:library-description=The%20Library;library-manufacturer=Me",
            Pkcs11Uri(library_description="The Library", library_manufacturer="Me"),
        ),
        (
            "pkcs11:slot-description=Slot%20Description;slot-manufacturer=Me",
            Pkcs11Uri(slot_description="Slot Description", slot_manufacturer="Me"),
        ),
        ("pkcs11:type=private", Pkcs11Uri(type="private")),
        ("pkcs11:type=secret-key", Pkcs11Uri(type="secret-key")),
        ("pkcs11:library-version=2.101", Pkcs11Uri(library_version=(2, 101))),
        ("pkcs11:library-version=23", Pkcs11Uri(library_version=(23, 0))),
        ("pkcs11:x-blah=some-value", Pkcs11Uri(vendor_path=(("x-blah", "some-value"),))),
        ("pkcs11:object=Fancy;id=Blah;type=data", Pkcs11Uri(object="Fancy", id=b"Blah", type="data")),
        ("pkcs11:?pin-source=blah%2Fblah", Pkcs11Uri(pin_source="blah/blah")),
        ("pkcs11:?pin-source=%7cmy-pin-file", Pkcs11Uri(pin_source="|my-pin-file")),
        ("pkcs11:?pin-value=blah%2Fblah", Pkcs11Uri(pin_value="blah/blah")),
        ("pkcs11:?pin-value=1%2a%26%23%25%26%40%28", Pkcs11Uri(pin_value="1*&#%&@(")),
        ("pkcs11:?module-name=blah%2Fblah", Pkcs11Uri(module_name="blah/blah")),
        ("pkcs11:?module-name=1%2a%26%23%25%26%40%28", Pkcs11Uri(module_name="1*&#%&@(")),
        ("pkcs11:?module-path=%2fmy-module-path", Pkcs11Uri(module_path="/my-module-path")),
        (
            "pkcs11:?module-name=123456&module-path=%2fmy-module-path",
            Pkcs11Uri(module_name="123456", module_path="/my-module-path"),
        ),
        ("pkcs11:slot-id=67890", Pkcs11Uri(slot_id=67890)),
    ],
)
def test_uris_that_p11_kit_parses_are_parsed_alike(text: str, expected: Pkcs11Uri) -> None:
    assert Pkcs11Uri.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http:\\example.com\test",
        "pkcs11:object=Test%",
        "pkcs11:object=T%xxest",
        "pkcs11:token=Token%",
        "pkcs11:token",
        "pkcs11:library-description=Library%",
        "pkcs11:library-version=23.",
        "pkcs11:library-version=a.a",
        "pkcs11:library-version=.23",
        "pkcs11:library-version=1000",
        "pkcs11:library-version=2.1000",
        "pkcs11:?pin-value=blahblah%2",
        "pkcs11:?module-name=blahblah%2",
        "pkcs11:slot-id=123^456",
    ],
)
def test_uris_that_p11_kit_refuses_are_refused(text: str) -> None:
    with pytest.raises(UriError):
        Pkcs11Uri.parse(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        # p11-kit drops white space anywhere. RFC 7512 does not allow it (section 2.3), and a URI that a mail program
        # wrapped may have lost more than that.
        pytest.param(
            "pkc\ns11: lib rary-desc\rrip  \n  tion =The%20Library;\n\n\nlibrary-manufacturer=\rMe",
            "must begin with pkcs11:",
            id="white space in the scheme",
        ),
        pytest.param("pkcs11: token=a", "cannot be part of an attribute's name", id="white space in a name"),
        pytest.param("pkcs11:token=a\n", "must be percent-encoded", id="white space in a value"),
        # In p11-kit a URI with an unknown type or attribute matches nothing. Here the error says why.
        pytest.param("pkcs11:type=unknown", "type must be one of", id="unknown type"),
        pytest.param("pkcs11:?my-query-two=some-value", "no attribute of this name", id="unknown attribute"),
        pytest.param("pkcs11:?bbb=zzz&aaa=xxx&aaa=yyy", "no attribute of this name", id="unknown attributes"),
        # p11-kit still accepts its name from before the RFC.
        pytest.param("pkcs11:object=Test%20Label;object-type=cert", "no attribute of this name", id="object-type"),
        # This would load code from the current directory.
        pytest.param("pkcs11:?module-path=blah%2Fblah", "must be an absolute path", id="relative module-path"),
    ],
)
def test_some_uris_that_p11_kit_accepts_are_refused_on_purpose(text: str, complaint: str) -> None:
    with pytest.raises(UriError, match=complaint):
        Pkcs11Uri.parse(text)


def test_a_value_longer_than_the_devices_field_matches_nothing() -> None:
    # CK_TOKEN_INFO has 16 characters for the model.
    uri = Pkcs11Uri.parse("pkcs11:model=a-value-that-is-too-long-for-the-field-that-it-goes-with")
    assert not matches_device(uri, device(model="a-value-that-is-"))


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        (
            Pkcs11Uri(token="The Label", serial="44444", manufacturer="Me", model="Deluxe"),
            ("token=The%20Label", "serial=44444", "manufacturer=Me", "model=Deluxe"),
        ),
        (Pkcs11Uri(token="", serial=""), ("token=", "serial=")),
        (
            Pkcs11Uri(object="The Label", id=b"HELLO", type="data"),
            ("object=The%20Label", "id=%48%45%4C%4C%4F", "type=data"),
        ),
        (
            Pkcs11Uri(slot_description="The Slot Description", slot_manufacturer="Me"),
            ("slot-description=The%20Slot%20Description", "slot-manufacturer=Me"),
        ),
        (Pkcs11Uri(type="cert"), ("type=cert",)),
        (Pkcs11Uri(type="private"), ("type=private",)),
        (Pkcs11Uri(type="public"), ("type=public",)),
        (Pkcs11Uri(type="secret-key"), ("type=secret-key",)),
        (Pkcs11Uri(library_description="The Description"), ("library-description=The%20Description",)),
        (Pkcs11Uri(library_version=(2, 10)), ("library-version=2.10",)),
        (Pkcs11Uri(slot_id=12345), ("slot-id=12345",)),
    ],
)
def test_uris_are_written_like_p11_kit_writes_them(uri: Pkcs11Uri, parts: tuple[str, ...]) -> None:
    written = str(uri).removeprefix("pkcs11:").split(";")
    assert sorted(written) == sorted(parts)


@pytest.mark.parametrize(
    ("text", "model", "description", "version", "matches"),
    [
        ("pkcs11:model=Giselle", "Giselle", "", (0, 0), True),
        ("pkcs11:model=Giselle", "Zoolander", "", (0, 0), False),
        ("pkcs11:library-description=Quiet", "", "Quiet", (0, 0), True),
        ("pkcs11:library-description=Quiet", "", "Leise", (0, 0), False),
        ("pkcs11:library-version=5.8", "", "", (5, 8), True),
        ("pkcs11:library-version=5.8", "", "", (2, 3), False),
    ],
)
def test_devices_match_like_in_p11_kit(
    text: str, model: str, description: str, version: tuple[int, int], matches: bool
) -> None:
    assert matches_device(Pkcs11Uri.parse(text), device(model, description, version)) is matches


@pytest.mark.parametrize(("label", "matches"), [("Junk", False), ("Fancy", True)])
def test_keys_match_like_in_p11_kit(label: str, matches: bool) -> None:
    assert matches_key(Pkcs11Uri.parse("pkcs11:object=Fancy;id=Blah"), KeyInfo(label, b"Blah")) is matches


def device(model: str, description: str = "", version: tuple[int, int] = (0, 0)) -> DeviceInfo:
    return DeviceInfo(
        label="A label",
        manufacturer="Someone",
        model=model,
        serial="1",
        slot_id=0,
        slot_description="",
        slot_manufacturer="",
        library_manufacturer="Someone",
        library_description=description,
        library_version=version,
    )
