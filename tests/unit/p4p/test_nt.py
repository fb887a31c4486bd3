"""The normative types wrap Python objects, and unwrap them, as programs for p4p expect."""

from __future__ import annotations

import doctest
import logging
import pickle
from collections import OrderedDict
from datetime import UTC, datetime
from importlib import import_module

import numpy as np
import pytest

from appliance.p4p import nt
from appliance.p4p.nt import common
from appliance.p4p.nt.ndarray import ntndarray
from appliance.p4p.nt.scalar import ntbool, ntfloat, ntint, ntnumericarray, ntstr, ntstringarray
from appliance.p4p.wrapper import Type, Value


@pytest.mark.parametrize(
    "module",
    ["wrapper", "_spec", "nt", "nt.common", "nt.scalar", "nt.enum", "nt.ndarray"],
    ids=lambda name: name,
)
def test_the_examples_in_the_docstrings_are_true(module: str) -> None:
    loaded = import_module(f"appliance.p4p.{module}")
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in finder.find(loaded, extraglobs={"Type": Type}):
        runner.run(example)
    assert runner.failures == 0
    assert runner.tries > 2


@pytest.mark.parametrize(
    ("code", "content", "kind"),
    [
        ("d", 4.5, ntfloat),
        ("i", 4, ntint),
        ("?", True, ntbool),
        ("s", "text", ntstr),
        ("ad", np.array([1.0, 2.0]), ntnumericarray),
        ("as", ["a", "b"], ntstringarray),
    ],
)
def test_a_scalar_comes_back_with_time_and_alarm(code: str, content: object, kind: type) -> None:
    wrapped = nt.NTScalar(code).wrap(content, timestamp=(10, 500_000_000), severity=2, message="bad")
    assert wrapped.getID() == ("epics:nt/NTScalarArray:1.0" if code[0] == "a" else "epics:nt/NTScalar:1.0")
    back = nt.NTScalar.unwrap(wrapped)
    assert type(back) is kind
    assert list(back) == list(content) if code in ("s", "as", "ad") else back == content
    assert (back.severity, back.status, back.timestamp, back.raw_stamp) == (2, 0, 10.5, (10, 500_000_000))
    assert back.raw is wrapped
    assert back.raw.alarm.message == "bad"
    assert nt.NTScalar(code).wrap(back) is wrapped
    assert repr(back) in str(back)
    assert back.tostr() == str(back)


def test_arithmetic_with_what_was_unwrapped_is_that_of_python() -> None:
    number = nt.NTScalar.unwrap(nt.NTScalar("d").wrap(4.5))
    assert number + 1 == 5.5
    assert f"{number:.2f}" == "4.50"
    array = nt.NTScalar.unwrap(nt.NTScalar("ai").wrap([1, 2]))
    assert (array * 2).tolist() == [2, 4]
    assert array.base is not None
    assert np.shares_memory(array, array.raw.value)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@pytest.mark.parametrize(
    ("given", "seconds", "nanoseconds"),
    [
        ((1234, 5678), 1234, 5678),
        (1234, 1234, 0),
        (1234.5, 1234, 500_000_000),
        (-0.5, -1, 500_000_000),
        (datetime(2020, 1, 2, 3, 4, 5, 500_000, tzinfo=UTC), 1577934245, 500_000_000),
    ],
)
def test_a_time_is_given_in_one_of_three_forms(given: object, seconds: int, nanoseconds: int) -> None:
    value = nt.NTScalar("d").wrap(4, timestamp=given)
    assert (value.timeStamp.secondsPastEpoch, value.timeStamp.nanoseconds) == (seconds, nanoseconds)
    assert value.changedSet() == {"value", "timeStamp.secondsPastEpoch", "timeStamp.nanoseconds"}


def test_without_a_time_none_is_set() -> None:
    assert nt.NTScalar("d").wrap(4, timestamp=None).changedSet() == {"value"}


def test_a_time_that_no_calendar_has_is_shown_as_a_number() -> None:
    value = nt.NTScalar.unwrap(nt.NTScalar("d").wrap(4, timestamp=(1 << 62, 0)))
    assert str(value) == "4.611686018427388e+18 4.0"


