"""Values of PVs as they come from a server: they are decoded when somebody needs more of them than one number."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from struct import Struct
from typing import Any, Final, NamedTuple

from appliance.ioc.links.values import dbf_of
from appliance.pva.selection import leaves
from appliance.pvdata.bitset import decode_bitset, iter_bits
from appliance.pvdata.codec import codec
from appliance.pvdata.fielddesc import TypeReader
from appliance.pvdata.types import BOOL, INT32, ScalarType, StructType
from appliance.pvdata.value import Value

__all__ = ["Assembly", "Latest", "Layout", "NumberPlan", "number_plan"]

_NO_TYPES: Final = TypeReader()
"""For values that hold no ``any``: nothing in them refers to a type by an ID."""
_BIG_HERE: Final = sys.byteorder == "big"
_MOST_LAYOUTS: Final = 8


class Layout:
    """How the octets of an update are to be read: all updates with the same fields of a PV share it.

    Args:
        kind: The type of the PV, which holds no ``any``.
        bits: The fields, as they were sent.
        big: Whether numbers are big-endian.
        body: An update: its bit set, values, and the fields that were lost.
    """

    __slots__ = ("_codec", "big", "bits", "fields", "head", "kind", "start")

    def __init__(self, kind: StructType, bits: int, big: bool, body: bytes) -> None:
        self.kind = kind
        self.bits = bits
        self.fields = leaves(kind, bits)
        """The same in leaf form."""
        self.big = big
        self.start = decode_bitset(body, 0, len(body), big)[1]
        self.head = body[: self.start]
        # Looked up here, on the event loop: the table of all codecs is not for several threads.
        self._codec = codec(kind, big)

    def decode(self, body: bytes, base: Sequence[Any]) -> list[Any]:
        """Return the value that an update makes of the one before it."""
        store = list(base)
        self._codec.decode_partial(body, self.start, len(body), self.bits, store, _NO_TYPES)
        return store

    def has(self, number: int) -> bool:
        """Whether updates have a field."""
        return bool(self.fields >> number & 1)

    def place(self, number: int) -> int:
        """Return where the octets of a scalar field are in an update; -1 if the update does not have it, or not always there."""
        if not self.has(number):
            return -1
        kind = self.kind
        at = self.start
        for leaf in iter_bits(self.fields & (2 << number) - 1):
            here = kind.leaf_types[leaf]
            if not isinstance(here, ScalarType) or not here.size:
                return -1
            if leaf != number:
                at += here.size
        return at


class Latest:
    """A complete value; it never changes.

    Args:
        kind: Its type.
        store: The value; None if it is that of ``base`` with an update.
        layout: How the update is read.
        body: The update.
        base: The value before it, or before some that had the same fields.
    """

    __slots__ = ("_store", "base", "body", "kind", "layout")

    def __init__(
        self,
        kind: StructType,
        store: list[Any] | None,
        layout: Layout | None = None,
        body: bytes = b"",
        base: Sequence[Any] = (),
    ) -> None:
        self.kind = kind
        self._store = store
        self.layout = layout
        self.body = body
        self.base = base

    @property
    def store(self) -> list[Any]:
        """The value. Several threads may decode it at once, which makes the same of it."""
        store = self._store
        if store is None:
            layout = self.layout
            assert layout is not None
            store = self._store = layout.decode(self.body, self.base)
        return store


class Assembly:
    """Makes complete values of the updates of one subscription.

    Args:
        kind: The type of the PV, which holds no ``any``.
    """

    __slots__ = ("_base", "_kind", "_layout", "_layouts", "_present")

    def __init__(self, kind: StructType) -> None:
        self._kind = kind
        self._base: list[Any] = Value(kind).store
        self._layout: Layout | None = None
        self._layouts: dict[tuple[bytes, bool], Layout] = {}
        self._present: Latest | None = None

    def add(self, body: bytes, bits: int, big: bool) -> Latest:
        """Return the value that an update makes.

        Args:
            body: The update: its bit set, values, and the fields that were lost.
            bits: The fields, as they were sent.
            big: Whether numbers are big-endian.
        """
        layout = self._layout
        if layout is None or not body.startswith(layout.head) or big is not layout.big:
            layout = self._change(body, bits, big)
        # An update with the same fields says all that the one before it said.
        present = self._present = Latest(self._kind, None, layout, body, self._base)
        return present

    def _change(self, body: bytes, bits: int, big: bool) -> Layout:
        """Use another layout; the present value is what its updates change."""
        if self._present is not None:
            self._base = self._present.store
        start = decode_bitset(body, 0, len(body), big)[1]
        key = (body[:start], big)
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= _MOST_LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[key] = Layout(self._kind, bits, big, body)
        self._layout = layout
        return layout


class NumberPlan(NamedTuple):
    """How one number is read from updates with a layout, without decoding them."""

    layout: Layout
    dbr: int
    """What EPICS wants."""
    at: int
    """Where its octets are; -1 if it must be read in another way."""
    after: int
    severity_at: int
    """Where the octets of the severity are; -1 if the updates do not have it, or it does not count."""
    severity: int
    """Otherwise its number in the value to which the update belongs; -1 if it does not count."""
    number: Struct | None
    """Reads the octets; None if they are what EPICS wants."""


def number_plan(layout: Layout, dbr: int, value: int, severity: int) -> NumberPlan:
    """Plan how a number is read.

    Args:
        layout: The layout of updates.
        dbr: The DBR code of a number.
        value: The number of the field in a store; negative if it is no number.
        severity: That of the severity; negative if it does not count.
    """
    kind = layout.kind
    here = kind.leaf_types[value] if value >= 0 else None
    at = layout.place(value) if isinstance(here, ScalarType) and layout.big is _BIG_HERE else -1
    severity_at = layout.place(severity) if severity >= 0 else -1
    if severity >= 0 and (kind.leaf_types[severity] != INT32 or (severity_at < 0 and layout.has(severity))):
        at = -1
    if at < 0:
        return NumberPlan(layout, dbr, -1, 0, -1, -1, None)
    assert isinstance(here, ScalarType)
    number = None if dbf_of(here) == dbr and here != BOOL else Struct("=" + here.fmt)
    return NumberPlan(
        layout, dbr, at, at + here.size, severity_at, severity if severity_at < 0 else -1, number
    )
