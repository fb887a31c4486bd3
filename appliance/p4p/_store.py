"""What p4p makes of Python objects that are assigned to a field.

Errors are those of p4p: ValueError for what cannot be converted, TypeError for an object of a wrong kind, KeyError for a name that does
not exist, OverflowError for an integer of more than 64 bits, RuntimeError for the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

import numpy as np

from appliance.p4p._place import Field, Node, Place, resolve
from appliance.p4p._scalars import (
    CONVERT,
    NotATuple,
    is_mild,
    no_conversion,
    refused,
    scalar,
    text,
    to_string,
    unfit,
)
from appliance.pvdata import (
    FLOAT64,
    INT32,
    INT64,
    STRING,
    AnyValue,
    ArrayType,
    BoundedString,
    ScalarType,
    StructType,
    TypeDesc,
    UnionType,
    UnionValue,
    Value,
)
from appliance.pvdata.render import type_name
from appliance.pvdata.store import NO_ANY, NO_STRINGS, NO_UNION, default, zeros
from appliance.pvdata.types import SCALARS, AnyType

__all__ = ["SCALAR_CODES", "assign", "fill", "marked", "put", "store"]


# Arrays


def _checked(t: ArrayType, x: Any) -> Any:
    """Hold the bounds that a server may give an array; PVXS has none."""
    if (t.kind == "bounded" and len(x) > t.size) or (t.kind == "fixed" and len(x) != t.size):
        word = "exactly" if t.kind == "fixed" else "at most"
        raise no_conversion(f"{len(x)} elements in an array of {word} {t.size}")
    return x


_DTYPES = {t.np: np.dtype(t.np) for t in SCALARS.values() if t.np}


def _numbers(element: ScalarType, x: Any) -> Any:
    dtype = _DTYPES[element.np]
    if x.__class__ is np.ndarray and x.dtype == dtype and x.ndim == 1:
        if not x.size:
            return zeros(element)
        flags = x.flags
        if not flags.writeable and flags.c_contiguous:
            return x
        made = x.copy()
    else:
        made = np.array(x, dtype=dtype)
        if made.ndim != 1:
            raise refused("Only 1-d array can be assigned")
        if not made.size:
            return zeros(element)
        if made.__class__ is not np.ndarray or not made.flags.c_contiguous:
            made = np.ascontiguousarray(made).view(np.ndarray)
    made.setflags(write=False)
    return made


def _is_sequence(x: Any) -> bool:
    return hasattr(x, "__getitem__") and hasattr(x, "__len__") and not isinstance(x, (dict, MappingProxyType))


def _sequence(x: Any, what: str) -> list[Any]:
    if not _is_sequence(x):
        raise RuntimeError(f"Must assign sequence to {what}, not {type(x).__name__}")
    if isinstance(x, (list, tuple)):
        return list(x)
    return [x[i] for i in range(len(x))]


def _strings(x: Any) -> tuple[str, ...]:
    if (x.__class__ is list or x.__class__ is tuple) and all(
        item.__class__ is str and item.isascii() for item in x
    ):
        return tuple(x) or NO_STRINGS
    out = []
    for item in _sequence(x, "string array"):
        if not isinstance(item, (str, bytes)):
            raise RuntimeError(f"Assign StringA from sequence of str|bytes, not {type(item).__name__}")  # noqa: TRY004 - as p4p
        out.append(text(item))
    return tuple(out) or NO_STRINGS


def _recast(t: ArrayType, source: TypeDesc, x: Any) -> Any:
    """Convert an array of another type, as from value to value."""
    if not isinstance(source, ArrayType):
        raise no_conversion(f"Unable to assign {type_name(t)} with {type_name(source)}")
    to, come_from = t.element, source.element
    if not len(x):
        return _checked(t, default(ArrayType(to)))
    if isinstance(to, ScalarType) and isinstance(come_from, ScalarType):
        if to == come_from:
            return _checked(t, x)
        if to.fmt and come_from.fmt:
            with np.errstate(invalid="ignore", over="ignore"):
                return _checked(t, _numbers(to, x.astype(to.np)))
        items = x.tolist() if hasattr(x, "tolist") else x
        if not to.fmt:
            return _checked(t, tuple([to_string(item) for item in items]))
        if to.kind == "bool" and not all(item in ("true", "false") for item in items):
            raise RuntimeError('Expected "true" or "false"')
        convert = CONVERT[to.name]
        return _checked(t, _numbers(to, [convert(item) for item in items]))
    if isinstance(to, ScalarType) or isinstance(come_from, ScalarType):
        raise no_conversion(f"Unable to assign {type_name(t)} with {type_name(source)}")
    return [None if item is None else _element_from(to, come_from, item) for item in x]


def _element_from(to: TypeDesc, come_from: TypeDesc, item: Any) -> Any:
    inner = _unboxed(come_from, item)
    if isinstance(to, AnyType):
        return _boxed(inner)
    if inner is None:
        return None
    kind, content = inner
    if isinstance(to, StructType):
        if not isinstance(content, Value):
            raise no_conversion(f"Unable to assign struct with {type_name(kind)}")
        made = Value(to)
        _assign_struct(Field(made, 0, None), content, 0)
        return made
    assert isinstance(to, UnionType)
    return _union_from(to, kind, content, NO_UNION)


def _unboxed(t: TypeDesc, content: Any) -> tuple[TypeDesc, Any] | None:
    """Return the type and the content of what a leaf holds, without the union or any around it."""
    if isinstance(content, UnionValue):
        assert isinstance(t, UnionType)
        if content.name is None:
            return None
        t, content = t.members[content.name], content.value
    elif isinstance(content, AnyValue):
        if content.type is None:
            return None
        t, content = content.type, content.value
    return t, content


def _boxed(found: tuple[TypeDesc, Any] | None) -> AnyValue:
    return NO_ANY if found is None else AnyValue(found[0], _copied(found[1]))


def _copied(content: Any) -> Any:
    """Copy what can change in place."""
    if isinstance(content, Value):
        return Value.from_store(content.type, [_copied(item) for item in content.store], content.changed)
    if isinstance(content, (UnionValue, AnyValue)):
        return content._replace(value=_copied(content.value))
    if isinstance(content, list):
        return [_copied(item) for item in content]
    return content


def _compounds(t: ArrayType, x: Any) -> list[Any]:
    element = t.element
    if isinstance(element, AnyType):
        items = _sequence(x, "variant union (any) array")
        return [_any(item) for item in items]
    out: list[Any] = []
    for item in _sequence(x, "struct/union array"):
        if item is None:
            out.append(None)
        elif isinstance(element, StructType):
            made = Value(element)
            _struct(Field(made, 0, None), item)
            out.append(made)
        else:
            assert isinstance(element, UnionType)
            holder = Value(element)
            content = _union(element, Field(holder, 0, None), item)
            out.append(None if content.name is None else content)
    return out


# Unions and anys


def alike(a: TypeDesc, b: TypeDesc) -> bool:
    """Whether two types differ in identifiers only: PVXS looks no further to find a union's member."""
    if a == b:
        return True
    if isinstance(a, ArrayType) and isinstance(b, ArrayType):
        return alike(a.element, b.element)
    if isinstance(a, BoundedString) or isinstance(b, BoundedString):
        return isinstance(a, ScalarType) and isinstance(b, ScalarType) and a.kind == b.kind
    for kind in (StructType, UnionType):
        if isinstance(a, kind) and isinstance(b, kind):
            return len(a.fields) == len(b.fields) and all(
                n == m and alike(s, t) for (n, s), (m, t) in zip(a.fields, b.fields, strict=True)
            )
    return False