def test_optional_fields_are_those_of_the_type() -> None:
    full = {"display": True, "control": True, "valueAlarm": True}
    number = nt.NTScalar("af", **full).type
    assert number.keys() == ["value", "alarm", "timeStamp", "display", "control", "valueAlarm"]
    assert number["display"].items() == [
        ("limitLow", "f"),
        ("limitHigh", "f"),
        ("description", "s"),
        ("format", "s"),
        ("units", "s"),
    ]
    assert number["control"].keys() == ["limitLow", "limitHigh", "minStep"]
    assert number["valueAlarm.lowWarningLimit"] == "f"
    assert number["valueAlarm"].keys()[0] == "active"
    assert number["valueAlarm"].keys()[-1] == "hysteresis"
    form = nt.NTScalar("d", display=True, form=True).type["display"]
    assert form.keys() == ["limitLow", "limitHigh", "description", "precision", "form", "units"]
    assert form["form"].getID() == "enum_t"
    text = nt.NTScalar("s", **full, form=True).type
    assert text.keys() == ["value", "alarm", "timeStamp", "display"]
    assert text["display"].keys() == ["description", "units"]
    assert nt.NTScalar("d", extra=[("note", "s")]).type["note"] == "s"
    assert nt.NTScalar.buildType("d", [], True, True).keys()[-1] == "control"
    assert nt.NTScalar().type["value"] == "d"


def test_a_dict_assigns_to_fields_by_name() -> None:
    value = nt.NTScalar("i").wrap({"value": 4, "alarm": {"severity": 1}, "timeStamp.userTag": 5})
    assert (value.value, value.alarm.severity, value.timeStamp.userTag) == (4, 1, 5)
    with pytest.raises(KeyError):
        nt.NTScalar("i").wrap({"nothing": 4})
    with pytest.raises(ValueError, match="Invalid input"):
        nt.NTScalar("i").wrap("text")


def test_what_is_no_scalar_is_not_unwrapped() -> None:
    with pytest.raises(ValueError, match="NoneType"):
        nt.NTScalar.unwrap(nt.NTScalar.buildType("ad")())
    with pytest.raises(ValueError, match="Value"):
        nt.NTScalar.unwrap(nt.NTEnum().wrap(1))
    with pytest.raises(AssertionError):
        nt.NTScalar.unwrap(4)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        nt.NTScalar.unwrap(Value(Type([("x", "i")])))


def test_unwrapping_needs_neither_alarm_nor_time() -> None:
    back = nt.NTScalar.unwrap(Value(Type([("value", "i")]), {"value": 4}))
    assert (back, back.severity, back.timestamp) == (4, 0, 0)


def test_an_enum_is_a_number_with_a_text() -> None:
    helper = nt.NTEnum()
    value = helper.wrap(1, choices=["X", "Y"])
    assert value.value.tolist() == [("index", 1), ("choices", ["X", "Y"])]
    back = helper.unwrap(value)
    assert (back, back.choice, str(back), repr(back)) == (1, "Y", "Y", "ntenum(1, Y)")
    assert helper.wrap(back) is value
    # The choices of the last value are known.
    assert helper.wrap("X").value.index == 0
    assert helper.wrap(b"1").value.index == 1
    assert helper.wrap("0x1").value.index == 1
    with pytest.raises(ValueError, match="other"):
        helper.wrap("other")
    far = helper.unwrap(nt.NTEnum().wrap(7))
    assert (far, far.choice, str(far)) == (7, None, "ntenum(7, None)")


def test_an_update_of_an_enum_needs_only_its_number() -> None:
    helper = nt.NTEnum()
    helper.unwrap(helper.wrap(0, choices=["off", "on"]))
    update = helper.type({"value.index": 1})
    assert helper.unwrap(update).choice == "on"


def test_an_enum_has_its_own_texts_and_not_those_of_another_pv_that_one_context_reads() -> None:
    reader = nt.buildNT()
    door = nt.NTEnum().wrap(0, choices=["open", "closed"])
    switch = nt.NTEnum().wrap(0, choices=["off", "on"])
    assert [str(reader.unwrap(value)) for value in (switch, door)] == ["off", "open"]
    # Updates bring only the number; the rest of the value is as before.
    for value in (switch, door):
        value.unmark()
        value["value.index"] = 1
    assert [str(reader.unwrap(value)) for value in (switch, door)] == ["on", "closed"]


def test_an_enum_is_wrapped_from_both_kinds_of_dict() -> None:
    assert nt.NTEnum().wrap({"index": 1, "choices": ["X", "Y"]}).value.index == 1
    value = nt.NTEnum(display=True, extra=[("note", "s")]).wrap({"value.choices": ["X"], "note": "text"})
    assert (value.value.choices, value.note, value.display.units) == (["X"], "text", "")


def test_an_enum_is_assigned_by_text() -> None:
    helper = nt.NTEnum()
    value = nt.NTEnum.buildType()({"value.choices": ["A", "B"]})
    helper.assign(value, "B")
    assert value.value.index == 1
    helper.assign(value, 0.7)
    assert value.value.index == 0


