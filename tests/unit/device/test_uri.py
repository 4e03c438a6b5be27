"""Parsing, writing and refusing RFC 7512 URIs."""

import pickle
import subprocess
import traceback
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsm_signer.device.uri import ObjectType, Pkcs11Uri, VendorAttributes
from hsm_signer.errors import UriError

PIN = "s3cr;t"

_OBJECT_TYPES: list[ObjectType] = ["public", "private", "cert", "secret-key", "data"]

text = st.text(st.characters(exclude_categories=["Cs"]))
vendor_names = st.builds(
    "{}{}".format,
    st.sampled_from(["x-", "vendor-"]),
    st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", min_size=1),
).filter(lambda name: name != "x-pin-value")
vendor_attributes = st.lists(st.tuples(vendor_names, text)).map(tuple)
vendor_path_attributes = st.lists(st.tuples(vendor_names, text), unique_by=lambda pair: pair[0]).map(tuple)
uris = st.builds(
    Pkcs11Uri,
    token=st.none() | text,
    manufacturer=st.none() | text,
    serial=st.none() | text,
    model=st.none() | text,
    library_manufacturer=st.none() | text,
    library_description=st.none() | text,
    library_version=st.none() | st.tuples(st.integers(0, 255), st.integers(0, 255)),
    object=st.none() | text,
    type=st.none() | st.sampled_from(_OBJECT_TYPES),
    id=st.none() | st.binary(),
    slot_manufacturer=st.none() | text,
    slot_description=st.none() | text,
    slot_id=st.none() | st.integers(0, 2**64 - 1),
    vendor_path=vendor_path_attributes,
    pin_source=st.none() | text,
    pin_value=st.none() | text,
    module_name=st.none() | text,
    module_path=st.none() | text.map("/{}".format),
    vendor_query=vendor_attributes,
)
shell_text = st.lists(
    st.sampled_from([*"'\"$()`!{}[]*?~\\|&;<>#=%+,:/@- \n\t", "$(id)", "`id`", "$HOME", "'$(id)'", "é", "a"])
).map("".join)
hostile_uris = st.builds(
    Pkcs11Uri,
    token=st.none() | shell_text,
    object=st.none() | shell_text,
    pin_source=st.none() | shell_text,
    module_path=st.none() | shell_text.map("/{}".format),
    vendor_query=st.lists(st.tuples(vendor_names, shell_text), max_size=1).map(tuple),
)
spellings = st.lists(
    st.sampled_from(
        "token= id= slot-id= library-version= type= pin-value= x-y= ; & ? = % %c3 %A9 %41 0 7 . a / | é private".split()
    )
).map(lambda parts: "pkcs11:" + "".join(parts))


def parse_or_refuse(text: str) -> Pkcs11Uri | UriError:
    try:
        return Pkcs11Uri.parse(text)
    except UriError as error:
        return error


@given(uris)
def test_a_uri_that_is_written_and_parsed_again_is_the_same(uri: Pkcs11Uri) -> None:
    assert Pkcs11Uri.parse(str(uri)) == uri


@pytest.mark.parametrize("shell", ["sh", "bash"])
@settings(max_examples=60, deadline=None)
@given(hostile_uris)
def test_a_uri_pasted_into_a_shell_stays_one_argument(shell: str, uri: Pkcs11Uri) -> None:
    written = str(uri)
    ways = [f"'{written}'", f'"{written}"']
    if not set(written) & set(";&"):  # the delimiters of several attributes
        ways.append(written)
    command = "; ".join(f"printf '%s\\n' {way}" for way in ways)
    done = subprocess.run([shell, "-c", command], capture_output=True, text=True)
    assert (done.stdout.splitlines(), done.stderr) == ([written] * len(ways), "")
    assert Pkcs11Uri.parse(written) == uri


@given(spellings)
def test_a_string_is_either_refused_or_has_one_canonical_form(spelling: str) -> None:
    uri = parse_or_refuse(spelling)
    assert isinstance(uri, UriError) or Pkcs11Uri.parse(str(uri)) == uri


