"""pvRequest, normative types, JSON and text beyond what the vectors of PVXS cover."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from appliance.cli.pvxput import assignments, builder
from appliance.errors import PVDataError, PVRequestError
from appliance.pvdata import (
    ANY,
    FLOAT64,
    INT32,
    STRING,
    ArrayType,
    BoundedString,
    StructType,
    UnionType,
    Value,
    nt,
    render,
    render_type,
)
from appliance.pvdata.jsonio import to_plain
from appliance.pvdata.pvrequest import PVRequest, request_mask, request_options, select_bits, truth

SCALAR = nt.NTScalar(FLOAT64)


def test_options_of_the_request():
    request = PVRequest("record[queueSize=4,pipeline=true]field(value)")
    assert request.options == {"queueSize": "4", "pipeline": "true"}
    assert request_options(request.value) == {"pipeline": "true", "queueSize": "4"}
    assert request_options(PVRequest("").value) == {}
    assert request_options(PVRequest("field(record)").value) == {}


@pytest.mark.parametrize(
    ("word", "on"),
    [
        ("true", True),
        ("yes", True),
        ("ON", True),
        ("1", True),
        ("false", False),
        ("off", False),
        ("maybe", False),
    ],
)
def test_client_and_server_agree_on_who_pipelines_whatever_word_is_used(word, on):
    request = PVRequest(f"record[pipeline={word}]")
    assert (truth(request.options["pipeline"]) is True) is on
    assert (truth(request_options(request.value)["pipeline"]) is True) is on
    # Other servers know fewer words.
    assert not on or request.options["pipeline"] == request_options(request.value)["pipeline"] == "true"


def test_options_that_are_no_strings_are_read_too():
    """PVXS sends record options with the type that the caller gave."""
    t = StructType(
        [("record", StructType([("_options", StructType([("pipeline", nt.BOOL), ("queueSize", INT32)]))]))]
    )
    v = Value(t, {"record": {"_options": {"pipeline": True, "queueSize": 4}}})
    assert request_options(v) == {"pipeline": "true", "queueSize": "4"}


def test_options_of_one_field_do_not_hide_the_fields_below_it():
    """pvDataCPP's notation; `_options` is no field of the PV."""
    t = SCALAR
    plain = request_mask(PVRequest("field(timeStamp)").value, t)
    assert request_mask(PVRequest("field(timeStamp[x=1])").value, t) == plain
    assert request_mask(PVRequest("field(timeStamp[x=1]{})").value, t) == plain


def test_braces_and_bare_lists():
    """pvDataCPP's createRequest."""
    assert request_mask(PVRequest("field(alarm{status,severity})").value, SCALAR) == request_mask(
        PVRequest("field(alarm.status,alarm.severity)").value, SCALAR
    )
    assert PVRequest("value,alarm.status").type == PVRequest("field(value,alarm.status)").type


@pytest.mark.parametrize(
    "text",
    [
        "field(a",
        "field(a))",
        "a[b=1",
        "value=5",
        "f" * 70000,
        "field(" + "a{" * 30,
        "field(a[b=c)",
        "field(a[b=c],a._options.b.x)",
        "a." * 30_000,
        "field(" + ".".join("a" * 32) + "{b})",
    ],
)
def test_what_cannot_be_parsed_is_refused(text):
    with pytest.raises(PVRequestError, match="pvRequest"):
        PVRequest(text)


def test_a_request_without_field_selects_everything():
    assert request_mask(Value(StructType([])), SCALAR) == SCALAR.full_mask


def test_a_request_whose_field_is_no_structure_is_refused():
    with pytest.raises(PVRequestError, match="not a structure"):
        request_mask(Value(StructType([("field", STRING)])), SCALAR)


def test_a_mask_that_has_a_structures_bit_does_not_let_all_of_it_through():
    mask = request_mask(PVRequest("field(alarm.status)").value, SCALAR)
    status = 1 << SCALAR.offsets["alarm.status"]
    assert select_bits(SCALAR, 1, mask) == status
    assert select_bits(SCALAR, 1 << SCALAR.offsets["alarm"], mask) == status
    assert select_bits(SCALAR, SCALAR.leaf_mask, mask) == status
    assert select_bits(SCALAR, 2, mask) == 0
    assert select_bits(SCALAR, 1, SCALAR.full_mask) == 1


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, (0, 0)), (1.5, (1, 500_000_000)), (-0.25, (-1, 750_000_000)), (1.9999999999, (2, 0))],
)
def test_seconds_become_a_time_structure(seconds, expected):
    assert tuple(nt.now_to_time(seconds).values()) == expected


def test_a_normative_scalar_holds_scalars():
    for bad in (ANY, nt.ALARM, ArrayType(nt.ALARM)):
        with pytest.raises(PVDataError, match="NTScalar holds"):
            nt.NTScalar(bad)
    with pytest.raises(PVDataError, match="column x"):
        nt.NTTable().add_column(ArrayType(INT32), "x")


