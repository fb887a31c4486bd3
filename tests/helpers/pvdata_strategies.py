"""Hypothesis strategies for PVData types and for values that fit them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from appliance.pvdata import (
    ANY,
    BOOL,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    AnyType,
    AnyValue,
    ArrayType,
    BoundedString,
    ScalarType,
    StructType,
    UnionType,
    UnionValue,
    Value,
)

SCALARS = (
    BOOL,
    INT8,
    INT16,
    INT32,
    INT64,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    FLOAT32,
    FLOAT64,
    STRING,
)

names = st.sampled_from(["value", "a", "b", "c", "severity", "x1", "_y", "Zed", "index"])
ids = st.sampled_from(["", "alarm_t", "epics:nt/NTScalar:1.0", 'my "odd" id'])
texts = st.one_of(
    st.sampled_from(
        ["", "ok", "a'b\"c\\d", "line\nfeed\t\x07\x00", "\u00b0C", "\udcb0C", "x" * 253, "y" * 254]
    ),
    st.text(st.characters(codec="utf-8"), max_size=12),
)


def fields(children, max_size=4):
    return st.lists(st.tuples(names, children), max_size=max_size, unique_by=lambda f: f[0])


def types(*, sized=True):
    """Every kind of type; ``sized`` adds the bounded and fixed ones, which PVXS refuses."""
    leaves = [
        st.sampled_from(SCALARS),
        st.just(ANY),
        st.sampled_from(SCALARS).map(ArrayType),
        st.just(ArrayType(ANY)),
    ]
    if sized:
        leaves += [
            st.integers(1, 300).map(BoundedString),
            st.builds(
                ArrayType, st.sampled_from(SCALARS), st.sampled_from(["bounded", "fixed"]), st.integers(0, 9)
            ),
        ]

    def compound(children):
        structs = st.builds(StructType, fields(children), ids)
        # PVXS cannot tell the members of an empty union from nothing.
        unions = st.builds(UnionType, fields(children).filter(bool), ids)
        return structs | unions | structs.map(ArrayType) | unions.map(ArrayType)

    return st.recursive(st.one_of(leaves), compound, max_leaves=8)


def struct_types(*, sized=True):
    return st.builds(StructType, fields(types(sized=sized), max_size=6), ids)


@st.composite
def values(draw, t, *, depth=3, sized=True):
    """A leaf of type ``t``."""
    if isinstance(t, BoundedString):
        return draw(st.text(max_size=t.bound // 4))
    if isinstance(t, ScalarType):
        return draw(scalars(t))
    if isinstance(t, ArrayType):
        count = t.size if t.kind == "fixed" else draw(st.integers(0, t.size if t.kind == "bounded" else 4))
        if isinstance(t.element, ScalarType):
            items = [draw(scalars(t.element)) for _ in range(count)]
            return tuple(items) if t.element is STRING else np.array(items, dtype=t.element.np)
        if depth <= 0:
            return []
        items = [
            draw(st.none() | values(t.element, depth=depth - 1, sized=sized)) for _ in range(min(count, 3))
        ]
        return [None if item in (UnionValue(None, None), AnyValue(None, None)) else item for item in items]
    if isinstance(t, UnionType):
        if depth <= 0 or not t.fields or draw(st.integers(0, 3)) == 0:
            return UnionValue(None, None)
        name, member = draw(st.sampled_from(t.fields))
        return UnionValue(name, draw(values(member, depth=depth - 1, sized=sized)))
    if isinstance(t, AnyType):
        if depth <= 0 or draw(st.integers(0, 3)) == 0:
            return AnyValue(None, None)
        inner = draw(types(sized=sized).filter(not_hollow))
        return AnyValue(inner, draw(values(inner, depth=depth - 1, sized=sized)))
    return draw(full_values(t, depth=depth - 1, sized=sized))


def not_hollow(t):
    return t.count <= 16 + 8 * t.min_bytes


def scalars(t):
    if t is BOOL:
        return st.booleans()
    if t is STRING:
        return texts
    if t.kind == "float":
        return st.floats(width=8 * t.size)
    return st.integers(t.lo, t.hi)


@st.composite
def full_values(draw, t, *, depth=3, sized=True):
    """A Value of structure ``t`` with every leaf drawn and all of them marked, as decoding marks them."""
    store = [None] * t.count
    for number in t.leaves:
        store[number] = draw(values(t.leaf_types[number], depth=depth, sized=sized))
    return Value.from_store(t, store, t.leaf_mask)


@st.composite
def any_struct(draw, *, sized=True):
    """A Value of an arbitrary structure."""
    return draw(full_values(draw(struct_types(sized=sized)), sized=sized))
