"""Descriptions of types as p4p writes them, ``[("value", "d"), ("alarm", ("S", "alarm_t", [...]))]``, and our types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from appliance.errors import PVDataError
from appliance.p4p._scalars import NotATuple
from appliance.p4p._store import SCALAR_CODES
from appliance.pvdata import ANY, ArrayType, ScalarType, StructType, TypeDesc, UnionType
from appliance.pvdata.types import AnyType

__all__ = ["Struct", "StructArray", "TypeLike", "Union", "UnionArray", "build", "describe"]

_NAMES = {t.name: code for code, t in SCALAR_CODES.items()}


_Spec = Iterable[Any] | None


def Struct(spec: _Spec = None, id: str | None = None) -> tuple[str, str | None, _Spec]:
    """Describe a structure inside a ``Type``.

    Args:
        spec: The members, as for ``Type``.
        id: The structure's identifier.

    Example:
        >>> Type([("limits", Struct([("low", "d"), ("high", "d")]))]).keys()
        ['limits']
    """
    return ("S", id, spec)


def Union(spec: _Spec = None, id: str | None = None) -> tuple[str, str | None, _Spec]:
    """Describe a union inside a ``Type``: one of its members is present at a time.

    Args:
        spec: The members, as for ``Type``.
        id: The union's identifier.

    Example:
        >>> V = Type([("value", Union([("text", "s"), ("number", "d")]))])()
        >>> V.value = ("number", 4)
        >>> V.value
        4.0
    """
    return ("U", id, spec)


def StructArray(spec: _Spec = None, id: str | None = None) -> tuple[str, str | None, _Spec]:
    """Describe an array of structures inside a ``Type``.

    Args:
        spec: The members, as for ``Type``.
        id: The identifier of the structures.

    Example:
        >>> V = Type([("points", StructArray([("x", "d"), ("y", "d")]))])({"points": [{"x": 1, "y": 2}]})
        >>> V.points[0].y
        2.0
    """
    return ("aS", id, spec)


def UnionArray(spec: _Spec = None, id: str | None = None) -> tuple[str, str | None, _Spec]:
    """Describe an array of unions inside a ``Type``.

    Args:
        spec: The members, as for ``Type``.
        id: The identifier of the unions.

    Example:
        >>> V = Type([("items", UnionArray([("text", "s"), ("number", "d")]))])({"items": [("text", "a"), ("number", 1)]})
        >>> V["items"]
        ['a', 1.0]
    """
    return ("aU", id, spec)


class TypeLike:
    """What ``Type`` of p4p's API is for this module."""

    __slots__ = ("_desc",)

    _desc: TypeDesc


class _Part:
    """A member while a description is read: members of the same name are merged, as PVXS does.

    ``whole`` is a type that nothing was merged into yet.
    """

    __slots__ = ("array", "id", "kind", "members", "whole")

    def __init__(self, kind: TypeDesc | None, word: str = "", id: str = "", *, array: bool = False) -> None:
        self.kind: TypeDesc | str = word if kind is None else kind
        self.array = array
        self.id = id
        self.members: list[tuple[str, _Part]] = []
        self.whole: TypeDesc | None = None

    def open(self) -> None:
        """Take the type apart before it is changed."""
        if self.whole is not None:
            self.members = _part(self.whole).members
            self.whole = None

    def compound(self) -> bool:
        """Whether it is a structure, a union, an any, or an array of them."""
        t = self.kind.element if isinstance(self.kind, ArrayType) else self.kind
        return not isinstance(t, ScalarType)

    def merge(self, name: str, other: _Part) -> None:
        """Append a member, or change the one of that name."""
        self.open()
        for known, mine in self.members:
            if known == name:
                if mine.compound() is not other.compound():
                    raise RuntimeError(f"May not change member {name!r} kind to/from Compound")
                mine.kind, mine.array = other.kind, other.array
                mine.id = other.id or mine.id
                other.open()
                mine.open()
                for below, part in other.members:
                    mine.merge(below, part)
                return
        self.members.append((name, other))

    def type(self) -> TypeDesc:
        """Make the type."""
        t: TypeDesc
        if self.whole is not None:
            return self.whole
        if isinstance(self.kind, TypeDesc):
            t = self.kind
            if isinstance(t, ArrayType):
                return t
        else:
            kind = StructType if self.kind == "S" else UnionType
            t = kind([(name, part.type()) for name, part in self.members], self.id)
        return ArrayType(t) if self.array else t