@given(st.sampled_from(["", "pkcs11:", "pkcs11:?"]), st.text())
def test_any_string_gives_a_uri_or_an_error_with_a_position_in_the_string(start: str, rest: str) -> None:
    uri = parse_or_refuse(start + rest)
    assert isinstance(uri, Pkcs11Uri) or uri.position in range(len(start + rest) + 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pkcs11:", Pkcs11Uri()),
        ("pkcs11:object=my-pubkey;type=public", Pkcs11Uri(object="my-pubkey", type="public")),
        (
            "pkcs11:object=my-key;type=private?pin-source=file:/etc/token",
            Pkcs11Uri(object="my-key", type="private", pin_source="file:/etc/token"),
        ),
        (
            "pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;"
            "object=my-certificate;type=cert;id=%69%95%3E%5C%F4%BD%EC%91;serial=?pin-source=file:/etc/token_pin",
            Pkcs11Uri(
                token="The Software PKCS#11 Softtoken",
                manufacturer="Snake Oil, Inc.",
                model="1.0",
                object="my-certificate",
                type="cert",
                id=bytes.fromhex("69953e5cf4bdec91"),
                serial="",
                pin_source="file:/etc/token_pin",
            ),
        ),
        (
            "pkcs11:object=my-sign-key;type=private?module-name=mypkcs11",
            Pkcs11Uri(object="my-sign-key", type="private", module_name="mypkcs11"),
        ),
        (
            "pkcs11:object=my-sign-key;type=private?module-path=/mnt/libmypkcs11.so.1",
            Pkcs11Uri(object="my-sign-key", type="private", module_path="/mnt/libmypkcs11.so.1"),
        ),
        (
            "pkcs11:token=Software%20PKCS%2311%20softtoken;manufacturer=Snake%20Oil,%20Inc.?pin-value=the-pin",
            Pkcs11Uri(token="Software PKCS#11 softtoken", manufacturer="Snake Oil, Inc.", pin_value="the-pin"),
        ),
        ("pkcs11:slot-description=Sun%20Metaslot", Pkcs11Uri(slot_description="Sun Metaslot")),
        (
            "pkcs11:library-manufacturer=Snake%20Oil,%20Inc.;library-description=Soft%20Token%20Library;"
            "library-version=1.23",
            Pkcs11Uri(
                library_manufacturer="Snake Oil, Inc.",
                library_description="Soft Token Library",
                library_version=(1, 23),
            ),
        ),
        (
            "pkcs11:token=My%20token%25%20created%20by%20Joe;library-version=3;id=%01%02%03%Ba%dd%Ca%fe%04%05%06",
            Pkcs11Uri(
                token="My token% created by Joe", library_version=(3, 0), id=bytes.fromhex("010203baddcafe040506")
            ),
        ),
        (
            "pkcs11:token=A%20name%20with%20a%20substring%20%25%3B;object=my-certificate;type=cert",
            Pkcs11Uri(token="A name with a substring %;", object="my-certificate", type="cert"),
        ),
        (
            "pkcs11:token=Name%20with%20a%20small%20A%20with%20acute:%20%C3%A1;object=my-certificate;type=cert",
            Pkcs11Uri(token="Name with a small A with acute: á", object="my-certificate", type="cert"),
        ),
        (
            "pkcs11:token=my-token;object=my-certificate;type=cert;vendor-aaa=value-a"
            "?pin-source=file:/etc/token_pin&vendor-bbb=value-b",
            Pkcs11Uri(
                token="my-token",
                object="my-certificate",
                type="cert",
                vendor_path=(("vendor-aaa", "value-a"),),
                pin_source="file:/etc/token_pin",
                vendor_query=(("vendor-bbb", "value-b"),),
            ),
        ),
    ],
)
def test_the_examples_of_rfc_7512_section_3_are_parsed(text: str, expected: Pkcs11Uri) -> None:
    assert Pkcs11Uri.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PKCS11:token=a", Pkcs11Uri(token="a")),
        ("pkcs11:?", Pkcs11Uri()),
        ("pkcs11:?module-name=a", Pkcs11Uri(module_name="a")),
        ("pkcs11:slot-id=0", Pkcs11Uri(slot_id=0)),
        ("pkcs11:slot-id=18446744073709551615", Pkcs11Uri(slot_id=2**64 - 1)),
        ("pkcs11:object=;id=", Pkcs11Uri(object="", id=b"")),
        ("pkcs11:id=A%00z", Pkcs11Uri(id=b"A\0z")),
        ("pkcs11:type=priv%61te", Pkcs11Uri(type="private")),
        ("pkcs11:slot-manufacturer=a", Pkcs11Uri(slot_manufacturer="a")),
        ("pkcs11:x-tokne=a", Pkcs11Uri(vendor_path=(("x-tokne", "a"),))),
        ("pkcs11:?x-a=1&x-a=2&x-a=1", Pkcs11Uri(vendor_query=(("x-a", "1"), ("x-a", "2"), ("x-a", "1")))),
        ("pkcs11:x-a=1?x-a=2", Pkcs11Uri(vendor_path=(("x-a", "1"),), vendor_query=(("x-a", "2"),))),
        ("pkcs11:?x-pin-value=1234", Pkcs11Uri(pin_value="1234")),
        ("pkcs11:token=:[]@!$'()*+,=&", Pkcs11Uri(token=":[]@!$'()*+,=&")),
        ("pkcs11:?module-path=/:[]@!$'()*+,=?|", Pkcs11Uri(module_path="/:[]@!$'()*+,=?|")),
    ],
)
def test_unusual_spellings_are_parsed(text: str, expected: Pkcs11Uri) -> None:
    assert Pkcs11Uri.parse(text) == expected


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (Pkcs11Uri(), "pkcs11:"),
        (Pkcs11Uri(id=b"\x01\xab"), "pkcs11:id=%01%AB"),
        (Pkcs11Uri(id=b"abc"), "pkcs11:id=%61%62%63"),
        (Pkcs11Uri(slot_id=0), "pkcs11:slot-id=0"),
        (Pkcs11Uri(token=""), "pkcs11:token="),
        (Pkcs11Uri(library_version=(3, 0)), "pkcs11:library-version=3.0"),
        (Pkcs11Uri(token="Karte für Büro #1"), "pkcs11:token=Karte%20f%C3%BCr%20B%C3%BCro%20%231"),
        (Pkcs11Uri(token="a/b?c;d&e|f%~"), "pkcs11:token=a%2Fb%3Fc%3Bd%26e%7Cf%25~"),
        (Pkcs11Uri(module_path="/a/b?c;d&e|f"), "pkcs11:?module-path=/a/b%3Fc%3Bd%26e%7Cf"),
        (Pkcs11Uri(token=":[]@!$'()*+,=&"), "pkcs11:token=%3A%5B%5D%40%21%24%27%28%29%2A%2B%2C%3D%26"),
        (
            Pkcs11Uri(pin_source="file:/p", module_path="/:[]@!$'()*+,=/?|"),
            "pkcs11:?pin-source=file:/p&module-path=/:%5B%5D%40%21%24%27%28%29%2A%2B%2C%3D/%3F%7C",
        ),
        (
            Pkcs11Uri(vendor_query=(("x-b", "2"), ("x-a", "1")), pin_source="|x", object="o", token="t"),
            "pkcs11:token=t;object=o?pin-source=%7Cx&x-b=2&x-a=1",
        ),
    ],
)
def test_the_canonical_form_escapes_only_what_it_must(uri: Pkcs11Uri, expected: str) -> None:
    assert str(uri) == expected


