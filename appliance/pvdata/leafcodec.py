"""One leaf to bytes and back: scalars, strings, arrays, unions, anys and structure arrays.

All functions here have the same signatures, so that plans can combine them:
``encode(value) -> buffers`` and ``decode(buf, pos, end, types) -> (value, pos)``.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable

from appliance.errors import DecodeError
from appliance.pvdata.fielddesc import TypeReader, decode_type, encode_type
from appliance.pvdata.pace import breathe
from appliance.pvdata.primitives import (
    Buffer,
    DecodeLimits,
    Lendable,
    decode_count,
    decode_size,
    decode_string,
    encode_size,
    encode_string,
    truncated,
)
from appliance.pvdata.store import NO_ANY, NO_UNION, AnyValue, UnionValue, no_elements, numpy
from appliance.pvdata.types import (
    AnyType,
    ArrayType,
    BoundedString,
    ScalarType,
    StructType,
    TypeDesc,
    UnionType,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Part = bytes | memoryview

__all__ = [
    "ENCODE_ERRORS",
    "LeafCodec",
    "hollow",
    "is_hollow",
    "leaf_codec",
    "read_length",
    "read_selector",
    "read_text_length",
]

ENCODE_ERRORS = (
    struct.error,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    LookupError,
)
"""The errors that a wrong value in a store can raise; callers turn them into a PVDataError with the field's path."""

_NATIVE_BIG = sys.byteorder == "big"


class LeafCodec:
    """The two functions of one leaf type in one byte order."""

    __slots__ = ("decode", "encode")

    def __init__(
        self,
        encode: Callable[[Any], Iterable[Part]],
        decode: Callable[[Buffer, int, int, TypeReader], tuple[Any, int]],
    ) -> None:
        self.encode = encode
        self.decode = decode


def leaf_codec(t: TypeDesc, big: bool) -> LeafCodec:
    """Return the codec of a leaf; a structure is a leaf inside unions, anys and arrays."""
    made = t._leaf_codecs[big]
    if made is None:
        made = t._leaf_codecs[big] = _build(t, big)
    return made


def _build(t: TypeDesc, big: bool) -> LeafCodec:
    if isinstance(t, BoundedString):
        return _bounded_string(t, big)
    if isinstance(t, ScalarType):
        return _scalar(t, big) if t.fmt else _string(big)
    if isinstance(t, ArrayType):
        element = t.element
        if isinstance(element, ScalarType):
            return _number_array(t, element, big) if element.fmt else _string_array(t, big)
        return _compound_array(element, big)
    if isinstance(t, UnionType):
        return _union(t, big)
    if isinstance(t, AnyType):
        return _any(big)
    assert isinstance(t, StructType)
    return _struct(t, big)


def _scalar(t: ScalarType, big: bool) -> LeafCodec:
    packer = struct.Struct((">" if big else "<") + t.fmt)
    pack = packer.pack
    unpack = packer.unpack_from
    size = t.size

    def encode(value: Any) -> Iterable[Part]:
        return (pack(value),)

    def decode(buf: Buffer, pos: int, end: int, types: TypeReader) -> tuple[Any, int]:  # noqa: ARG001
        after = pos + size
        if after > end:
            raise truncated(after - 1, end)
        return unpack(buf, pos)[0], after

    return LeafCodec(encode, decode)


def _string(big: bool) -> LeafCodec:
    def encode(value: Any) -> Iterable[Part]:
        if not isinstance(value, str):
            raise TypeError("a string is needed")
        return (encode_string(value, big),)

    def decode(buf: Buffer, pos: int, end: int, types: TypeReader) -> tuple[Any, int]:  # noqa: ARG001
        return decode_string(buf, pos, end, big)

    return LeafCodec(encode, decode)


def _bounded_string(t: BoundedString, big: bool) -> LeafCodec:
    bound = t.bound

    def encode(value: Any) -> Iterable[Part]:
        if not isinstance(value, str):
            raise TypeError("a string is needed")
        n = len(value.encode("utf-8", "surrogateescape"))
        if n > bound:
            raise ValueError(f"{n} octets; at most {bound} are allowed")
        return (encode_string(value, big),)

    def decode(buf: Buffer, pos: int, end: int, types: TypeReader) -> tuple[Any, int]:  # noqa: ARG001
        read_text_length(bound, buf, pos, end, big)
        return decode_string(buf, pos, end, big)

    return LeafCodec(encode, decode)


def read_text_length(bound: int, buf: Buffer, pos: int, end: int, big: bool) -> tuple[int | None, int]:
    """Read the length in octets of a string of at most ``bound`` octets; None is the null string.

    Raises:
        DecodeError: It is too long, or truncated.
    """
    n, pos = decode_size(buf, pos, end, big)
    if n is not None and n > bound:
        raise DecodeError(f"a string of {n} octets in a field of at most {bound}")
    return n, pos


