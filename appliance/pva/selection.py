"""The fields that are sent: a request's mask, a value's valid fields, and the bit set that goes on the wire.

A bit of a sub-structure on the wire means its whole subtree (section 5.5.5). Inside the package selections
are kept in *leaf form*, with bits of leaves only, so that intersecting two of them is one ``&``; the wire
form of "everything" is the single bit 0, which is short and takes the codec's fastest path.
"""

from __future__ import annotations

from appliance.pva.status import OK_BYTES
from appliance.pvdata.bitset import encode_bitset, iter_bits
from appliance.pvdata.codec import codec
from appliance.pvdata.types import StructType

_NO_OVERRUN = b"\x00"

__all__ = ["encode_answer", "encode_update", "leaves", "wire_bits"]


def leaves(kind: StructType, bits: int) -> int:
    """Return ``bits`` in leaf form: a set bit of a structure becomes the bits of its leaves."""
    all_leaves = kind.leaf_mask
    if bits & 1:
        return all_leaves
    structures = bits & ~all_leaves
    if structures:
        masks = kind.masks
        for offset in iter_bits(structures & kind.full_mask):
            bits |= masks[offset]
    return bits & all_leaves


def wire_bits(kind: StructType, selected: int) -> int:
    """Return the wire form of a selection in leaf form."""
    return 1 if selected == kind.leaf_mask else selected


def encode_answer(kind: StructType, selected: int, store: list[object], *, big: bool) -> bytes:
    """Serialise what follows the sub-command in the answer to a GET: Status OK, bit set, value."""
    return codec(kind, big).encode_marked(store, wire_bits(kind, selected), before=OK_BYTES)


def encode_update(kind: StructType, selected: int, overrun: int, store: list[object], *, big: bool) -> bytes:
    """Serialise what follows the sub-command in an update of a MONITOR: bit set, value, overrun bit set."""
    return codec(kind, big).encode_marked(
        store,
        1 if selected == kind.leaf_mask else selected,
        after=encode_bitset(overrun, big) if overrun else _NO_OVERRUN,
    )
