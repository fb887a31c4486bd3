"""Values between PVs and records."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest

from appliance.errors import PVDataError
from appliance.ioc.dbcore.link_support import NUMPY_CODES
from appliance.ioc.links.values import Choice, dbf_of, fit, from_dbr, to_dbr
from appliance.ioc.mapping import SCALAR_TYPES
from appliance.pvdata.nt import NTEnum
from appliance.pvdata.types import (
    BOOL,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    ArrayType,
    BoundedString,
    StructType,
    TypeDesc,
)  # fmt: skip

CODES = ("40s", "b", "B", "h", "H", "i", "I", "q", "Q", "f", "d", "H")
STRING_, CHAR, UCHAR, SHORT, USHORT, LONG, ULONG, INT64_, UINT64_, FLOAT, DOUBLE, ENUM = range(12)
ENUM_T = NTEnum().members["value"]


def one(value: Any, dbr: int, kind: TypeDesc | None = None) -> Any:
    """A value as a record that asks for one element finds it."""
    data, count = to_dbr(value, kind, dbr, 1)
    assert count == 1
    found = struct.unpack("=" + CODES[dbr], bytes(data)[: struct.calcsize("=" + CODES[dbr])])[0]
    return found.rstrip(b"\0").decode() if dbr == STRING_ else found


@pytest.mark.parametrize(
    ("kind", "dbf"),
    [
        (STRING, STRING_), (INT8, CHAR), (UINT8, UCHAR), (INT16, SHORT), (UINT16, USHORT), (INT32, LONG), (UINT32, ULONG),
        (INT64, INT64_), (UINT64, UINT64_), (FLOAT32, FLOAT), (FLOAT64, DOUBLE), (ENUM_T, ENUM), (BOOL, LONG),
        (ArrayType(FLOAT64), DOUBLE), (ArrayType(STRING), STRING_), (BoundedString(5), STRING_), (StructType([]), LONG),
    ],
)  # fmt: skip
def test_records_learn_the_type_of_the_value(kind: TypeDesc, dbf: int) -> None:
    assert dbf_of(kind) == dbf


@pytest.mark.parametrize("dbr", range(1, 12))
def test_a_number_is_read_as_every_type_of_number(dbr: int) -> None:
    assert one(42, dbr) == one(42.0, dbr) == one("42", dbr) == one(Choice(42, ()), dbr) == 42
    assert one(True, dbr) == 1


@pytest.mark.parametrize(
    ("value", "dbr", "found"),
    [
        (1.9, LONG, 1), (-1.9, LONG, -1), (-1, ULONG, 0xFFFFFFFF), (-1.0, ULONG, 0xFFFFFFFF), (300, UCHAR, 44),
        (-1, UINT64_, (1 << 64) - 1), (1e300, FLOAT, math.inf),
        ("0x10", LONG, 16), ("1.5", LONG, 1), ("1.5", DOUBLE, 1.5), (" 7 ", SHORT, 7),
    ],
)  # fmt: skip
def test_numbers_are_converted_as_c_does(value: Any, dbr: int, found: Any) -> None:
    assert one(value, dbr) == found


@pytest.mark.parametrize("text", ["one", "", "1_0", "12 apples"])
def test_a_text_that_is_no_number_is_not_read_as_one(text: str) -> None:
    with pytest.raises(PVDataError):
        to_dbr(text, STRING, LONG, 1)


@pytest.mark.parametrize(
    ("value", "kind", "found"),
    [
        ("text", STRING, "text"), ("a" * 50, STRING, "a" * 39), ("é" * 25, STRING, "é" * 19), ("cut\0off", STRING, "cut"),
        (43, INT32, "43"), (0.1, FLOAT64, "0.1"), (float(np.float32(0.1)), FLOAT32, "0.1"), (1e300, FLOAT64, "1e+300"),
        (True, BOOL, "true"), (Choice(1, ("zero", "one")), ENUM_T, "one"), (Choice(5, ("zero",)), ENUM_T, "5"),
        (Choice(-1, ("zero",)), ENUM_T, "-1"),
    ],
)  # fmt: skip
def test_a_value_is_read_as_text(value: Any, kind: TypeDesc, found: str) -> None:
    assert one(value, STRING_, kind) == found


def test_an_array_is_read_up_to_what_fits() -> None:
    values = np.array([1, 2, -1, 1.2, 0], "f4")
    data, count = to_dbr(values, ArrayType(FLOAT32), SHORT, 4)
    assert count == 4
    assert np.asarray(data).tolist() == [1, 2, -1, 1]
    data, count = to_dbr(values, None, ULONG, 10)
    assert np.asarray(data).tolist() == [1, 2, 0xFFFFFFFF, 1, 0]
    assert one(values, DOUBLE) == 1.0
    assert to_dbr(values[:0], None, DOUBLE, 5)[1] == 0


WHOLE = [dbr for dbr in range(1, 12) if dbr not in (FLOAT, DOUBLE)]


@pytest.mark.parametrize("dbr", WHOLE)
def test_a_floating_point_number_that_a_whole_one_cannot_hold_is_refused(dbr: int) -> None:
    code = np.dtype(NUMPY_CODES[dbr])
    low, high = int(np.iinfo(code).min), int(np.iinfo(code).max)
    # Of 64 bits the nearest double below.
    top = math.nextafter(float(high + 1), 0.0) if code.itemsize == 8 else float(high)
    assert one(top, dbr) == int(top)
    assert one(float(low), dbr) == low
    assert np.asarray(to_dbr(np.array([top, low]), None, dbr, 2)[0]).tolist() == [int(top), low]
    beyond = -float(1 << 8 * code.itemsize - 1) * 1.5
    for value in (float(high + 1), beyond, 1e30, -1e30, math.inf, -math.inf, math.nan):
        for given in (value, f"{value!r}", np.array([1.0, value]), np.array([1.0, value], "f4")):
            with pytest.raises(PVDataError, match=r"does not fit u?int"):
                to_dbr(given, None, dbr, 1 if isinstance(given, str) else 2)
        if dbr < 9:
            with pytest.raises(PVDataError, match=r"does not fit u?int"):
                fit(SCALAR_TYPES[dbr], value)
    if code.kind == "u":
        # As C does on x86-64.
        assert one(-1.0, dbr) == high
        assert np.asarray(to_dbr(np.array([-1.0, top]), None, dbr, 2)[0]).tolist() == [high, int(top)]


def test_a_number_with_a_fraction_just_beyond_a_bound_is_cut_to_it() -> None:
    assert one(127.9, CHAR) == 127
    assert one(-128.9, CHAR) == -128
    assert np.asarray(to_dbr(np.array([127.9, -128.9]), None, CHAR, 2)[0]).tolist() == [127, -128]


def test_large_numbers_in_an_array_fit_unsigned_ones() -> None:
    data, _ = to_dbr(np.array([1.5, 2.0**63]), None, UINT64_, 9)
    assert np.asarray(data).tolist() == [1, 1 << 63]


def test_arrays_of_text_are_read_as_text_and_as_numbers() -> None:
    data, count = to_dbr(("one", "two", "three"), None, STRING_, 16)
    assert (count, len(data)) == (3, 120)
    assert [data[at : at + 40].rstrip(b"\0") for at in (0, 40, 80)] == [b"one", b"two", b"three"]
    data, count = to_dbr(("1", "2"), None, SHORT, 16)
    assert struct.unpack("=2h", data) == (1, 2)
    data, count = to_dbr(np.array([1.5, 2.25]), None, STRING_, 16)
    assert data[:4] == b"1.5\0"


@pytest.mark.parametrize("dbr", range(12))
def test_what_a_record_writes_comes_back(dbr: int) -> None:
    kinds = (STRING, INT8, UINT8, INT16, UINT16, INT32, UINT32, INT64, UINT64, FLOAT32, FLOAT64, UINT16)
    value: Any = "7" if dbr == STRING_ else 7
    data, _ = to_dbr(value, kinds[dbr], dbr, 1)
    assert fit(kinds[dbr], from_dbr(dbr, bytes(data), 1)) == value
    many = ("7", "8") if dbr == STRING_ else np.array([7, 8], kinds[dbr].np)
    data, _ = to_dbr(many, None, dbr, 2)
    found = fit(ArrayType(kinds[dbr]), from_dbr(dbr, bytes(data), 2))
    assert list(found) == list(many)


@pytest.mark.parametrize(
    ("kind", "written", "found"),
    [
        (INT32, 1.9, 1), (INT32, "0x10", 16), (FLOAT64, 3, 3.0), (STRING, 43, "43"), (BOOL, 5, True), (UINT8, 300, 44),
        (INT32, np.array([5, 6], "f8"), 5), (STRING, ("a", "b"), "a"), (ENUM_T, "one", "one"), (ENUM_T, 1, 1),
    ],
)  # fmt: skip
def test_a_record_writes_to_a_pv_of_another_type(kind: TypeDesc, written: Any, found: Any) -> None:
    assert fit(kind, written) == found


def test_one_value_fills_an_array_of_one() -> None:
    assert list(fit(ArrayType(INT32), 5.5)) == [5]
    assert fit(ArrayType(STRING), 5) == ("5",)
    assert list(fit(ArrayType(FLOAT32), ("1.5",))) == [1.5]
    assert list(fit(ArrayType(BOOL), np.array([0, 2]))) == [False, True]


@pytest.mark.parametrize(
    ("kind", "written"), [(INT32, "x"), (INT32, np.array([], "f8")), (StructType([]), 1)]
)
def test_what_does_not_fit_is_refused(kind: TypeDesc, written: Any) -> None:
    with pytest.raises(PVDataError):
        fit(kind, written)


@pytest.mark.parametrize("dbr", [CHAR, UCHAR])
@pytest.mark.parametrize(
    ("value", "most", "found"),
    [("x" * 60, 100, b"x" * 60 + b"\0"), ("x" * 60, 10, b"x" * 9 + b"\0"), ("xü", 3, b"x\0"), ("", 5, b"\0"), ("a\0b", 9, b"a\0")],
)  # fmt: skip
def test_a_text_becomes_characters_where_there_is_room_for_several(
    value: str, most: int, found: bytes, dbr: int
) -> None:
    assert to_dbr(value, STRING, dbr, most) == (found, len(found))


@pytest.mark.parametrize("kind", [STRING, BoundedString(100)])
@pytest.mark.parametrize("data", [b"long text\0rest", b"long text"])
@pytest.mark.parametrize("code", ["i1", "u1"])
def test_characters_become_the_text_of_a_text(kind: TypeDesc, data: bytes, code: str) -> None:
    assert fit(kind, np.frombuffer(data, code)) == "long text"


@pytest.mark.parametrize("kind", [INT8, UINT8])
def test_a_text_becomes_characters_with_an_end(kind: TypeDesc) -> None:
    found = fit(ArrayType(kind), "Grün")
    assert found.dtype == np.dtype(kind.np)  # type: ignore[attr-defined]
    assert found.tobytes() == "Grün".encode() + b"\0"
