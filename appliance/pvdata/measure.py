"""Where a value ends, without a value being made: how octets are passed on that nobody here looks into.

A measurer walks a value as a decoder does. It ends at the same place and refuses what a decoder refuses, so what has
been measured does no harm to whoever decodes it. It reads nothing beyond the end of the message.

Types that hold an ``any`` are not measured: to find the end of an any one has to read its type.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.errors import DecodeError, PVDataError
from appliance.pvdata.bitset import decode_bitset
from appliance.pvdata.codec import COMPILE_LEAVES, MAX_PLANS, leaves_of
from appliance.pvdata.leafcodec import hollow, is_hollow, read_length, read_selector, read_text_length
from appliance.pvdata.pace import breathe
from appliance.pvdata.primitives import Buffer, decode_count, decode_size, truncated
from appliance.pvdata.types import (
    ArrayType,
    BoundedString,
    ScalarType,
    StructType,
    TypeDesc,
    UnionType,
)

__all__ = ["Hop", "Measurer", "measurer"]

Hop = Callable[[Buffer, int, int], int]
"""Steps over one value. Arguments: the octets, the start of the value, the end of the message. Returns the value's end."""

_PLANNED_FIELDS = 1 << 16
"""The most fields in all plans of one measurer together (two plans are always kept): the peer chooses the bit sets."""
_STRING = -1
"""In a plan: a string, which is stepped over in place."""
_PAUSE = -2
"""In a plan: another 256 fields follow."""


