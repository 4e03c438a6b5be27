"""Write values as JSON, and read them back strictly as the expected type.

The JSON may come from a process that a vendor's module has taken over: nothing in it chooses which code runs.

A dataclass becomes an object with exactly the parameters of its constructor. An error becomes an array of its code and
such an object. Tuples and sets become arrays, bytes become base64, and other types become strings.
"""

import json
import math
import types
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from hsm_signer import errors
from hsm_signer.crypto import PublicKey
from hsm_signer.device.uri import Pkcs11Uri
from hsm_signer.errors import HsmSignerError
from hsm_signer.system.secret import Secret

T = TypeVar("T")

_LONGEST_MODULUS = 16384
"""Bits. OpenSSL refuses to verify with a longer one (OPENSSL_RSA_MAX_MODULUS_BITS)."""


class Malformed(Exception):
    """The JSON is not of the expected type. It is not quoted: it may contain a secret."""


def dump(*values: object) -> bytes:
    """Return an array of values as JSON."""
    return _JSON.encode([_plain(value) for value in values]).encode()


def parse(data: bytes) -> Any:
    """Return the value of a JSON text, of any type.

    Raises:
        Malformed: it is not JSON in UTF-8 (RFC 8259), or it is nested too deeply.
    """
    with suppress(ValueError, RecursionError):
        return _STRICT_JSON.decode(data.decode())
    # Raised outside the `with`: the exception that ends there contains the text.
    raise Malformed


def read(kind: type[T], plain: object) -> T:
    """Convert parsed JSON into a value of type `kind`.

    Raises:
        Malformed: it is not of that type.
    """
    with suppress(ValueError, OverflowError, HsmSignerError):
        expected: Any = kind
        value: T = _reader(expected)(plain)
        return value
    raise Malformed


def _refuse(constant: str) -> NoReturn:
    raise ValueError  # NaN and Infinity are not JSON


# Made once: making one takes longer than encoding a message.
_JSON = json.JSONEncoder(allow_nan=False)
_STRICT_JSON = json.JSONDecoder(parse_constant=_refuse)


def _public_key(text: str) -> PublicKey:
    modulus, exponent = (int(number, 16) for number in text.split(":"))
    if not 0 < exponent < modulus < 1 << _LONGEST_MODULUS:
        raise ValueError
    return PublicKey(modulus, exponent)


_STRINGS: dict[Any, tuple[Callable[[Any], str], Callable[[str], Any]]] = {
    bytes: (lambda value: b64encode(value).decode(), lambda text: b64decode(text, validate=True)),
    datetime: (datetime.isoformat, lambda text: datetime.fromisoformat(text).astimezone(UTC)),
    Path: (str, Path),
    Pkcs11Uri: (str, Pkcs11Uri.parse),
    # Hexadecimal: Python reads no more than 4300 decimal digits.
    PublicKey: (lambda key: f"{key.modulus:x}:{key.exponent:x}", _public_key),
}

_CHECKS: dict[Any, Callable[[Any], bool]] = {
    types.NoneType: lambda plain: plain is None,
    bool: lambda plain: type(plain) is bool,
    str: lambda plain: type(plain) is str,
    int: lambda plain: type(plain) is int and -(1 << 63) <= plain < 1 << 64,  # CK_ULONG has 64 bits
    float: lambda plain: type(plain) in (int, float) and math.isfinite(plain),
}


def _plain(value: Any) -> Any:
    kind: Any = type(value)
    return _writer(kind)(value)


@cache
def _writer(kind: Any) -> Callable[[Any], Any]:
    """Return the function that turns values of a class into JSON."""
    if issubclass(kind, Enum):
        return lambda value: value.value
    if issubclass(kind, tuple(_CHECKS)):
        return lambda value: value
    if issubclass(kind, Mapping):
        return dict
    if issubclass(kind, tuple | frozenset):
        return lambda value: [_plain(item) for item in value]
    for known, (write, _) in _STRINGS.items():
        if issubclass(kind, known):
            return write
    names = list(_parameters(kind))
    if issubclass(kind, HsmSignerError):
        return lambda error: [error.code, {name: getattr(error, name) for name in names}]
    if issubclass(kind, Secret):
        return lambda value: {
            "text": value.reveal(),
            **{name: getattr(value, name) for name in names if name != "text"},
        }
    return lambda value: {name: _plain(getattr(value, name)) for name in names}


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """Return the function that reads a value of a type. It raises what `read` suppresses."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return partial(_read_first, [_reader(each) for each in inner])
    if origin is Literal:
        return partial(_checked, lambda plain: plain in inner)
    if origin is Mapping:
        return partial(_read_mapping, _reader(inner[1]))
    if origin is tuple and inner[-1] is not Ellipsis:
        return partial(_read_tuple, [_reader(each) for each in inner])
    if origin in (tuple, frozenset):
        return partial(_read_items, origin, _reader(inner[0]))
    if kind in _STRINGS:
        return partial(_read_string, _STRINGS[kind][1])
    if kind in _CHECKS:
        return partial(_checked, _CHECKS[kind])
    if issubclass(kind, Enum):
        return partial(kind)
    if issubclass(kind, HsmSignerError):
        classes = (
            each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, HsmSignerError)
        )
        return partial(_read_tagged, {each.code: _record_reader(each) for each in classes})
    return _record_reader(kind)


def _checked(check: Callable[[Any], bool], plain: Any) -> Any:
    if not check(plain):
        raise ValueError
    return plain


def _of(kind: type[T], plain: Any) -> T:
    if type(plain) is not kind:
        raise ValueError
    return plain


def _read_first(readers: list[Callable[[Any], Any]], plain: Any) -> Any:
    """Read as the first of several types that fits. No two of them look the same in JSON."""
    for each in readers:
        with suppress(ValueError, OverflowError, HsmSignerError):
            return each(plain)
    raise ValueError


def _read_mapping(item: Callable[[Any], Any], plain: Any) -> Any:
    return {name: item(value) for name, value in _of(dict, plain).items()}


def _read_tuple(items: list[Callable[[Any], Any]], plain: Any) -> Any:
    return tuple(each(value) for each, value in zip(items, _of(list, plain), strict=True))


def _read_items(kind: Callable[[list[Any]], Any], item: Callable[[Any], Any], plain: Any) -> Any:
    return kind([item(value) for value in _of(list, plain)])


def _read_string(convert: Callable[[str], Any], plain: Any) -> Any:
    return convert(_of(str, plain))


def _read_record(kind: Callable[..., Any], readers: Mapping[str, Callable[[Any], Any]], plain: Any) -> Any:
    if _of(dict, plain).keys() != readers.keys():
        raise ValueError
    return kind(**{name: each(plain[name]) for name, each in readers.items()})


def _read_tagged(readers: Mapping[str, Callable[[Any], Any]], plain: Any) -> Any:
    tag, fields = _of(list, plain)
    if _of(str, tag) not in readers:
        raise ValueError
    return readers[tag](fields)


def _record_reader(kind: Any) -> Callable[[Any], Any]:
    return partial(_read_record, kind, {name: _reader(each) for name, each in _parameters(kind).items()})


def _parameters(kind: Any) -> dict[str, Any]:
    """Return the types of the parameters of a class's constructor."""
    parameters = get_type_hints(kind.__init__)
    parameters.pop("return", None)
    return parameters
