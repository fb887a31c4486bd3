"""Where a value can be stored, and the paths that lead there: ``alarm.severity``, ``value->ubyteValue``, ``dimension[0].size``.

The notation is that of PVXS. In difference to ``pvdata.paths`` a way back up exists (``<``), a union's member can be selected on the
way, and each place knows what encloses it, because a change inside marks the field that holds it.
"""

from __future__ import annotations

import re
from typing import Any

from appliance.pvdata import AnyValue, ArrayType, StructType, TypeDesc, UnionType, UnionValue, Value
from appliance.pvdata.store import default
from appliance.pvdata.types import AnyType

__all__ = ["Boxed", "Element", "Field", "Member", "Node", "Place", "below", "integer", "names", "resolve"]


class Node:
    """A structure, or another value, inside a native value: what ``Value`` of p4p's API refers to."""

    __slots__ = ("_base", "_root", "_type", "_up")

    _root: Value
    _base: int
    _type: TypeDesc
    _up: Place | None


class Place:
    """A typed place; ``content`` is what is stored there."""

    __slots__ = ()

    around: Place
    """The place of the union, any or array that it is in; a Field has ``up`` instead."""

    @property
    def type(self) -> TypeDesc:
        """The type of what can be stored."""
        raise NotImplementedError

    @property
    def content(self) -> Any:
        """What is stored: a leaf as in a native store; None for a structure, which is a Field."""
        raise NotImplementedError

    def put(self, x: Any) -> None:
        """Store a leaf; nothing is checked or marked."""
        raise NotImplementedError

    def touch(self) -> None:
        """Mark the place and all that encloses it."""
        raise NotImplementedError

    def parent(self) -> Place | None:
        """Return the structure around it in the same value; None at the top of a value."""
        return None


class Field(Place):
    """A field of a native value, by its number; number 0 is the value itself."""

    __slots__ = ("number", "root", "up")

    def __init__(self, root: Value, number: int, up: Place | None) -> None:
        self.root = root
        self.number = number
        self.up = up

    @property
    def type(self) -> TypeDesc:
        """The type of what can be stored."""
        return self.root.type.leaf_types[self.number]

    @property
    def content(self) -> Any:
        """What is stored; None for a structure."""
        return self.root.store[self.number]

    def put(self, x: Any) -> None:
        """Store a leaf."""
        self.root.store[self.number] = x

    def touch(self) -> None:
        """Mark the place and all that encloses it."""
        self.root.changed |= 1 << self.number
        if self.up is not None:
            self.up.touch()

    def parent(self) -> Place | None:
        """Return the structure around it."""
        return Field(self.root, self.root.type.parents[self.number], self.up) if self.number else None


class Member(Place):
    """The selected member of a union, unless that is a structure."""

    __slots__ = ("around", "name")

    def __init__(self, around: Place, name: str) -> None:
        self.around = around
        self.name = name

    @property
    def type(self) -> TypeDesc:
        """The member's type."""
        return self.around.type.members[self.name]

    @property
    def content(self) -> Any:
        """The member's value."""
        return self.around.content.value

    def put(self, x: Any) -> None:
        """Store the member's value, and select it."""
        self.around.put(UnionValue(self.name, x))

    def touch(self) -> None:
        """Mark the union."""
        self.around.touch()


class Boxed(Place):
    """What an any holds, unless that is a structure. A change of it marks nothing, as in PVXS."""

    __slots__ = ("around",)

    def __init__(self, around: Place) -> None:
        self.around = around

    @property
    def type(self) -> TypeDesc:
        """The type that the any has at present."""
        t: TypeDesc = self.around.content.type
        return t

    @property
    def content(self) -> Any:
        """The any's value."""
        return self.around.content.value

    def put(self, x: Any) -> None:
        """Store another value of the same type."""
        self.around.put(AnyValue(self.type, x))

    def touch(self) -> None:
        """Mark nothing."""


class Element(Place):
    """An element of an array of unions or anys."""

    __slots__ = ("around", "index", "items", "kind")

    def __init__(self, around: Place, items: list[Any], index: int, kind: TypeDesc) -> None:
        self.around = around
        self.items = items
        self.index = index
        self.kind = kind

    @property
    def type(self) -> TypeDesc:
        """The type of the elements."""
        return self.kind

    @property
    def content(self) -> Any:
        """The element."""
        return self.items[self.index]

    def put(self, x: Any) -> None:
        """Replace the element."""
        self.items[self.index] = x

    def touch(self) -> None:
        """Mark the array."""
        self.around.touch()


def below(place: Place) -> Place | None:
    """Return what the union or any at ``place`` holds; None if it holds nothing."""
    content = place.content
    if content is None:
        return None
    if isinstance(content, UnionValue):
        if content.name is None:
            return None
        if isinstance(content.value, Value):
            return Field(content.value, 0, place)
        return Member(place, content.name)
    if content.type is None:
        return None
    if isinstance(content.value, Value):
        return Field(content.value, 0, None)
    return Boxed(place)


