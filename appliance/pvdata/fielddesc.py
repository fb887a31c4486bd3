"""FieldDesc: how types travel, in full or by 16-bit type ID.

Source: pva.rst section 5.4; for arrays of structures and unions the peers' form, see docs/conformance.md.
"""

from __future__ import annotations

from appliance.errors import DecodeError, PVDataError
from appliance.pvdata.pace import breathe
from appliance.pvdata.primitives import (
    Buffer,
    DecodeLimits,
    decode_count,
    decode_string,
    encode_size,
    encode_string,
    truncated,
)
from appliance.pvdata.types import (
    ANY,
    MAX_DEPTH,
    MAX_FIELDS,
    SCALARS,
    STRING,
    AnyType,
    ArrayType,
    BoundedString,
    ScalarType,
    StructType,
    TypeDesc,
    UnionType,
    from_wire,
)

__all__ = ["TypeReader", "TypeWriter", "decode_type", "encode_type"]

NULL = 0xFF
ONLY_ID = 0xFE
FULL_WITH_ID = 0xFD
STRUCT = 0x80
UNION = 0x81
ANY_CODE = 0x82
BOUNDED_STRING = 0x83
VARIABLE = 0x08
BOUNDED = 0x10
FIXED = 0x18

_BY_CODE: dict[int, TypeDesc] = {t.code: t for t in SCALARS.values()}
_BY_CODE[ANY_CODE] = ANY
_BY_CODE |= {t.code | VARIABLE: ArrayType(t) for t in SCALARS.values()}
_BY_CODE[ANY_CODE | VARIABLE] = ArrayType(ANY)
_SIZED: dict[int, tuple[ScalarType, str]] = {t.code | BOUNDED: (t, "bounded") for t in SCALARS.values()}
_SIZED |= {t.code | FIXED: (t, "fixed") for t in SCALARS.values()}


_SMALL = 16
"""Nodes of a type that connections share: requests mostly have fewer."""
_MOST_COMMON = 256
_common: dict[TypeDesc, TypeDesc] = {}


def _shared(t: TypeDesc) -> TypeDesc:
    """Return an equal small type of any connection, so that clients that come and go with the same requests leave nothing behind.

    A type refers to itself once it is used, so Python frees it late.
    """
    if t.nodes > _SMALL or t.holds_any:
        return t
    known = _common.get(t)
    if known is None:
        if len(_common) >= _MOST_COMMON:
            _common.clear()
        known = _common[t] = t
    return known


class TypeReader:
    """The types to which the peer gave an ID on one connection, and the state of one decoding.

    It lives as long as the connection (pva.rst section 5.6). ``limit`` bounds the number of IDs. Their memory is also bounded,
    per connection and for the process.
    """

    __slots__ = ("_known", "_known_weight", "_weight", "last", "level", "limit", "octets", "skew", "types")

    held = 0
    """Octets of memory for the types of all connections of this process together."""

    def __init__(self, limit: int = DecodeLimits.CACHED_TYPES) -> None:
        self.limit = limit
        self.types: dict[int, TypeDesc] = {}
        self.level = 0
        """Present nesting of values in values; the codec counts it."""
        self.octets = False
        """Whether ``uint8[]`` is read as ``bytes``: for readers of signatures, who need no numpy."""
        self.skew = -1
        """The place in a lent buffer of a large array that had to be copied, because numpy's memory must be aligned; -1 if
        there was none. Whoever makes the next buffer can mend that."""
        self.last: tuple[bytes, bool, TypeDesc] | None = None
        """The last description that was sent in full, with its octets: who calls again sends the same ones."""
        self._weight = 0
        self._known: dict[TypeDesc, TypeDesc] = {}
        self._known_weight = 0

    def define(self, type_id: int, t: TypeDesc) -> None:
        """Remember ``t``.

        Raises:
            DecodeError: The peer defines more types than the limits allow.
        """
        old = self.types.get(type_id)
        if old is None and len(self.types) >= self.limit:
            raise DecodeError(f"the peer defines more than {self.limit} type IDs")
        more = t.weight - (old.weight if old is not None else 0)
        if self._weight + more > DecodeLimits.CACHED_OCTETS:
            raise DecodeError(
                f"the types that the peer defines take more than {DecodeLimits.CACHED_OCTETS} octets"
            )
        if more > 0 and TypeReader.held + more > DecodeLimits.ALL_CACHED_OCTETS:
            raise DecodeError(
                f"the types that all peers define take more than {DecodeLimits.ALL_CACHED_OCTETS} octets; try again later"
            )
        self._weight += more
        TypeReader.held += more
        self.types[type_id] = t

    def clear(self) -> None:
        """Forget everything: the connection has ended."""
        TypeReader.held -= self._weight
        self._weight = self._known_weight = 0
        self.types = {}
        self._known = {}
        self.last = None

    def __del__(self) -> None:
        TypeReader.held -= self._weight

    def intern(self, t: TypeDesc) -> TypeDesc:
        """Return an equal type from before, so that equal types are one object with one codec."""
        if t.nodes > 1024:
            return t
        known = self._known.get(t)
        if known is not None:
            return known
        t = _shared(t)
        self._known_weight += t.weight
        if len(self._known) >= 64 or self._known_weight > DecodeLimits.KNOWN_OCTETS:
            self._known.clear()
            self._known_weight = t.weight
        self._known[t] = t
        return t


