"""Value and Type keep the promises that p4p's documentation and tests make."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from appliance.p4p.wrapper import Struct, StructArray, Type, Union, UnionArray, Value
from appliance.pvdata import INT32, ArrayType, BoundedString, StructType
from appliance.pvdata import Value as Native
from appliance.pvdata.codec import codec
from appliance.pvdata.fielddesc import TypeReader

NESTED = Type(
    [
        ("x", "i"),
        ("y", "i"),
        ("z", ("S", None, [("a", "i"), ("b", "ad"), ("q", ("S", "inner", [("m", "s")]))])),
        ("u", ("U", None, [("i", "i"), ("s", ("S", None, [("x", "i")]))])),
        ("v", "v"),
        ("arr", ("aS", None, [("x", "i")])),
        ("many", ("aU", None, [("i", "i"), ("s", "s")])),
        ("anys", "av"),
        ("texts", "as"),
    ],
    id="test:1.0",
)


def test_a_native_value_is_wrapped_without_a_copy() -> None:
    native = Native(StructType([("x", INT32)]), {"x": 4})
    value = Value._of(native)
    value.x = 5
    assert native["x"] == 5
    assert value._fields is native
    assert Type._of(native.type)._desc is native.type
    assert value.type()._desc is native.type


def test_a_part_of_a_native_value_is_wrapped() -> None:
    value = NESTED({"z.a": 3})
    part = Value._of(value._fields["z"])
    assert part.a == 3
    part.a = 4
    assert value["z.a"] == 4
    assert part._fields["a"] == 4
    assert part._fields.root is value._fields


def test_a_whole_value_from_a_server_has_all_leaves_marked() -> None:
    native = Native(NESTED._desc)
    native.mark()
    assert Value._of(native).changedSet(parents=True) == {
        *("x", "y", "z", "z.a", "z.b", "z.q", "z.q.m", "u", "v", "arr", "many", "anys", "texts")
    }


def test_fields_are_read_and_assigned_by_attribute_and_by_path() -> None:
    value = NESTED()
    value.x = 4
    value["z.a"] = 5
    value.z.q = {"m": "text"}
    assert (value["x"], value.z.a, value["z"]["a"], value["z.q.m"]) == (4, 5, 5, "text")
    assert value.get("z.a") == 5
    assert value.get("nothing") is None
    assert value.get("nothing", 6) == 6
    assert value[b"x"] == 4
    assert value[""].x == value[None].x == 4


def test_an_unknown_field_is_an_attribute_error_or_a_key_error() -> None:
    value = NESTED()
    with pytest.raises(AttributeError):
        value.nothing  # noqa: B018
    with pytest.raises(AttributeError):
        value.nothing = 4
    for path in (
        "nothing",
        "z.nothing",
        "x.y",
        ".x",
        "z.",
        "z..a",
        "u->i",
        "v->",
        "arr[0]",
        "texts[0]",
        "<",
        "arr[q]",
    ):
        with pytest.raises(KeyError):
            value[path]
        with pytest.raises(KeyError):
            value[path] = 4
        assert value.get(path, "none") == "none"
    with pytest.raises(TypeError):
        value[5]
    with pytest.raises(AttributeError):
        del value.x
    with pytest.raises(NotImplementedError):
        del value["x"]


def test_a_field_with_the_name_of_a_method_is_reached_by_its_path() -> None:
    value = Value(Type([("type", "s"), ("get", "i")]))
    value["type"] = "text"
    value.get = 4
    assert value["type"] == "text"
    assert value["get"] == 4
    assert value.type().keys() == ["type", "get"]


def test_paths_lead_into_unions_anys_arrays_and_back() -> None:
    value = NESTED({"u->s.x": 4, "arr": [{"x": 1}, None, {"x": 3}], "many": [1, ("s", "two"), None], "v": 3})
    assert value["u->s.x"] == value["u->x"] == value.u.x == 4
    assert value["arr[2].x"] == 3
    assert value["many[1]"] == "two"
    assert value["v->"] == 3
    assert value["z.a<<x"] == value["x"]
    value["arr[0].x"] = 7
    value["many[0]"] = 8
    assert value.arr[0].x == 7
    assert value.many == [8, "two", None]
    for path in ("arr[1]", "arr[1].x", "arr[9]", "many[2]", "u->i", "u->nothing"):
        with pytest.raises(KeyError):
            value[path]


def test_a_change_inside_marks_what_holds_it() -> None:
    value = NESTED({"u": ("s", {"x": 4}), "arr": [{"x": 1}]})
    value.unmark()
    value.u.x = 5
    assert value.changedSet() == {"u"}
    value.unmark()
    value.arr[0].x = 5
    assert value.changedSet() == {"arr"}
    assert value.arr[0].changedSet() == {"x"}


def test_lists_dicts_and_items_go_as_deep_as_they_say() -> None:
    value = Value(Type([("x", "i"), ("s", ("S", None, [("a", "i")])), ("n", "ad")]), {"x": 1, "s": {"a": 2}})
    assert value.tolist() == [("x", 1), ("s", [("a", 2)]), ("n", None)]
    assert value.todict() == {"x": 1, "s": {"a": 2}, "n": None}
    assert value.tolist("s") == [("a", 2)]
    ordered = value.todict(None, OrderedDict)
    assert isinstance(ordered, OrderedDict)
    assert isinstance(ordered["s"], OrderedDict)
    (_, inner) = value.items()[1]
    assert isinstance(inner, Value)
    assert value.items("s") == [("a", 2)]
    assert value.todict("x") == 1
    for read in (value.tolist, value.todict):
        with pytest.raises(AttributeError):
            read("nothing")
    with pytest.raises(KeyError):
        value.items("nothing")
    assert list(value) == value.keys() == ["x", "s", "n"]


def test_arrays_are_read_without_a_copy_and_cannot_be_changed() -> None:
    value = Value(Type([("n", "ad"), ("t", "as")]), {"n": [1, 2]})
    assert value.n is value.n
    with pytest.raises(ValueError, match="read-only"):
        value.n[0] = 5
    assert value.t == []
    value.n = []
    assert value.n is None
    data = np.arange(3.0)
    value.n = data
    data[0] = 9
    assert value.n.tolist() == [0, 1, 2]


def test_marks_are_those_of_the_fields() -> None:
    value = NESTED({"y": 4})
    assert value.changedSet() == value.asSet() == {"y"}
    assert value.changed()
    assert value.changed("y")
    assert not value.changed("x")
    assert value.changed("x", "y")
    with pytest.raises(KeyError):
        value.changed("nothing")
    value.mark("x")
    assert value.changedSet() == {"x", "y"}
    value.mark("x", False)
    value.mark("z.a")
    assert value.changedSet(parents=True) == {"y", "z", "z.a"}
    assert value.z.changed("a")
    assert not value.z.changed("b")
    value.unmark()
    assert not value.changed()
    value.mark("z")
    assert value.changedSet(expand=True) == {"z", "z.a", "z.b", "z.q", "z.q.m"}
    value.z.unmark()
    assert value.changedSet() == set()
    value.mark()
    assert value.changed("x")
    assert value.changedSet() == set()
    value.clear()
    assert not value.changed("x")


def test_a_copy_takes_the_marked_fields() -> None:
    value = NESTED({"x": 4, "u": ("i", 5)})
    value._fields.root.store[2] = 6
    other = Value(clone=value)
    assert (other.x, other.y, other.u) == (4, 0, 5)
    other.x = 7
    assert value.x == 4


def test_a_structure_is_assigned_from_another_one_of_like_fields() -> None:
    target = Value(Type([("z", ("S", None, [("a", "i"), ("b", "s"), ("c", "i")])), ("q", "v")]))
    source = Value(Type([("a", "i"), ("b", "i"), ("other", "i")]), {"a": 42, "b": 43})
    target.z = source
    target.q = source
    assert (target.z.a, target.z.b, target.q.a) == (42, "43", 42)
    assert target.changedSet() == {"z.a", "z.b", "q"}
    source.other = 1
    with pytest.raises(RuntimeError):
        target.z = source


def test_an_any_keeps_a_copy_and_so_cannot_hold_itself() -> None:
    value = Value(Type([("v", "v"), ("x", "i")]), {"x": 4})
    value.v = value
    value.x = 5
    assert value.v.x == 4
    assert value.v.v is None
    assert "int32_t x = 5" in str(value)


def test_a_union_is_assigned_by_name_or_by_what_fits_first() -> None:
    value = Value(Type([("x", ("U", None, [("a", "i"), ("b", "s")]))]))
    assert value.x is None
    value.x = ("b", "text")
    value.x = 128
    assert value.x == "128"
    value.x = None
    assert value.x is None
    value.x = 5.7
    assert value.x == 5
    with pytest.raises(KeyError):
        Value(value.type()).x = ("nothing", 4)
    with pytest.raises(TypeError):
        value.x = ("a",)


def test_an_any_takes_the_type_of_what_is_assigned_or_the_one_that_is_named() -> None:
    value = Value(Type([("x", "v")]))
    for x in (True, 5, 1.1, "text", ["a", "b"]):
        value.x = x
        assert value.x == x
        assert type(value.x) is type(x)
    value.x = np.array([1, 2], "u2")
    assert value.x.dtype == "u2"
    value.x = ("B", 0xFFFF)
    assert value.x == 0xFF
    value.x = ("ad", [1, 2])
    assert value.x.dtype == "f8"
    value.x = None
    assert value.x is None
    for x in (object(), {}, ("q", 4), (5, 5)):
        with pytest.raises((RuntimeError, TypeError)):
            value.x = x


def test_an_enum_is_assigned_by_text_or_number() -> None:
    value = Value(Type([("e", ("S", "enum_t", [("index", "i"), ("choices", "as")]))]))
    value["e.choices"] = ["zero", "one", "two"]
    value.e = "one"
    assert value["e.index"] == 1
    value.e = "2"
    assert value["e.index"] == 2
    value.e = {"index": 0}
    assert value["e.index"] == 0
    with pytest.raises(ValueError, match="Invalid input"):
        value.e = "other"
    with pytest.raises(TypeError):
        value.e = object()
    value["e.choices"] = []
    with pytest.warns(UserWarning, match="empty choices"):
        value.e = "1"


def test_types_are_described_as_they_were_given() -> None:
    spec = [
        ("b", "?"),
        ("n", "aL"),
        ("v", "v"),
        ("vs", "av"),
        ("s", ("S", "id", [("m", "s")])),
        ("ss", ("aS", "id", [("m", "s")])),
        ("u", ("U", "id", [("m", "s"), ("n", "i")])),
        ("us", ("aU", "id", [("m", "s"), ("n", "i")])),
    ]
    described = Type(spec)
    assert described.aspy() == ("S", "structure", spec)
    assert described.aspy("ss") == described["ss"] == spec[5][1]
    assert described["s"].getID() == "id"
    assert described["s"].aspy() == spec[4][1]
    assert len(described) == len(described.keys()) == 8
    assert described.has("s.m")
    assert "nothing" not in described
    assert repr(Type([("x", "i")])) == str(Type([("x", "i")])) == "Type([('x', 'i')], id=\"structure\")"
    with pytest.raises(KeyError):
        described["nothing"]


def test_a_type_can_extend_another_one() -> None:
    base = Type([("a", "i"), ("s", ("S", "w", [("x", "i")]))], id="base")
    more = Type([("b", "d"), ("s", ("S", None, [("y", "i")])), ("part", base)], base=base)
    assert more.getID() == "base"
    assert more.keys() == ["a", "s", "b", "part"]
    assert more["s"].aspy() == ("S", "w", [("x", "i"), ("y", "i")])
    assert more["part"].getID() == "base"
    with pytest.raises(ValueError, match="only pass one"):
        Type([], id="x", base=base)
    with pytest.raises(RuntimeError):
        Type([("a", ("S", None, []))], base=base)


def test_helpers_describe_structures_and_unions() -> None:
    described = Type(
        [
            ("s", Struct([("x", "i")], "id")),
            ("u", Union([("x", "i")])),
            ("ss", StructArray([("x", "i")])),
            ("us", UnionArray([("x", "i")])),
        ]
    )
    assert [described.aspy(name)[0] for name in described] == ["S", "U", "aS", "aU"]
    assert described["s"].getID() == "id"


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ([("x", "q")], RuntimeError),
        ([("x", "")], RuntimeError),
        ([("1x", "i")], RuntimeError),
        ([("a.b", "i")], RuntimeError),
        ([("x", ("X", None, []))], RuntimeError),
        ([("s", ("S", None, [("x", "i"), ("x", "d")]))], RuntimeError),
        ([("x", 5)], SystemError),
        (["xy"], SystemError),
        ([(5, "i")], TypeError),
        (5, TypeError),
        ([("x\0", "i")], ValueError),
        ([("x", "é")], UnicodeEncodeError),
    ],
)
def test_a_wrong_description_is_refused_as_p4p_does(spec: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        Type(spec)  # type: ignore[arg-type]


def test_text_is_that_of_pvxs_and_can_be_cut() -> None:
    value = Value(Type([("x", "i"), ("n", "ad"), ("s", ("S", "id", [("m", "s")]))]), {"x": 4, "n": range(30)})
    text = str(value)
    assert text.splitlines()[1] == "    int32_t x = 4"
    assert text.splitlines()[2].endswith("28, 29]")
    assert value.tostr() == text
    assert value.tostr(5) == "struc..."
    assert value.tostr(len(text)) == text + "..."
    assert value.tostr(len(text) + 1) == text
    assert value.type().tostr(8) == "struct {..."
    with pytest.raises(TypeError):
        value.tostr("1")  # type: ignore[arg-type]


def test_a_value_shows_its_identifier_and_its_main_field() -> None:
    assert (
        repr(Value(Type([("value", "i"), ("x", "i")], id="test:1.0"), {"value": 4}))
        == "Value(id:test:1.0, 4)"
    )
    assert repr(Value(Type([("x", "i")]))) == "Value(0)"
    assert repr(Value(Type([]))) == "Value()"


def test_a_value_needs_a_type_or_another_value() -> None:
    for wrong, error in (({}, ValueError), ({"type": 5}, TypeError), ({"clone": 5}, TypeError)):
        with pytest.raises(error):
            Value(**wrong)


def test_neither_values_nor_types_are_pickled_copied_or_compared() -> None:
    value = NESTED()
    for thing in (value, NESTED):
        with pytest.raises(TypeError):
            pickle.dumps(thing)
        with pytest.raises(TypeError):
            copy.copy(thing)
    assert value != NESTED()


def test_a_union_alone_can_be_selected() -> None:
    union = NESTED().type("u")()
    union.select("i", "i")
    assert union.tolist() == 0
    assert union.changedSet() == {"i"}
    union.select("i")
    assert union.tolist() is None
    with pytest.raises(KeyError):
        union.select("nothing", "nothing")
    with pytest.raises(KeyError):
        NESTED().select("i")


def test_an_array_that_a_server_sent_empty_is_no_array_that_was_never_set() -> None:
    value = Type([("n", "ad"), ("t", "as")])()
    assert (value.n, value.t) == (None, [])
    assert "double[] n = {?}[]" in str(value)
    assert "string[] t = {?}[]" in str(value)
    wire = codec(value._type, big=False)
    octets = wire.encode(value._root.store)
    store, _ = wire.decode(octets, 0, len(octets), TypeReader())
    came = Value._of(Native.from_store(value._type, store, 1))
    assert came.n.dtype == "f8"
    assert came.n.shape == (0,)
    assert "double[] n = {0}[]" in str(came)
    assert "string[] t = {0}[]" in str(came)
    came.n = []
    assert came.n is None
    target = Type([("n", "v")])()
    with pytest.raises(RuntimeError, match="never set"):
        target[None] = came


def test_the_bounds_that_a_server_gives_a_field_are_kept() -> None:
    value = Value._of(
        Native(
            StructType(
                [
                    ("few", ArrayType(INT32, "bounded", 2)),
                    ("two", ArrayType(INT32, "fixed", 2)),
                    ("name", BoundedString(3)),
                ]
            )
        )
    )
    value["few"] = [1]
    value.two = [1, 2]
    value.name = "abc"
    for field, wrong in (("few", [1, 2, 3]), ("two", [1]), ("name", "abcd")):
        with pytest.raises(ValueError, match=r"at most|exactly"):
            value[field] = wrong
    assert value.type().aspy() == ("S", "structure", [("few", "ai"), ("two", "ai"), ("name", "s")])


def test_text_that_is_no_utf8_is_read_and_written_as_it_is() -> None:
    value = Value(Type([("t", "s")]), {"t": b"\xb0C"})
    assert value.t.encode("utf-8", "surrogateescape") == b"\xb0C"
    other = Value(value.type(), {"t": value.t})
    assert other.t == value.t
    with pytest.raises(UnicodeEncodeError):
        value.t = "\ud800"


def test_octets_that_are_kept_as_bytes_are_read_as_an_array() -> None:
    t = Type([("n", "aB")])
    value = Value._of(Native.from_store(t._desc, [None, b"\x01\x02"], 1))
    assert value.n.tolist() == [1, 2]
    assert value.n.dtype == "u1"


@pytest.mark.parametrize(
    "text", ["1" * 100_000 + "x", " " * 100_000 + "x", "0x" + "1" * 100_000 + "g", "12" + " " * 300 + "x"]
)
def test_a_long_text_that_is_no_number_is_refused(text: str) -> None:
    for code in "dilL":
        with pytest.raises(ValueError, match="Invalid input"):
            Type([("x", code)])().x = text


def test_a_name_or_an_identifier_that_cannot_be_sent_is_refused() -> None:
    for odd in ("\ud800", "\udc80"):  # half of a pair, and what reading makes of octets that are no UTF-8
        for make in (
            lambda odd: Type([("a", "i")], id=odd),
            lambda odd: Type([("a", ("S", odd, [("b", "i")]))]),
            lambda odd: Type([("a", ("aU", odd, [("b", "i")]))]),
            lambda odd: Type([(odd, "i")]),
        ):
            with pytest.raises(UnicodeEncodeError):
                make(odd)
