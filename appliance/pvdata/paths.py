"""Paths that lead into nested values: ``value->doubleValue``, ``dimension[0].size``, ``any->field``.

The notation is that of PVXS. Plain dotted paths are not handled here, but by a dictionary.
"""

from __future__ import annotations

from appliance.errors import PVDataError
from appliance.pvdata.coerce import coerce
from appliance.pvdata.store import AnyValue, UnionValue
from appliance.pvdata.types import AnyType, ArrayType, StructType, TypeDesc, UnionType
from appliance.pvdata.value import Value, _Fields, no_field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["lookup", "store_at"]


def _split(where: _Fields, path: str) -> tuple[str, str]:
    """Split into the dotted part and the rest, which begins with ``->`` or ``[``."""
    cuts = [i for i in (path.find("->"), path.find("[")) if i >= 0]
    if not cuts:
        raise no_field(where.type, path)
    head, rest = path[: min(cuts)], path[min(cuts) :]
    if head not in where.type.offsets:
        raise no_field(where.type, head)
    return head, rest


def lookup(where: _Fields, path: str) -> Any:
    """Return the value that ``path`` leads to.

    Raises:
        PVDataError: There is no such value.
    """
    head, rest = _split(where, path)
    number = where.base + where.type.offsets[head]
    t: TypeDesc | None = where.root.type.leaf_types[number]
    value = where.root.store[number]
    while rest:
        if rest.startswith("->"):
            name, rest = _name(rest[2:])
            if isinstance(value, UnionValue):
                if name and name != value.name:
                    raise PVDataError(f"{path}: the union has {value.name or 'nothing'} selected, not {name}")
                value = value.value
                continue
            if isinstance(value, AnyValue):
                value = value.value
                if name:
                    rest = f".{name}{rest}"
                continue
            raise PVDataError(f"{path}: '->' follows a union or an any")
        if rest.startswith("["):
            index, rest = _index(path, rest)
            if not isinstance(t, (ArrayType, type(None))) or not isinstance(value, list):
                raise PVDataError(f"{path}: only an array of structures, unions or anys has [{index}]")
            if index >= len(value):
                raise PVDataError(f"{path}: [{index}] of {len(value)} elements")
            value = value[index]
            t = None
            continue
        if not isinstance(value, Value):
            raise PVDataError(f"{path}: nothing lies below {'null' if value is None else 'a leaf'}")
        return value[rest.removeprefix(".")]
    return value


def store_at(where: _Fields, path: str, x: Any) -> None:
    """Set the value at ``path``, select union members on the way, and mark the field that holds it."""
    head, rest = _split(where, path)
    number = where.base + where.type.offsets[head]
    root = where.root
    t = root.type.leaf_types[number]
    root.store[number] = _stored(t, root.store[number], rest, x, path)
    root.changed |= 1 << number


def _stored(t: TypeDesc, value: Any, rest: str, x: Any, path: str) -> Any:
    """Return ``value`` with ``x`` at ``rest`` below it; lists and nested values change in place."""
    try:
        if not rest:
            return coerce(t, x, value)
        if isinstance(t, StructType) and rest.startswith("."):
            made = value if isinstance(value, Value) else Value(t)
            made[rest.removeprefix(".")] = x
            return made
    except PVDataError as e:
        raise PVDataError(f"{path}: {e}") from None
    if rest.startswith("->") and isinstance(t, UnionType):
        name, rest = _name(rest[2:])
        member = t.members.get(name)
        if member is None:
            raise PVDataError(f"{path}: the union has no member {name!r}; it has {', '.join(t.members)}")
        return UnionValue(name, _stored(member, value.value if value.name == name else None, rest, x, path))
    if rest.startswith("->") and isinstance(t, AnyType) and value.type is not None:
        name, rest = _name(rest[2:])
        return AnyValue(
            value.type, _stored(value.type, value.value, f".{name}{rest}" if name else rest, x, path)
        )
    if rest.startswith("[") and isinstance(t, ArrayType) and isinstance(value, list):
        index, rest = _index(path, rest)
        if index >= len(value):
            raise PVDataError(f"{path}: [{index}] of {len(value)} elements")
        value[index] = _stored(t.element, value[index], rest, x, path)
        return value
    raise PVDataError(f"{path}: {rest!r} leads nowhere")


def _name(rest: str) -> tuple[str, str]:
    end = min([i for i in (rest.find(c) for c in ".[-") if i >= 0], default=len(rest))
    return rest[:end], rest[end:]


def _index(path: str, rest: str) -> tuple[int, str]:
    end = rest.find("]")
    digits = rest[1:end]
    if end < 2 or not digits.isascii() or not digits.isdigit() or len(digits) > 9:
        raise PVDataError(f"{path}: {rest!r} is not an index")
    return int(digits), rest[end + 1 :]
