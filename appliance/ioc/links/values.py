"""Values of PVAccess as EPICS wants them, and values of records as a PV wants them.

A fraction is cut off. A whole number that is too large loses its upper bits, as in C. For a floating-point number C leaves open what happens (x86-64 makes the smallest number of it, or
0): it is refused, and so is NaN. A negative one becomes the unsigned number with the same bits, as on x86-64. A text
becomes a number if it is one. A number becomes text with as many digits as its type holds.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from appliance.errors import PVDataError
from appliance.ioc.dbcore.dbr import ITEM_SIZES, VALUE_STRUCTS
from appliance.ioc.dbcore.link_support import MAX_STRING_SIZE, NUMPY_CODES, cut, raw, text
from appliance.ioc.mapping import SCALAR_TYPES
from appliance.pvdata.coerce import parse_float, parse_int
from appliance.pvdata.types import (
    BOOL,
    AnyType,
    ArrayType,
    BoundedString,
    ScalarType,
    StructType,
    TypeDesc,
    UnionType,
)

__all__ = ["CHARS", "Choice", "dbf_of", "fit", "from_dbr", "is_enum", "long_text", "number_to_dbr", "to_dbr"]

_STRING, _CHAR, _USHORT, _LONG, _ULONG, _ENUM = 0, 1, 4, 5, 6, 11
_FLOATS: Final = frozenset((9, 10))
_NOT_WHOLE: Final = _FLOATS | {_STRING}
CHARS: Final = frozenset((_CHAR, 2))
"""DBF_CHAR and DBF_UCHAR: arrays of them hold long texts."""
_CODES: Final = {kind: code for code, kind in enumerate(SCALAR_TYPES[:_ENUM])}
_TEXT_ROOM: Final = MAX_STRING_SIZE - 1
_LARGEST: Final = (1 << 63) - 1


def _bounds(code: str) -> tuple[int, int]:
    bits = 8 * int(code[1])
    return -(1 << bits - 1), (1 << bits - (code[0] == "i")) - 1


_BOUNDS: Final = {dbr: _bounds(code) for dbr, code in enumerate(NUMPY_CODES) if code[0] in "iu"}
"""The whole numbers whose bits a type has room for."""


class Choice(NamedTuple):
    """The value of an enumeration."""

    number: int
    choices: tuple[str, ...]

    @property
    def text(self) -> str:
        """The chosen text; the number if there is no such choice."""
        return self.choices[self.number] if 0 <= self.number < len(self.choices) else str(self.number)


def is_enum(kind: TypeDesc) -> bool:
    """Whether a structure is an enumeration (``enum_t``): a number and the texts that it chooses from.

    The name alone is not enough: another server chooses it, and what lies below it.
    """
    if not (isinstance(kind, StructType) and kind.id == "enum_t"):
        return False
    index, choices = kind.members.get("index"), kind.members.get("choices")
    is_number = isinstance(index, ScalarType) and _CODES.get(index, _STRING) not in _NOT_WHOLE
    return is_number and isinstance(choices, ArrayType) and _is_text(choices.element)


def dbf_of(kind: TypeDesc) -> int:
    """Return the DBF code of a value of a type, or of the elements of an array; LONG for what EPICS does not know."""
    if is_enum(kind):
        return _ENUM
    if isinstance(kind, ArrayType):
        kind = kind.element
    if isinstance(kind, BoundedString):
        return _STRING
    return _CODES.get(kind, _LONG) if isinstance(kind, ScalarType) else _LONG


# -- to EPICS --------------------------------------------------------------------------------------------------------


def to_dbr(value: Any, kind: TypeDesc | None, dbr: int, most: int) -> tuple[Any, int]:
    """Return a value as EPICS wants it.

    Args:
        value: what a store holds: bool, int, float, str, a numpy array, a tuple of texts; or a Choice.
        kind: its type, for the number of digits in text; None if it is not known.
        dbr: the code of the wanted type.
        most: the most elements that fit, at least 1.

    Returns:
        Octets, as ``bytes`` or as a numpy array, and the number of elements.

    Raises:
        PVDataError: a text is no number, or EPICS has nothing for such a value.
    """
    if isinstance(value, Choice):
        value = value.text if dbr == _STRING else value.number
    if isinstance(value, str) and dbr in CHARS and most > 1:
        data = cut(_until_nul(raw(value)), most - 1) + b"\0"
        return data, len(data)
    if isinstance(value, tuple):
        items = value[:most]
        if dbr == _STRING:
            return b"".join(_cell(item) for item in items), len(items)
        return b"".join(number_to_dbr(item, dbr) for item in items), len(items)
    if hasattr(value, "dtype"):
        items = value[:most]
        if dbr == _STRING:
            return b"".join(_cell(_shown(item, items.dtype.str[1:])) for item in items.tolist()), len(items)
        return _converted(items, dbr), len(items)
    if not isinstance(value, (bool, int, float, str)):
        raise PVDataError(f"a {type(value).__name__} cannot become {NUMPY_CODES[dbr]}")
    if dbr == _STRING:
        code = kind.np if isinstance(kind, ScalarType) and kind.fmt else "f8"
        return _cell(value if isinstance(value, str) else _shown(value, code)), 1
    return number_to_dbr(value, dbr), 1


def _until_nul(data: bytes) -> bytes:
    return data.partition(b"\0")[0]


def long_text(value: Any) -> Any:
    """Return an array of characters as the text that it holds, and anything else as it is."""
    if getattr(value, "dtype", None) in ("i1", "u1"):
        return text(_until_nul(value.tobytes()))
    return value


def _cell(value: str) -> bytes:
    """Return a text in the place that EPICS has for one."""
    return cut(_until_nul(raw(value)), _TEXT_ROOM).ljust(MAX_STRING_SIZE, b"\0")


def _shown(value: Any, code: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return format(value, ".7g" if code.endswith("f4") else ".15g")
    return str(value)


def number_to_dbr(value: bool | float | str, dbr: int) -> bytes:
    """Return a number, or a text that is one, as EPICS wants it.

    Raises:
        PVDataError: it is none, or a floating-point number that a whole one cannot hold.
    """
    if isinstance(value, str):
        value = parse_float(value) if dbr in _FLOATS or not _is_whole(value) else parse_int(value)
    if dbr in _FLOATS:
        try:
            return VALUE_STRUCTS[dbr].pack(value)
        except OverflowError:
            # A double that a float cannot hold.
            return VALUE_STRUCTS[dbr].pack(math.copysign(math.inf, value))
    size = ITEM_SIZES[dbr]
    if isinstance(value, float):
        low, high = _BOUNDS[dbr]
        if not (math.isfinite(value) and low <= int(value) <= high):
            raise _too_large(value, dbr)
    whole = int(value)
    return (whole & ((1 << 8 * size) - 1)).to_bytes(size, "little" if _LITTLE else "big")


_LITTLE: Final = VALUE_STRUCTS[_LONG].pack(1)[0] == 1


def _is_whole(value: str) -> bool:
    try:
        parse_int(value)
    except PVDataError:
        return False
    return True


def _too_large(value: float, dbr: int) -> PVDataError:
    return PVDataError(f"{value:.15g} does not fit {SCALAR_TYPES[dbr if dbr < _ENUM else _USHORT].name}")


def _converted(array: Any, dbr: int) -> Any:
    """Convert an array of numbers."""
    import numpy as np

    wanted = np.dtype(NUMPY_CODES[dbr])
    if array.dtype == wanted:
        return np.ascontiguousarray(array)
    with np.errstate(all="ignore"):
        if array.dtype.kind == "f" and wanted.kind in "iu":
            array = np.trunc(array.astype(np.float64))
            low, high = _BOUNDS[dbr]
            # These doubles are exact. NaN compares as false.
            good = (array >= float(low)) & (array < float(high + 1))
            if not good.all():
                raise _too_large(float(array[int(np.argmin(good))]), dbr)
            if high > _LARGEST and (array >= float(_LARGEST)).any():
                signed = array.astype(np.int64).astype(np.uint64)
                return np.where(array < 0, signed, array.astype(np.uint64))
            array = array.astype(np.int64)
        return array.astype(wanted)


# -- from EPICS ------------------------------------------------------------------------------------------------------


def from_dbr(dbr: int, data: bytes, count: int) -> Any:
    """Return what a record writes: one number or text, or a numpy array or a tuple of texts if it is not one."""
    if dbr == _STRING:
        size = MAX_STRING_SIZE
        texts = tuple(text(_until_nul(data[at : at + size])) for at in range(0, count * size, size))
        return texts[0] if count == 1 else texts
    if count == 1:
        return VALUE_STRUCTS[dbr].unpack(data)[0]
    import numpy as np

    return np.frombuffer(data, NUMPY_CODES[dbr])


def fit(kind: TypeDesc, value: Any) -> Any:
    """Return what a record writes as a field of another type wants it.

    Raises:
        PVDataError: it does not fit.
    """
    if _is_text(kind):
        value = long_text(value)
    is_many = isinstance(value, tuple) or hasattr(value, "dtype")
    if isinstance(kind, ArrayType) and isinstance(kind.element, ScalarType):
        if isinstance(value, str) and kind.element in (SCALAR_TYPES[_CHAR], SCALAR_TYPES[_CHAR + 1]):
            import numpy as np

            return np.frombuffer(_until_nul(raw(value)) + b"\0", kind.element.np)
        return _fit_array(kind.element, value if is_many else (value,))
    if is_many:
        if not len(value):
            raise PVDataError("an array without elements has no value for a field that is no array")
        value = value[0].item() if hasattr(value, "dtype") else value[0]
    if isinstance(kind, (BoundedString, ScalarType)):
        return _fit_scalar(kind, value)
    if is_enum(kind):
        return value if isinstance(value, str) else _fit_scalar(SCALAR_TYPES[_LONG], value)
    if isinstance(kind, (AnyType, UnionType)):
        return value
    raise PVDataError("the PV has a structure here, and no value")


def _is_text(kind: TypeDesc) -> bool:
    return isinstance(kind, BoundedString) or (isinstance(kind, ScalarType) and kind.kind == "string")


def _fit_scalar(kind: TypeDesc, value: Any) -> Any:
    if _is_text(kind):
        return value if isinstance(value, str) else _shown(value, "f8")
    assert isinstance(kind, ScalarType)
    if kind == BOOL:
        return value if isinstance(value, str) else bool(value)
    data = number_to_dbr(value, _CODES[kind])
    return VALUE_STRUCTS[_CODES[kind]].unpack(data)[0]


def _fit_array(element: ScalarType, values: Any) -> Any:
    if element.kind == "string":
        items = values.tolist() if hasattr(values, "dtype") else values
        code = values.dtype.str[1:] if hasattr(values, "dtype") else "f8"
        return tuple(item if isinstance(item, str) else _shown(item, code) for item in items)
    if element == BOOL:
        import numpy as np

        return np.array([bool(_fit_scalar(SCALAR_TYPES[10], item)) for item in values], "?")
    if hasattr(values, "dtype"):
        return _converted(values, _CODES[element])
    import numpy as np

    return np.array([_fit_scalar(element, item) for item in values], element.np)
