"""What p4p gives to a program that reads a field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from appliance.p4p._place import Element, Field, Place, below
from appliance.pvdata import AnyValue, ArrayType, StructType, UnionValue, Value
from appliance.pvdata.store import zeros

__all__ = ["PLAIN", "as_py"]

PLAIN = frozenset({int, float, str, bool})
"""The classes of leaves that are given to a program as they are."""


def as_py(
    make: Callable[[Value, int, Place | None], Any],
    place: Place,
    unpack: bool = False,
    recurse: bool = False,
    wrapper: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """Return what a place holds as p4p gives it to a program.

    Args:
        make: Makes the object that stands for a structure.
        place: The place.
        unpack: Whether a structure here becomes a list of names and values.
        recurse: The same for the structures below.
        wrapper: Is applied to each such list.
    """
    t = place.type
    content = place.content
    if isinstance(t, StructType):
        assert isinstance(place, Field)
        if not unpack:
            return make(place.root, place.number, place.up)
        pairs = []
        root, base, up = place.root, place.number, place.up
        leaves, offsets = root.store, t.offsets
        for name in t.members:
            number = base + offsets[name]
            item = leaves[number]
            if item.__class__ not in PLAIN:
                item = as_py(make, Field(root, number, up), recurse, True, wrapper)
            pairs.append((name, item))
        return pairs if wrapper is None else wrapper(pairs)
    if content.__class__ in PLAIN:
        return content
    if isinstance(content, np.ndarray):
        assert isinstance(t, ArrayType)
        return None if not content.size and content is zeros(t.element) else content  # type: ignore[arg-type]
    if isinstance(content, (UnionValue, AnyValue)):
        inner = below(place)
        return None if inner is None else as_py(make, inner, recurse, True, wrapper)
    if isinstance(content, tuple):
        return list(content)
    if isinstance(content, list):
        assert isinstance(t, ArrayType)
        out = []
        for index, item in enumerate(content):
            if isinstance(item, Value):
                inner = Field(item, 0, place)
            else:
                inner = None if item is None else below(Element(place, content, index, t.element))
            out.append(None if inner is None else as_py(make, inner, recurse, True, wrapper))
        return out
    if isinstance(content, bytes):
        return np.frombuffer(content, "u1")
    return content