def test_a_table_has_labels():
    table = nt.NTTable().add_column(INT32, "x", "X axis").add_column(STRING, "y")
    assert table.create()["labels"] == ("X axis", "y")
    assert nt.NTNameValue(STRING).id == "epics:nt/NTNameValue:1.0"


def test_json_has_strings_for_what_json_cannot_say():
    v = Value(StructType([("a", ArrayType(FLOAT64)), ("s", STRING), ("n", nt.UINT64)]))
    v["a"] = [math.nan, math.inf, -math.inf, 1.5]
    v["s"] = b"\xb0C"
    v["n"] = 2**64 - 1
    plain = json.loads(json.dumps(to_plain(v), allow_nan=False))
    assert plain == {"a": ["NaN", "Infinity", "-Infinity", 1.5], "s": "\ufffdC", "n": 2**64 - 1}
    again = Value(v.type, plain)
    assert np.array_equal(again["a"], v["a"], equal_nan=True)


def typed(value: Value, *words: str) -> None:
    """Assign what a user types, as pvxput does."""
    builder(assignments(words), None)(value)


def test_typed_text_is_assigned_as_pvxput_does():
    v = Value(SCALAR)
    typed(v, "5")
    assert v["value"] == 5.0
    typed(v, '{"value": 6, "alarm": {"severity": 1}}')
    assert (v["value"], v["alarm.severity"]) == (6.0, 1)
    typed(v, 'alarm.message="quoted"')
    assert v["alarm.message"] == "quoted"
    table = Value(nt.NTScalarArray(FLOAT64))
    typed(table, "[1, 2.5]")
    assert table["value"].tolist() == [1.0, 2.5]
    enum = Value(nt.NTEnum(), {"value.choices": ["off", "on"]})
    typed(enum, "on")
    assert enum["value.index"] == 1
    for bad in ("{", "[1,", "[" * 100_000, "text", "1 2"):
        with pytest.raises(PVDataError):
            typed(v, bad)


def test_json_of_unions_anys_and_structure_arrays():
    t = StructType(
        [
            ("u", UnionType([("i", INT32)])),
            ("e", UnionType([("i", INT32)])),
            ("any", ANY),
            ("l", ArrayType(nt.ALARM)),
        ]
    )
    v = Value(t, {"u": 5, "any": {"x": [True]}, "l": [{"severity": 1}, None]})
    assert to_plain(v) == {
        "u": {"i": 5},
        "e": None,
        "any": {"x": [True]},
        "l": [{"severity": 1, "status": 0, "message": ""}, None],
    }
    assert to_plain(v["l"]) == to_plain(v)["l"]


def test_sized_types_show_their_size():
    t = StructType(
        [("s", BoundedString(8)), ("b", ArrayType(INT32, "bounded", 4)), ("f", ArrayType(INT32, "fixed", 2))]
    )
    assert render_type(t) == "struct {\n    string(8) s\n    int32_t<4> b\n    int32_t[2] f\n}\n"


def test_a_union_is_shown_by_the_name_of_its_member_wherever_it_stands():
    t = StructType([("u", UnionType([("first", nt.ALARM), ("second", INT32)]))])
    assert render(Value(t, {"u": {"second": 5}})) == "u union\nu->second int32_t = 5\n"


def test_a_view_is_shown_like_a_value():
    v = Value(SCALAR, {"alarm.severity": 1})
    assert render(v["alarm"]) == "severity int32_t = 1\n"
    assert render(v["alarm"], "tree").startswith('struct "alarm_t" {\n    int32_t severity = 1\n')


def test_an_unknown_format_is_refused():
    with pytest.raises(PVDataError, match="delta or tree"):
        render(Value(SCALAR), "xml")


def test_a_scalar_brings_in_no_numpy():
    code = (
        "import sys\n"
        "from appliance.pvdata import *\n"
        "from appliance.pvdata import nt\n"
        "from appliance.pvdata.codec import codec\n"
        "from appliance.pvdata.fielddesc import TypeReader\n"
        "t = nt.NTScalar(FLOAT64, display=True)\n"
        "v = Value(t, 1.5)\n"
        "raw = codec(t, False).encode(v.store)\n"
        "codec(t, False).decode(raw, 0, len(raw), TypeReader())\n"
        "render(v)\n"
        "heavy = {'numpy', 'typing', 'dataclasses', 'inspect', 're', 'asyncio', 'json'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, '.')\n{code}"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, True) for word in ("true", "1", "YES", " on ")),
        *((word, False) for word in ("false", "0", "NO", "off")),
        *((word, None) for word in ("passive", "", None)),
    ],
)
def test_an_option_that_is_true_or_false_is_read_alike_at_both_ends(text, value):
    assert truth(text) is value
