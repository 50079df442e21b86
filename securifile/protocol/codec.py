"""Values to bytes and back: the only module that knows msgpack.

Everything that travels or is stored is an attrs class made of a few kinds of parts, and its annotations are the schema:

    annotation                          msgpack
    str, bytes, bool, int, float, None  the same (floats are finite; an integer is accepted for a float)
    an enum                             its value
    EntryId, AttemptId                  16 bytes
    Position                            [epoch, revision]
    an attrs class                      a map by field name
    a union of attrs classes            [class name, map]
    tuple[X, ...], tuple[X, Y]          an array
    dict[str, X]                        a map
    X | None                            X or nil
    Any                                 what JSON can say

A message is `[class name, map]`. Decoding is strict about types and lenient about fields: unknown ones are passed over, missing ones
take their default, so that neighbouring releases understand each other. For each class the two converters are built once.
"""

from __future__ import annotations

import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any, cast

import attrs
import msgpack

from securifile.model.ids import AttemptId, EntryId, Position
from securifile.protocol import messages

STRING_BYTES_MAX = 1024 * 1024
"""A `str` or `bytes` in a message: far above any path, name or certificate chain."""
ARRAY_ITEMS_MAX = 128 * 1024
MAP_ITEMS_MAX = 64 * 1024
NESTING_MAX = 16
"""Of what an `Any` holds; everything else is as deep as the classes."""
VALUE_FORMAT = 1
"""Version of what `encode_value` writes."""


class CodecError(Exception):
    """This cannot be a value of the class it should be."""