def read_length(t: ArrayType, buf: Buffer, pos: int, end: int, big: bool) -> tuple[int, int]:
    """Read how many elements an array of type ``t`` has.

    Raises:
        DecodeError: They are too many for the type, or the length is null or truncated.
    """
    if t.kind == "fixed":
        return t.size, pos
    n, pos = decode_count(buf, pos, end, big)
    if t.kind == "bounded" and n > t.size:
        raise DecodeError(f"an array of {n} elements in a field of at most {t.size}")
    return n, pos


def read_selector(t: UnionType, buf: Buffer, pos: int, end: int, big: bool) -> tuple[int | None, int]:
    """Read which member of a union of type ``t`` is selected; None if none is.

    Raises:
        DecodeError: The union has no such member, or the selector is truncated.
    """
    number, pos = decode_size(buf, pos, end, big)
    if number is not None and number >= len(t.fields):
        raise DecodeError(f"union selector {number}; there are {len(t.fields)} members")
    return number, pos


def hollow(t: StructType) -> DecodeError:
    """Return the error for a nested structure that is refused (`is_hollow`)."""
    return DecodeError(f"a nested structure with {t.count} fields in {t.min_bytes} octets")


def _check_length(t: ArrayType, n: int) -> None:
    if t.kind == "fixed" and n != t.size:
        raise ValueError(f"{n} elements; exactly {t.size} are needed")
    if t.kind == "bounded" and n > t.size:
        raise ValueError(f"{n} elements; at most {t.size} are allowed")


def _number_array(t: ArrayType, element: ScalarType, big: bool) -> LeafCodec:
    native = element.np
    is_bool = element.kind == "bool"
    width = element.size
    # A bool travels as one octet in which anything but 0 is true.
    wire = "u1" if is_bool else (">" if big else "<") + native
    swap = width > 1 and big is not _NATIVE_BIG
    simple = t.kind == "variable"
    is_octet = native == "u1" and not is_bool

    def encode(value: Any) -> Iterable[Part]:
        if not isinstance(value, numpy().ndarray) or value.dtype != native or value.ndim != 1:
            raise TypeError(f"a one-dimensional numpy array of {native} is needed")
        n = value.size
        if not simple:
            _check_length(t, n)
        header = b"" if t.kind == "fixed" else encode_size(n, big)
        if not n:
            return (header,)
        if swap:
            value = value.astype(wire)
        elif not value.flags.c_contiguous:
            value = value.copy()
        return (header, value.data.cast("B"))

    def decode(buf: Buffer, pos: int, end: int, types: TypeReader) -> tuple[Any, int]:
        n, pos = read_length(t, buf, pos, end, big)
        if not n:
            return (b"" if is_octet and types.octets else no_elements(element)), pos
        size = n * width
        after = pos + size
        if after > end:
            raise truncated(after - 1, end)
        if is_octet and types.octets:
            return bytes(buf[pos:after]), after
        array = numpy().frombuffer(buf, wire, n, pos)
        if not is_bool and not swap and _may_refer(buf, size):
            if size <= _SLICE or array.flags.aligned:
                return array, after
            types.skew = pos
        if size > _SLICE:
            array = _copy_slowly(array, native, width, is_bool=is_bool)
        elif is_bool:
            array = array != 0
        elif swap:
            array = array.astype(native)
        else:
            array = array.copy()
        array.flags.writeable = False
        return array, after

    return LeafCodec(encode, decode)


_SLICE = 1 << 20
"""Octets of an array that are copied in one step: less than a millisecond of work."""


def _copy_slowly(array: Any, native: str, width: int, *, is_bool: bool) -> Any:
    """Copy a large array in pieces, so that others can run in between."""
    copied = numpy().empty(array.size, "?" if is_bool else native)
    step = _SLICE // width
    for start in range(0, array.size, step):
        breathe()
        piece = array[start : start + step]
        copied[start : start + step] = piece != 0 if is_bool else piece
    return copied


def _may_refer(buf: Buffer, size: int) -> bool:
    """Whether an array of ``size`` octets may point into ``buf`` rather than be copied.

    It may only point into what nobody changes, ``bytes`` or what its owner lends, and only if this keeps little other memory
    alive.
    """
    owner = buf.obj if type(buf) is memoryview else buf
    if type(owner) is bytes or (type(owner) is Lendable and type(buf) is memoryview and buf.readonly):
        return 2 * size >= len(owner)
    return False