class TypeWriter:
    """The IDs that we gave to types on one connection.

    Messages must be sent in the order of their encoding: the first one defines the ID.
    """

    __slots__ = ("ids", "limit")

    def __init__(self, limit: int = 4096) -> None:
        self.limit = min(limit, 65536)
        self.ids: dict[TypeDesc, int] = {}


def encode_type(t: TypeDesc | None, big: bool, cache: TypeWriter | None = None) -> bytes:
    """Encode a FieldDesc; ``None`` is the null type. With a ``cache`` a type is sent in full only once."""
    if t is None:
        return b"\xff"
    if (
        cache is not None
        and t.nodes > 1
        and not (isinstance(t, ArrayType) and isinstance(t.element, ScalarType))
    ):
        order = "big" if big else "little"
        known = cache.ids.get(t)
        if known is not None:
            return b"\xfe" + known.to_bytes(2, order)  # type: ignore[arg-type]
        if len(cache.ids) < cache.limit:
            known = cache.ids[t] = len(cache.ids)
            return b"\xfd" + known.to_bytes(2, order) + encode_type(t, big)  # type: ignore[arg-type]
    out: list[bytes] = []
    _write(t, big, out)
    return b"".join(out)


def _write(t: TypeDesc, big: bool, out: list[bytes]) -> None:
    if isinstance(t, BoundedString):
        out.append(b"\x83" + encode_size(t.bound, big))
    elif isinstance(t, ScalarType):
        out.append(bytes((t.code,)))
    elif isinstance(t, AnyType):
        out.append(b"\x82")
    elif isinstance(t, ArrayType):
        element = t.element
        if isinstance(element, ScalarType):
            if t.kind == "variable":
                out.append(bytes((element.code | VARIABLE,)))
            else:
                code = element.code | (FIXED if t.kind == "fixed" else BOUNDED)
                out.append(bytes((code,)) + encode_size(t.size, big))
        elif isinstance(element, AnyType):
            out.append(b"\x8a")
        else:
            out.append(b"\x88" if isinstance(element, StructType) else b"\x89")
            _write(element, big, out)
    elif isinstance(t, (StructType, UnionType)):
        out.append((b"\x80" if isinstance(t, StructType) else b"\x81") + encode_string(t.id, big))
        out.append(encode_size(len(t.fields), big))
        for name, child in t.fields:
            out.append(encode_string(name, big))
            _write(child, big, out)
    else:
        raise PVDataError(f"{t!r} is not a PVData type")


_WORTH = 64
_MOST_REMEMBERED = 2048
"""Octets of a description that is remembered: a shorter one is read as quickly, a longer one takes memory."""
_ID_CODES = frozenset((ONLY_ID, FULL_WITH_ID))