def names(t: TypeDesc) -> list[str]:
    """Return the names of the members of a structure or union; nothing else has any."""
    return list(t.members) if isinstance(t, (StructType, UnionType)) else []


_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|0([0-7]+)|([0-9]+))[ \t\n\v\f\r]*\Z")


def integer(text: str) -> int | None:
    """Read an integer as ``strtoll`` does with base 0; None if the text is none, or too long for any field."""
    found = _INTEGER.match(text) if len(text) <= 200 else None
    if found is None:
        return None
    sign, hexadecimal, octal, decimal = found.groups()
    if octal is None and decimal is not None and len(decimal) > 1 and decimal[0] == "0":
        return None
    number = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    return -number if sign == "-" else number


_STOP = re.compile(r"[<\[-]")
_MEMBER_STOP = re.compile(r"[<\[\-.]")


def resolve(place: Place, expr: str, *, select: bool) -> Place:
    """Return the place that ``expr`` leads to.

    Args:
        place: Where to begin.
        expr: Names with dots between them; ``->name`` for the member of a union, ``->`` for what a union or an any holds, ``[3]`` for
            an element, ``<`` for the structure around. The empty text is ``place`` itself.
        select: Whether naming a member that is not selected selects it.

    Raises:
        KeyError: There is no such field.
        RuntimeError: There is no such element, or nothing is there.
        ValueError: An index is no integer.
    """
    pos = 0
    dot = False
    while pos < len(expr):
        t = place.type
        if expr[pos] == "<":
            around = place.parent()
            if around is None:
                raise KeyError(f"Can't traverse to parent of root with {expr!r}")
            place = around
            pos += 1
        elif isinstance(t, StructType):
            assert isinstance(place, Field)
            if dot:
                if expr[pos] != ".":
                    raise KeyError(f"expected '.' at {pos} in {expr!r}")
                dot = False
                pos += 1
            end = _end(_STOP, expr, pos)
            name = expr[pos:end]
            number = t.offsets.get(name) if name else None
            if number is None:
                raise KeyError(f"no such member field {name!r}" + (f" in {expr!r}" if name != expr else ""))
            place = Field(place.root, place.number + number, place.up)
            pos = end
        elif isinstance(t, (UnionType, AnyType)):
            place, pos, dot = _into(place, t, expr, pos, after_index=dot, select=select)
        elif isinstance(t, ArrayType) and isinstance(t.element, (StructType, UnionType, AnyType)):
            place, pos = _indexed(place, t, expr, pos)
            dot = True
        else:
            raise RuntimeError(f"a {_word(t)} has neither members nor elements with a name, in {expr!r}")
    return place


def _end(stop: re.Pattern[str], expr: str, pos: int) -> int:
    found = stop.search(expr, pos)
    return found.start() if found else len(expr)


def _word(t: TypeDesc) -> str:
    from appliance.pvdata.render import type_name

    return type_name(t)


def _into(
    place: Place, t: UnionType | AnyType, expr: str, pos: int, *, after_index: bool, select: bool
) -> tuple[Place, int, bool]:
    """Go from a union or an any to what it holds; returns the place, where to read on, and whether a dot must follow."""
    if expr.startswith("->", pos):
        pos += 2
    elif after_index:
        # An element that a server sent is its member already, so the arrow may be left out.
        inner = below(place)
        if inner is None:
            raise RuntimeError("No such field")
        return inner, pos, True
    elif pos or isinstance(t, AnyType):
        raise KeyError(f"expected -> in {expr!r}")
    if isinstance(t, UnionType):
        end = _end(_MEMBER_STOP, expr, pos)
        name = expr[pos:end]
        member = t.members.get(name)
        if member is not None:
            if place.content is None or place.content.name != name:
                if not select:
                    raise KeyError(f"member {name!r} is not selected, in {expr!r}")
                place.put(
                    UnionValue(name, Value(member) if isinstance(member, StructType) else default(member))
                )
            inner = below(place)
            assert inner is not None
            return inner, end, True
        inner = below(place)
        if inner is None:
            raise KeyError(f"can't deref. empty Union {expr!r}")
        return inner, pos, False
    inner = below(place)
    if inner is None:
        raise RuntimeError("No such field")
    return inner, pos, False


def _indexed(place: Place, t: ArrayType, expr: str, pos: int) -> tuple[Place, int]:
    end = expr.find("]", pos)
    if expr[pos] != "[" or end - pos < 2:
        raise RuntimeError(f"indexing syntax error in {expr!r}")
    index = integer(expr[pos + 1 : end])
    if index is None:
        raise ValueError(f"Invalid input : {expr[pos + 1 : end]!r:.60}")
    items = place.content
    if not 0 <= index < len(items):
        raise RuntimeError(f"wrong element type or out of range in {expr!r}")
    item = items[index]
    if item is None:
        raise RuntimeError("No such field")
    if isinstance(item, Value):
        return Field(item, 0, place), end + 1
    element = Element(place, items, index, t.element)
    if isinstance(item, AnyValue):
        inner = below(element)
        if inner is None:
            raise RuntimeError("No such field")
        return inner, end + 1
    return element, end + 1