@pytest.mark.parametrize(
    ("text", "position", "complaint"),
    [
        ("", 0, "at its end: it must begin with pkcs11:"),
        ("pkcs12:token=a", 0, "must begin with pkcs11:"),
        (" pkcs11:token=a", 0, "must begin with pkcs11:"),
        ("pkcs11", 0, "must begin with pkcs11:"),
        ("pkcs11:token", 7, "has no ="),
        ("pkcs11:token=a;object", 15, "at character 16: the attribute that begins here has no ="),
        ("pkcs11:?pin-value=a&b", 20, "has no ="),
        ("pkcs11:=a", 7, "name was expected"),
        ("pkcs11:token=a;", 15, "at its end: an attribute's name was expected"),
        ("pkcs11:;token=a", 7, "name was expected"),
        ("pkcs11:token=a;;object=b", 15, "name was expected"),
        ("pkcs11:?module-name=a&&module-path=/b", 22, "name was expected"),
        ("pkcs11:to ken=a", 9, "cannot be part of an attribute's name"),
        ("pkcs11:x-a=1;%74oken=a", 13, "cannot be part of an attribute's name"),
        ("pkcs11:token=a%", 14, "% must be followed by two hexadecimal digits in token"),
        ("pkcs11:token=a%4", 14, "hexadecimal digits"),
        ("pkcs11:token=%41%4g", 16, "hexadecimal digits"),
        ("pkcs11:x-a=a;id=%0x", 16, "hexadecimal digits in id"),
        ("pkcs11:token=a b", 14, "percent-encoded in token"),
        ("pkcs11:token=a/b", 14, "percent-encoded in token"),
        ("pkcs11:token=a|b", 14, "percent-encoded in token"),
        ("pkcs11:token=ü", 13, "percent-encoded in token"),
        ("pkcs11:token=a#b", 14, "percent-encoded in token"),
        ("pkcs11:token=a\n", 14, "percent-encoded in token"),
        ("pkcs11:?module-path=/a;b", 22, "percent-encoded in module-path"),
        ("pkcs11:?x-a=%41#", 15, "percent-encoded in a vendor attribute"),
        ("pkcs11:token=%FF", 13, "token is not UTF-8"),
        ("pkcs11:token=a%C3%A9b%C3", 21, "token is not UTF-8"),
        ("pkcs11:?x-a=%ED%A0%80", 12, "a vendor attribute is not UTF-8"),
        ("pkcs11:token=a;token=a", 15, "given before"),
        ("pkcs11:x-a=1;token=a;x-a=1", 21, "given before"),
        ("pkcs11:?pin-source=a&pin-source=b", 21, "given before"),
        ("pkcs11:slot-id=", 15, "slot-id must be a decimal number"),
        ("pkcs11:slot-id=-1", 15, "slot-id must be a decimal number"),
        ("pkcs11:slot-id=0x1", 15, "slot-id must be a decimal number"),
        ("pkcs11:slot-id=%D9%A1", 15, "slot-id must be a decimal number"),
        ("pkcs11:slot-id=18446744073709551616", 15, "slot-id must be a decimal number"),
        ("pkcs11:slot-id=" + "9" * 5000, 15, "slot-id must be a decimal number"),
        ("pkcs11:library-version=", 23, "library-version must be"),
        ("pkcs11:library-version=1.", 23, "library-version must be"),
        ("pkcs11:library-version=.1", 23, "library-version must be"),
        ("pkcs11:library-version=1.2.3", 23, "library-version must be"),
        ("pkcs11:library-version=256", 23, "library-version must be"),
        ("pkcs11:library-version=1.256", 23, "library-version must be"),
        ("pkcs11:type=key", 12, "type must be one of public, private, cert, secret-key, data"),
        ("pkcs11:type=Private", 12, "type must be one of"),
        ("pkcs11:token=a;pin-value=1", 15, "pin-value belongs after the question mark"),
        ("pkcs11:?token=a", 8, "token belongs before the question mark"),
        ("pkcs11:token=a;x-pin-value=1", 15, "pin-value belongs after the question mark"),
        ("pkcs11:?pin-value=1&x-pin-value=1", 20, "given before"),
        ("pkcs11:?x-pin-value=%41%4g", 23, "hexadecimal digits in pin-value"),
        ("pkcs11:?x-pin-value=1&pin-source=a&y=1", 35, "no attribute of this name"),
    ],
)
def test_a_malformed_uri_is_refused_with_the_position(text: str, position: int, complaint: str) -> None:
    with pytest.raises(UriError) as refused:
        Pkcs11Uri.parse(text)
    assert refused.value.position == position
    assert complaint in refused.value.message