def _union_from(t: UnionType, kind: TypeDesc, content: Any, old: UnionValue) -> UnionValue:
    for name, member in t.fields:
        if alike(member, kind):
            if isinstance(member, StructType):
                made = Value(member)
                _assign_struct(Field(made, 0, None), content, 0)
                return UnionValue(name, made)
            return UnionValue(name, _copied(content))
    if old.name is None:
        raise no_conversion("Unsupported assignment to unselected union")
    return old


def _union(t: UnionType, place: Place, x: Any) -> UnionValue:
    old: UnionValue = NO_UNION if place.content is None else place.content
    if x is None:
        return NO_UNION
    if isinstance(x, Node):
        return _union_from(t, x._type, _content(x), old)
    if isinstance(x, tuple):
        if len(x) != 2 or not isinstance(x[0], str):
            raise TypeError("Assign Union w/ (str, val).")
        target = resolve(place, "->" + x[0], select=True)
        store(target, x[1])
        return place.content  # type: ignore[no-any-return]
    if old.name is not None:
        return _member(t, place, old.name, x)
    return _first_fit(t, place, x)


def _member(t: UnionType, place: Place, name: str, x: Any) -> UnionValue:
    member = t.members[name]
    content = place.content.value
    if isinstance(member, StructType):
        _struct(Field(content, 0, place), x)
        return place.content  # type: ignore[no-any-return]
    holder = Value.from_store(member, [content])
    return UnionValue(name, _leaf(member, Field(holder, 0, None), x))


