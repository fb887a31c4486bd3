"""Values that are passed on as they came: octets, and what little has to be known of them.

Source: PVAccess protocol specification, section 9.5 (updates), 5.5 (bit sets).
"""

from __future__ import annotations

from typing import Any, Final

from appliance.pva.selection import encode_update, leaves
from appliance.pva.typed import decode_typed, encode_typed
from appliance.pvdata.bitset import decode_bitset, encode_bitset
from appliance.pvdata.codec import codec
from appliance.pvdata.fielddesc import TypeReader
from appliance.pvdata.primitives import Buffer
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value

__all__ = ["Batch", "Octets", "RawArgument", "answer_in_order", "cut", "decoded", "squash", "whole"]

_NO_TYPES: Final = TypeReader()
"""For values that hold no ``any``: nothing in them refers to a type by an ID."""


class Octets:
    """One update, shared by all who get it. Nobody changes it.

    Args:
        body: What follows the sub-command: bit set, value, overrun bit set.
        big: Whether its numbers are big-endian.
        bits: The fields that it brings, in leaf form.
        overrun: The fields that lost an earlier change, in leaf form.
    """

    __slots__ = ("_squashed", "_swapped", "big", "bits", "body", "overrun")

    def __init__(self, body: bytes, big: bool, bits: int, overrun: int = 0) -> None:
        self.body = body
        self.big = big
        self.bits = bits
        self.overrun = overrun
        self._squashed: Octets | None = None
        self._swapped: Octets | None = None

    @property
    def cut(self) -> int:
        """Where the overrun bit set starts."""
        return len(self.body) - len(encode_bitset(self.overrun, self.big))

    def with_overrun(self, overrun: int) -> Octets:
        """Return the same update with other lost fields. The last result is kept: many slow readers need the same."""
        if overrun == self.overrun:
            return self
        made = self._squashed
        if made is None or made.overrun != overrun:
            body = self.body[: self.cut] + encode_bitset(overrun, self.big)
            made = self._squashed = Octets(body, self.big, self.bits, overrun)
        return made

    def in_order(self, kind: StructType, *, big: bool) -> Octets:
        """Return the same update in the byte order ``big``; all who need it share the result.

        Each message says for itself which byte order it has, but clients of pvAccessCPP look only at what the server
        said at the beginning.
        """
        if big is self.big:
            return self
        made = self._swapped
        if made is None:
            store = Value(kind).store
            decoded(kind, self, store)
            body = encode_update(kind, self.bits, self.overrun, store, big=big)
            made = self._swapped = Octets(body, big, self.bits, self.overrun)
        return made

    def __repr__(self) -> str:
        return f"<Octets {len(self.body)} bits={self.bits:#x} overrun={self.overrun:#x}>"


class Batch:
    """Updates of one PV that came together and are alike; their `Octets` are made when somebody has to queue them.

    Args:
        bodies: What follows the sub-command of each, the oldest first.
        big: Whether their numbers are big-endian.
        bits: The fields that each brings, in leaf form.
        overrun: The fields that lost an earlier change, in leaf form; then there is one update.
    """

    __slots__ = ("_octets", "_size", "big", "bits", "bodies", "overrun")

    def __init__(self, bodies: list[bytes], big: bool, bits: int, overrun: int = 0) -> None:
        self.bodies = bodies
        self.big = big
        self.bits = bits
        self.overrun = overrun
        self._octets: list[Octets] | None = None
        self._size = -1

    @property
    def octets(self) -> list[Octets]:
        """The updates one by one; all who queue them share these."""
        made = self._octets
        if made is None:
            made = self._octets = [Octets(body, self.big, self.bits, self.overrun) for body in self.bodies]
        return made

    def last(self, count: int) -> Octets:
        """Return the last ``count`` updates merged into one: they bring the same fields, so nothing is decoded."""
        latest = self.octets[-1]
        return latest.with_overrun(self.bits) if count > 1 else latest

    @property
    def size(self) -> int:
        """Octets of all bodies."""
        if self._size < 0:
            self._size = sum(map(len, self.bodies))
        return self._size


class RawArgument:
    """What a client sends with a PUT, PUT_GET or RPC, as it came. It is decoded only if somebody has to look at it.

    Args:
        kind: Its type, which holds no ``any``.
        body: The value; a PUT's has its bit set before it.
        big: Whether its numbers are big-endian.
        full: Whether all fields are there and no bit set, as in an RPC.
    """

    __slots__ = ("big", "body", "full", "kind")

    def __init__(self, kind: StructType, body: bytes, big: bool, *, full: bool = False) -> None:
        self.kind = kind
        self.body = body
        self.big = big
        self.full = full

    def value(self) -> Value:
        """Decode it; ``changed`` says what was sent."""
        kind, body = self.kind, self.body
        end = len(body)
        if self.full:
            return Value.from_store(kind, codec(kind, self.big).decode(body, 0, end, _NO_TYPES)[0], 1)
        bits, pos = decode_bitset(body, 0, end, self.big)
        value = Value(kind)
        codec(kind, self.big).decode_partial(body, pos, end, bits, value.store, _NO_TYPES)
        value.changed = leaves(kind, bits)
        return value

    def __repr__(self) -> str:
        return f"<RawArgument of {len(self.body)} octets>"


def cut(buf: Buffer, start: int, end: int) -> bytes:
    """Return a part of ``buf`` as octets of its own: copied once."""
    return buf[start:end] if type(buf) is bytes else bytes(memoryview(buf)[start:end])


def decoded(kind: StructType, octets: Octets, store: list[Any]) -> None:
    """Read an update of type ``kind``, which holds no ``any``, into ``store``."""
    body = octets.body
    big = octets.big
    bits, pos = decode_bitset(body, 0, len(body), big)
    codec(kind, big).decode_partial(body, pos, len(body), bits, store, _NO_TYPES)


def answer_in_order(kind: StructType | None, tail: bytes, *, big: bool) -> bytes:
    """Return what follows the Status of an answer (see `events.ReplyOctets`) in the byte order ``big``; it has the other one.

    Args:
        kind: The type of the value; None if the answer of an RPC brings its own.
        tail: The octets.
        big: The byte order that is wanted.
    """
    if not tail:
        return tail
    if kind is None:
        value, _ = decode_typed(tail, 0, len(tail), not big, _NO_TYPES)
        return b"".join(encode_typed(value, big=big))
    store = Value(kind).store
    decoded(kind, Octets(tail, not big, 0), store)
    bits, _ = decode_bitset(tail, 0, len(tail), not big)
    return codec(kind, big).encode_marked(store, bits)


def squash(kind: StructType, last: Octets, later: Octets) -> Octets:
    """Return one update that contains ``last`` and ``later``, as `server.Update.squash` makes it.

    Nearly always ``later`` brings every field that ``last`` has; then only the overrun is new, and nothing is decoded.
    """
    overrun = last.overrun | later.overrun | (last.bits & later.bits)
    if not last.bits & ~later.bits:
        return later.with_overrun(overrun)
    store = Value(kind).store
    decoded(kind, last, store)
    decoded(kind, later, store)
    return whole(kind, last.bits | later.bits, store, overrun=overrun, big=later.big)


def whole(kind: StructType, bits: int, store: list[Any], *, overrun: int = 0, big: bool = False) -> Octets:
    """Return an update of the fields ``bits`` (in leaf form) of ``store``."""
    bits = leaves(kind, bits)
    return Octets(encode_update(kind, bits, overrun, store, big=big), big, bits, overrun)
