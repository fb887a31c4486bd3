"""Stores: the possible leaves, and their initial values.

A store is the flat list in which a Value keeps its fields; see docs/architecture.md.
"""

from __future__ import annotations

from collections import namedtuple

from appliance.pvdata.types import (
    UINT8,
    AnyType,
    ArrayType,
    ScalarType,
    StructType,
    TypeDesc,
    UnionType,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

__all__ = ["NO_ANY", "NO_STRINGS", "NO_UNION", "AnyValue", "UnionValue"]


class UnionValue(namedtuple("UnionValue", ("name", "value"))):  # noqa: PYI024 - typing would double the import time
    """A union's selected member and its value.

    Example:
        >>> from appliance.pvdata import UnionValue
        >>> choice = UnionType([("number", INT32), ("text", STRING)])
        >>> value = Value(StructType([("choice", choice)]), {"choice": UnionValue("text", "hello")})
        >>> value["choice"]
        UnionValue(name='text', value='hello')
        >>> value["choice->text"]
        'hello'
    """

    __slots__ = ()
    name: str | None
    """The member; None if nothing is selected."""
    value: Any
    """Its value."""


class AnyValue(namedtuple("AnyValue", ("type", "value"))):  # noqa: PYI024
    """An any's type and value.

    Example:
        >>> from appliance.pvdata import AnyValue
        >>> value = Value(StructType([("what", ANY)]), {"what": AnyValue(INT32, 5)})
        >>> value["what"]
        AnyValue(type=INT32, value=5)
    """

    __slots__ = ()
    type: TypeDesc | None
    """The type; None if it is empty."""
    value: Any
    """The value."""


class _NoStrings(tuple[str, ...]):
    """An array of strings that nobody has set; see ``no_elements``."""

    __slots__ = ()


NO_STRINGS = _NoStrings()
NO_UNION = UnionValue(None, None)
NO_ANY = AnyValue(None, None)

_np: ModuleType | None = None
_empty: dict[tuple[str, int], Any] = {}
_received: dict[str, Any] = {}


def numpy() -> ModuleType:
    """Import numpy at the first array, so that a tool that shows a scalar starts fast."""
    global _np  # noqa: PLW0603
    if _np is None:
        import numpy as np

        _np = np
    return _np


def zeros(element: ScalarType, size: int = 0) -> Any:
    """Return the shared read-only array of ``size`` zeros (usually empty) that a field starts with."""
    key = (element.np, size)
    array = _empty.get(key)
    if array is None:
        array = numpy().zeros(size, dtype=element.np)
        array.flags.writeable = False
        if size <= 1024 and len(_empty) < 256:
            _empty[key] = array
    return array


def no_elements(element: ScalarType) -> Any:
    """Return the shared read-only array for "no elements" that a peer sent; it is not the one that a field starts with (``zeros``).

    PVXS tells the two apart, and so do p4p's programs: an array that nobody has set is None for them.
    """
    array = _received.get(element.np)
    if array is None:
        array = _received[element.np] = numpy().zeros(0, dtype=element.np)
        array.flags.writeable = False
    return array


def octet_store(t: TypeDesc) -> list[Any]:
    """Return a store as ``new_store`` does, but with ``bytes`` for ``uint8[]``; see ``TypeReader.octets``."""
    return [
        None
        if isinstance(leaf, StructType)
        else b""
        if isinstance(leaf, ArrayType) and leaf.kind == "variable" and leaf.element == UINT8
        else default(leaf)
        for leaf in t.leaf_types
    ]


def default(t: TypeDesc) -> Any:
    """Return the initial value of a leaf of type ``t``."""
    if isinstance(t, ScalarType):
        return {"string": "", "float": 0.0, "bool": False}.get(t.kind, 0)
    if isinstance(t, ArrayType):
        if isinstance(t.element, ScalarType):
            size = t.size if t.kind == "fixed" else 0
            if t.element.kind == "string":
                return ("",) * size or NO_STRINGS
            return zeros(t.element, size)
        return []
    if isinstance(t, UnionType):
        return NO_UNION
    if isinstance(t, AnyType):
        return NO_ANY
    raise AssertionError(t)


def new_store(t: TypeDesc) -> list[Any]:
    """Return a store of ``t`` in which every leaf has its default."""
    known = t._defaults
    if known is None:
        values = tuple([None if isinstance(leaf, StructType) else default(leaf) for leaf in t.leaf_types])
        lists = tuple([i for i, value in enumerate(values) if type(value) is list])
        known = t._defaults = (values, lists)
    values, lists = known
    store = list(values)
    for i in lists:
        store[i] = []
    return store