def _first_fit(t: UnionType, place: Place, x: Any) -> UnionValue:
    """Try one member after the other, as p4p does: so a float may go into an integer."""
    for name, member in t.fields:
        made = Value(member)
        top = Field(made, 0, None)
        try:
            if isinstance(member, StructType):
                _struct(top, x)
                return UnionValue(name, made)
            content = _leaf(member, top, x)
        except Exception as e:
            if is_mild(e) or isinstance(e, UnicodeEncodeError):
                continue
            if (
                isinstance(member, ArrayType)
                and isinstance(member.element, ScalarType)
                and member.element.fmt
            ):
                continue  # numpy refuses it
            if isinstance(member, UnionType) and type(e) is not ValueError:
                continue
            if isinstance(e, (KeyError, RuntimeError)):
                raise refused(
                    f"Unexpected error while attempting to assign {name} with {type(x).__name__}"
                ) from e
            raise
        if isinstance(member, UnionType):
            # PVXS selects the member, copies what was made, and finds none of its type: a union in a union has to be named.
            place.put(UnionValue(name, NO_UNION))
            content = _union_from(member, member, content, NO_UNION)
        return UnionValue(name, content)
    raise ValueError(f"Unable to infer Union field to assign a {type(x).__name__}")


_CODES = {
    "?": "bool",
    "s": "string",
    "b": "int8",
    "h": "int16",
    "i": "int32",
    "l": "int64",
    "B": "uint8",
    "H": "uint16",
    "I": "uint32",
    "L": "uint64",
    "f": "float32",
    "d": "float64",
}
SCALAR_CODES: dict[str, ScalarType] = {code: SCALARS[name] for code, name in _CODES.items()}


def _any(x: Any) -> AnyValue:
    if isinstance(x, Node):
        found = _unboxed(x._type, _content(x))
        return _boxed(found)
    t: TypeDesc
    if isinstance(x, tuple):
        if len(x) != 2 or not isinstance(x[0], str):
            raise TypeError("Assign Any w/ (code, val).")
        code, x = x
        single = SCALAR_CODES.get(code[1:2] if code[:1] == "a" else code[:1])
        if single is None:
            raise RuntimeError(f"Invalid Any type spec {code!r:.60}")
        t = ArrayType(single) if code[:1] == "a" else single
        return _typed(t, x, "explicit")
    found_type = _inferred(x)
    if found_type is None:
        raise RuntimeError(f"Unable to infer TypeCode for {type(x).__name__}")
    return _typed(found_type, x, "inferred")


def _typed(t: TypeDesc, x: Any, how: str) -> AnyValue:
    try:
        return AnyValue(t, _leaf(t, Field(Value(t), 0, None), x))
    except (ValueError, TypeError, RuntimeError) as e:
        if not is_mild(e) and not isinstance(e, RuntimeError):
            raise
        raise RuntimeError(
            f"Error assigning {how} type {type_name(t)} with {type(x).__name__} : {e}"
        ) from None


_ARRAY_CODES = {code: ArrayType(t) for code, t in SCALAR_CODES.items() if code != "s"} | {
    "S": ArrayType(STRING)
}


def _inferred(x: Any) -> TypeDesc | None:
    if isinstance(x, bool):
        return SCALARS["bool"]
    if isinstance(x, int):
        return SCALARS["int64"]
    if isinstance(x, float):
        return SCALARS["float64"]
    if isinstance(x, (str, bytes)):
        return STRING
    if isinstance(x, list):
        return ArrayType(STRING)
    if isinstance(x, np.ndarray):
        return _ARRAY_CODES.get(x.dtype.char)
    return None


# Any leaf, and structures


def _content(x: Node) -> Any:
    """Return what a value stands for, as a leaf; a part of a structure is copied."""
    if isinstance(x._type, StructType):
        root, base = x._root, x._base
        if not base:
            return root
        items = root.store[base : base + x._type.count]
        return Value.from_store(x._type, items, root.changed >> base & x._type.full_mask)
    return x._root.store[x._base]


