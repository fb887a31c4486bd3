"""Values: access, conversion, marks, assignment."""

from __future__ import annotations

import array
import math
import re

import numpy as np
import pytest

from appliance.errors import PVDataError
from appliance.pvdata import (
    ANY,
    BOOL,
    FLOAT32,
    FLOAT64,
    INT8,
    INT32,
    INT64,
    STRING,
    UINT8,
    UINT64,
    AnyValue,
    ArrayType,
    BoundedString,
    StructType,
    UnionType,
    UnionValue,
    Value,
    View,
    nt,
)


def name_of(x):
    """The parameter's name in its test's: the same in every process, so without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(x))


SCALAR = nt.NTScalar(FLOAT64)
POINT = StructType([("x", INT32), ("label", STRING)], "p_t")
MIXED = StructType(
    [
        ("u", UnionType([("i", INT32), ("s", STRING), ("p", POINT), ("a", ArrayType(FLOAT64))])),
        ("any", ANY),
        ("points", ArrayType(POINT)),
        ("anys", ArrayType(ANY)),
        ("deep", StructType([("down", StructType([("n", INT64)]))])),
        ("names", ArrayType(STRING)),
        ("data", ArrayType(INT32)),
    ]
)


def one(t, x):
    """Coerce by way of a one-field value."""
    v = Value(StructType([("f", t)]))
    v["f"] = x
    return v["f"]


def test_leaves_start_empty():
    v = Value(MIXED)
    assert v["u"] == UnionValue(None, None)
    assert v["any"] == AnyValue(None, None)
    assert v["points"] == []
    assert v["names"] == ()
    assert v["deep.down.n"] == 0
    assert v["data"].size == 0
    assert v.changed == 0
    assert Value(MIXED)["points"] is not v["points"]


def test_setting_a_leaf_marks_it_and_nothing_else():
    v = Value(SCALAR)
    v["alarm.severity"] = 2
    assert v["alarm.severity"] == 2
    assert v.changed == 1 << SCALAR.offsets["alarm.severity"]
    assert v.is_marked("alarm")
    assert not v.is_marked("value")


def test_a_view_shares_the_store():
    v = Value(MIXED)
    down = v["deep"]["down"]
    assert isinstance(down, View)
    down["n"] = 5
    assert v["deep.down.n"] == 5
    assert v.is_marked("deep.down.n")
    assert down.is_marked()
    assert "n" in down
    assert down.items() == [("n", 5)]
    assert down.to_value() == down
    assert down.to_value() is not down


def test_an_unknown_field_is_named_with_what_there_is():
    v = Value(SCALAR)
    for access in (
        lambda: v["nope"],
        lambda: v.__setitem__("nope", 1),
        lambda: v.mark("nope"),
        lambda: v["alarm.x"],
    ):
        with pytest.raises(PVDataError, match="no field"):
            access()
    with pytest.raises(PVDataError, match="there are value, alarm, timeStamp"):
        v["nope"]
    assert v.get("nope") is None
    assert v.get("nope", 3) == 3
    assert v.get("value") == 0.0
    assert "nope" not in v


@pytest.mark.parametrize(
    ("t", "x", "expected"),
    [
        (INT8, 127, 127),
        (INT8, "-0x80", -128),
        (INT8, "010", 8),
        (INT8, " 12 ", 12),
        (INT8, 12.0, 12),
        (INT8, True, 1),
        (INT8, np.int64(5), 5),
        (INT8, np.float64(5), 5),
        (INT8, np.bool_(True), 1),
        (UINT64, "0xffffffffffffffff", 2**64 - 1),
        (FLOAT64, 1, 1.0),
        (FLOAT64, "1e-3", 0.001),
        (FLOAT64, "0x1p-1", 0.5),
        (FLOAT64, "-inf", -math.inf),
        (FLOAT64, np.float32(0.5), 0.5),
        (FLOAT64, np.int8(3), 3.0),
        (FLOAT32, 0.1, 0.10000000149011612),
        (FLOAT32, math.inf, math.inf),
        (BOOL, 1, True),
        (BOOL, 0, False),
        (BOOL, "true", True),
        (BOOL, "0", False),
        (BOOL, np.bool_(True), True),
        (STRING, "x", "x"),
        (STRING, 5, "5"),
        (STRING, 0.1, "0.1"),
        (STRING, True, "true"),
        (STRING, b"\xb0C", "\udcb0C"),
        (STRING, np.str_("x"), "x"),
        (BoundedString(2), "ab", "ab"),
    ],
    ids=name_of,
)
def test_scalars_are_taken_from_what_people_write(t, x, expected):
    got = one(t, x)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("t", "x", "why"),
    [
        (INT8, 128, "f: 128 does not fit int8, which holds -128 to 127"),
        (INT8, "300", "does not fit"),
        (UINT8, -1, "does not fit"),
        (INT8, 1.5, "not a whole number"),
        (INT8, math.nan, "not a whole number"),
        (INT8, "1.5", "not an integer"),
        (INT8, "1_0", "not an integer"),
        (INT8, "", "not an integer"),
        (INT8, "9" * 5000, "not an integer"),
        (INT8, None, "NoneType None cannot become int8"),
        (INT8, [1], "cannot become"),
        (INT8, np.arange(2), "cannot become"),
        (FLOAT64, "x", "not a number"),
        (FLOAT64, "1_0", "not a number"),
        (FLOAT64, None, "cannot become"),
        (FLOAT64, 10**400, "float64"),
        (FLOAT64, b"1", "cannot become"),
        (FLOAT32, 1e300, "too large for float32"),
        (BOOL, "maybe", 'not "true" or "false"'),
        (BOOL, 1.0, "cannot become"),
        (BOOL, None, "cannot become"),
        (STRING, None, "cannot become"),
        (STRING, [1], "cannot become"),
        (STRING, "\ud800", "UTF-8"),
        (BoundedString(2), "\u00e9\u00e9", "4 octets; at most 2"),
    ],
    ids=name_of,
)
def test_a_scalar_that_does_not_fit_is_refused_with_path_and_reason(t, x, why):
    v = Value(StructType([("f", t)]))
    before = v.store[1]
    with pytest.raises(PVDataError, match=r"^f: ") as error:
        v["f"] = x
    assert why in str(error.value)
    assert v.store[1] == before
    assert v.changed == 0


@pytest.mark.parametrize(
    ("t", "x", "expected"),
    [
        (ArrayType(INT32), [1, 2], [1, 2]),
        (ArrayType(INT32), ("1", 2.0), [1, 2]),
        (ArrayType(INT32), range(3), [0, 1, 2]),
        (ArrayType(INT32), np.array([1, 2], ">i8"), [1, 2]),
        (ArrayType(INT32), np.array([1.0, 2.0]), [1, 2]),
        (ArrayType(INT32), np.arange(10)[::2], [0, 2, 4, 6, 8]),
        (ArrayType(INT32), array.array("h", [1, 2]), [1, 2]),
        (ArrayType(INT32), [], []),
        (ArrayType(INT32), (x for x in (1, 2)), [1, 2]),
        (ArrayType(UINT8), b"\1\2", [1, 2]),
        (ArrayType(FLOAT64), [1, "2", 3.5], [1.0, 2.0, 3.5]),
        (ArrayType(FLOAT32), np.array([0.5]), [0.5]),
        (ArrayType(BOOL), [1, False, "true"], [True, False, True]),
        (ArrayType(BOOL), np.array([0, 5]), [False, True]),
        (ArrayType(FLOAT64), np.array(["1.5"]), [1.5]),
    ],
    ids=name_of,
)
def test_numeric_arrays_are_taken_from_what_people_write(t, x, expected):
    got = one(t, x)
    assert got.tolist() == expected
    assert got.dtype == t.element.np
    assert got.dtype.isnative
    assert not got.flags.writeable
    assert got.flags.c_contiguous


@pytest.mark.parametrize(
    ("t", "x", "why"),
    [
        (ArrayType(INT8), [1, 300], r"f\[1\]: 300 does not fit"),
        (ArrayType(INT8), np.array([1, -300]), "-300 does not fit int8"),
        (ArrayType(INT8), np.array([1.5]), "1.5.* is not a whole number"),
        (ArrayType(INT8), np.array([math.nan]), "is not a whole number"),
        (ArrayType(INT8), np.zeros((2, 2)), "one dimension, not 2"),
        (ArrayType(INT8), "12", "str '12' cannot become an array"),
        (ArrayType(INT8), 5, "cannot become an array"),
        (ArrayType(INT8), {"a": 1}, "cannot become an array"),
        (ArrayType(INT8), [None], r"\[0\]: NoneType"),
        (ArrayType(INT8), np.array([1j]), "complex128 cannot become"),
        (ArrayType(FLOAT32), np.array([1e300]), "too large for float32"),
        (ArrayType(BOOL), np.array([0.5]), "cannot become an array of bool"),
        (ArrayType(STRING), "ab", "cannot become an array of strings"),
        (ArrayType(STRING), ["a", None], r"\[1\]: NoneType"),
        (ArrayType(INT8, "bounded", 1), [1, 2], "2 elements; at most 1"),
        (ArrayType(INT8, "fixed", 3), [1, 2], "2 elements; exactly 3"),
        (ArrayType(POINT), "ab", "cannot become an array of structures"),
        (ArrayType(POINT), [{"x": "q"}], r"f\[0\]: x: 'q' is not an integer"),
    ],
    ids=name_of,
)
def test_an_array_that_does_not_fit_is_refused(t, x, why):
    with pytest.raises(PVDataError, match=r"^f") as error:
        one(t, x)
    assert re.search(why, str(error.value))


def test_later_changes_of_the_callers_array_do_not_show():
    mine = np.arange(3, dtype="i4")
    got = one(ArrayType(INT32), mine)
    mine[0] = 99
    assert got.tolist() == [0, 1, 2]


def test_a_read_only_array_is_taken_without_a_copy():
    mine = np.arange(3, dtype="i4")
    mine.flags.writeable = False
    assert one(ArrayType(INT32), mine) is mine


def test_unions_by_name_by_value_and_by_trying():
    v = Value(MIXED)
    v["u"] = {"s": "x"}
    assert v["u"] == UnionValue("s", "x")
    v["u"] = 5
    assert v["u"] == UnionValue("s", "5")  # the selected member takes what it can, as in PVXS
    v["u"] = None
    v["u"] = 5
    assert v["u"] == UnionValue("i", 5)
    v["u"] = None
    v["u"] = "text"
    assert v["u"] == UnionValue("s", "text")
    v["u"] = UnionValue("p", {"x": 3})
    assert v["u"].value["x"] == 3
    v["u"] = Value(POINT, {"x": 4})
    assert v["u"].name == "p"
    with pytest.raises(PVDataError, match="u: the union has no member 'z'; it has i, s, p, a"):
        v["u"] = UnionValue("z", 1)
    with pytest.raises(PVDataError, match="fits no member"):
        Value(StructType([("u", UnionType([("i", INT32)]))]))["u"] = "abc"


def test_an_image_goes_to_the_member_of_its_own_type():
    v = Value(nt.NTNDArray())
    v["value"] = np.zeros(4, "u2")
    assert v["value"].name == "ushortValue"


def test_paths_lead_into_unions_anys_and_arrays():
    v = Value(MIXED)
    v["u->p.x"] = 7
    assert v["u"].name == "p"
    assert v["u->p.x"] == 7
    assert v["u->"]["x"] == 7
    v["any"] = (POINT, {"x": 1})
    v["any->label"] = "l"
    assert v["any->label"] == "l"
    v["points"] = [{"x": 1}, None]
    v["points[0].x"] = 9
    v["points[1].x"] = 8
    assert [v["points[0].x"], v["points[1].x"]] == [9, 8]
    assert v.is_marked("points")
    for bad in (
        "u->i",
        "u->p.nope",
        "points[2].x",
        "points[x]",
        "points[",
        "names[0]",
        "deep->x",
        "nope->x",
        "any->z",
    ):
        with pytest.raises(PVDataError):
            v[bad]
        assert v.get(bad) is None
    for bad in ("u->zz", "points[2].x", "names[0]", "deep->x", "points[0].x.y"):
        with pytest.raises(PVDataError):
            v[bad] = 1


@pytest.mark.parametrize(
    ("x", "t"),
    [
        (True, BOOL),
        (1, INT64),
        (2**63, UINT64),
        (1.5, FLOAT64),
        ("s", STRING),
        (b"b", ArrayType(UINT8)),
        ([1, 2], ArrayType(INT64)),
        ([1, 2.5], ArrayType(FLOAT64)),
        ([], ArrayType(FLOAT64)),
        (["a"], ArrayType(STRING)),
        ([True], ArrayType(BOOL)),
        (np.zeros(2, "u2"), ArrayType(nt.UINT16)),
        (np.float32(1), FLOAT32),
        ({"a": 1, "b": {"c": "x"}}, StructType([("a", INT64), ("b", StructType([("c", STRING)]))])),
        ([{"a": 1}], ArrayType(StructType([("a", INT64)]))),
        (Value(POINT), POINT),
        ((INT8, 5), INT8),
    ],
    ids=name_of,
)
def test_an_any_infers_its_type(x, t):
    v = Value(MIXED)
    v["any"] = x
    assert v["any"].type == t
    v["any"] = None
    assert v["any"] == AnyValue(None, None)


@pytest.mark.parametrize("x", [object(), 1j, [1, "a"], [[1]], {1: 2}, 2**64, {"a b": 1}], ids=name_of)
def test_what_no_type_can_be_inferred_for_is_refused(x):
    with pytest.raises(PVDataError, match=r"^any"):
        Value(MIXED)["any"] = x


def test_a_scalar_goes_to_the_field_value():
    v = Value(SCALAR, 3)
    assert v["value"] == 3.0
    assert v.changed == 2
    with pytest.raises(PVDataError, match="without a field 'value'"):
        Value(POINT, 3)


def test_an_enumeration_is_set_by_index_by_choice_and_by_number_in_text():
    v = Value(nt.NTEnum(), {"value.choices": ["zero", "one", "2"]})
    v.unmark()
    v.assign("one")
    assert v["value.index"] == 1
    assert v.changed == 1 << v.type.offsets["value.index"]
    v.assign(0)
    assert v["value.index"] == 0
    v["value"] = "2"
    assert v["value.index"] == 2
    v["value"] = "1"
    assert v["value.index"] == 1
    with pytest.raises(
        PVDataError, match=r"value: illegal choice 'three'; the choices are 'zero', 'one', '2'"
    ):
        v.assign("three")
    v.assign({"value": {"index": 5}})
    assert v["value.index"] == 5


def test_assigning_nested_and_dotted_names():
    v = Value(SCALAR)
    v.assign({"value": 1, "alarm": {"severity": 1}, "timeStamp.nanoseconds": 5})
    assert v.to_dict() == {
        "value": 1.0,
        "alarm": {"severity": 1, "status": 0, "message": ""},
        "timeStamp": {"secondsPastEpoch": 0, "nanoseconds": 5, "userTag": 0},
    }
    with pytest.raises(PVDataError, match=r"alarm.severity: 'x' is not an integer"):
        v.assign({"alarm": {"severity": "x"}})
    with pytest.raises(PVDataError, match="not a string"):
        v.assign({1: 2})


def test_assigning_a_value_takes_its_marked_fields_or_all():
    source = Value(SCALAR, {"value": 1, "alarm.severity": 2})
    target = Value(SCALAR, {"alarm.message": "kept"})
    target.assign(source)
    assert (target["value"], target["alarm.severity"], target["alarm.message"]) == (1.0, 2, "kept")
    source.unmark()
    target.assign(source)
    assert target["alarm.message"] == ""
    with pytest.raises(PVDataError, match="no field"):
        Value(POINT).assign(source)


def test_marks():
    v = Value(SCALAR)
    v.mark("alarm")
    assert v.is_marked("alarm.status")
    v.unmark("alarm.status")
    assert not v.is_marked("alarm.status")
    assert v.is_marked("alarm.severity")
    v.unmark()
    assert v.changed == 0
    v.mark()
    assert v.is_marked("timeStamp.userTag")
    v.unmark("timeStamp")
    assert not v.is_marked("timeStamp.userTag")
    assert v.is_marked("value")


def test_a_clone_is_independent():
    v = Value(MIXED, {"points": [{"x": 1}], "any": (POINT, {"x": 2}), "u": {"p": {"x": 3}}})
    copy = v.clone()
    assert copy == v
    assert copy.changed == v.changed
    copy["points"][0]["x"] = 9
    copy["any"].value["x"] = 9
    copy["u->p.x"] = 9
    copy["deep.down.n"] = 9
    assert v.to_dict()["points"] == [{"x": 1, "label": ""}]
    assert v["any->x"] == 2
    assert v["u->p.x"] == 3
    assert v != copy


def test_merge_takes_what_the_bits_say():
    v = Value(SCALAR)
    other = Value(SCALAR, {"value": 1, "alarm.severity": 2})
    v.merge(other.store, 2)
    assert (v["value"], v["alarm.severity"], v.changed) == (1.0, 0, 2)
    v.merge(other.store, 1)
    assert v["alarm.severity"] == 2
    assert v.changed == 3


def test_values_compare_by_type_and_content():
    assert Value(SCALAR, 1) == Value(SCALAR, 1)
    assert Value(SCALAR, math.nan) == Value(SCALAR, math.nan)
    assert Value(SCALAR, 1) != Value(SCALAR, 2)
    assert Value(SCALAR, 1) != Value(nt.NTScalar(FLOAT32), 1)
    assert Value(SCALAR) != 5
    data = Value(MIXED, {"data": [1, 2]})
    assert data == Value(MIXED, {"data": [1, 2]})
    assert data != Value(MIXED, {"data": [1, 3]})
    with pytest.raises(TypeError):
        hash(data)


def test_a_repr_is_short():
    v = Value(nt.NTScalarArray(FLOAT64, display=True), {"value": np.zeros(10**6)})
    assert "1000000 elements" in repr(v)
    assert len(repr(v)) < 600


def test_a_type_that_is_no_structure_is_one_field():
    v = Value(INT32, 5)
    assert v[""] == 5
    assert v.to_dict() == 5
    v.assign("7")
    assert v[""] == 7
    assert Value(ArrayType(INT32), [1, 2]).to_dict() == [1, 2]


def test_iteration_goes_over_the_direct_members():
    v = Value(SCALAR)
    assert list(v) == ["value", "alarm", "timeStamp"]
    assert len(v) == 3
    assert [name for name, _ in v.items()] == v.keys()
    assert v