def decode_type(buf: Buffer, pos: int, end: int, big: bool, cache: TypeReader) -> tuple[TypeDesc | None, int]:
    """Decode a FieldDesc; ``None`` is the null type.

    Raises:
        DecodeError: The description is wrong; no other error is raised.
    """
    if pos < end and buf[pos] == NULL:
        return None, pos + 1
    last = cache.last
    if last is not None:
        after = pos + len(last[0])
        # A description says itself where it ends, so equal octets are an equal one.
        if after <= end and last[1] is big and buf[pos:after] == last[0]:
            return last[2], after
    begin = pos
    try:
        t, pos, _ = _read(buf, pos, end, big, cache, MAX_DEPTH, MAX_FIELDS)
    except PVDataError as e:
        raise DecodeError(f"a type is not acceptable: {e}") from None
    if _WORTH <= pos - begin <= _MOST_REMEMBERED:
        octets = bytes(buf[begin:pos])
        # Those of IDs mean something else when the ID is defined anew.
        if not _ID_CODES.intersection(octets):
            cache.last = octets, big, t
    return t, pos


def _read(
    buf: Buffer, pos: int, end: int, big: bool, cache: TypeReader, depth: int, room: int
) -> tuple[TypeDesc, int, int]:
    """Decode one description; ``depth`` and ``room`` are the levels and nodes still allowed.

    The remaining room is returned, so that an oversized description is refused while it is read.
    """
    if depth <= 0:
        raise DecodeError(f"a type nests deeper than {MAX_DEPTH} levels")
    if room <= 0:
        raise DecodeError(f"a type has more than {MAX_FIELDS} fields")
    if pos >= end:
        raise truncated(pos, end)
    code = buf[pos]
    pos += 1
    simple = _BY_CODE.get(code)
    if simple is not None:
        return simple, pos, room - simple.nodes
    if code in (STRUCT, UNION):
        name, pos = decode_string(buf, pos, end, big)
        count, pos = decode_count(buf, pos, end, big)
        if count * 3 > end - pos:
            # A field takes at least its name's size, one character and a kind byte.
            raise truncated(pos + count * 3, end)
        fields: list[tuple[str, TypeDesc]] = []
        room -= 1
        ident = name
        for number in range(count):
            if not number & 63:
                breathe(min(count - number, 64))
            name, pos = decode_string(buf, pos, end, big)
            child, pos, room = _read(buf, pos, end, big, cache, depth - 1, room)
            fields.append((name, child))
        made = from_wire(StructType if code == STRUCT else UnionType, fields, ident)
        return cache.intern(made), pos, room
    if code in (STRUCT | VARIABLE, UNION | VARIABLE):
        element, pos, room = _read(buf, pos, end, big, cache, depth - 1, room - 1)
        if not isinstance(element, StructType if code == STRUCT | VARIABLE else UnionType):
            raise DecodeError(f"the element of array kind 0x{code:02x} is {element!r:.60}")
        return cache.intern(ArrayType(element)), pos, room
    if code in (ONLY_ID, FULL_WITH_ID):
        if pos + 2 > end:
            raise truncated(pos + 1, end)
        type_id = int.from_bytes(buf[pos : pos + 2], "big" if big else "little")
        pos += 2
        if code == ONLY_ID:
            cached = cache.types.get(type_id)
            if cached is None:
                raise DecodeError(f"type ID {type_id} has not been defined")
            if cached.nodes > room:
                raise DecodeError(f"a type has more than {MAX_FIELDS} fields")
            return cached, pos, room - cached.nodes
        defined, pos, room = _read(buf, pos, end, big, cache, depth - 1, room)
        cache.define(type_id, defined)
        return defined, pos, room
    if code == BOUNDED_STRING:
        bound, pos = decode_count(buf, pos, end, big)
        return (cache.intern(BoundedString(bound)) if bound else STRING), pos, room - 1
    sized = _SIZED.get(code)
    if sized is not None:
        size, pos = decode_count(buf, pos, end, big)
        return cache.intern(ArrayType(sized[0], sized[1], size)), pos, room - 2
    raise DecodeError(f"unknown type code 0x{code:02x} at byte {pos - 1}")