def _leaf(t: TypeDesc, place: Place, x: Any) -> Any:
    """Return ``x`` as a leaf of type ``t``, which is no structure."""
    if isinstance(t, ScalarType):
        return scalar(t, x)
    if isinstance(t, UnionType):
        return _union(t, place, x)
    if isinstance(t, AnyType):
        return NO_ANY if x is None else _any(x)
    assert isinstance(t, ArrayType)
    element = t.element
    if isinstance(x, Node):
        if not isinstance(element, ScalarType) or not isinstance(x._type, ArrayType):
            raise no_conversion(f"Unable to assign {type_name(t)} with {type_name(x._type)}")
        return _recast(t, x._type, x._root.store[x._base])
    if isinstance(element, ScalarType):
        return _checked(t, _numbers(element, x) if element.fmt else _strings(x))
    return _compounds(t, x)


def put(root: Value, number: int, up: Place | None, x: Any) -> None:
    """Assign ``x`` to the field of that number, and mark it."""
    t = root.type.leaf_types[number]
    kind = x.__class__
    if (kind is float and t is FLOAT64) or (kind is int and (t is INT32 or t is INT64) and t.lo <= x <= t.hi):
        root.store[number] = x
    elif kind is np.ndarray and (element := _numeric(t)) is not None:
        root.store[number] = _numbers(element, x)
    elif t.__class__ is ScalarType and not isinstance(x, Node):
        root.store[number] = CONVERT[t.name](x)
    elif t.__class__ is StructType:
        if x.__class__ is dict:
            fill(root, number, up, x)
        else:
            _struct(Field(root, number, up), x)
        return
    else:
        made = root.store[number] = _leaf(t, Field(root, number, up), x)
        if (
            isinstance(made, UnionValue)
            and isinstance(made.value, Value)
            and not made.value.changed
            and not isinstance(x, Node)
        ):
            return  # a structure was selected, and none of its fields was set
    root.changed |= 1 << number
    if up is not None:
        up.touch()


def _numeric(t: TypeDesc) -> ScalarType | None:
    """Return the type of the elements if this is an array of numbers of any length."""
    if t.__class__ is ArrayType and t.kind == "variable":
        element = t.element
        if element.__class__ is ScalarType and element.fmt:
            return element
    return None


def fill(root: Value, base: int, up: Place | None, x: dict[Any, Any]) -> None:
    """Assign the items of a dict to the fields of the structure of that number."""
    t = root.type
    offsets = (t.leaf_types[base] if base else t).offsets
    for name, item in list(x.items()):
        number = offsets.get(name)
        if number is not None:
            put(root, base + number, up, item)
        else:
            _by_path(Field(root, base, up), name, item)


def _by_path(place: Field, name: Any, item: Any) -> None:
    if not isinstance(name, str):
        raise TypeError("expect list of ('name', value) tuples")
    if "\0" in name:
        raise ValueError("embedded null character")
    store(resolve(place, name, select=True), item)


def store(place: Place, x: Any) -> None:
    """Assign ``x`` to a place, and mark it.

    Raises:
        ValueError, TypeError, KeyError, OverflowError, RuntimeError: As p4p does.
    """
    if isinstance(place, Field):
        put(place.root, place.number, place.up, x)
        return
    place.put(_leaf(place.type, place, x))
    place.touch()


def _struct(place: Field, x: Any) -> None:
    t = place.type
    assert isinstance(t, StructType)
    if isinstance(x, Node):
        if not isinstance(x._type, StructType):
            raise no_conversion(f"Unable to assign struct with {type_name(x._type)}")
        _assign_struct(place, x._root, x._base)
        return
    root, base, up, offsets = place.root, place.number, place.up, t.offsets
    if isinstance(x, dict):
        fill(root, base, up, x)
        return
    if t.id == "enum_t":
        _enum(place, x)
        return
    try:
        pairs = iter(x)
    except TypeError as e:
        raise unfit(str(e)) from None
    for pair in pairs:
        if not isinstance(pair, tuple):
            raise NotATuple(f"expect list of ('name', value) tuples, not of {type(pair).__name__}")
        if len(pair) != 2 or not isinstance(pair[0], str):
            raise TypeError("expect list of ('name', value) tuples")
        name, item = pair
        number = offsets.get(name)
        if number is not None:
            put(root, base + number, up, item)
        else:
            _by_path(place, name, item)


def _enum(place: Field, x: Any) -> None:
    index = resolve(place, "index", select=True)
    where = resolve(place, "choices", select=True)
    if where.type != ArrayType(STRING):
        raise no_conversion(f"Can't extract {type_name(where.type)} as Array")
    choices = where.content
    if not choices:
        warnings.warn("enum_t assignment with empty choices", UserWarning, stacklevel=5)
    if isinstance(x, (str, bytes)):
        choice = text(x)
        if choice in choices:
            store(index, choices.index(choice))
            return
    store(index, x)


