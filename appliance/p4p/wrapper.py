"""Values and types of PVData with the methods that p4p gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from appliance.p4p._place import Field, Node, Place, below, names, resolve
from appliance.p4p._read import PLAIN, as_py
from appliance.p4p._spec import Struct, StructArray, TypeLike, Union, UnionArray, build, describe
from appliance.p4p._store import assign, fill, marked, put, store
from appliance.pvdata import ArrayType, StructType, TypeDesc, UnionType, View, render, render_type
from appliance.pvdata import Value as _Native

__all__ = ["Struct", "StructArray", "Type", "Union", "UnionArray", "Value"]


def _name(key: Any) -> str:
    """Return a path as text; bytes are accepted as p4p does."""
    if key.__class__ is str:
        return key
    if isinstance(key, str):
        return str(key)
    if isinstance(key, bytes):
        return key.decode("utf-8", "surrogateescape")
    raise TypeError(f"expected a field's name, {type(key).__name__} found")


def _text(name: Any) -> str:
    if isinstance(name, str):
        return name
    if name is None:
        raise AttributeError("a field's name is needed, not None")
    raise TypeError(f"Argument 'name' has incorrect type (expected str, got {type(name).__name__})")


def _cut(text: str, limit: Any) -> str:
    if not hasattr(limit, "__index__"):
        raise TypeError("an integer is required")
    limit = limit.__index__()
    return text if limit <= 0 or len(text) < limit else text[:limit] + "..."


class Type(TypeLike):
    """The definition of a structure: the names and types of its fields, and an identifier.

    A field is described by a code: ``?`` bool, ``s`` text, ``b h i l`` signed and ``B H I L`` unsigned integers of 8, 16, 32 and 64 bits,
    ``f d`` floating point of 32 and 64 bits, ``v`` any. ``a`` in front makes an array. A structure is ``("S", id, [...])``, a union
    ``("U", id, [...])``, arrays of them ``("aS", id, [...])`` and ``("aU", id, [...])``. Another ``Type`` can stand for a field, too.

    Calling a type makes a value: ``Type([...])({"value": 4})``.

    Args:
        spec: A list of (name, description) tuples.
        id: The identifier, as ``epics:nt/NTScalar:1.0``.
        base: A ``Type`` whose fields come first.

    Raises:
        RuntimeError: A code or a name is invalid.
        TypeError: ``spec`` has another form.
        ValueError: ``id`` and ``base`` are both given.

    Example:
        >>> T = Type([("value", "d"), ("alarm", ("S", "alarm_t", [("severity", "i")]))], id="example:1.0")
        >>> T.getID(), T.keys(), T["value"]
        ('example:1.0', ['value', 'alarm'], 'd')
    """

    __slots__ = ()

    def __init__(self, spec: Iterable[Any], id: str | None = None, base: Type | None = None) -> None:
        if id is not None and base is not None:
            raise ValueError("only pass one of id= or base=")
        if id is not None and not isinstance(id, str):
            raise TypeError(f"Argument 'id' has incorrect type (expected str, got {type(id).__name__})")
        if base is not None and not isinstance(base, Type):
            raise TypeError(f"Cannot convert {type(base).__name__} to Type")
        self._desc = build(spec, id or "", None if base is None else base._desc)

    @classmethod
    def _of(cls, desc: TypeDesc) -> Type:
        """Wrap a type of ``appliance.pvdata``."""
        made = cls.__new__(cls)
        made._desc = desc
        return made

    def getID(self) -> str:
        """Return the identifier; ``structure`` if there is none.

        Example:
            >>> Type([("value", "i")]).getID()
            'structure'
        """
        return self._desc.id or "structure"

    def keys(self) -> list[str]:
        """Return the names of the fields.

        Example:
            >>> Type([("x", "i"), ("y", "i")]).keys()
            ['x', 'y']
        """
        return names(self._desc)

    def items(self) -> list[tuple[str, Any]]:
        """Return (name, description) of the fields; a structure is described by its ``Type``.

        Example:
            >>> Type([("x", "i"), ("y", "ad")]).items()
            [('x', 'i'), ('y', 'ad')]
        """
        return [(name, self[name]) for name in self.keys()]

    def values(self) -> list[Any]:
        """Return the descriptions of the fields.

        Example:
            >>> Type([("x", "i"), ("y", "ad")]).values()
            ['i', 'ad']
        """
        return [self[name] for name in self.keys()]

    def aspy(self, name: str | None = None) -> Any:
        """Return the description of this type, or of one of its fields, as the constructor takes it.

        Args:
            name: The path of the field.

        Raises:
            KeyError: There is no such field.

        Example:
            >>> Type([("x", "i")]).aspy()
            ('S', 'structure', [('x', 'i')])
        """
        return describe(self._desc if name is None else self._at(_text(name)))

    def has(self, name: str) -> bool:
        """Whether there is a field of this path.

        Args:
            name: The path, as ``alarm.severity``.

        Example:
            >>> Type([("x", "i")]).has("y")
            False
        """
        name = _text(name)
        if name in self._desc.offsets:
            return True
        try:
            resolve(Field(_Native(self._desc), 0, None), name, select=True)
        except (KeyError, RuntimeError):
            return False
        except ValueError as e:
            raise RuntimeError(str(e)) from None
        return True

    __contains__ = has

    def _at(self, name: str) -> TypeDesc:
        number = self._desc.offsets.get(name)
        if number is not None:
            return self._desc.leaf_types[number]
        try:
            return resolve(Field(_Native(self._desc), 0, None), name, select=True).type
        except (RuntimeError, ValueError) as e:
            raise KeyError(str(e)) from None

    def __getitem__(self, name: str) -> Any:
        if not isinstance(name, str):
            raise AttributeError(f"a field's name is needed, not {type(name).__name__}")  # noqa: TRY004 - as p4p
        t = self._at(name)
        return Type._of(t) if isinstance(t, StructType) else describe(t)

    def __len__(self) -> int:
        t = self._desc
        return len(names(t.element if isinstance(t, ArrayType) else t))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __call__(self, initial: Any = None) -> Value:
        """Make a value of this type.

        Args:
            initial: Initial values, as for ``Value``.

        Example:
            >>> Type([("x", "i")])({"x": 5}).x
            5
        """
        return Value(self, initial)

    def tostr(self, limit: int = 0) -> str:
        """Return the definition as text, as ``pvxinfo`` shows it.

        Args:
            limit: The most characters; a longer text ends in ``...``. 0 is no limit.

        Example:
            >>> print(Type([("x", "ad")]).tostr())
            struct {
                double[] x
            }
            <BLANKLINE>
        """
        return _cut(render_type(self._desc), limit)

    def __repr__(self) -> str:
        _, id_, fields = self.aspy()
        return f'Type({fields}, id="{id_}")'

    __str__ = __repr__

    def __reduce__(self) -> Any:
        raise TypeError("a Type cannot be pickled or copied; use Type.aspy() to write it down")


class Value(Node):
    """A value of a ``Type``: its fields, and marks of those that have changed.

    Fields are read and assigned as attributes (``V.value``) or by their path (``V["alarm.severity"]``). A field of the name of a method is
    reached by its path only. Assignment converts to the field's type and marks the field. A structure inside is a Value of its own
    that shares the fields of this one. An array is read as a numpy array that cannot be changed; nothing is copied. None stands for an
    array that was never set.

    Args:
        type: The ``Type``.
        value: Initial values: a dict, or a list of (name, value) tuples. Paths are allowed as names.
        clone: A Value whose type and marked fields are copied; used if ``type`` is None.

    Raises:
        KeyError: ``value`` has a name that the type does not have.
        TypeError, ValueError, OverflowError: An initial value cannot be converted.

    Example:
        >>> V = Value(Type([("value", "i"), ("alarm", ("S", None, [("severity", "i")]))]), {"value": 42})
        >>> V.value
        42
        >>> V["alarm.severity"] = 2
        >>> sorted(V.changedSet())
        ['alarm.severity', 'value']
    """

    __slots__ = ()

    def __init__(self, type: Type | None = None, value: Any = None, clone: Value | None = None) -> None:
        if type is not None:
            if not isinstance(type, Type):
                raise TypeError(f"Cannot convert {type.__class__.__name__} to Type")
            t = type._desc
        elif clone is not None:
            if not isinstance(clone, Value):
                raise TypeError(f"Cannot convert {clone.__class__.__name__} to Value")
            t = clone._type
        else:
            raise ValueError("type= or clone= required")
        root = _Native(t)
        _set_root(self, root)
        _set_base(self, 0)
        _set_type(self, t)
        _set_up(self, None)
        if type is None:
            try:
                put(root, 0, None, clone)
            except ValueError as e:
                raise RuntimeError(str(e)) from None
        elif value.__class__ is dict and t.__class__ is StructType:
            fill(root, 0, None, value)
        elif value is not None:
            put(root, 0, None, value)

    @classmethod
    def _of(cls, fields: _Native | View) -> Value:
        """Wrap a value of ``appliance.pvdata``, or a part of one; nothing is copied."""
        root = fields.root
        if root.changed & 1:
            # A whole value came: PVXS marks its leaves.
            root.changed |= root.type.leaf_mask
        return _make(root, fields.base, None)

    @property
    def _fields(self) -> _Native | View:
        """The value of ``appliance.pvdata``."""
        return View(self._root, self._base) if self._base else self._root

    def _place(self, key: Any) -> Place:
        """Return the place of a field; it may be this value itself.

        Raises:
            KeyError: There is no such field.
        """
        here = Field(self._root, self._base, self._up)
        if key is None:
            return here
        name = _name(key)
        number = self._type.offsets.get(name)
        if number is not None:
            return Field(self._root, self._base + number, self._up)
        try:
            return resolve(here, name, select=False)
        except (RuntimeError, ValueError) as e:
            raise KeyError(str(e)) from None

    def __getattr__(self, key: str) -> Any:
        number = self._type.offsets.get(key)
        if number is not None:
            root = self._root
            number += self._base
            content = root.store[number]
            if content.__class__ in PLAIN:
                return content
            if content is None:
                return _make(root, number, self._up)
            return _read(self, number, content)
        try:
            return as_py(_make, self._place(key))
        except KeyError:
            raise AttributeError(key) from None

    def __getitem__(self, key: Any) -> Any:
        if key.__class__ is str:
            number = self._type.offsets.get(key)
            if number is not None:
                number += self._base
                content = self._root.store[number]
                if content.__class__ in PLAIN:
                    return content
                return _read(self, number, content)
        return as_py(_make, self._place(key))

    def __setattr__(self, key: str, value: Any) -> None:
        number = self._type.offsets.get(key)
        if number is not None:
            put(self._root, self._base + number, self._up, value)
            return
        try:
            place = self._place(key)
        except KeyError:
            raise AttributeError(key) from None
        store(place, value)

    def __setitem__(self, key: Any, value: Any) -> None:
        if key.__class__ is str:
            number = self._type.offsets.get(key)
            if number is not None:
                put(self._root, self._base + number, self._up, value)
                return
        if key is None:
            assign(self, value)
        else:
            store(self._place(key), value)

    def __delattr__(self, key: str) -> None:
        raise AttributeError(f"a field cannot be deleted: {key}")

    def __delitem__(self, key: Any) -> None:
        raise NotImplementedError("Subscript deletion not supported by Value")

    def get(self, key: Any, default: Any = None) -> Any:
        """Return a field, or ``default`` if there is no such field.

        Args:
            key: The field's path.
            default: What to return else.

        Example:
            >>> Value(Type([("x", "i")]), {"x": 5}).get("y", "none")
            'none'
        """
        if key.__class__ is str:
            number = self._type.offsets.get(key)
            if number is not None:
                number += self._base
                content = self._root.store[number]
                if content.__class__ in PLAIN:
                    return content
                return _read(self, number, content)
        try:
            return as_py(_make, self._place(key))
        except KeyError:
            return default

    def has(self, name: str) -> bool:
        """Whether there is a field of this path.

        Args:
            name: The path, as ``alarm.severity``; ``in`` does the same. Naming a member of a union selects it, as in p4p.

        Example:
            >>> "x" in Value(Type([("x", "i")]))
            True
        """
        name = _text(name)
        if name in self._type.offsets:
            return True
        try:
            resolve(Field(self._root, self._base, self._up), name, select=True)
        except (KeyError, RuntimeError):
            return False
        except ValueError as e:
            raise RuntimeError(str(e)) from None
        return True

    __contains__ = has

    def keys(self) -> list[str]:
        """Return the names of the fields.

        Example:
            >>> Value(Type([("x", "i"), ("y", "i")])).keys()
            ['x', 'y']
        """
        return names(self._type)

    def __iter__(self) -> Iterator[str]:
        return iter(names(self._type))

    def items(self, key: Any = None) -> Any:
        """Return (name, value) of the fields; a structure is a Value.

        Args:
            key: The path of a structure; this value itself if None.

        Raises:
            KeyError: There is no such field.

        Example:
            >>> Value(Type([("x", "i"), ("y", "i")])).items()
            [('x', 0), ('y', 0)]
        """
        return as_py(_make, self._place(key), unpack=True)

    def tolist(self, name: Any = None) -> Any:
        """Return (name, value) of the fields, and the same for the structures inside.

        Args:
            name: The path of a structure; this value itself if None.

        Raises:
            AttributeError: There is no such field.

        Example:
            >>> Value(Type([("x", "i"), ("s", ("S", None, [("y", "d")]))])).tolist()
            [('x', 0), ('s', [('y', 0.0)])]
        """
        return as_py(_make, self._named(name), unpack=True, recurse=True)

    def todict(self, name: Any = None, wrapper: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
        """Return the fields as a dict of dicts.

        Args:
            name: The path of a structure; this value itself if None.
            wrapper: What to call instead of ``dict`` with each list of (name, value), for example ``OrderedDict``.

        Raises:
            AttributeError: There is no such field.

        Example:
            >>> Value(Type([("x", "i"), ("s", ("S", None, [("y", "d")]))])).todict()
            {'x': 0, 's': {'y': 0.0}}
        """
        return as_py(_make, self._named(name), unpack=True, recurse=True, wrapper=wrapper or dict)

    def _named(self, name: Any) -> Place:
        try:
            return self._place(name)
        except KeyError:
            raise AttributeError(name) from None

    def getID(self) -> str:
        """Return the identifier of the type; ``structure`` if there is none.

        Example:
            >>> Value(Type([("x", "i")], id="example:1.0")).getID()
            'example:1.0'
        """
        return self._type.id or "structure"

    def type(self, fld: Any = None) -> Type:
        """Return the Type of this value, or of a field.

        Args:
            fld: The field's path.

        Raises:
            KeyError: There is no such field.

        Example:
            >>> Value(Type([("s", ("S", "inner", [("y", "d")]))])).type("s").getID()
            'inner'
        """
        return Type._of(self._type if fld is None else self._place(fld).type)

    def select(self, name: str, selector: str | None = None) -> None:
        """Select a member of a union, or nothing; only for a Value that is a union itself.

        Args:
            name: The member's name.
            selector: Anything but None selects; None clears the union.

        Raises:
            KeyError: The value is no union, or has no such member.

        Example:
            >>> V = Type([("u", ("U", None, [("a", "i"), ("b", "s")]))])().type("u")()
            >>> V.select("b", "b")
            >>> V.tolist()
            ''
        """
        name = _text(name)
        if not isinstance(self._type, UnionType):
            raise KeyError(name)
        if selector is None:
            assign(self, None)
        elif name not in self._type.members:
            raise KeyError(name)
        else:
            resolve(Field(self._root, self._base, self._up), name, select=True)

    def changed(self, *fields: Any) -> bool:
        """Whether one of the fields is marked as changed, or something inside or around it.

        Args:
            fields: Paths; without any the whole value is meant.

        Raises:
            KeyError: There is no such field.

        Example:
            >>> V = Value(Type([("x", "i"), ("y", "i")]), {"x": 1})
            >>> V.changed(), V.changed("y")
            (True, False)
        """
        for field in fields or (None,):  # noqa: SIM110 - the next path may not exist
            if _is_marked(self._place(field)):
                return True
        return False

    def changedSet(self, expand: bool = False, parents: bool = False) -> set[str]:
        """Return the paths of the fields that are marked as changed, or that lie in a marked structure.

        Args:
            expand: Without effect, as in p4p: fields in a marked structure are always included.
            parents: Whether to include the structures around marked fields.

        Example:
            >>> V = Value(Type([("x", "i"), ("s", ("S", None, [("y", "d")]))]), {"s.y": 1})
            >>> sorted(V.changedSet(parents=True))
            ['s', 's.y']
        """
        t = self._type
        if not isinstance(t, StructType):
            inner = below(Field(self._root, self._base, self._up)) if isinstance(t, UnionType) else None
            if inner is None or not isinstance(t, UnionType):
                return set()
            return {self._root.store[self._base].name}
        paths = t.paths
        if not parents:
            return {paths[number] for number in marked(t, self._root.changed >> self._base)}
        out = set()
        above = t.parents
        for number in marked(t, self._root.changed >> self._base):
            while number and (path := paths[number]) not in out:
                out.add(path)
                number = above[number]
        return out

    asSet = changedSet

    def mark(self, field: Any = None, val: Any = True) -> None:
        """Mark a field as changed, or remove its mark.

        Args:
            field: The path; this value itself if None.
            val: Whether to mark.

        Raises:
            KeyError: There is no such field.

        Example:
            >>> V = Value(Type([("x", "i"), ("y", "i")]))
            >>> V.mark("y")
            >>> V.changedSet()
            {'y'}
        """
        place = self._place(field)
        if val:
            place.touch()
        elif isinstance(place, Field):
            place.root.changed &= ~(1 << place.number)

    def unmark(self) -> None:
        """Remove the marks of this value, of all that is inside and of the structures around it.

        Example:
            >>> V = Value(Type([("x", "i")]), {"x": 1})
            >>> V.unmark()
            >>> V.changed()
            False
        """
        root, number = self._root, self._base
        gone = root.type.masks[number]
        while number:
            number = root.type.parents[number]
            gone |= 1 << number
        root.changed &= ~gone

    def clear(self) -> None:
        """Remove the mark of this value itself, not those of its fields.

        Example:
            >>> V = Value(Type([("x", "i")]), {"x": 1})
            >>> V.clear()
            >>> V.changed()
            True
        """
        self.mark(None, False)

    def tostr(self, limit: int = 0) -> str:
        """Return the value as text, as ``pvxget -F tree`` shows it.

        Args:
            limit: The most characters; a longer text ends in ``...``. 0 is no limit.

        Example:
            >>> print(Value(Type([("x", "i"), ("t", "s")]), {"x": 5, "t": "five"}).tostr())
            struct {
                int32_t x = 5
                string t = "five"
            }
            <BLANKLINE>
        """
        return _cut(render(self._fields, "tree", 0), limit)

    __str__ = tostr

    def __repr__(self) -> str:
        parts = []
        if self._type.id not in ("", "structure"):
            parts.append("id:" + self._type.id)
        try:
            parts.append(repr(self.value))
        except AttributeError:
            first = names(self._type)[:1]
            parts += [repr(self.get(name)) for name in first]
        return f"Value({', '.join(parts)})"

    def __reduce__(self) -> Any:
        raise TypeError("a Value cannot be pickled or copied; use Value(clone=...) or todict()")


_SLOTS = vars(Node)
_set_root = _SLOTS["_root"].__set__
_set_base = _SLOTS["_base"].__set__
_set_type = _SLOTS["_type"].__set__
_set_up = _SLOTS["_up"].__set__


def _make(root: _Native, base: int, up: Place | None) -> Value:
    # Assigning in the base class, which has no __setattr__ of its own, takes a third of the time.
    made = Node()
    made._root = root
    made._base = base
    made._type = root.type.leaf_types[base] if base else root.type
    made._up = up
    made.__class__ = Value
    return made  # type: ignore[return-value]


def _read(value: Node, number: int, content: Any) -> Any:
    """Return a field that is no plain scalar."""
    if content.__class__ is np.ndarray and content.size:
        return content
    if content is None:
        return _make(value._root, number, value._up)
    return as_py(_make, Field(value._root, number, value._up))


def _is_marked(place: Place) -> bool:
    """Whether the place is marked, or something below or around it in the same value."""
    if not isinstance(place, Field):
        # What a union or an any holds, or an element: as marked as the field that holds it.
        return _is_marked(place.around)
    root, number = place.root, place.number
    if root.changed & root.type.masks[number]:
        return True
    while number:
        number = root.type.parents[number]
        if root.changed >> number & 1:
            return True
    return False