def _string_array(t: ArrayType, big: bool) -> LeafCodec:
    def encode(value: Any) -> Iterable[Part]:
        if not isinstance(value, (tuple, list)):
            raise TypeError("a tuple of strings is needed")
        _check_length(t, len(value))
        out = [] if t.kind == "fixed" else [encode_size(len(value), big)]
        for item in value:
            if not isinstance(item, str):
                raise TypeError("a tuple of strings is needed")
            out.append(encode_string(item, big))
        return (b"".join(out),)

    def decode(buf: Buffer, pos: int, end: int, types: TypeReader) -> tuple[Any, int]:  # noqa: ARG001
        n, pos = read_length(t, buf, pos, end, big)
        if n > end - pos:
            raise truncated(pos + n - 1, end)
        out = []
        for number in range(n):
            if not number & 255:
                breathe(min(n - number, 256))
            item, pos = decode_string(buf, pos, end, big)
            out.append(item)
        return tuple(out), pos

    return LeafCodec(encode, decode)


def is_hollow(t: StructType) -> bool:
    """Whether a nested structure of this type is refused: it takes next to no octets, and a peer could make us build millions."""
    return t.count > 16 + 8 * t.min_bytes


def _struct(t: StructType, big: bool) -> LeafCodec:
    from appliance.pvdata.codec import codec
    from appliance.pvdata.value import Value

    inner = codec(t, big)
    from_store = Value.from_store
    refused = is_hollow(t)
    marked = t.leaf_mask

    def encode(value: Any) -> Iterable[Part]:
        if value.type != t:
            raise TypeError(f"a value of {t!r:.80} is needed")
        return inner._parts(value.store, 1)

    def decode(buf: Buffer, pos: int, end: int, types: TypeReader) -> tuple[Any, int]:
        if refused:
            raise hollow(t)
        store, pos = inner.decode(buf, pos, end, types)
        return from_store(t, store, marked), pos

    return LeafCodec(encode, decode)


def _union(t: UnionType, big: bool) -> LeafCodec:
    fields = t.fields
    index = t.index

    def encode(value: Any) -> Iterable[Part]:
        name, content = value
        if name is None:
            return (b"\xff",)
        number = index[name]
        return (encode_size(number, big), *leaf_codec(fields[number][1], big).encode(content))

    def decode(buf: Buffer, pos: int, end: int, types: TypeReader) -> tuple[Any, int]:
        number, pos = read_selector(t, buf, pos, end, big)
        if number is None:
            return NO_UNION, pos
        name, member = fields[number]
        value, pos = _nested(member, big, buf, pos, end, types)
        return UnionValue(name, value), pos

    return LeafCodec(encode, decode)


def _any(big: bool) -> LeafCodec:
    def encode(value: Any) -> Iterable[Part]:
        t, content = value
        if t is None:
            return (b"\xff",)
        return (encode_type(t, big), *leaf_codec(t, big).encode(content))

    def decode(buf: Buffer, pos: int, end: int, types: TypeReader) -> tuple[Any, int]:
        t, pos = decode_type(buf, pos, end, big, types)
        if t is None:
            return NO_ANY, pos
        value, pos = _nested(t, big, buf, pos, end, types)
        return AnyValue(t, value), pos

    return LeafCodec(encode, decode)


def _compound_array(element: TypeDesc, big: bool) -> LeafCodec:
    empty = {UnionType: NO_UNION, AnyType: NO_ANY}.get(type(element))
    values = element.count

    def encode(value: Any) -> Iterable[Part]:
        item = leaf_codec(element, big).encode
        out: list[Part] = [encode_size(len(value), big)]
        for one in value:
            if one is None:
                out.append(b"\0")
            else:
                out.append(b"\1")
                out.extend(item(one))
        return out

    def decode(buf: Buffer, pos: int, end: int, types: TypeReader) -> tuple[Any, int]:
        n, pos = decode_count(buf, pos, end, big)
        if n > end - pos:
            raise truncated(pos + n - 1, end)
        if not n:
            return [], pos
        out: list[Any] = []
        step = leaf_codec(element, big).decode
        _enter(types)
        try:
            for number in range(n):
                if not number & 31:
                    breathe(min(n - number, 32) * values)
                if pos >= end:
                    raise truncated(pos, end)
                present = buf[pos]
                pos += 1
                value = None
                if present:
                    value, pos = step(buf, pos, end, types)
                    if value is empty:
                        # Present but null; PVXS also reads this as an absent element.
                        value = None
                out.append(value)
        finally:
            types.level -= 1
        return out, pos

    return LeafCodec(encode, decode)


def _nested(t: TypeDesc, big: bool, buf: Buffer, pos: int, end: int, types: TypeReader) -> tuple[Any, int]:
    _enter(types)
    try:
        breathe(1)
        return leaf_codec(t, big).decode(buf, pos, end, types)
    finally:
        types.level -= 1


def _enter(types: TypeReader) -> None:
    if types.level >= DecodeLimits.NESTED_VALUES:
        raise DecodeError(f"values nest deeper than {DecodeLimits.NESTED_VALUES} levels")
    types.level += 1
