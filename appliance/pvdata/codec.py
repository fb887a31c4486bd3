"""Compiled codecs: a store to bytes and back, made once per (type, byte order).

A codec has a *plan* for every set of fields that it has met: the full value, and each bit set of monitors and
puts. A plan starts as a loop over the fields; when it has been used a few times it is compiled to one
Python function in which a run of fixed-size fields is one ``struct.Struct``. So a tool that asks once does not
pay for compilation, and a peer that always sends new types or bit sets cannot make us compile.

The compiled source contains only integers and our own identifiers, never a name from a peer.

Memory: a decoded value takes at most some hundred bytes for each octet received (a null element of a structure
array, one octet, is the worst). Before memory is allocated for a numeric array, its size is checked against
the available octets. Structures with many more fields than octets are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from appliance.errors import PVDataError
from appliance.pvdata.bitset import encode_bitset, iter_bits
from appliance.pvdata.fielddesc import TypeReader, encode_type
from appliance.pvdata.leafcodec import ENCODE_ERRORS, LeafCodec, leaf_codec
from appliance.pvdata.pace import breathe
from appliance.pvdata.plans import compile_decoder, compile_encoder, encode_failure
from appliance.pvdata.primitives import Buffer
from appliance.pvdata.types import StructType, TypeDesc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Part = bytes | memoryview
    Decoder = Callable[[Buffer, int, int, list[Any], TypeReader], int]
    Encoder = Callable[[list[Any]], list[Part]]

__all__ = ["Codec", "codec"]

COMPILE_AFTER = 6
"""Uses of a plan before it is compiled: compiling costs as much as some hundred uses save."""
COMPILE_LEAVES = 400
"""A plan of more fields is never compiled: a peer could waste our time with it."""
MAX_PLANS = 64
_PLANNED_FIELDS = 1 << 16
"""The most fields in all plans of one codec together (two plans are always kept): the peer chooses the bit sets."""
CHUNK = 4096
"""Arrays of at least this many bytes are handed out by reference."""

_CACHED = 512
_CACHED_OCTETS = 32 << 20
"""Octets of memory for the types of the cached codecs, estimated by ``TypeDesc.weight``."""


class Codec:
    """Encodes and decodes values of one type in one byte order.

    For a structure the value is its store (a list), for any other type the leaf itself. Decoding raises
    only DecodeError, encoding only PVDataError. The ``TypeReader`` belongs to the connection: an any may name
    its type by ID. A decoded array refers to a ``bytes`` buffer if it is most of that buffer; otherwise it is copied
    once. From a ``bytearray`` it is always copied.
    """

    __slots__ = (
        "_decoders",
        "_description",
        "_encoders",
        "_leaf",
        "_max_plans",
        "big",
        "decode",
        "encode",
        "type",
    )

    encode: Callable[[Any], bytes]
    """``encode(store) -> bytes``: the full value."""
    decode: Callable[[Buffer, int, int, TypeReader], tuple[Any, int]]
    """``decode(buf, pos, end, types) -> (store, pos)``: the full value."""

    def __init__(self, t: TypeDesc, big: bool) -> None:
        self.type = t
        self.big = big
        self._decoders: dict[int, Decoder] = {}
        self._encoders: dict[int, Encoder] = {}
        self._leaf: LeafCodec | None = None
        self._description = b""
        self._max_plans = min(MAX_PLANS, max(_PLANNED_FIELDS // t.count, 2))
        if isinstance(t, StructType):
            self.encode = _FullEncoder(self)
            self.decode = _FullDecoder(self)
        else:
            self._leaf = leaf_codec(t, big)
            self.encode = self._encode_leaf
            self.decode = self._leaf.decode

    @property
    def description(self) -> bytes:
        """The encoded type, in full."""
        made = self._description
        if not made:
            made = self._description = encode_type(self.type, self.big)
        return made

    def encode_chunks(self, store: Any) -> list[Part]:
        """Encode the full value as buffers to be sent one after the other; big arrays are not copied.

        The holder of the buffers must not change the arrays in ``store``; arrays in a Value are
        read-only.
        """
        if self._leaf is not None:
            return _chunks(self._leaf_parts(store))
        return _chunks(self._parts(store, 1))

    def encode_partial(self, store: list[Any], bits: int) -> bytes:
        """Encode the fields of ``bits``; a structure's bit stands for everything below it."""
        return b"".join(self._parts(store, bits))

    def encode_marked(self, store: list[Any], bits: int, *, before: bytes = b"", after: bytes = b"") -> bytes:
        """Encode the bit set ``bits`` and then its fields, as in a message.

        What stands before and after them is given here: adding it later would copy an array again.
        """
        plan = self._encoders.get(bits)
        if plan is None:
            plan = self._plan_encoder(bits)
        return b"".join((before, encode_bitset(bits, self.big), *plan(store), after))

    def encode_partial_chunks(self, store: list[Any], bits: int) -> list[Part]:
        """Encode as ``encode_partial`` does, into buffers as ``encode_chunks`` does."""
        return _chunks(self._parts(store, bits))

    def decode_partial(
        self, buf: Buffer, pos: int, end: int, bits: int, store: list[Any], types: TypeReader
    ) -> int:
        """Decode the fields of ``bits`` into ``store``; after a DecodeError the store is unchanged."""
        plan = self._decoders.get(bits)
        if plan is None:
            plan = self._plan_decoder(bits)
        return plan(buf, pos, end, store, types)

    def _parts(self, store: list[Any], bits: int) -> list[Part]:
        plan = self._encoders.get(bits)
        if plan is None:
            plan = self._plan_encoder(bits)
        return plan(store)

    def _leaf_parts(self, value: Any) -> Iterable[Part]:
        assert self._leaf is not None
        try:
            return self._leaf.encode(value)
        except ENCODE_ERRORS as e:
            raise PVDataError(f"cannot encode {value!r:.60} as {self.type!r:.60}: {e}") from None

    def _encode_leaf(self, value: Any) -> bytes:
        return b"".join(self._leaf_parts(value))

    def _select(self, bits: int) -> tuple[int, ...]:
        t = self.type
        if not isinstance(t, StructType):
            raise PVDataError(f"only a structure has fields to select, not {t!r:.60}")
        if bits & 1:
            return t.leaves
        return tuple(leaves_of(t, bits))

    def _plan_decoder(self, bits: int) -> Decoder:
        plan: Decoder = _LoopDecoder(self, bits, self._select(bits))
        if len(self._decoders) >= self._max_plans:
            self._decoders.clear()
        self._decoders[bits] = plan
        return plan

    def _plan_encoder(self, bits: int) -> Encoder:
        plan: Encoder = _LoopEncoder(self, bits, self._select(bits))
        if len(self._encoders) >= self._max_plans:
            self._encoders.clear()
        self._encoders[bits] = plan
        return plan

    def __repr__(self) -> str:
        return f"Codec({self.type!r:.80}, {'big' if self.big else 'little'})"


