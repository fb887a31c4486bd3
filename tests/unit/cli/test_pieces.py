"""Command lines and values, without a server."""

from __future__ import annotations

import re

import pytest

from appliance.cli.common import array_limit, complain, indented, selected
from appliance.cli.pvxcall import arguments_of
from appliance.cli.pvxget import parser as get_parser
from appliance.cli.pvxput import _given, _protected, assignments, builder
from appliance.cli.pvxput import parser as put_parser
from appliance.errors import ConfigurationError, PVDataError
from appliance.pvdata import FLOAT64, INT32, STRING, ArrayType, StructType, UnionType, Value
from appliance.pvdata.nt import NTEnum, NTScalar


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["5"], {"value": "5"}),
        (["-5"], {"value": "-5"}),
        ([""], {"value": ""}),
        (["a=5"], {"a": "5"}),
        (["a.b=x=y", "c="], {"a.b": "x=y", "c": ""}),
        (['{"a": "x=y"}'], {"": '{"a": "x=y"}'}),
        (["[1,2]"], {"value": "[1,2]"}),
        (['["a","d=e"]'], {"value": '["a","d=e"]'}),
        (['"a=b"'], {"value": '"a=b"'}),
    ],
)
def test_assignments(values: list[str], expected: dict[str, str]) -> None:
    assert assignments(values) == expected


@pytest.mark.parametrize(
    ("values", "hint"),
    [(["1", "2", "3"], "'[1,2,3]'"), (["-1e3", ".5"], "'[-1e3,.5]'"), (["a", "b c"], """'["a","b c"]'""")],
)
def test_words_that_are_an_array_are_told_how_to_write_one(values: list[str], hint: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(hint)):
        assignments(values)


@pytest.mark.parametrize("word", ["-1e-3", "-inf", "-Infinity", "-nan", "-0x10", "-.5", "-5.", "-12"])
def test_negative_numbers_are_values_and_no_options(word: str) -> None:
    options = put_parser().parse_args(_protected(["-w", "5", "name", word, "-d"]))
    assert _given(options.values) == [word]
    assert options.debug


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["value={const:7}"], """'"{const:7}"'"""),
        (["{const:7}"], """'"{const:7}"'"""),
        (['value={"const":7}'], """'"{\\"const\\":7}"'"""),
        (['{"const":7}'], """'"{\\"const\\":7}"'"""),
        (["[1,2]"], """'"[1,2]"'"""),
        (["value=[1,2]"], """'"[1,2]"'"""),
        (['{pva:{pv:"a"}}'], """'"{pva:{pv:\\"a\\"}}"'"""),
        (["description={const:7}", "value=1"], """'description="{const:7}"'"""),
        (["a=b"], """'"a=b"'"""),
    ],
)
def test_text_that_looks_like_something_else_is_told_how_it_is_quoted(words: list[str], hint: str) -> None:
    present = Value(NTScalar(STRING))
    with pytest.raises(PVDataError, match=re.escape(f"to write exactly this text: {hint}")):
        builder(assignments(words), None)(present)


def test_a_field_that_there_is_was_meant() -> None:
    present = Value(NTScalar(FLOAT64))
    with pytest.raises(PVDataError, match="is not an integer") as refused:
        builder(assignments(["alarm.severity=bad"]), None)(present)
    assert "exactly this text" not in str(refused.value)


@pytest.mark.parametrize("values", [["1", "2"], ["a=1", "2"], ["=1"], ["a=1", "a=1"]])
def test_what_is_no_assignment_is_refused(values: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        assignments(values)


def test_a_put_writes_only_what_was_given() -> None:
    present = Value(NTScalar(FLOAT64), {"value": 1.0, "alarm.severity": 2})
    present.changed = 0
    written = builder({"value": "2.5"}, None)(present)
    assert [written.type.paths[n] for n in range(len(written.store)) if written.changed >> n & 1] == ["value"]


def test_a_choice_is_found_in_the_present_value() -> None:
    present = Value(NTEnum(), {"value.choices": ("a", "b")})
    present.changed = 0
    written = builder({"value": "b"}, None)(present)
    assert written["value.index"] == 1
    assert not written.is_marked("value.choices")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": }', '"open', "[1, 2", '[1, "x"]', '{"x": 1}', "[[1], [2]]", "[1e999]"]
)
def test_hostile_json_is_an_error_of_one_sentence(text: str) -> None:
    present = Value(StructType([("value", ArrayType(INT32))]))
    with pytest.raises(PVDataError, match="Unable to assign value from"):
        builder({"value": text}, None)(present)


def test_call_arguments() -> None:
    assert arguments_of(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    for wrong in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(ConfigurationError):
            arguments_of(wrong)


def test_selected_gives_what_the_request_names() -> None:
    value = Value(NTScalar(FLOAT64), {"value": 1.5})
    assert selected(value, "field(value)") == {"value": 1.5}
    assert selected(value, "record[queueSize=4]") == {
        "value": 1.5,
        "alarm": {"severity": 0, "status": 0, "message": ""},
        "timeStamp": {"secondsPastEpoch": 0, "nanoseconds": 0, "userTag": 0},
    }
    assert selected(value, "field(alarm.status)record[queueSize=4]") == {"alarm": {"status": 0}}
    union = Value(StructType([("u", UnionType([("a", INT32)])), ("v", INT32)]), {"u": 3})
    assert selected(union, "field(u)") == {"u": {"a": 3}}


def test_indented_moves_every_line() -> None:
    assert indented("a\nb\n") == "    a\n    b\n"
    assert indented("") == ""


def test_control_characters_of_a_server_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    complain("Error: pv: \x1b]0;owned\x07")
    assert capsys.readouterr().err == "Error: pv: \\x1b]0;owned\\x07\n"


def test_an_unknown_format_falls_back(capsys: pytest.CaptureFixture[str]) -> None:
    options = get_parser().parse_args(["-F", "xml", "-#", "7", "pv"])
    assert array_limit(options) == ("delta", 7)
    assert capsys.readouterr().err == "Warning: ignoring unknown format 'xml'; known are delta, tree, nt\n"
