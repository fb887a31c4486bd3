"""Typed values: a type description followed by a value of it (section 6.2, 9.6)."""

from __future__ import annotations

from appliance.pvdata.codec import codec
from appliance.pvdata.fielddesc import TypeReader, decode_type
from appliance.pvdata.primitives import Buffer
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value

__all__ = ["decode_typed", "encode_typed"]


def decode_typed(buf: Buffer, pos: int, end: int, big: bool, types: TypeReader) -> tuple[Value | None, int]:
    """Decode; the null type has no value.

    Some services send a bare scalar or array: it gets the one field name that everyone looks for.
    Raises DecodeError.
    """
    kind, pos = decode_type(buf, pos, end, big, types)
    if kind is None:
        return None, pos
    if isinstance(kind, StructType):
        store, pos = codec(kind, big).decode(buf, pos, end, types)
        return Value.from_store(kind, store, 1), pos
    leaf, pos = codec(kind, big).decode(buf, pos, end, types)
    wrapped = StructType((("value", kind),))
    return Value.from_store(wrapped, [None, leaf], 1), pos


def encode_typed(value: Value | None, *, big: bool) -> list[Buffer]:
    """Encode; None is the null type. Large arrays are not copied."""
    if value is None:
        return [b"\xff"]
    made = codec(value.type, big)
    return [made.description, *made.encode_chunks(value.store)]