_codecs: dict[tuple[TypeDesc, bool], Codec] = {}
_codec_weight = 0


def codec(t: TypeDesc, big: bool) -> Codec:
    """Return the codec of ``t``; equal types share one. The cache is bounded in entries and in fields."""
    made = t._codecs[big]
    if made is not None:
        return made
    global _codec_weight  # noqa: PLW0603
    made = _codecs.get((t, big))
    if made is None:
        new = Codec(t, big)
        made = _codecs.setdefault((t, big), new)
        if made is new:
            _codec_weight += t.weight
            _forget_oldest()
    t._codecs[big] = made
    return made


def _forget_oldest() -> None:
    """Keep the table within its bounds. Other threads may do the same at any moment."""
    global _codec_weight  # noqa: PLW0603
    while len(_codecs) > _CACHED or (_codec_weight > _CACHED_OCTETS and len(_codecs) > 1):
        try:
            oldest = next(iter(_codecs))
        except (RuntimeError, StopIteration):
            continue  # another thread has changed it in between
        if _codecs.pop(oldest, None) is not None:
            _codec_weight -= oldest[0].weight


def leaves_of(t: StructType, bits: int) -> Iterable[int]:
    """Yield the numbers of the leaves that ``bits`` covers, in wire order; bits beyond ``t`` are ignored."""
    types = t.leaf_types
    spans = t.spans
    after = 0
    for number in iter_bits(bits & t.full_mask):
        if number < after:
            continue
        after = number + spans[number]
        for i in range(number, after):
            if not isinstance(types[i], StructType):
                yield i


def _chunks(parts: Iterable[Part]) -> list[Part]:
    out: list[Part] = []
    small: list[Part] = []
    for part in parts:
        if len(part) < CHUNK:
            small.append(part)
            continue
        if small:
            out.append(b"".join(small))
            small = []
        out.append(part)
    if small or not out:
        out.append(b"".join(small))
    return out