class Measurer:
    """Finds the end of values of one structure type in one byte order.

    A plan for each choice of fields is kept: one number if all of them have a fixed size, else steps.
    """

    __slots__ = ("_big", "_max_plans", "_plans", "_type")

    def __init__(self, t: StructType, big: bool) -> None:
        self._type = t
        self._big = big
        self._plans: dict[int, int | tuple[int | Hop, ...]] = {}
        self._max_plans = min(MAX_PLANS, max(_PLANNED_FIELDS // t.count, 2))

    def marked(self, buf: Buffer, pos: int, end: int) -> tuple[int, int]:
        """Measure a bit set and the fields that it marks.

        Args:
            buf: The octets.
            pos: Where the bit set starts.
            end: The end of what may be read.

        Returns:
            The bit set as it was sent, and the end of the value.

        Raises:
            DecodeError: A decoder would refuse these octets, or the bit set has a field that the type does not have.
        """
        bits, pos = decode_bitset(buf, pos, end, self._big)
        plan = self._plans.get(bits)
        if plan is None:
            plan = self._plan(bits)
        if isinstance(plan, int):
            pos += plan
            if pos > end:
                raise truncated(pos - 1, end)
            return bits, pos
        return bits, self._walk(plan, buf, pos, end)

    def is_fixed(self, bits: int) -> bool:
        """Whether the fields of ``bits``, which were measured, have a fixed size altogether."""
        return isinstance(self._plans.get(bits), int)

    def __call__(self, buf: Buffer, pos: int, end: int) -> int:
        """Return the end of a full value that starts at ``pos``; raises DecodeError as `marked` does."""
        plan = self._plans.get(1)
        if plan is None:
            plan = self._plan(1)
        return self._walk((plan,) if isinstance(plan, int) else plan, buf, pos, end)

    def _walk(self, plan: tuple[int | Hop, ...], buf: Buffer, pos: int, end: int) -> int:
        for step in plan:
            if not isinstance(step, int):
                pos = step(buf, pos, end)
            elif step >= 0:
                pos += step
            elif step == _STRING:
                if pos >= end:
                    raise truncated(pos, end)
                n = buf[pos]
                pos = pos + 1 + n if n < 254 else _long_string(buf, pos, end, self._big)
            else:
                breathe(256)
        if pos > end:
            raise truncated(pos - 1, end)
        return pos

    def _plan(self, bits: int) -> int | tuple[int | Hop, ...]:
        t = self._type
        if bits > t.full_mask:
            raise DecodeError("a field is marked that the type does not have")
        types = t.leaf_types
        steps: list[int | Hop] = []
        fixed = 0
        leaves = t.leaves if bits & 1 else tuple(leaves_of(t, bits))
        long = len(leaves) > COMPILE_LEAVES  # where a decoder counts fields, so do we
        for count, number in enumerate(leaves):
            if long and not count & 255:
                breathe()
                steps.append(_PAUSE)
            leaf = types[number]
            size = _fixed_size(leaf)
            if size is not None:
                fixed += size
                continue
            if fixed:
                steps.append(fixed)
                fixed = 0
            steps.append(
                _STRING if isinstance(leaf, ScalarType) and leaf.code == 0x60 else _hop(leaf, self._big)
            )
        plan: int | tuple[int | Hop, ...]
        if steps:
            if fixed:
                steps.append(fixed)
            plan = tuple(steps)
        else:
            plan = fixed
        plans = self._plans
        if len(plans) >= self._max_plans:
            plans.clear()
        plans[bits] = plan
        return plan


def measurer(t: StructType, big: bool) -> Measurer:
    """Return the measurer of ``t``, which lives as long as the type.

    Raises:
        PVDataError: The type holds an any.
    """
    if t.holds_any:
        raise PVDataError("a value that holds an any cannot be measured; decode it")
    hops = _hops(t)
    made = hops[big]
    if not isinstance(made, Measurer):
        made = hops[big] = Measurer(t, big)
    return made


def _hops(t: TypeDesc) -> list[Hop | None]:
    hops = t._hops
    if hops is None:
        hops = t._hops = [None, None]
    return hops


def _fixed_size(t: TypeDesc) -> int | None:
    """Return how many octets each value of ``t`` takes; None if that depends on the value."""
    if isinstance(t, ScalarType):
        return t.size or None
    if (
        isinstance(t, ArrayType)
        and t.kind == "fixed"
        and isinstance(t.element, ScalarType)
        and t.element.size
    ):
        return t.size * t.element.size
    return None


def _hop(t: TypeDesc, big: bool) -> Hop:
    """Return the step over one leaf; a structure is a leaf inside unions and arrays."""
    if isinstance(t, StructType):
        return _hollow(t) if is_hollow(t) else measurer(t, big)
    hops = _hops(t)
    made = hops[big]
    if made is None:
        made = hops[big] = _build(t, big)
    return made


def _build(t: TypeDesc, big: bool) -> Hop:
    size = _fixed_size(t)
    if size is not None:
        return _skip(size)
    if isinstance(t, BoundedString):
        return _bounded_string(t.bound, big)
    if isinstance(t, ScalarType):
        return lambda buf, pos, end: _string(buf, pos, end, big)
    if isinstance(t, UnionType):
        return _union(t, big)
    assert isinstance(t, ArrayType)
    element = t.element
    if not isinstance(element, ScalarType):
        return _compound_array(element, big)
    return _number_array(t, element.size, big) if element.size else _string_array(t, big)


def _skip(size: int) -> Hop:
    def hop(buf: Buffer, pos: int, end: int) -> int:  # noqa: ARG001
        pos += size
        if pos > end:
            raise truncated(pos - 1, end)
        return pos

    return hop


def _long_string(buf: Buffer, pos: int, end: int, big: bool) -> int:
    n, pos = decode_size(buf, pos, end, big)
    return pos + (n or 0)


def _string(buf: Buffer, pos: int, end: int, big: bool) -> int:
    if pos >= end:
        raise truncated(pos, end)
    n = buf[pos]
    pos = pos + 1 + n if n < 254 else _long_string(buf, pos, end, big)
    if pos > end:
        raise truncated(pos, end)
    return pos


def _bounded_string(bound: int, big: bool) -> Hop:
    def hop(buf: Buffer, pos: int, end: int) -> int:
        n, after = read_text_length(bound, buf, pos, end, big)
        after += n or 0
        if after > end:
            raise truncated(after, end)
        return after

    return hop


def _number_array(t: ArrayType, width: int, big: bool) -> Hop:
    def hop(buf: Buffer, pos: int, end: int) -> int:
        n, pos = read_length(t, buf, pos, end, big)
        pos += n * width
        if pos > end:
            raise truncated(pos - 1, end)
        return pos

    return hop


def _string_array(t: ArrayType, big: bool) -> Hop:
    def hop(buf: Buffer, pos: int, end: int) -> int:
        n, pos = read_length(t, buf, pos, end, big)
        if n > end - pos:
            raise truncated(pos + n - 1, end)
        for number in range(n):
            if not number & 255:
                breathe(min(n - number, 256))
            pos = _string(buf, pos, end, big)
        return pos

    return hop


def _hollow(t: StructType) -> Hop:
    def hop(buf: Buffer, pos: int, end: int) -> int:  # noqa: ARG001
        raise hollow(t)

    return hop


def _union(t: UnionType, big: bool) -> Hop:
    fields = t.fields

    def hop(buf: Buffer, pos: int, end: int) -> int:
        number, pos = read_selector(t, buf, pos, end, big)
        if number is None:
            return pos
        breathe(1)
        return _hop(fields[number][1], big)(buf, pos, end)

    return hop


def _compound_array(element: TypeDesc, big: bool) -> Hop:
    values = element.count

    def hop(buf: Buffer, pos: int, end: int) -> int:
        n, pos = decode_count(buf, pos, end, big)
        if n > end - pos:
            raise truncated(pos + n - 1, end)
        step = _hop(element, big) if n else None
        for number in range(n):
            if not number & 31:
                breathe(min(n - number, 32) * values)
            if pos >= end:
                raise truncated(pos, end)
            present = buf[pos]
            pos += 1
            if present:
                assert step is not None
                pos = step(buf, pos, end)
        return pos

    return hop