@pytest.mark.parametrize(
    ("text", "position", "right"),
    [
        ("pkcs11:tokn=foo", 7, "token"),
        ("pkcs11:token=a;ID=%01", 15, "id"),
        ("pkcs11:token=a;object-type=private", 15, "type"),
        ("pkcs11:Token=a", 7, "token"),
        ("pkcs11:lable=a", 7, "object"),
        ("pkcs11:label=a", 7, "object"),
        ("pkcs11:serialnumber=1", 7, "serial"),
        ("pkcs11:slot_id=1", 7, "slot-id"),
        ("pkcs11:slotid=1", 7, "slot-id"),
        ("pkcs11:?modulename=a", 8, "module-name"),
        ("pkcs11:?module_path=/a", 8, "module-path"),
        ("pkcs11:?pinfile=/a", 8, "pin-source"),
        ("pkcs11:?pin_value=1", 8, "pin-value"),
        ("pkcs11:?tokn=a", 8, "token"),
    ],
)
def test_a_misspelt_attribute_is_refused_with_the_nearest_name(text: str, position: int, right: str) -> None:
    with pytest.raises(UriError, match="there is no attribute of this name") as refused:
        Pkcs11Uri.parse(text)
    assert (refused.value.position, refused.value.hint) == (position, f"Did you mean {right}?")


