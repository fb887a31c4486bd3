"""A value: a type, a flat store and the bits of what has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from appliance.errors import PVDataError
from appliance.pvdata.coerce import coerce, parse_int
from appliance.pvdata.store import AnyValue, UnionValue, new_store
from appliance.pvdata.types import ArrayType, ScalarType, StructType, TypeDesc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Value", "View"]


class _Fields:
    """The common part of Value and View: fields by dotted path below one structure.

    Both have ``root`` and ``base``. With an ABC, ``isinstance(x, Value)`` would be slow, and every assignment uses it.
    """

    __slots__ = ()

    type: TypeDesc

    @property
    def root(self) -> Value:
        """The value that owns the store."""
        raise NotImplementedError

    @property
    def base(self) -> int:
        """The number of this structure in the root's store."""
        raise NotImplementedError

    def __getitem__(self, path: str) -> Any:
        """Return a leaf from the store, or a sub-structure as a View.

        Besides dotted paths, ``union->member``, ``any->`` and ``structs[3]`` lead into nested values.

        Raises:
            PVDataError: The type has no such path.
        """
        number = self.type.offsets.get(path)
        if number is None:
            from appliance.pvdata.paths import lookup

            return lookup(self, path)
        root = self.root
        number += self.base
        value = root.store[number]
        if value is None and isinstance(root.type.leaf_types[number], StructType):
            return View(root, number)
        return value

    def __setitem__(self, path: str, x: Any) -> None:
        """Set and mark a leaf, or assign to a sub-structure.

        Raises:
            PVDataError: The value does not fit; the error names the path and the reason.
        """
        number = self.type.offsets.get(path)
        if number is None:
            from appliance.pvdata.paths import store_at

            store_at(self, path, x)
            return
        root = self.root
        number += self.base
        t = root.type.leaf_types[number]
        if isinstance(t, StructType):
            _assign(root, number, x)
            return
        try:
            root.store[number] = coerce(t, x, root.store[number])
        except PVDataError as e:
            raise _at(root.type.paths[number], e) from None
        root.changed |= 1 << number

    def __contains__(self, path: object) -> bool:
        return path in self.type.offsets

    def get(self, path: str, default: Any = None) -> Any:
        """Return a field, or ``default`` if there is no such field.

        Args:
            path: The field's dotted path.
            default: What is returned instead.

        Returns:
            The field, as ``value[path]`` gives it.

        Example:
            >>> Value(NTScalar(FLOAT64), 1.5).get("display.units", "none")
            'none'
        """
        if path in self.type.offsets:
            return self[path]
        try:
            return self[path]
        except PVDataError:
            return default

    def __iter__(self) -> Iterator[str]:
        return iter(self.type.members if isinstance(self.type, StructType) else ())

    def __len__(self) -> int:
        return len(self.type.members) if isinstance(self.type, StructType) else 0

    def __bool__(self) -> bool:
        return True

    def keys(self) -> list[str]:
        """Return the names of the direct members.

        Returns:
            The names, in order.

        Example:
            >>> Value(NTScalar(FLOAT64)).keys()
            ['value', 'alarm', 'timeStamp']
        """
        return list(self)

    def items(self) -> list[tuple[str, Any]]:
        """Return name and value of the direct members.

        Returns:
            Pairs, in order; a sub-structure comes as a View.

        Example:
            >>> Value(StructType([("x", INT32), ("y", INT32)]), {"x": 3}).items()
            [('x', 3), ('y', 0)]
        """
        return [(name, self[name]) for name in self]

    def assign(self, x: Any) -> None:
        """Assign from a mapping of paths (nested or dotted), another value, or a scalar.

        A scalar goes to the field ``value`` if there is one; for an ``enum_t`` it is an index or the text of a
        choice. From another value the marked fields are copied, or all fields if none is marked.

        Args:
            x: What is assigned.

        Raises:
            PVDataError: It does not fit; the error names the field and the reason.

        Example:
            >>> value = Value(NTScalar(INT32))
            >>> value.assign(5)
            >>> value.assign({"alarm": {"severity": 1}, "timeStamp.nanoseconds": 7})
            >>> value["value"], value["alarm.severity"], value["timeStamp.nanoseconds"]
            (5, 1, 7)
            >>> value.assign(1 << 40)
            Traceback (most recent call last):
            appliance.errors.PVDataError: value: 1099511627776 does not fit int32, which holds -2147483648 to 2147483647
        """
        _assign(self.root, self.base, x)

    def mark(self, path: str = "") -> None:
        """Mark a field as changed; a structure's mark stands for everything below it.

        Args:
            path: The field's dotted path; empty for the whole.

        Raises:
            PVDataError: There is no such field.

        Example:
            >>> value = Value(NTScalar(FLOAT64))
            >>> value.mark("alarm")
            >>> value.is_marked("alarm.severity"), value.is_marked("value")
            (True, False)
        """
        self.root.changed |= 1 << self._number(path)

    def unmark(self, path: str = "") -> None:
        """Clear the mark of a field, of everything below it and of the structures around it.

        Args:
            path: The field's dotted path; empty for the whole.

        Raises:
            PVDataError: There is no such field.

        Example:
            >>> value = Value(NTScalar(FLOAT64), {"value": 1.5, "alarm.severity": 2})
            >>> value.unmark("alarm")
            >>> value.is_marked("value"), value.is_marked("alarm")
            (True, False)
        """
        root = self.root
        number = self._number(path)
        root.changed &= ~root.type.masks[number]
        while number:
            number = root.type.parents[number]
            bit = 1 << number
            if root.changed & bit:
                # A mark on the whole structure becomes marks on the rest of it.
                root.changed = (root.changed & ~bit) | self._rest(root.type, number, path)

    def _rest(self, t: TypeDesc, number: int, path: str) -> int:
        return t.masks[number] & t.leaf_mask & ~t.masks[self._number(path)]

    def is_marked(self, path: str = "") -> bool:
        """Whether the field, something below it or a structure around it is marked.

        Args:
            path: The field's dotted path; empty for the whole.

        Returns:
            Whether it is marked.

        Raises:
            PVDataError: There is no such field.

        Example:
            >>> Value(NTScalar(FLOAT64), 1.5).is_marked("value")
            True
        """
        root = self.root
        number = self._number(path)
        if root.changed & root.type.masks[number]:
            return True
        while number:
            number = root.type.parents[number]
            if root.changed >> number & 1:
                return True
        return False

    def _number(self, path: str) -> int:
        number = self.type.offsets.get(path)
        if number is None:
            raise no_field(self.type, path)
        return number + self.base

    def to_dict(self) -> Any:
        """Return plain Python: nested dicts, lists for arrays, ``{member: value}`` for unions.

        A value whose type is not a structure is returned as plain Python itself.

        Returns:
            Plain Python, which does not change with the value.

        Example:
            >>> Value(StructType([("x", INT32), ("names", ArrayType(STRING))]), {"names": ["a"]}).to_dict()
            {'x': 0, 'names': ['a']}
        """
        if not isinstance(self.type, StructType):
            return plain(self.root.store[0])
        root = self.root
        base = self.base
        out: dict[str, Any] = {}
        offsets = self.type.offsets
        for name, t in self.type.fields:
            number = base + offsets[name]
            out[name] = (
                View(root, number).to_dict() if isinstance(t, StructType) else plain(root.store[number])
            )
        return out

    def to_value(self) -> Value:
        """Return an independent copy of this (sub-)structure as a Value of its own.

        Returns:
            The copy, with its marks.

        Example:
            >>> alarm = Value(NTScalar(FLOAT64), {"alarm.severity": 2})["alarm"].to_value()
            >>> alarm["severity"]
            2
        """
        root = self.root
        base = self.base
        end = base + self.type.count
        copy = Value.from_store(
            self.type, [_copied(x) for x in root.store[base:end]], root.changed >> base & self.type.full_mask
        )
        if self.is_marked() and not copy.changed:
            copy.changed = 1
        return copy

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Fields):
            return NotImplemented
        if self.type != other.type:
            return False
        mine = self.root.store[self.base : self.base + self.type.count]
        theirs = other.root.store[other.base : other.base + self.type.count]
        return all(same(a, b) for a, b in zip(mine, theirs, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        t = self.type
        parts = [] if not t.id else [t.id]
        store = self.root.store
        room = 12
        for number in t.leaves:
            if room == 0:
                parts.append("...")
                break
            room -= 1
            value = store[self.base + number]
            text = f"{len(value)} elements" if hasattr(value, "dtype") and len(value) > 8 else repr(value)
            parts.append(f"{t.paths[number]}={text if len(text) <= 60 else text[:57] + '...'}")
        return f"{type(self).__name__}({', '.join(parts)})"


class Value(_Fields):
    """A value: fields by dotted path, and marks that say which of them changed.

    ``value["alarm.severity"]`` reads and ``value["alarm.severity"] = 1`` writes and marks. ``union->member``, ``any->`` and
    ``structs[3]`` lead into nested values. Arrays of numbers are numpy arrays that are read only; a sub-structure is a `View`.
    A type that is not a structure has one field, the empty path: ``value[""]``.

    Args:
        t: The type.
        initial: Assigned to the new value (`assign`); without it each field has its default: 0, "", no elements.

    Raises:
        PVDataError: The initial value does not fit.

    Example:
        >>> value = Value(NTScalar(FLOAT64, display=True), {"value": 1.5, "display.units": "mm"})
        >>> value["value"] = 2.5
        >>> value["value"], value["display.units"], value["alarm.severity"]
        (2.5, 'mm', 0)
        >>> value.is_marked("value"), value.is_marked("alarm")
        (True, False)
        >>> "value" in value, list(value)
        (True, ['value', 'alarm', 'timeStamp', 'display'])
    """

    __slots__ = ("changed", "store", "type")

    def __init__(self, t: TypeDesc, initial: Any = None) -> None:
        self.type = t
        """The type."""
        self.store: list[Any] = new_store(t)
        self.changed = 0
        """The numbers of the marked fields, as the bits of an integer; `is_marked` tells for a path."""
        if initial is not None:
            self.assign(initial)

    @classmethod
    def from_store(cls, t: TypeDesc, store: list[Any], changed: int = 0) -> Value:
        """Wrap a store that a codec made; nothing is checked or copied."""
        self = cls.__new__(cls)
        self.type = t
        self.store = store
        self.changed = changed
        return self

    @property
    def root(self) -> Value:
        """The value itself."""
        return self

    @property
    def base(self) -> int:
        """Number of the top."""
        return 0

    def __getitem__(self, path: str) -> Any:
        number = self.type.offsets.get(path)
        if number is not None:
            value = self.store[number]
            if value is not None:
                return value
        return super().__getitem__(path)

    def clone(self) -> Value:
        """Return an independent copy with the same marks; arrays are shared, being read-only.

        Returns:
            The copy.

        Example:
            >>> value = Value(NTScalar(FLOAT64), 1.5)
            >>> copy = value.clone()
            >>> copy["value"] = 2.5
            >>> value["value"]
            1.5
        """
        return Value.from_store(self.type, [_copied(x) for x in self.store], self.changed)

    def merge(self, store: list[Any], bits: int) -> None:
        """Copy the fields of ``bits`` from another store of the same type and mark them."""
        if bits & 1:
            self.store[:] = store
            self.changed |= 1
            return
        from appliance.pvdata.codec import leaves_of

        mine = self.store
        assert isinstance(self.type, StructType)
        for number in leaves_of(self.type, bits):
            mine[number] = store[number]
        self.changed |= bits & self.type.full_mask


class View(_Fields):
    """A sub-structure of a value: reads and writes go to the value that it belongs to.

    It has the methods of `Value`. ``value["alarm"]`` makes it; `to_value` makes an independent copy.

    Example:
        >>> value = Value(NTScalar(FLOAT64))
        >>> alarm = value["alarm"]
        >>> alarm["severity"] = 2
        >>> value["alarm.severity"], type(alarm).__name__
        (2, 'View')
    """

    __slots__ = ("_base", "_root", "type")

    def __init__(self, root: Value, base: int) -> None:
        self._root = root
        self._base = base
        self.type = root.type.leaf_types[base]

    @property
    def root(self) -> Value:
        """The value that contains this sub-structure."""
        return self._root

    @property
    def base(self) -> int:
        """Number of this sub-structure in the root's store."""
        return self._base


def no_field(t: TypeDesc, path: str) -> PVDataError:
    """Return the error for a path that ``t`` does not have."""
    names = ", ".join(list(t.members)[:12]) if isinstance(t, StructType) else ""
    return PVDataError(f"no field {path!r}" + (f"; there are {names}" if names else ""))


def _at(path: str, error: PVDataError) -> PVDataError:
    text = str(error)
    if not path:
        return PVDataError(text)
    return PVDataError(path + text if text.startswith(("[", "->")) else f"{path}: {text}")


def _assign(root: Value, base: int, x: Any) -> None:
    t = root.type.leaf_types[base]
    if not isinstance(t, StructType):
        _Fields.__setitem__(root, root.type.paths[base], x)
        return
    target: _Fields = View(root, base) if base else root
    if isinstance(x, _Fields) and isinstance(x.type, StructType):
        _assign_fields(target, x)
    elif isinstance(x, Mapping):
        for path, item in x.items():
            if not isinstance(path, str):
                raise _at(root.type.paths[base], PVDataError(f"field name {path!r} is not a string"))
            target[path] = item
    elif _is_enum(t):
        _assign_enum(root, base, t, x)
    elif "value" in t.members:
        target["value"] = x
    else:
        error = PVDataError(f"{type(x).__name__} cannot be assigned to a structure without a field 'value'")
        raise _at(root.type.paths[base], error)


def _assign_fields(target: _Fields, x: _Fields) -> None:
    source = x.root
    numbers = x.type.leaves
    wanted = [n for n in numbers if source.changed and x.is_marked(x.type.paths[n])] or numbers
    for number in wanted:
        path = x.type.paths[number]
        if path not in target.type.offsets:
            raise no_field(target.type, path)
        target[path] = _copied(source.store[x.base + number])


def _is_enum(t: StructType) -> bool:
    index = t.members.get("index")
    choices = t.members.get("choices")
    return (
        isinstance(index, ScalarType)
        and index.kind in ("int", "uint")
        and isinstance(choices, ArrayType)
        and isinstance(choices.element, ScalarType)
        and choices.element.kind == "string"
    )


def _assign_enum(root: Value, base: int, t: StructType, x: Any) -> None:
    index = base + t.offsets["index"]
    choices = root.store[base + t.offsets["choices"]]
    if isinstance(x, str):
        if x in choices:
            x = choices.index(x)
        else:
            try:
                x = parse_int(x)
            except PVDataError:
                known = ", ".join([repr(choice) for choice in choices]) or "not known"
                error = PVDataError(f"illegal choice {x!r}; the choices are {known}")
                raise _at(root.type.paths[base], error) from None
    _Fields.__setitem__(root, root.type.paths[index], x)


def _copied(x: Any) -> Any:
    """Copy what can be changed in place: nested values and the lists that hold them."""
    kind = type(x)
    if kind is list:
        return [_copied(item) for item in x]
    if kind is Value:
        return x.clone()
    if kind is UnionValue:
        return UnionValue(x.name, _copied(x.value))
    if kind is AnyValue:
        return AnyValue(x.type, _copied(x.value))
    return x


def same(a: Any, b: Any) -> bool:
    """Whether two leaves are equal; NaN equals NaN, so that a value equals its copy."""
    if a is b:
        return True
    if hasattr(a, "dtype") and hasattr(b, "dtype"):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        equal = a == b
        if a.dtype.kind == "f":
            equal |= (a != a) & (b != b)  # noqa: PLR0124 - NaN
        return bool(equal.all())
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if hasattr(a, "dtype") or hasattr(b, "dtype"):
        return False
    return bool(a == b) or (a != a and b != b)  # noqa: PLR0124


def plain(x: Any) -> Any:
    """Convert a leaf to plain Python."""
    if isinstance(x, UnionValue):
        return None if x.name is None else {x.name: plain(x.value)}
    if isinstance(x, AnyValue):
        return plain(x.value)
    if isinstance(x, _Fields):
        return x.to_dict()
    if hasattr(x, "dtype"):
        return x.tolist()
    if isinstance(x, (list, tuple)):
        return [plain(item) for item in x]
    return x