class _FullDecoder:
    """``Codec.decode`` of a structure, before it is compiled."""

    __slots__ = ("loop", "owner", "uses")

    def __init__(self, owner: Codec) -> None:
        self.owner = owner
        self.uses = 0
        self.loop: _LoopDecoder | None = None

    def __call__(self, buf: Buffer, pos: int, end: int, types: TypeReader) -> tuple[list[Any], int]:
        owner = self.owner
        t = owner.type
        self.uses += 1
        if self.uses > COMPILE_AFTER and len(t.leaves) <= COMPILE_LEAVES:
            owner.decode = compile_decoder(t, t.leaves, owner.big, full=True)
            return owner.decode(buf, pos, end, types)
        if self.loop is None:
            self.loop = _LoopDecoder(owner, 1, t.leaves)
        store: list[Any] = [None] * t.count
        return store, self.loop.run(buf, pos, end, store, types)


class _FullEncoder:
    """``Codec.encode`` of a structure, before it is compiled."""

    __slots__ = ("loop", "owner", "uses")

    def __init__(self, owner: Codec) -> None:
        self.owner = owner
        self.uses = 0
        self.loop: _LoopEncoder | None = None

    def __call__(self, store: list[Any]) -> bytes:
        owner = self.owner
        t = owner.type
        self.uses += 1
        if self.uses > COMPILE_AFTER and len(t.leaves) <= COMPILE_LEAVES:
            owner.encode = compile_encoder(t, t.leaves, owner.big, full=True)
            return owner.encode(store)
        if self.loop is None:
            self.loop = _LoopEncoder(owner, 1, t.leaves)
        return b"".join(self.loop.run(store))


class _LoopDecoder:
    """A plan that is not compiled (yet)."""

    __slots__ = ("bits", "leaves", "owner", "steps", "uses")

    def __init__(self, owner: Codec, bits: int, leaves: tuple[int, ...]) -> None:
        self.owner = owner
        self.bits = bits
        self.leaves = leaves
        types = owner.type.leaf_types
        self.steps: list[Callable[[Buffer, int, int, TypeReader], tuple[Any, int]]] = []
        for start in range(0, len(leaves), 256):
            breathe()
            self.steps += [leaf_codec(types[i], owner.big).decode for i in leaves[start : start + 256]]
        self.uses = 0

    def __call__(self, buf: Buffer, pos: int, end: int, store: list[Any], types: TypeReader) -> int:
        self.uses += 1
        if self.uses > COMPILE_AFTER and len(self.leaves) <= COMPILE_LEAVES:
            owner = self.owner
            plan: Decoder = compile_decoder(owner.type, self.leaves, owner.big, full=False)
            owner._decoders[self.bits] = plan
            return plan(buf, pos, end, store, types)
        return self.run(buf, pos, end, store, types)

    def run(self, buf: Buffer, pos: int, end: int, store: list[Any], types: TypeReader) -> int:
        values = []
        if len(self.steps) > COMPILE_LEAVES:
            for number, step in enumerate(self.steps):
                if not number & 255:
                    breathe(256)
                value, pos = step(buf, pos, end, types)
                values.append(value)
        else:
            for step in self.steps:
                value, pos = step(buf, pos, end, types)
                values.append(value)
        breathe()
        for number, value in zip(self.leaves, values, strict=True):
            store[number] = value
        return pos


class _LoopEncoder:
    """A plan that is not compiled (yet)."""

    __slots__ = ("bits", "leaves", "owner", "steps", "uses")

    def __init__(self, owner: Codec, bits: int, leaves: tuple[int, ...]) -> None:
        self.owner = owner
        self.bits = bits
        self.leaves = leaves
        types = owner.type.leaf_types
        self.steps = [(i, leaf_codec(types[i], owner.big).encode) for i in leaves]
        self.uses = 0

    def __call__(self, store: list[Any]) -> list[Part]:
        self.uses += 1
        if self.uses > COMPILE_AFTER and len(self.leaves) <= COMPILE_LEAVES:
            owner = self.owner
            plan = owner._encoders[self.bits] = compile_encoder(
                owner.type, self.leaves, owner.big, full=False
            )
            parts: list[Part] = plan(store)
            return parts
        return self.run(store)

    def run(self, store: list[Any]) -> list[Part]:
        out: list[Part] = []
        try:
            for number, step in self.steps:
                out.extend(step(store[number]))
        except ENCODE_ERRORS as e:
            raise encode_failure(self.owner.type, self.owner.big, self.leaves, store, e) from None
        return out