class UnknownMessage(CodecError):
    """A message of a class that this release does not have.

    Attributes:
        name: the name of the class.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"a message {name[:80]!r} is unknown to this release")
        self.name = name


MESSAGES: Mapping[str, type] = types.MappingProxyType(
    {
        name: thing
        for name, thing in vars(messages).items()
        if isinstance(thing, type) and attrs.has(thing) and thing.__module__ == messages.__name__
    }
)
"""Every message class by its name on the wire."""


def encode(message: messages.Message) -> bytes:
    """The bytes of a message. Raises `CodecError` when a field holds what its annotation does not allow."""
    cls = type(message)
    if MESSAGES.get(cls.__name__) is not cls:
        raise CodecError(f"{cls.__name__} is not a message")
    converter = _converter(cast(Any, cls))
    return _pack([cls.__name__, converter.encode(message)])


def decode(data: bytes) -> messages.Message:
    """The message in `data`.

    Raises:
        UnknownMessage: well formed, of a class that is not known here.
        CodecError: everything else that is wrong with it.
    """
    plain = _unpack(data)
    if not (isinstance(plain, tuple) and len(plain) == 2 and isinstance(plain[0], str)):
        raise CodecError("a message is [name, fields]")
    name, fields = plain
    cls = MESSAGES.get(name)
    if cls is None:
        raise UnknownMessage(name)
    return _converter(cls).decode(fields)


def encode_value(hint: Any, value: Any) -> bytes:
    """A value as it is stored: `[format, value]`.

    Args:
        hint: a type as an annotation would name it: `Change`, `Sidecar`, `Fact`, `tuple[Fact, ...]`.
        value: a value of it.

    Raises:
        CodecError: it is not a value of that type.
    """
    return _pack([VALUE_FORMAT, _converter(hint).encode(value)])


def decode_value(hint: Any, data: bytes) -> Any:
    """Read what `encode_value` wrote, in this release or an earlier one. Raises `CodecError`."""
    plain = _unpack(data)
    if not (isinstance(plain, tuple) and len(plain) == 2) or type(plain[0]) is not int:
        raise CodecError("a stored value is [format, value]")
    if plain[0] != VALUE_FORMAT:
        raise CodecError(f"a stored value of format {plain[0]}; this release reads {VALUE_FORMAT}")
    return _converter(hint).decode(plain[1])


def encode_plain(hint: Any, value: Any) -> bytes:
    """A value without class name or format: for the hello, whose place says what it is. Raises `CodecError`."""
    return _pack(_converter(hint).encode(value))


def decode_plain(hint: Any, data: bytes) -> Any:
    """Read what `encode_plain` wrote. Raises `CodecError`."""
    return _converter(hint).decode(_unpack(data))


def _pack(plain: Any) -> bytes:
    try:
        return cast(bytes, msgpack.packb(plain, use_bin_type=True))
    except (ValueError, OverflowError, TypeError, UnicodeError) as error:
        raise CodecError(f"cannot be packed: {error}") from None


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            strict_map_key=True,
            max_str_len=STRING_BYTES_MAX,
            max_bin_len=STRING_BYTES_MAX,
            max_array_len=ARRAY_ITEMS_MAX,
            max_map_len=MAP_ITEMS_MAX,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise CodecError(f"not msgpack within our limits: {type(error).__name__}") from None


Convert = Callable[[Any], Any]


@attrs.frozen
class _Converter:
    encode: Convert
    decode: Convert


@cache
def _converter(hint: Any) -> _Converter:
    """The pair of converters for an annotation."""
    if hint is Any:
        return _Converter(_check_any, _check_any)
    if hint is None or hint is type(None):
        return _leaf(type(None))
    if hint in (str, bytes, bool, int):
        return _leaf(hint)
    if hint is float:
        return _Converter(_check_float, _check_float)
    if hint is Position:
        return _Converter(_encode_position, _decode_position)
    if hint in (EntryId, AttemptId):
        return _id(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(hint)
    if isinstance(hint, type) and attrs.has(hint):
        return _class(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments)
    if origin is tuple:
        return _sequence(arguments[0]) if arguments[1:] == (...,) else _fixed(arguments)
    if origin is dict and arguments[0] is str:
        return _map(arguments[1])
    raise TypeError(f"values of {hint!r} cannot be encoded")


def _wrong(expected: str, value: object) -> CodecError:
    # The value itself stays out of the text: it may be a secret, and it may be long.
    return CodecError(f"expected {expected}, not {type(value).__name__}")


def _leaf(cls: type) -> _Converter:
    def check(value: Any) -> Any:
        if type(value) is not cls:
            raise _wrong(cls.__name__, value)
        return value

    return _Converter(check, check)


def _check_float(value: Any) -> float:
    if type(value) not in (float, int) or not math.isfinite(value):
        raise _wrong("a finite number", value)
    return float(value)


def _encode_position(value: Any) -> Any:
    if type(value) is not Position or type(value.epoch) is not int or type(value.revision) is not int:
        raise _wrong("Position", value)
    return (value.epoch, value.revision)


def _decode_position(plain: Any) -> Position:
    if not (isinstance(plain, tuple) and len(plain) == 2 and type(plain[0]) is int and type(plain[1]) is int):
        raise _wrong("[epoch, revision]", plain)
    return Position(*plain)


def _id(cls: Any) -> _Converter:
    def encode_id(value: Any) -> Any:
        if type(value) is not cls:
            raise _wrong(cls.__name__, value)
        return value.value

    def decode_id(plain: Any) -> Any:
        if type(plain) is not bytes:
            raise _wrong("an id", plain)
        try:
            return cls(plain)
        except ValueError:
            raise CodecError(f"an id of {len(plain)} bytes") from None

    return _Converter(encode_id, decode_id)


def _enum(cls: type[Enum]) -> _Converter:
    members = {member.value: member for member in cls}

    def encode_member(value: Any) -> Any:
        if type(value) is not cls:
            raise _wrong(cls.__name__, value)
        # Not `.value`: that goes through a descriptor, and a heartbeat tells what its sender thinks of every other server.
        return value._value_

    def decode_member(plain: Any) -> Any:
        if type(plain) not in (str, int) or plain not in members:
            raise _wrong(f"a {cls.__name__}", plain)
        return members[plain]

    return _Converter(encode_member, decode_member)


def _class(cls: Any) -> _Converter:
    # With the module's names only: a field may be called like a type (`bytes`), and must not hide it.
    hints = typing.get_type_hints(cls, vars(sys.modules[cls.__module__]), {})
    fields = [field for field in attrs.fields(cls) if field.init]
    writers: list[tuple[str, Convert]] = [(field.name, _converter(hints[field.name]).encode) for field in fields]
    readers: list[tuple[str, str, Convert, bool]] = [
        (field.name, field.alias or field.name, _converter(hints[field.name]).decode, field.default is attrs.NOTHING) for field in fields
    ]

    def encode_fields(value: Any) -> Any:
        if type(value) is not cls:
            raise _wrong(cls.__name__, value)
        try:
            return {name: write(getattr(value, name)) for name, write in writers}
        except CodecError as error:
            raise CodecError(f"{cls.__name__}: {error}") from None

    def decode_fields(plain: Any) -> Any:
        if not isinstance(plain, dict):
            raise _wrong(f"the fields of {cls.__name__}", plain)
        arguments = {}
        for name, alias, read, required in readers:
            if name in plain:
                try:
                    arguments[alias] = read(plain[name])
                except CodecError as error:
                    raise CodecError(f"{cls.__name__}.{name}: {error}") from None
            elif required:
                raise CodecError(f"{cls.__name__}.{name} is missing")
        try:
            return cls(**arguments)
        except (ValueError, TypeError) as error:
            raise CodecError(f"{cls.__name__} is not valid: {type(error).__name__}") from None

    return _Converter(encode_fields, decode_fields)


def _union(alternatives: tuple[Any, ...]) -> _Converter:
    some = tuple(alternative for alternative in alternatives if alternative is not type(None))
    if len(some) < len(alternatives):
        return _optional(_converter(some[0]) if len(some) == 1 else _union(some))
    if not all(isinstance(alternative, type) and attrs.has(alternative) for alternative in some):
        raise TypeError(f"only classes can be told apart, not {alternatives!r}")
    by_class = {alternative: (alternative.__name__, _converter(alternative).encode) for alternative in some}
    by_name = {alternative.__name__: _converter(alternative).decode for alternative in some}

    def encode_tagged(value: Any) -> Any:
        entry = by_class.get(type(value))
        if entry is None:
            raise _wrong(f"one of {', '.join(by_name)}", value)
        return (entry[0], entry[1](value))

    def decode_tagged(plain: Any) -> Any:
        if not (isinstance(plain, tuple) and len(plain) == 2 and isinstance(plain[0], str)):
            raise _wrong("[name, fields]", plain)
        read = by_name.get(plain[0])
        if read is None:
            raise CodecError(f"expected one of {', '.join(by_name)}, not {plain[0][:80]!r}")
        return read(plain[1])

    return _Converter(encode_tagged, decode_tagged)


def _optional(inner: _Converter) -> _Converter:
    write, read = inner.encode, inner.decode
    return _Converter(
        lambda value: None if value is None else write(value),
        lambda plain: None if plain is None else read(plain),
    )


def _sequence(item: Any) -> _Converter:
    write, read = _converter(item).encode, _converter(item).decode

    def encode_items(value: Any) -> Any:
        if not isinstance(value, tuple):
            raise _wrong("a tuple", value)
        return [write(each) for each in value]

    def decode_items(plain: Any) -> Any:
        if not isinstance(plain, tuple):
            raise _wrong("an array", plain)
        return tuple([read(each) for each in plain])

    return _Converter(encode_items, decode_items)


def _fixed(items: tuple[Any, ...]) -> _Converter:
    converters = [_converter(item) for item in items]

    def check(value: Any) -> None:
        if not isinstance(value, tuple) or len(value) != len(converters):
            raise _wrong(f"{len(converters)} items", value)

    def encode_items(value: Any) -> Any:
        check(value)
        return [converter.encode(each) for converter, each in zip(converters, value, strict=True)]

    def decode_items(plain: Any) -> Any:
        check(plain)
        return tuple([converter.decode(each) for converter, each in zip(converters, plain, strict=True)])

    return _Converter(encode_items, decode_items)


def _map(item: Any) -> _Converter:
    write, read = _converter(item).encode, _converter(item).decode

    def convert_with(convert: Convert) -> Convert:
        def convert_items(value: Any) -> Any:
            if not isinstance(value, dict) or not all(type(key) is str for key in value):
                raise _wrong("a map by text", value)
            return {key: convert(each) for key, each in value.items()}

        return convert_items

    return _Converter(convert_with(write), convert_with(read))


def _check_any(value: Any, depth: int = 0) -> Any:
    """What JSON can say, copied; sequences become lists."""
    if depth > NESTING_MAX:
        raise CodecError(f"nested deeper than {NESTING_MAX}")
    if value is None or type(value) in (bool, int):
        return value
    if isinstance(value, Enum):
        return _check_any(value.value, depth)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return _check_float(value)
    if isinstance(value, (list, tuple)):
        return [_check_any(each, depth + 1) for each in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {str(key): _check_any(each, depth + 1) for key, each in value.items()}
    raise _wrong("what JSON can say", value)
