"""Where a link finds value, alarm, time and limits in the structure of a PV."""

from __future__ import annotations

import numpy as np

from appliance.ioc.links.places import Places
from appliance.ioc.links.values import Choice
from appliance.pvdata.nt import NTEnum, NTScalar
from appliance.pvdata.store import AnyValue, UnionValue
from appliance.pvdata.types import ANY, FLOAT64, INT32, STRING, ArrayType, StructType, UnionType
from appliance.pvdata.value import Value

SCALAR = NTScalar(FLOAT64, display=True, control=True, value_alarm=True)


def test_the_top_of_a_normative_type_has_everything() -> None:
    value = Value(
        SCALAR,
        {
            "value": 1.5, "alarm.severity": 2, "alarm.message": "HIGH", "timeStamp.secondsPastEpoch": 1_700_000_000,
            "timeStamp.nanoseconds": 7, "timeStamp.userTag": -2, "display.units": "mm",
        },
    )  # fmt: skip
    places = Places(SCALAR, "")
    assert places.value(value.store) == (1.5, FLOAT64)
    assert places.alarm(value.store) == (2, "HIGH")
    assert places.stamp(value.store) == (1_700_000_000, 7, 0xFFFFFFFE)
    assert places.beside(value.store, "display.units") == "mm"
    assert places.target == ("value", FLOAT64)


def test_a_field_that_is_no_structure_has_nothing_beside_it() -> None:
    value = Value(
        SCALAR, {"value": 1.5, "alarm.severity": 2, "display.units": "mm", "control.limitHigh": 9.0}
    )
    places = Places(SCALAR, "control.limitHigh")
    assert places.value(value.store) == (9.0, FLOAT64)
    assert places.alarm(value.store) == (0, "")
    assert not places.has_time
    assert places.beside(value.store, "display.units") is None


def test_a_structure_in_a_group_is_used_like_a_pv() -> None:
    kind = StructType([("a", SCALAR), ("b", INT32)])
    value = Value(kind, {"a.value": 3.0, "a.alarm.severity": 1, "a.display.units": "V", "b": 4})
    places = Places(kind, "a")
    assert places.value(value.store)[0] == 3.0
    assert places.alarm(value.store)[0] == 1
    assert places.beside(value.store, "display.units") == "V"
    assert Places(kind, "b").value(value.store) == (4, INT32)


def test_an_enumeration_is_number_and_choices() -> None:
    kind = NTEnum()
    value = Value(kind, {"value.index": 1, "value.choices": ["zero", "one"]})
    for field in ("", "value"):
        assert Places(kind, field).value(value.store)[0] == Choice(1, ("zero", "one"))
    assert Places(kind, "value.index").value(value.store)[0] == 1


def test_the_content_of_a_union_and_of_an_any_is_the_value() -> None:
    numbers = UnionType([("doubles", ArrayType(FLOAT64)), ("text", STRING)])
    kind = StructType([("value", numbers), ("what", ANY)])
    value = Value(kind)
    assert Places(kind, "").value(value.store)[0] is None
    value["value"] = UnionValue("doubles", np.array([1.0, 2.0]))
    value["what"] = AnyValue(INT32, 5)
    assert list(Places(kind, "").value(value.store)[0]) == [1.0, 2.0]
    assert list(Places(kind, "value->doubles").value(value.store)[0]) == [1.0, 2.0]
    assert Places(kind, "value->text").value(value.store)[0] is None
    assert Places(kind, "what").value(value.store) == (5, INT32)


def test_a_field_that_is_not_there_is_named() -> None:
    assert Places(SCALAR, "nosuch").why_not == "the PV has no field 'nosuch'"
    assert not Places(SCALAR, "nosuch").has_value
    assert Places(StructType([("x", INT32)]), "").why_not == "the PV has no value"
    assert Places(SCALAR, "nosuch").target is None


def test_a_severity_that_epics_does_not_know_is_invalid() -> None:
    for severity in (-1, 4, 70_000):
        value = Value(SCALAR, {"alarm.severity": severity})
        assert Places(SCALAR, "").alarm(value.store)[0] == 3


def test_a_time_that_is_none_is_not_used() -> None:
    value = Value(SCALAR, {"timeStamp.nanoseconds": 2_000_000_000})
    assert Places(SCALAR, "").stamp(value.store) == (0, 0, 0)
    kind = StructType(
        [("value", INT32), ("alarm", STRING), ("timeStamp", StructType([("secondsPastEpoch", STRING)]))]
    )
    store = Value(kind, {"timeStamp.secondsPastEpoch": "now"}).store
    assert Places(kind, "").stamp(store) == (0, 0, 0)
    assert Places(kind, "").alarm(store) == (0, "")