@pytest.mark.parametrize("text", ["pkcs11:X-a=1", "pkcs11:zzz=1"])
def test_an_unknown_attribute_is_refused_with_a_list_of_the_known_ones(text: str) -> None:
    with pytest.raises(UriError, match="there is no attribute of this name") as refused:
        Pkcs11Uri.parse(text)
    assert refused.value.hint is not None
    assert refused.value.hint.startswith("Attributes allowed here: token, ")
    assert refused.value.hint.endswith("A vendor's attribute begins with x-.")


@pytest.mark.parametrize(
    "text",
    [
        f"pkcs11:?pin-value={PIN}",
        f"pkcs11:?x-pin-value={PIN}",
        f"pkcs11:?pin-value=a&{PIN.replace(';', '')}=1",
        f"pkcs11:?pin-value={PIN.replace(';', '&')}",
        f"pkcs11:?pin-value=%FF{PIN.replace(';', '')}",
        f"pkcs11:?pin-value={PIN.replace(';', '%')}",
        f"pkcs11:?pin-value=1&pin-value={PIN.replace(';', '')}",
        f"pkcs11:;pin-value={PIN}",
        f"pkcs11:pin-value={PIN}",
        f"pkcs12:?pin-value={PIN}",
    ],
)
def test_neither_the_error_nor_its_chain_holds_any_part_of_the_pin(text: str) -> None:
    with pytest.raises(UriError) as refused:
        Pkcs11Uri.parse(text)
    error = refused.value
    told = "".join([*traceback.format_exception(error), repr(error), str(error.hint)])
    assert "s3cr" not in told
    assert error.__cause__ is None
    assert error.__context__ is None


def test_the_repr_hides_the_pin() -> None:
    assert repr(Pkcs11Uri(token="a", pin_value=PIN)) == "<pkcs11:token=a>"


def test_str_includes_the_pin() -> None:
    assert str(Pkcs11Uri(pin_value="1234")) == "pkcs11:?pin-value=1234"


def test_the_redacted_uri_keeps_everything_but_the_pin_attributes() -> None:
    uri = Pkcs11Uri.parse(
        "pkcs11:token=a;x-a=1;x-my-pin=1234?module-name=m&pin-source=file:/p&pin-value=1234&x-PIN_VALUE=1234&x-b=2"
    )
    assert str(uri.redacted) == "pkcs11:token=a;x-a=1?module-name=m&x-b=2"


@pytest.mark.parametrize(
    "changes",
    [
        {"slot_id": -1},
        {"slot_id": 2**64},
        {"library_version": (256, 0)},
        {"library_version": (1, -1)},
        {"type": "key"},
        {"token": "\ud800"},
        {"pin_value": "\ud800"},
        {"vendor_path": (("", "a"),)},
        {"vendor_path": (("a=b", "a"),)},
        {"vendor_path": (("token", "a"),)},
        {"vendor_path": (("pin-value", "a"),)},
        {"vendor_query": (("id", "a"),)},
        {"vendor_path": (("tokn", "a"),)},
        {"vendor_query": (("x-pin-value", "a"),)},
        {"vendor_query": (("x-a", "\udfff"),)},
        {"vendor_path": (("x-a", "1"), ("x-a", "2"))},
    ],
)
def test_a_value_that_cannot_be_written_is_refused_when_the_uri_is_created(
    changes: dict[str, str | int | VendorAttributes],
) -> None:
    with pytest.raises(UriError) as refused:
        replace(Pkcs11Uri(), **changes)  # type: ignore[arg-type]  # what a type checker would stop
    assert refused.value.position is None


def test_a_uri_can_be_hashed_and_pickled() -> None:
    uri = Pkcs11Uri.parse("pkcs11:token=a;id=%01;x-a=1?x-b=2&pin-value=3")
    assert {uri: 1}[pickle.loads(pickle.dumps(uri))] == 1  # noqa: S301  # our own bytes