def test_a_table_is_wrapped_from_rows_and_unwrapped_to_rows() -> None:
    helper = nt.NTTable(columns=[("a", "i"), ("b", "s"), ("c", "d")], extra=[("note", "s")])
    value = helper.wrap([{"a": 5, "b": "one"}, {"a": 6, "b": "two"}], timestamp=1, message="text")
    assert value.labels == ["a", "b", "c"]
    assert value.value.a.tolist() == [5, 6]
    assert value.value.c is None
    assert value.alarm.message == "text"
    value.value.c = [1, 2]
    assert nt.NTTable.unwrap(value) == [
        OrderedDict([("a", 5), ("b", "one"), ("c", 1.0)]),
        OrderedDict([("a", 6), ("b", "two"), ("c", 2.0)]),
    ]
    assert helper.wrap(value) is value
    with pytest.raises(ValueError, match="may not be array"):
        nt.NTTable([("a", "ai")])


def test_a_row_that_does_not_fit_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(ValueError, match="invalid literal"):
        nt.NTTable([("a", "i")]).wrap([{"a": "text"}])
    assert "as a table with the columns ['a']" in caplog.text


def test_a_table_can_be_assigned() -> None:
    helper = nt.NTTable([("a", "i")])
    value = helper.type()
    helper.assign(value, [{"a": 5}])
    assert value.value.a.tolist() == [5]


def test_rows_go_into_the_columns_that_the_server_has() -> None:
    value = nt.NTTable([("a", "i"), ("b", "s")]).wrap([{"a": 1, "b": "x"}])
    value.unmark()
    nt.NTTable().assign(value, [{"a": 5}, {"a": 6, "other": 0}])
    assert value.changedSet() == {"value.a"}
    assert (value.value.a.tolist(), value.value.b) == ([5, 6], ["x"])
    nt.NTTable().assign(value, [])
    assert not any(len(column or ()) for _, column in value.value.items())
    assert value.changedSet() == {"value.a", "value.b"}
    with pytest.raises(ValueError, match="no row has one of the columns a, b"):
        nt.NTTable().assign(value, [{"other": 1}])


def test_a_call_has_the_arguments_that_were_given() -> None:
    helper = nt.NTURI([("a", "I"), ("b", "s"), ("c", ("S", None, [("x", "d"), ("y", "d")]))])
    value = helper.wrap("fn", (5,))
    assert (value.path, value.query.keys(), value.query.a) == ("fn", ["a"], 5)
    value = helper.wrap("fn", (7,), {"b": "bar", "c": None}, scheme="pva", authority="server")
    assert (value.query.todict(), value.scheme, value.authority) == ({"a": 7, "b": "bar"}, "pva", "server")
    value = helper.wrap("fn", (), {"a": 8, "c": {"x": 1, "y": 2}})
    assert value.query.todict() == {"a": 8, "c": {"x": 1.0, "y": 2.0}}
    for wrong in ({"a": "text"}, {"nothing": 4}):
        with pytest.raises(ValueError, match="Unable to initialize NTURI"):
            helper.wrap("fn", (), wrong)
    with pytest.raises(ValueError, match="Unable to build NTURI"):
        nt.NTURI([("a", "q")])


def test_many_channels_have_arrays_of_alarm_and_time() -> None:
    described = nt.NTMultiChannel("ad", extra=[("note", "s")]).type
    assert described.getID() == "epics:nt/NTMultiChannel:1.0"
    assert described["isConnected"] == "a?"
    assert described.keys()[-1] == "note"
    with pytest.raises(AssertionError):
        nt.NTMultiChannel("d")
    with pytest.raises(NotImplementedError):
        nt.NTMultiChannel("ad").wrap(4)


