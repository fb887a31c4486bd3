"""Converts what users write (plain Python, numpy, text) to what a store holds, and checks every range."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from appliance.errors import PVDataError
from appliance.pvdata.store import NO_ANY, NO_STRINGS, NO_UNION, AnyValue, UnionValue, numpy, zeros
from appliance.pvdata.types import (
    BOOL,
    FLOAT64,
    INT64,
    SCALARS,
    STRING,
    UINT8,
    UINT64,
    AnyType,
    ArrayType,
    BoundedString,
    ScalarType,
    StructType,
    TypeDesc,
    UnionType,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["coerce", "infer", "parse_float", "parse_int"]


def coerce(t: TypeDesc, x: Any, old: Any = None) -> Any:
    """Return ``x`` as a leaf of type ``t``.

    ``old`` is what the leaf holds now: a union that has a member selected prefers that member.

    Raises:
        PVDataError: The value does not fit. The caller adds the field's path.
    """
    if isinstance(t, ScalarType):
        return _scalar(t, x)
    if isinstance(t, ArrayType):
        element = t.element
        if isinstance(element, ScalarType):
            value = _numbers(element, x) if element.fmt else _strings(x)
            n = len(value)
            if t.kind == "bounded" and n > t.size:
                raise PVDataError(f"{n} elements; at most {t.size} are allowed")
            if t.kind == "fixed" and n != t.size:
                raise PVDataError(f"{n} elements; exactly {t.size} are needed")
            return value
        return _compounds(element, x)
    if isinstance(t, UnionType):
        return _union(t, x, old)
    if isinstance(t, AnyType):
        return _any(x)
    assert isinstance(t, StructType)
    return _struct(t, x)


def _scalar(t: ScalarType, x: Any) -> Any:
    kind = t.kind
    if kind == "float":
        return _float(t, x)
    if kind == "string":
        return _string(t, x)
    if kind == "bool":
        return _bool(x)
    if type(x) is not int:
        x = _int(t, x)
    if not t.lo <= x <= t.hi:
        raise PVDataError(f"{x} does not fit {t.name}, which holds {t.lo} to {t.hi}")
    return x


def _int(t: ScalarType, x: Any) -> int:
    if isinstance(x, str):
        return parse_int(x)
    if isinstance(x, float) or (hasattr(x, "dtype") and x.dtype.kind == "f" and not x.ndim):
        as_float = float(x)
        if not as_float.is_integer():
            raise PVDataError(f"{as_float!r} is not a whole number, as {t.name} needs")
        return int(as_float)
    if hasattr(x, "__index__") and not _many(x):
        return int(x.__index__())
    if hasattr(x, "dtype") and x.dtype.kind == "b" and not x.ndim:
        return int(x)
    raise _unfit(x, t.name)


def _float(t: ScalarType, x: Any) -> float:
    if type(x) is not float:
        if isinstance(x, str):
            x = parse_float(x)
        elif _many(x) or not (hasattr(x, "__float__") or hasattr(x, "__index__")):
            raise _unfit(x, t.name)
        else:
            try:
                x = float(x)
            except (TypeError, ValueError, OverflowError) as e:
                raise PVDataError(f"{e}, as {t.name} needs") from None
    if t.size == 4:
        try:
            # The value that a reader sees: the nearest number that four octets can hold.
            return float(struct.unpack("<f", struct.pack("<f", x))[0])
        except OverflowError:
            raise PVDataError(f"{x!r} is too large for {t.name}") from None
    return float(x)


def _bool(x: Any) -> bool:
    if x is True or x is False:
        return bool(x)
    if isinstance(x, str):
        text = x.strip().lower()
        if text in ("true", "1"):
            return True
        if text in ("false", "0"):
            return False
        raise PVDataError(f'{x!r} is not "true" or "false"')
    if not _many(x) and (hasattr(x, "__index__") or (hasattr(x, "dtype") and x.dtype.kind == "b")):
        return bool(x)
    raise _unfit(x, "bool")


def _string(t: ScalarType, x: Any) -> str:
    if isinstance(x, str):
        text = str(x)
    elif isinstance(x, (bytes, bytearray)):
        text = str(x, "utf-8", "surrogateescape")
    elif isinstance(x, bool) or (hasattr(x, "dtype") and x.dtype.kind == "b" and not x.ndim):
        text = "true" if x else "false"
    elif isinstance(x, (int, float)) or (hasattr(x, "dtype") and not x.ndim):
        text = str(x)
    else:
        raise _unfit(x, "string")
    try:
        n = (
            len(text.encode("utf-8", "surrogateescape"))
            if isinstance(t, BoundedString) or not text.isascii()
            else 0
        )
    except UnicodeEncodeError as e:
        raise PVDataError(f"the text cannot be encoded as UTF-8: {e.reason}") from None
    if isinstance(t, BoundedString) and n > t.bound:
        raise PVDataError(f"{n} octets; at most {t.bound} are allowed")
    return text


def parse_int(text: str) -> int:
    """Read an integer as ``strtoll`` does with base 0: decimal, ``0x`` hexadecimal, leading 0 octal."""
    s = text.strip().lower()
    sign, digits = (s[0], s[1:]) if s[:1] in ("-", "+") else ("", s)
    if digits.isascii() and digits[:1].isdigit() and "_" not in digits and len(digits) <= 100:
        octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
        try:
            return int(sign + digits, 8 if octal else 0 if digits.startswith("0x") else 10)
        except ValueError:
            pass
    raise PVDataError(f"{text!r:.60} is not an integer")


def parse_float(text: str) -> float:
    """Read a number as ``strtod`` does: decimal, hexadecimal, ``nan``, ``inf``."""
    s = text.strip().lower()
    if s.isascii() and "_" not in s:
        try:
            return float.fromhex(s) if "0x" in s else float(s)
        except (ValueError, OverflowError):
            pass
    raise PVDataError(f"{text!r:.60} is not a number")


def _many(x: Any) -> bool:
    return hasattr(x, "ndim") and x.ndim > 0


def _unfit(x: Any, what: str) -> PVDataError:
    return PVDataError(f"{type(x).__name__} {_short(x)} cannot become {what}")


def _short(x: Any) -> str:
    text = repr(x)
    return text if len(text) <= 40 else text[:37] + "..."


def _numbers(element: ScalarType, x: Any) -> Any:
    np = numpy()
    if isinstance(x, np.ndarray):
        return _from_array(element, x)
    if isinstance(x, (bytes, bytearray, memoryview)) and element.size == 1 and element.kind != "bool":
        return _freeze(np.frombuffer(bytes(x), element.np))
    if isinstance(x, (str, bytes, Mapping)) or not hasattr(x, "__iter__"):
        raise _unfit(x, f"an array of {element.name}")
    if hasattr(x, "typecode"):
        return _from_array(element, np.array(x))
    items = x if isinstance(x, (list, tuple)) else list(x)
    if not items:
        return zeros(element)
    kinds = {type(item) for item in items}
    if kinds <= {float} and element.kind == "float":
        return _from_array(element, np.array(items, dtype="f8"))
    if kinds <= {int} and element.kind in ("int", "uint"):
        try:
            return _freeze(np.array(items, dtype=element.np))
        except OverflowError:
            pass  # The loop below names the element.
    values = []
    for i, item in enumerate(items):
        try:
            values.append(_scalar(element, item))
        except PVDataError as e:
            raise PVDataError(f"[{i}]: {e}") from None
    return _freeze(np.array(values, dtype=element.np))


def _from_array(element: ScalarType, x: Any) -> Any:
    np = numpy()
    if x.ndim != 1:
        raise PVDataError(f"an array has one dimension, not {x.ndim}")
    native = np.dtype(element.np)
    if x.dtype == native and x.dtype.isnative:
        if not x.flags.writeable and x.flags.c_contiguous:
            return x
        return _freeze(x.copy())
    source = x.dtype.kind
    if source in "SUO":
        return _numbers(element, x.tolist())
    if source not in "biuf":
        raise PVDataError(f"an array of {x.dtype} cannot become an array of {element.name}")
    if element.kind == "bool":
        if source == "f":
            raise PVDataError(f"an array of {x.dtype} cannot become an array of bool")
        return _freeze(x != 0)
    if element.kind == "float":
        with np.errstate(over="ignore"):
            made = x.astype(native)
        if element.size == 4 and source == "f" and bool((np.isinf(made) & ~np.isinf(x)).any()):
            raise PVDataError("a number is too large for float32")
        return _freeze(made)
    if x.size and source != "b":
        if source == "f":
            whole = np.isfinite(x) & (np.floor(x) == x)
            if not bool(whole.all()):
                bad = x[~whole][0]
                raise PVDataError(f"{bad!r} is not a whole number, as {element.name} needs")
        low, high = int(x.min()), int(x.max())
        if low < element.lo or high > element.hi:
            bad = low if low < element.lo else high
            raise PVDataError(f"{bad} does not fit {element.name}, which holds {element.lo} to {element.hi}")
    return _freeze(x.astype(native))


def _freeze(array: Any) -> Any:
    array.flags.writeable = False
    return array


def _strings(x: Any) -> tuple[str, ...]:
    if isinstance(x, (str, bytes, bytearray, Mapping)) or not hasattr(x, "__iter__"):
        raise _unfit(x, "an array of strings")
    out = []
    for i, item in enumerate(x.tolist() if hasattr(x, "tolist") else x):
        try:
            out.append(_string(STRING, item))
        except PVDataError as e:
            raise PVDataError(f"[{i}]: {e}") from None
    return tuple(out) or NO_STRINGS


def _struct(t: StructType, x: Any) -> Any:
    from appliance.pvdata.value import Value, View

    if isinstance(x, Value) and x.type == t:
        return x
    made = Value(t)
    made.assign(x.to_value() if isinstance(x, View) else x)
    return made


def _compounds(element: TypeDesc, x: Any) -> list[Any]:
    if isinstance(x, (str, bytes, bytearray, Mapping, UnionValue, AnyValue)) or not hasattr(x, "__iter__"):
        raise _unfit(x, "an array of structures, unions or anys")
    out: list[Any] = []
    for i, item in enumerate(x):
        try:
            value = None if item is None else coerce(element, item)
        except PVDataError as e:
            raise PVDataError(f"[{i}]: {e}") from None
        out.append(None if value in (NO_UNION, NO_ANY) and isinstance(value, tuple) else value)
    return out


def _union(t: UnionType, x: Any, old: Any) -> UnionValue:
    from appliance.pvdata.value import Value

    if x is None:
        return NO_UNION
    if isinstance(x, UnionValue):
        if x.name is None:
            return NO_UNION
        return _member(t, x.name, x.value)
    if isinstance(x, AnyValue):
        x = x.value
    if isinstance(x, Mapping) and len(x) == 1:
        (name,) = x
        if name in t.members:
            return _member(t, name, x[name])
    if isinstance(x, Value):
        for name, member in t.fields:
            if member == x.type:
                return UnionValue(name, coerce(member, x if isinstance(member, StructType) else x.store[0]))
    exact = _exact(t, x)
    order = [name for name, _ in t.fields]
    if old is not None and old.name is not None:
        order.insert(0, old.name)
    elif exact is not None:
        order.insert(0, exact)
    for name in order:
        try:
            return UnionValue(name, coerce(t.members[name], x))
        except PVDataError:
            continue
    raise PVDataError(f"{type(x).__name__} {_short(x)} fits no member of the union ({', '.join(t.members)})")


def _member(t: UnionType, name: str, x: Any) -> UnionValue:
    member = t.members.get(name)
    if member is None:
        raise PVDataError(f"the union has no member {name!r}; it has {', '.join(t.members)}")
    try:
        return UnionValue(name, coerce(member, x))
    except PVDataError as e:
        raise PVDataError(f"->{name}: {e}") from None


def _exact(t: UnionType, x: Any) -> str | None:
    """Return the member whose type is natural for ``x``: float64 data must not go into ``booleanValue``."""
    try:
        natural, _ = infer(x)
    except PVDataError:
        return None
    for name, member in t.fields:
        if member == natural:
            return name
    return None


def _any(x: Any) -> AnyValue:
    from appliance.pvdata.value import Value, View

    if isinstance(x, UnionValue):
        x = x.value
    if x is None:
        return NO_ANY
    if isinstance(x, AnyValue) or (isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], TypeDesc)):
        t, content = x
        return NO_ANY if t is None else AnyValue(t, coerce(t, content))
    if isinstance(x, View):
        x = x.to_value()
    if isinstance(x, Value):
        return AnyValue(x.type, x if isinstance(x.type, StructType) else x.store[0])
    t, content = infer(x)
    return AnyValue(t, coerce(t, content))


_BY_DTYPE = {t.np: t for t in SCALARS.values() if t.np}


def infer(x: Any) -> tuple[TypeDesc, Any]:
    """Return the type for plain Python or numpy, as PVXS chooses it for JSON, and the value.

    Integers are int64 (uint64 if need be), an empty list is float64[], mixed numbers are float64[].
    """
    if isinstance(x, bool):
        return BOOL, x
    if isinstance(x, int):
        return (INT64 if x <= INT64.hi else UINT64), x
    if isinstance(x, float):
        return FLOAT64, x
    if isinstance(x, str):
        return STRING, x
    if isinstance(x, (bytes, bytearray, memoryview)):
        return ArrayType(UINT8), x
    if isinstance(x, Mapping):
        fields = []
        content = {}
        for name, item in x.items():
            if not isinstance(name, str):
                raise PVDataError(f"field name {name!r} is not a string")
            t, content[name] = infer(item)
            fields.append((name, t))
        return StructType(fields), content
    if hasattr(x, "dtype"):
        kind = x.dtype.kind
        found = STRING if kind in "US" else _BY_DTYPE.get("?" if kind == "b" else f"{kind}{x.dtype.itemsize}")
        if found is None:
            raise PVDataError(f"PVData has no type for numpy's {x.dtype}")
        return (ArrayType(found) if x.ndim else found), x
    if isinstance(x, (list, tuple)):
        return _infer_list(x), x
    from appliance.pvdata.value import Value

    if isinstance(x, Value):
        return x.type, x
    raise PVDataError(f"no PVData type can be inferred for {type(x).__name__} {_short(x)}")


def _infer_list(x: list[Any] | tuple[Any, ...]) -> TypeDesc:
    if not x:
        return ArrayType(FLOAT64)
    kinds = set()
    for item in x:
        t, _ = infer(item)
        if isinstance(t, StructType):
            # Only one type can describe the elements; each element is checked when it is assigned.
            return ArrayType(t)
        if not isinstance(t, ScalarType):
            raise PVDataError("no PVData type can be inferred for a list of lists")
        kinds.add(t.kind)
    if kinds == {"string"}:
        return ArrayType(STRING)
    if "string" in kinds:
        raise PVDataError("no PVData type can be inferred for a list of both strings and numbers")
    if "float" in kinds:
        return ArrayType(FLOAT64)
    if kinds == {"bool"}:
        return ArrayType(BOOL)
    return ArrayType(UINT64 if "uint" in kinds else INT64)
