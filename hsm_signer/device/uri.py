"""PKCS#11 URIs: they name a device, an object on it and its module (RFC 7512). Pure text, no device.

    uri = Pkcs11Uri.parse("pkcs11:token=Office%20card;id=%01?module-name=opensc-pkcs11")
    uri.token                                           # 'Office card'
    str(replace(uri, object="signing", type="private"))

An absent attribute is None and matches everything (section 2.5). An empty attribute is the empty string, and slot-id 0
is a slot. `str(uri)` contains the PIN if there is a `pin-value`; messages show `uri.redacted`.
"""

import difflib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import quote, unquote_to_bytes

from hsm_signer.errors import UriError

ObjectType = Literal["public", "private", "cert", "secret-key", "data"]
VendorAttributes = tuple[tuple[str, str], ...]


@dataclass(frozen=True, repr=False)
class Pkcs11Uri:
    """What a PKCS#11 URI says, decoded. Every instance can be written and read back without loss.

    Args:
        id: CKA_ID, raw bytes. All other values are text.
        library_version: major and minor, each 0 to 255 (CK_VERSION is two bytes).
        slot_id: below 2**64 (CK_SLOT_ID is an unsigned long).
        module_path: absolute.
        vendor_path: attributes before the `?` that RFC 7512 does not name, in order, each name once.
        vendor_query: likewise after the `?`, where a name may be repeated (section 2.3).

    Raises:
        UriError: a value cannot be written in a URI; the error's position is None.
    """

    token: str | None = None
    manufacturer: str | None = None
    serial: str | None = None
    model: str | None = None
    library_manufacturer: str | None = None
    library_description: str | None = None
    library_version: tuple[int, int] | None = None
    object: str | None = None
    type: ObjectType | None = None
    id: bytes | None = None
    slot_manufacturer: str | None = None
    slot_description: str | None = None
    slot_id: int | None = None
    vendor_path: VendorAttributes = ()
    pin_source: str | None = None
    pin_value: str | None = None
    module_name: str | None = None
    module_path: str | None = None
    vendor_query: VendorAttributes = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a URI (RFC 7512 section 2.3).

        Vendor attributes are kept: their names begin with `x-`, or with `vendor-` as in section 3. Other attributes
        that the RFC does not define are refused, and so are attributes on the wrong side of the `?`: if they were
        ignored, the URI could match another device. `x-pin-value` is read as `pin-value`: drafts of the RFC called it
        that.

        Raises:
            UriError: the URI is malformed. The error has the position; the message quotes no value.
        """
        if text[: len(_SCHEME)].lower() != _SCHEME:  # RFC 3986 section 3.1: any case
            raise _malformed(text, 0, f"it must begin with {_SCHEME}", hint=_EXAMPLE)
        path_end = text.find("?") if "?" in text else len(text)
        path, vendor_path = _PATH.parse(text, len(_SCHEME), path_end)
        query, vendor_query = _QUERY.parse(text, path_end + 1, len(text))
        return cls(**path, **query, vendor_path=vendor_path, vendor_query=vendor_query)

    def __str__(self) -> str:
        path = _PATH.format(self, self.vendor_path)
        query = _QUERY.format(self, self.vendor_query)
        return f"{_SCHEME}{path}?{query}" if query else f"{_SCHEME}{path}"

    def __repr__(self) -> str:
        return f"<{self.redacted}>"

    @property
    def redacted(self) -> Self:
        """The same URI without PIN attributes, safe to show in messages.

        Vendor attributes with `pin` in their names are removed too.
        """
        return replace(
            self,
            pin_source=None,
            pin_value=None,
            vendor_path=tuple(pair for pair in self.vendor_path if "pin" not in pair[0].lower()),
            vendor_query=tuple(pair for pair in self.vendor_query if "pin" not in pair[0].lower()),
        )

    def resolved_against(self, directory: Path) -> Self:
        """Return the same URI, with a relative PIN file (``pin-source=file:PATH``) made relative to `directory`."""
        kind, _, path = (self.pin_source or "").partition(":")
        if kind != "file" or path.startswith("/"):
            return self
        return replace(self, pin_source=f"file:{directory / path}")

    def __post_init__(self) -> None:
        _PATH.require_writable(self, self.vendor_path)
        _QUERY.require_writable(self, self.vendor_query)
        names = [name for name, _ in self.vendor_path]
        if len(set(names)) < len(names):
            raise UriError("A vendor attribute appears twice in the path of a PKCS#11 URI.", hint="Give it once.")


class _Component(NamedTuple):
    """One side of the `?`: the path or the query.

    Attributes:
        attributes: the names of its standard attributes.
        delimiter: between two attributes.
        reserved: the characters that may appear unescaped, besides the unreserved ones.
        written: those of them that `format` leaves unescaped. URIs are pasted into shells, with and without quotes, so
            all characters with a meaning there are escaped.
        repeatable: whether a vendor attribute may appear twice.
    """

    attributes: tuple[str, ...]
    delimiter: str
    reserved: str
    written: str
    repeatable: bool

    def parse(self, text: str, start: int, end: int) -> tuple[dict[str, Any], VendorAttributes]:
        """Return field values by field name, and the vendor attributes, from `text[start:end]`."""
        fields: dict[str, Any] = {}
        vendor: list[tuple[str, str]] = []
        seen: set[str] = set()
        position = start
        for attribute in text[start:end].split(self.delimiter) if start < end else ():
            spelt, equals, value = attribute.partition("=")
            name = _DRAFT_NAMES.get(spelt, spelt)
            self._check_name(text, position, name, found=bool(equals))
            if name in seen and (name in self.attributes or not self.repeatable):
                raise _malformed(text, position, "this attribute was given before", hint="Give it once.")
            seen.add(name)
            decoded = self._decode(text, position + len(spelt) + 1, name, value)
            if name in self.attributes:
                fields[_field(name)] = decoded
            else:
                vendor.append((name, str(decoded)))
            position += len(attribute) + 1
        return fields, tuple(vendor)

    def _check_name(self, text: str, position: int, name: str, *, found: bool) -> None:
        if not name:
            raise _malformed(text, position, "an attribute's name was expected", hint=_EXAMPLE)
        if not found:
            raise _malformed(text, position, "the attribute that begins here has no =", hint=_EXAMPLE)
        allowed = _NAME.match(name)
        if (length := allowed.end() if allowed else 0) < len(name):
            problem = "this character cannot be part of an attribute's name"
            raise _malformed(text, position + length, problem, hint=_EXAMPLE)
        if name in _STANDARD and name not in self.attributes:
            where = "before" if name in _PATH.attributes else "after"
            raise _malformed(text, position, f"{name} belongs {where} the question mark", hint="Move it there.")
        if name not in _STANDARD and not name.startswith(_VENDOR):
            # The name is not shown: a stray & makes a name of half a PIN.
            hint = _right_name(name, self.attributes)
            raise _malformed(text, position, "there is no attribute of this name", hint=hint)

    def _decode(self, text: str, position: int, name: str, value: str) -> str | bytes | int | tuple[int, int]:
        readable = re.match(rf"(?:[{_UNRESERVED}{re.escape(self.reserved)}]|%[0-9A-Fa-f]{{2}})*", value)
        if (length := readable.end() if readable else 0) < len(value):
            if value[length] == "%":
                problem = f"% must be followed by two hexadecimal digits in {_called(name)}"
                raise _malformed(text, position + length, problem, hint="A percent sign itself is written %25.")
            problem = f"this character must be percent-encoded in {_called(name)}"
            raise _malformed(text, position + length, problem, hint="A space is written %20, / is %2F, # is %23.")
        raw = unquote_to_bytes(value)
        if name == "id":
            return raw
        if (invalid := _first_invalid(raw)) is not None:
            # The value up to here is ASCII: each octet is one character, or an escape of three characters.
            width = sum(len(octet) for octet in re.findall("%..|.", value)[:invalid])
            raise _malformed(
                text, position + width, f"{_called(name)} is not UTF-8", hint="Only id may hold raw bytes."
            )
        typed = _typed(name, raw.decode())
        if typed is None:
            raise _malformed(text, position, f"{name} must be {_EXPECTED[name]}", hint="Correct it, or leave it out.")
        return typed

    def format(self, uri: Pkcs11Uri, vendor: VendorAttributes) -> str:
        """Write the attributes that are present: the standard ones in RFC 7512's order, then the vendors'."""
        pairs = [*((name, getattr(uri, _field(name))) for name in self.attributes), *vendor]
        return self.delimiter.join(f"{name}={self._encode(value)}" for name, value in pairs if value is not None)

    def _encode(self, value: str | bytes | int | tuple[int, int]) -> str:
        if isinstance(value, bytes):
            return "".join(f"%{octet:02X}" for octet in value)  # section 2.3: the whole value of id
        return quote(_plain(value), safe=self.written)

    def require_writable(self, uri: Pkcs11Uri, vendor: VendorAttributes) -> None:
        """Raise UriError unless the values of the fields can be written and read back."""
        for name in self.attributes:
            value = getattr(uri, _field(name))
            if name in _EXPECTED and value is not None and _typed(name, _plain(value)) != value:
                raise UriError(f"In a PKCS#11 URI {name} must be {_EXPECTED[name]}.", hint=_EXAMPLE)
            if isinstance(value, str) and _SURROGATE.search(value):
                raise UriError(
                    f"The {name} of a PKCS#11 URI must be Unicode text, without lone surrogates.", hint=_EXAMPLE
                )
        for name, value in vendor:
            ours = not name.startswith(_VENDOR) or name in _DRAFT_NAMES
            if not _NAME.fullmatch(name) or ours or _SURROGATE.search(value):
                raise UriError(
                    "A vendor attribute of a PKCS#11 URI has a name or a value that cannot be written.",
                    hint="Its name is x- and letters, digits, - and _; its value is Unicode text.",
                )


_SCHEME = "pkcs11:"
_EXAMPLE = "It looks like pkcs11:token=Office;id=%01 (RFC 7512)."
_VENDOR = ("x-", "vendor-")
_DRAFT_NAMES = {"x-pin-value": "pin-value"}
_UNRESERVED = r"A-Za-z0-9\-._~"  # RFC 3986 section 2.3
_NAME = re.compile("[A-Za-z0-9_-]+")  # pk11-v-attr-nm-char; the standard names fit it
_SURROGATE = re.compile("[\ud800-\udfff]")

# Section 2.3: pk11-path-res-avail and pk11-query-res-avail. The delimiter of the one is no delimiter in the other.
# Path attributes never repeat; vendor attributes of the query may, and mean what their vendor says.
_PATH = _Component(
    attributes=(
        "token",
        "manufacturer",
        "serial",
        "model",
        "library-manufacturer",
        "library-description",
        "library-version",
        "object",
        "type",
        "id",
        "slot-manufacturer",
        "slot-description",
        "slot-id",
    ),
    delimiter=";",
    reserved=":[]@!$'()*+,=&",
    written="",
    repeatable=False,
)
_QUERY = _Component(
    attributes=("pin-source", "pin-value", "module-name", "module-path"),
    delimiter="&",
    reserved=":[]@!$'()*+,=/?|",
    written="/:",
    repeatable=True,
)
_STANDARD = frozenset(_PATH.attributes + _QUERY.attributes)

_OBJECT_TYPES = ("public", "private", "cert", "secret-key", "data")
_EXPECTED = {
    "type": f"one of {', '.join(_OBJECT_TYPES)}",
    "library-version": "a number or two with a dot between them, each at most 255",
    "slot-id": "a decimal number below 2**64",
    # A relative path would load code from the current directory.
    "module-path": "an absolute path",
}


# What other programs and older drafts call an attribute.
_OTHER_NAMES = {"object-type": "type", "pinfile": "pin-source", "label": "object", "slot": "slot-id"}


def _right_name(name: str, attributes: tuple[str, ...]) -> str:
    """Return a hint that suggests a similar name, preferably one of `attributes`, or lists the allowed ones."""
    spelt = name.lower().replace("_", "-")
    for known in (attributes, _PATH.attributes + _QUERY.attributes):
        names = {each: each for each in known} | {other: each for other, each in _OTHER_NAMES.items() if each in known}
        if found := difflib.get_close_matches(spelt, names, n=1):
            return f"Did you mean {names[found[0]]}?"
    return f"Attributes allowed here: {', '.join(attributes)}. A vendor's attribute begins with x-."


def _field(name: str) -> str:
    return name.replace("-", "_")


def _called(name: str) -> str:
    """Name an attribute in a message, unless the name is not ours: a stray `&` makes a name of half a PIN."""
    return name if name in _STANDARD else "a vendor attribute"


def _typed(name: str, text: str) -> str | int | tuple[int, int] | None:
    """Turn the text of an attribute into its field's value, or None if the attribute does not allow that text."""
    match name:
        case "type":
            return text if text in _OBJECT_TYPES else None
        case "slot-id":
            return int(text) if re.fullmatch("[0-9]{1,20}", text) and int(text) < 2**64 else None
        case "module-path":
            return text if text.startswith("/") else None
        case "library-version":
            if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?", text):
                return None
            major, _, minor = text.partition(".")
            version = int(major), int(minor or 0)  # section 2.3: a missing minor is 0
            return version if max(version) <= 255 else None
        case _:
            return text


def _plain(value: str | int | tuple[int, int]) -> str:
    return ".".join(str(number) for number in value) if isinstance(value, tuple) else str(value)


def _first_invalid(raw: bytes) -> int | None:
    """Return the index of the first octet that is not UTF-8. The exception contains the value, so it is caught here."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


def _malformed(text: str, position: int, what: str, *, hint: str) -> UriError:
    where = f"at character {position + 1}" if position < len(text) else "at its end"
    return UriError(f"The PKCS#11 URI is malformed {where}: {what}.", hint=hint, position=position)
