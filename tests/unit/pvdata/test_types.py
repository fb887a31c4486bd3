"""Types: equality, layout and limits."""

from __future__ import annotations

import pickle

import pytest

from appliance.errors import PVDataError
from appliance.pvdata import (
    ANY,
    BOOL,
    FLOAT64,
    INT32,
    INT64,
    STRING,
    UINT8,
    ArrayType,
    BoundedString,
    StructType,
    UnionType,
    nt,
)

ALARM = StructType([("severity", INT32), ("status", INT32), ("message", STRING)], "alarm_t")
#: The example of pva.rst section 5.5.3.
EXAMPLE = StructType(
    [
        ("value", FLOAT64),
        ("timestamp", StructType([("secondsPastEpoch", INT32), ("nanoseconds", INT32)])),
        ("alarm", ALARM),
    ]
)


def test_fields_are_numbered_depth_first_as_in_the_specification():
    """Section 5.5.3, the example."""
    assert EXAMPLE.count == 9
    assert EXAMPLE.paths == (
        "",
        "value",
        "timestamp",
        "timestamp.secondsPastEpoch",
        "timestamp.nanoseconds",
        "alarm",
        "alarm.severity",
        "alarm.status",
        "alarm.message",
    )
    assert EXAMPLE.offsets["alarm.message"] == 8
    assert EXAMPLE.spans == (9, 1, 3, 1, 1, 4, 1, 1, 1)
    assert EXAMPLE.parents == (0, 0, 0, 2, 2, 0, 5, 5, 5)
    assert EXAMPLE.masks[2] == 0b11100
    assert EXAMPLE.full_mask == 0x1FF
    assert EXAMPLE.leaf_mask == 0b111011010
    assert EXAMPLE.leaves == (1, 3, 4, 6, 7, 8)
    assert EXAMPLE.leaf_types[5] is ALARM


def test_unions_anys_and_structure_arrays_are_one_field_each():
    """Section 5.5.4."""
    t = StructType([("u", UnionType([("a", ALARM)])), ("x", ANY), ("s", ArrayType(ALARM)), ("end", INT32)])
    assert t.count == 5
    assert t.offsets["end"] == 4


def test_a_scalar_has_the_layout_of_one_field():
    assert (FLOAT64.count, FLOAT64.offsets, FLOAT64.spans, FLOAT64.full_mask) == (1, {"": 0}, (1,), 1)


def test_types_compare_by_structure_names_and_identifier():
    same = StructType([("severity", INT32), ("status", INT32), ("message", STRING)], "alarm_t")
    assert same == ALARM
    assert hash(same) == hash(ALARM)
    assert same != StructType(same.fields, "other")
    assert same != StructType([("severity", INT64), *same.fields[1:]], "alarm_t")
    assert same != StructType(same.fields[::-1], "alarm_t")
    assert UnionType(same.fields, "alarm_t") != same
    assert ArrayType(INT32) != ArrayType(INT32, "fixed", 3)
    assert BoundedString(3) != STRING
    assert BoundedString(3) == BoundedString(3)
    assert ALARM != "alarm_t"


@pytest.mark.parametrize(
    "t", [ALARM, ANY, STRING, BoundedString(4), ArrayType(UINT8, "bounded", 2), nt.NTNDArray()]
)
def test_types_can_be_pickled(t):
    assert pickle.loads(pickle.dumps(t)) == t


@pytest.mark.parametrize("name", ["", "1a", "a.b", "a b", "\u00e9", "a-b", "x" * 256])
def test_bad_names_are_refused(name):
    with pytest.raises(PVDataError, match="invalid field name"):
        StructType([(name, INT32)])


def test_a_name_cannot_appear_twice():
    with pytest.raises(PVDataError, match="'a' appears twice"):
        StructType([("a", INT32), ("b", INT32), ("a", BOOL)])


def test_what_pvdata_does_not_have_is_refused():
    for make in (
        lambda: ArrayType(ArrayType(INT32)),
        lambda: ArrayType(BoundedString(3)),
        lambda: ArrayType(ALARM, "fixed", 3),
        lambda: ArrayType(INT32, "round"),
        lambda: ArrayType(INT32, "fixed", -1),
        lambda: BoundedString(0),
    ):
        with pytest.raises(PVDataError):
            make()


def test_nesting_is_limited():
    t = INT32
    with pytest.raises(PVDataError, match="deeper than 32"):
        for _ in range(40):
            t = StructType([("a", t)])


def test_the_number_of_fields_is_limited():
    wide = StructType([(f"f{i}", INT32) for i in range(1000)])
    with pytest.raises(PVDataError, match="more than 65535 fields"):
        StructType([(f"s{i}", wide) for i in range(66)])


def test_default_values_cannot_be_made_huge():
    with pytest.raises(PVDataError, match="fixed-length"):
        ArrayType(FLOAT64, "fixed", 1 << 30)


def test_paths_cannot_be_made_huge():
    t = StructType([(f"f{i}", INT32) for i in range(60000)])
    with pytest.raises(PVDataError, match="too long altogether"):
        StructType([("n" * 255, t)])


def test_types_refuse_unknown_attributes():
    with pytest.raises(AttributeError):
        _ = INT32.nothing
