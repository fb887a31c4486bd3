"""The type of a group, put together from its mappings, and the place of each of them in its store."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from appliance.errors import ConfigurationError
from appliance.pvdata.nt import ALARM, TIME
from appliance.pvdata.types import (
    BOOL,
    FLOAT64,
    INT32,
    INT64,
    STRING,
    ArrayType,
    ScalarType,
    StructType,
    TypeDesc,
)
from appliance.pvdata.value import Value

__all__ = ["MAX_INDEX", "OPTIONS", "Place", "Step", "TypeTree", "const_type", "parse_path"]

MAX_INDEX: Final = 1023
"""Highest index of an element of a structure array; each element below it is made."""
OPTIONS: Final = StructType([("_options", StructType([("queueSize", INT32), ("atomic", BOOL)]))])
_COMPONENT: Final = re.compile(r"([A-Za-z_]\w*)(?:\[(\d{1,9})\])?", re.ASCII)


class Step(NamedTuple):
    """One component of a field's name."""

    name: str
    element: int | None
    """Index in a structure array; None if the component is not an array."""


def parse_path(name: str) -> tuple[Step, ...]:
    """Read a path such as ``a.b[1].c``.

    Raises:
        ConfigurationError: The text is not a path.
    """
    steps = []
    for part in name.split(".") if name else ():
        match = _COMPONENT.fullmatch(part)
        if match is None:
            raise ConfigurationError(f"{part!r} cannot be the name of a field", key=name)
        index = None if match[2] is None else int(match[2])
        if index is not None and index > MAX_INDEX:
            raise ConfigurationError(f"an index must not be larger than {MAX_INDEX}", key=name)
        steps.append(Step(match[1], index))
    return tuple(steps)


def const_type(value: Any) -> ScalarType:
    """Return the type of a constant.

    Raises:
        ConfigurationError: The value is not a number, a truth value or text.
    """
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return INT64
    if isinstance(value, float):
        return FLOAT64
    if isinstance(value, str):
        return STRING
    raise ConfigurationError("+const must be a number, a truth value or text")


class TypeTree:
    """A structure that is being built: definitions of the same member are merged."""

    __slots__ = ("_id", "_is_array", "_leaf", "_members")

    def __init__(self, leaf: TypeDesc | None = None) -> None:
        self._members: dict[str, TypeTree] = {}
        self._id = ""
        self._is_array = False
        self._leaf: TypeDesc | None = None
        if isinstance(leaf, StructType):
            self.merge(leaf)
        else:
            self._leaf = leaf

    def merge(self, kind: StructType) -> None:
        """Add the members of a structure, and take its ID."""
        if kind.id:
            self._id = kind.id
        for name, member in kind.fields:
            self.put(name, member)

    def put(self, name: str, kind: TypeDesc) -> None:
        """Add a member, or merge it with the present one."""
        known = self._members.get(name)
        if known is None:
            self._members[name] = TypeTree(kind)
        elif isinstance(kind, StructType) and known._leaf is None:
            known.merge(kind)
        elif isinstance(kind, StructType) or known._leaf is None:
            raise ConfigurationError(f"{name!r} is a structure in one mapping and a value in another")
        elif known._leaf != kind:
            # Elements of an array of structures have one type.
            raise ConfigurationError(f"{name!r} is {known._leaf} in one mapping and {kind} in another")

    def descend(self, step: Step) -> TypeTree:
        """Return the structure below a component, and make it if needed; the last mapping decides whether it is an array."""
        node = self._members.get(step.name)
        if node is None:
            node = self._members[step.name] = TypeTree()
        elif node._leaf is not None:
            raise ConfigurationError(f"{step.name!r} is a structure in one mapping and a value in another")
        node._is_array = step.element is not None
        return node

    def set_id(self, name: str) -> None:
        """Name the structure."""
        if name:
            self._id = name

    def build(self) -> TypeDesc:
        """Make the type."""
        if self._leaf is not None:
            return self._leaf
        kind = self.structure()
        return ArrayType(kind) if self._is_array else kind

    def structure(self) -> StructType:
        """Make the type of a structure, or of an element if this is an array."""
        return StructType([(name, member.build()) for name, member in self._members.items()], self._id)


class Hop(NamedTuple):
    """One step into a structure array."""

    number: int
    """Number of the array in the store."""
    element: int
    """Index of the element in the array."""
    kind: StructType
    """The type of the element."""


class Place(NamedTuple):
    """The place of a mapping in a store of the group."""

    hops: tuple[Hop, ...]
    """The steps into structure arrays, from the outermost."""
    base: int
    """Number of the field in the innermost store."""
    kind: TypeDesc
    mark: int
    """The shift of its bits; with hops, the bit of the outermost array."""

    @classmethod
    def find(cls, kind: StructType, path: tuple[Step, ...]) -> Place:
        """Return the place that a path leads to.

        Raises:
            ConfigurationError: There is no such place.
        """
        hops: list[Hop] = []
        here: TypeDesc = kind
        base = 0
        for position, step in enumerate(path):
            if not isinstance(here, StructType) or step.name not in here.members:
                raise ConfigurationError(f"there is no field {step.name!r}")
            base += here.offsets[step.name]
            here = here.members[step.name]
            if isinstance(here, ArrayType) and isinstance(here.element, StructType):
                if step.element is None:
                    raise ConfigurationError(f"{step.name!r} is an array in another mapping: give an index")
                hops.append(Hop(base, step.element, here.element))
                here = here.element
                base = 0
            elif step.element is not None:
                what = "only a structure can be an element" if position == len(path) - 1 else "it is no array"
                raise ConfigurationError(f"{step.name}[{step.element}]: {what}")
        return cls(tuple(hops), base, here, 1 << hops[0].number if hops else base)

    def store(self, top: list[Any]) -> list[Any]:
        """Return the innermost store, for writing; missing elements are made."""
        for number, index, kind in self.hops:
            elements = top[number]
            if len(elements) <= index:
                elements.extend([None] * (index + 1 - len(elements)))
            element = elements[index]
            if element is None:
                element = elements[index] = Value(kind)
            top = element.store
        return top

    def look(self, top: list[Any]) -> list[Any] | None:
        """Return the innermost store, for reading; None if it does not exist."""
        for number, index, _ in self.hops:
            elements = top[number]
            if len(elements) <= index or elements[index] is None:
                return None
            top = elements[index].store
        return top

    def bits(self, relative: int) -> int:
        """Convert bits of the field to bits of the group."""
        if self.hops:
            return self.mark if relative else 0
        return relative << self.base


META: Final = StructType([("alarm", ALARM), ("timeStamp", TIME)])
"""The fields that ``+type:"meta"`` adds to a structure."""