@pytest.mark.parametrize("dtype", ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"])
def test_an_image_keeps_shape_and_type(dtype: str) -> None:
    pixels = np.arange(6).reshape(2, 3).astype(dtype)
    value = nt.NTNDArray().wrap(pixels, timestamp=10)
    assert [d.size for d in value.dimension] == [3, 2]
    assert (value.compressedSize, value.uncompressedSize) == (pixels.nbytes, pixels.nbytes)
    back = nt.NTNDArray.unwrap(value)
    assert type(back) is ntndarray
    assert (back.shape, back.dtype, back.timestamp) == ((2, 3), pixels.dtype, 10)
    assert np.array_equal(back, pixels)
    assert back.attrib == {"ColorMode": 0}
    again = nt.NTNDArray().wrap(back)
    assert np.array_equal(again.value, value.value)


@pytest.mark.parametrize(
    ("shape", "mode"),
    [((2, 4), 0), ((2, 4, 3), 2), ((2, 3, 4), 3), ((3, 2, 4), 4), ((3, 3, 3), 2), ((2,), None)],
)
def test_the_axis_of_three_elements_is_that_of_the_colours(shape: tuple[int, ...], mode: int | None) -> None:
    value = nt.NTNDArray().wrap(np.zeros(shape, "u1"))
    assert [a.value for a in value.attribute] == ([] if mode is None else [mode])
    assert nt.NTNDArray.unwrap(value).shape == shape


def test_an_axis_for_colours_is_needed_or_a_mode() -> None:
    for error in (ValueError, TypeError):  # p4p raises the latter
        with pytest.raises(error):
            nt.NTNDArray().wrap(np.zeros((4, 4, 4)))
    given = {"ColorMode": 9}
    assert nt.NTNDArray().wrap(np.zeros((4, 4, 4)), attrib=given).attribute[0].value == 9
    with pytest.raises(KeyError):
        nt.NTNDArray().wrap(np.zeros((2, 2), "c16"))


def test_attributes_may_be_numbers_texts_and_normative_types() -> None:
    temperature = nt.NTScalar("d").wrap(21.5, severity=1, timestamp=10)
    plain = Value(Type([("x", "i")]), {"x": 4})
    given = {"exposure": 0.1, "name": "cam", "temperature": temperature, "plain": plain}
    value = nt.NTNDArray().wrap(np.zeros((2, 2)), attrib=given)
    assert "ColorMode" not in given
    by_name = {a.name: a for a in value.attribute}
    assert by_name["temperature"].alarm.severity == 1
    assert by_name["temperature"].timeStamp.secondsPastEpoch == 10
    back = nt.NTNDArray.unwrap(value).attrib
    assert (back["exposure"], back["name"], back["temperature"], back["plain"].x) == (0.1, "cam", 21.5, 4)


def test_an_image_that_cannot_be_changed_is_not_copied() -> None:
    pixels = np.arange(6, dtype="u2").reshape(2, 3)
    pixels.flags.writeable = False
    value = nt.NTNDArray().wrap(pixels)
    assert np.shares_memory(value.value, pixels)
    assert np.shares_memory(nt.NTNDArray.unwrap(value), pixels)
    writeable = pixels.copy()
    assert not np.shares_memory(nt.NTNDArray().wrap(writeable).value, writeable)


def test_an_image_without_data_or_dimensions_is_empty() -> None:
    assert nt.NTNDArray.unwrap(nt.NTNDArray.buildType()()).shape == (0,)
    value = nt.NTNDArray.buildType()({"value": np.arange(0), "dimension": [{"size": 3}, {"size": 0}]})
    assert nt.NTNDArray.unwrap(value).shape == (0, 3)
    with pytest.raises(ValueError, match="reshape"):
        nt.NTNDArray.unwrap(nt.NTNDArray.buildType()({"value": np.arange(4), "dimension": [{"size": 3}]}))


def test_an_image_is_assigned_to_what_a_server_described() -> None:
    value = nt.NTNDArray.buildType(extra=[("note", "s")])()
    nt.NTNDArray().assign(value, np.arange(6, dtype="u4").reshape(2, 3))
    assert value.value.tolist() == [0, 1, 2, 3, 4, 5]
    assert [d.size for d in value.dimension] == [3, 2]
    assert value.note == ""


def test_a_context_unwraps_by_the_identifier() -> None:
    number, choice, plain = (
        nt.NTScalar("d").wrap(4),
        nt.NTEnum().wrap(1, choices=["a", "b"]),
        Value(Type([("value", "i")])),
    )
    default = nt.buildNT()
    assert default.unwrap(number) == 4
    assert default.unwrap(choice).choice == "b"
    assert default.unwrap(plain) is plain
    default.assign(choice, "a")
    assert choice.value.index == 0
    default.assign(plain, 5)
    assert plain.value == 5
    assert default.wrap(4) == 4
    default.unwrap(number)
    assert default.wrap(5, timestamp=3).value == 5
    assert nt.buildNT(False).unwrap(number) is number
    assert nt.buildNT(unwrap=False).unwrap(number) is number
    assert nt.defaultNT() is not nt.defaultNT()


def test_a_context_can_be_given_classes_or_functions() -> None:
    class Doubled(nt.NTScalar):
        @classmethod
        def unwrap(cls, value: Value) -> object:
            return value.value * 2

    number = nt.NTScalar("d").wrap(4)
    mine = nt.buildNT({"epics:nt/NTScalar:1.0": Doubled})
    assert mine.unwrap(number) == 8
    assert "Doubled" in str(mine)
    old = nt.buildNT(unwrap={"epics:nt/NTScalar:1.0": lambda value: value.value + 1})
    assert old.unwrap(number) == 5
    old.assign(number, 7)
    assert (number.value, old.wrap(3)) == (7, 3)


def test_a_class_of_its_own_has_to_say_how() -> None:
    with pytest.raises(NotImplementedError):
        common.NTBase()
    base = common.NTBase.__new__(common.NTBase)
    for method, arguments in ((base.wrap, (4,)), (base.unwrap, (4,)), (base.assign, ({}, 4))):
        with pytest.raises(NotImplementedError):
            method(*arguments)


def test_what_was_unwrapped_is_not_pickled() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(nt.NTScalar.unwrap(nt.NTScalar("d").wrap(4)))
