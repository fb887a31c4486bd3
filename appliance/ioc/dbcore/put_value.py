"""Encodes a value for a put: in memory that EPICS reads, in a type that it can convert."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from appliance.errors import OperationError, PVDataError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.dbr import VALUE_STRUCTS

__all__ = ["Encoded", "Field", "encode"]

_new: Final[Any] = tuple.__new__
_FLOATS: Final = frozenset((_c.DBF_FLOAT, _c.DBF_DOUBLE))
_NUMPY_TO_DBR: Final = {code: dbr for dbr, code in enumerate(_c.NUMPY_CODES) if dbr not in {0, _c.DBF_ENUM}}


class Field(Protocol):
    """The properties of a field that the encoding needs: see :class:`.channel.DBChannel`."""

    name: str
    final_type: int
    elements: int
    is_string: bool
    choices: int | None
    ends_text: bool


class Encoded(NamedTuple):
    """The arguments of dbChannelPut."""

    #: address of the first element
    address: int
    #: number of elements
    elements: int
    #: DBR code of the elements
    dbr: int
    #: keeps the memory
    owner: object


def encode(field: Field, value: Any) -> Encoded:
    """Write a value into our own memory, in a type that EPICS accepts.

    Args:
        field: the field to write.
        value: what :meth:`DBChannel.get` returns for that field; text is converted by EPICS for numbers and enums.

    Raises:
        PVDataError: the value does not fit the field.
        OperationError: a menu field has no such choice.

    """
    if field.elements == 1:
        return _scalar(field, value)
    if field.is_string and field.final_type == _c.DBF_CHAR:
        if not isinstance(value, str):
            raise PVDataError(f"{field.name} takes text, not {type(value).__name__}")
        encoded = _c.raw(value)
        data = ctypes.create_string_buffer(
            _c.cut(encoded, field.elements - 1) if field.ends_text else encoded
        )
        return Encoded(ctypes.addressof(data), len(data), _c.DBF_CHAR, data)
    if field.final_type == _c.DBF_STRING or (
        not isinstance(value, str)
        and isinstance(value, (tuple, list))
        and value
        and isinstance(value[0], str)
    ):
        return _strings(field, value)
    return _numbers(field, value)


def _scalar(field: Field, value: Any) -> Encoded:
    dbr = field.final_type
    if isinstance(value, str) or dbr == _c.DBF_STRING:
        dbr = _c.DBF_STRING
        encoded = _c.raw(value if isinstance(value, str) else str(value))
        # The reference server cuts silently as well: a field of 40 bytes has room for 39.
        data = ctypes.create_string_buffer(_c.cut(encoded, _c.MAX_STRING_SIZE - 1), _c.MAX_STRING_SIZE)
    else:
        data = ctypes.create_string_buffer(8)
        try:
            number = float(value) if dbr in _FLOATS else int(value)
            if field.choices is not None and number >= field.choices:
                # EPICS writes any number into a menu field, and the record then has no such choice.
                raise OperationError(
                    f"cannot write {field.name}: illegal choice {number}, there are {field.choices} from 0"
                )
            VALUE_STRUCTS[dbr].pack_into(data, 0, number)
        except (struct.error, OverflowError, ValueError, TypeError) as error:
            raise PVDataError(f"{value!r} does not fit {field.name}, which is {_c.DBF_NAMES[dbr]}") from error
    found: Encoded = _new(Encoded, (ctypes.addressof(data), 1, dbr, data))
    return found


def _strings(field: Field, value: Sequence[str]) -> Encoded:
    if isinstance(value, str):
        raise PVDataError(f"{field.name} takes an array of strings")
    size = _c.MAX_STRING_SIZE
    if field.ends_text:
        value = [*value[: field.elements - 1], "0"]
    parts = [_c.cut(_c.raw(str(each)), size - 1).ljust(size, b"\0") for each in value]
    data = ctypes.create_string_buffer(b"".join(parts), max(size * len(parts), 1))
    return Encoded(ctypes.addressof(data), len(parts), _c.DBF_STRING, data)


def _numbers(field: Field, value: Any) -> Encoded:
    import numpy as np

    try:
        if isinstance(value, np.ndarray):
            array = np.ascontiguousarray(value)
        else:
            array = np.array(value, _c.NUMPY_CODES[field.final_type])
    except (ValueError, TypeError, OverflowError) as error:
        raise PVDataError(f"the array does not fit {field.name}: {error}") from error
    dbr = _NUMPY_TO_DBR.get(array.dtype.str[1:]) if array.dtype.isnative else None
    if dbr is None or array.ndim != 1:
        raise PVDataError(f"{field.name} takes a one-dimensional array of numbers, not {array.dtype}")
    if field.ends_text:
        room = field.elements - 1
        if array.itemsize == 1:
            room = len(_c.cut(array[: field.elements].tobytes(), room))
        array = np.append(array[:room], array.dtype.type(0))
    return Encoded(array.__array_interface__["data"][0], array.size, dbr, array)