def _part(t: TypeDesc) -> _Part:
    """Take a type apart again."""
    inner = t.element if isinstance(t, ArrayType) and not isinstance(t.element, ScalarType) else t
    if not isinstance(inner, (StructType, UnionType)):
        # A scalar, an any, an array of scalars or anys; bounds of an array are kept.
        return _Part(t)
    made = _Part(None, "S" if isinstance(inner, StructType) else "U", inner.id, array=inner is not t)
    made.members = [(name, _part(member)) for name, member in inner.fields]
    return made


def _closed(t: TypeDesc) -> _Part:
    """Take a type as it is."""
    inner = t.element if isinstance(t, ArrayType) else t
    if not isinstance(inner, (StructType, UnionType)):
        return _Part(t)
    made = _Part(None, "S" if isinstance(inner, StructType) else "U", inner.id, array=inner is not t)
    made.whole = t
    return made


def _plain(code: str) -> _Part:
    code.encode("ascii")
    array = code[:1] == "a"
    letter = code[1:2] if array else code[:1]
    if letter == "v":
        return _Part(ANY, array=array)
    t = SCALAR_CODES.get(letter)
    if t is None:
        raise RuntimeError(f"Invalid plain type spec {code!r:.60}")
    return _Part(ArrayType(t) if array else t)


def _tuple(x: Any, size: int, what: str) -> tuple[Any, ...]:
    if not isinstance(x, tuple):
        raise NotATuple(f"{what}, not {type(x).__name__}")
    if len(x) != size or not isinstance(x[0], str) or (size == 3 and not isinstance(x[1], (str, type(None)))):
        raise TypeError(what)
    if "\0" in x[0]:
        raise ValueError("embedded null character")
    return x


def _members(spec: Iterable[Any]) -> list[tuple[str, _Part]]:
    out = []
    for item in spec:
        name, kind = _tuple(
            item, 2, "expected a list of tuples (name, type code) or (name, ('S', id, [...]))"
        )
        if isinstance(kind, TypeLike):
            part = _closed(kind._desc)
        elif isinstance(kind, str):
            part = _plain(kind)
        else:
            code, id_, below = _tuple(kind, 3, "expected a type code, a Type or a tuple (code, id, members)")
            array = code[:1] == "a"
            letter = (code[1:2] if array else code[:1]).upper()
            if letter not in ("S", "U"):
                raise RuntimeError(f"Invalid complex type spec {code!r:.60}")
            part = _Part(None, letter, _sendable(id_ or ""), array=array)
            part.members = _members(below)
        out.append((_sendable(name), part))
    return out


def _sendable(text: str) -> str:
    """Refuse a name or an identifier that cannot be sent, as p4p does."""
    text.encode()
    return text


def build(spec: Iterable[Any], id: str = "", base: TypeDesc | None = None) -> TypeDesc:
    """Make a type from a description.

    Args:
        spec: The members.
        id: The identifier of the structure.
        base: A structure, or something else that has members, to which the members are added.

    Raises:
        RuntimeError: A code or a name is invalid, or the type is too large.
        TypeError: The description has another form.
        UnicodeEncodeError: A name or an identifier has characters that cannot be sent.
    """
    top = _Part(None, "S", _sendable(id)) if base is None else _part(base)
    more = _members(spec)
    if isinstance(top.kind, TypeDesc):
        raise RuntimeError("May only append to Struct, Union, StructA, or UnionA")  # noqa: TRY004 - as p4p
    for name, part in more:
        top.merge(name, part)
    try:
        return top.type()
    except PVDataError as e:
        raise RuntimeError(str(e)) from None


def describe(t: TypeDesc) -> Any:
    """Return the description of a type, as ``Type.aspy`` gives it."""
    if isinstance(t, ScalarType):
        return _NAMES.get(t.name, "s")
    if isinstance(t, AnyType):
        return "v"
    if isinstance(t, ArrayType):
        inner = describe(t.element)
        return "a" + inner if isinstance(inner, str) else ("a" + inner[0], *inner[1:])
    assert isinstance(t, (StructType, UnionType))
    members = [(name, describe(member)) for name, member in t.fields]
    return ("S" if isinstance(t, StructType) else "U", t.id or "structure", members)