def assign(target: Node, x: Any) -> None:
    """Assign to a whole value, as ``value[None] = x`` does."""
    put(target._root, target._base, target._up, x)


def _assign_struct(target: Field, source: Value, base: int) -> None:
    """Copy the marked fields of a structure to those of the same names."""
    to = target.type
    t = source.type.leaf_types[base]
    if not isinstance(to, StructType):
        raise no_conversion(f"Unable to assign {type_name(to)} with struct")
    changed = source.changed >> base
    root, first, up = target.root, target.number, target.up
    for number in marked(t, changed):
        name = t.paths[number]
        there = to.offsets.get(name)
        kind = t.leaf_types[number]
        if isinstance(kind, StructType):
            if there is not None:
                Field(root, first + there, up).touch()
            continue
        if there is None:
            raise RuntimeError(f"No such field: {name}")
        spot = Field(root, first + there, up)
        inner = getattr(source.store[base + number], "value", None)
        if isinstance(inner, Value) and isinstance(spot.type, StructType):
            _assign_struct(spot, inner, 0)
            continue
        try:
            spot.put(_from_leaf(spot, kind, source.store[base + number]))
        except ValueError as e:
            if not is_mild(e):
                raise
            raise no_conversion(f'field "{name}" : {e}') from None
        spot.touch()
    if changed & 1 or any(source.changed >> n & 1 for n in _above(source.type, base)):
        target.touch()


def _above(t: TypeDesc, number: int) -> list[int]:
    out = []
    while number:
        number = t.parents[number]
        out.append(number)
    return out


def marked(t: TypeDesc, changed: int) -> Iterable[int]:
    """Return the numbers of the fields below a structure that are marked, or that lie in a marked structure; not its own.

    Args:
        t: The structure's type.
        changed: Its bits; bit 0 is the structure itself.
    """
    rest = changed & t.full_mask & ~1
    spans = t.spans
    while rest:
        number = (rest & -rest).bit_length() - 1
        span = spans[number]
        yield from range(number, number + span)
        rest = rest >> number + span << number + span


def _from_leaf(spot: Field, kind: TypeDesc, content: Any) -> Any:
    """Convert a leaf of another value to one for ``spot``."""
    to = spot.type
    if isinstance(to, StructType):
        raise no_conversion(f"Unable to assign struct with {type_name(kind)}")
    if isinstance(to, AnyType):
        if isinstance(kind, ScalarType):
            return AnyValue(_WIDEST.get(kind.kind, kind), content)
        if isinstance(kind, ArrayType) and not len(content) and not _arrived(content):
            raise RuntimeError("the type of an array that was never set is not known")
        return _boxed(_unboxed(kind, content))
    if isinstance(to, UnionType):
        old: UnionValue = spot.content
        if not isinstance(kind, (UnionType, AnyType)):
            return _fitted(to, kind, content, old)
        found = _unboxed(kind, content)
        if found is not None:
            return _union_from(to, found[0], found[1], old)
        if old.name is None:
            raise no_conversion("Unsupported assignment to unselected union")
        return old
    if isinstance(kind, (UnionType, AnyType)):
        raise no_conversion(f"Unable to assign {type_name(to)} with Compound")
    if isinstance(to, ScalarType):
        if not isinstance(kind, ScalarType):
            raise no_conversion(f"Unable to assign {type_name(to)} with {type_name(kind)}")
        return scalar(to, content)
    assert isinstance(to, ArrayType)
    return _recast(to, kind, _copied(content))


_WIDEST = {"int": SCALARS["int64"], "uint": SCALARS["uint64"], "float": SCALARS["float64"]}
"""The type that PVXS gives a number when it copies it to an any."""


def _arrived(content: Any) -> bool:
    """Whether a server sent this array of no elements; of arrays of structures that is not known."""
    if isinstance(content, tuple):
        return content is not NO_STRINGS
    return isinstance(content, np.ndarray) and content is not zeros(SCALAR_CODES[content.dtype.char])


def _fitted(to: UnionType, kind: TypeDesc, content: Any, old: UnionValue) -> UnionValue:
    """Convert a scalar or an array to the selected member, or to the first that it can be converted to."""
    for name in to.members if old.name is None else (old.name,):
        member = to.members[name]
        try:
            return UnionValue(name, _from_leaf(Field(Value(member), 0, None), kind, content))
        except ValueError as e:
            if not is_mild(e):
                raise
    raise no_conversion("Unsupported assignment to unselected union")
