"""JSON of group definitions, macros, paths: without a database."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import ConfigurationError
from appliance.ioc.groups.config import GroupConfigs
from appliance.ioc.groups.layout import MAX_INDEX, parse_path
from appliance.ioc.groups.syntax import MAX_DEPTH, parse_json
from appliance.ioc.macros import expand, parse_macros

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def depth(value: object) -> int:
    """Levels of nesting."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inner), default=0) if isinstance(value, (dict, list)) and inner else 0


@given(plain)
def test_whatever_is_json_is_read_as_json(value) -> None:
    text = json.dumps(value)
    if depth(value) > MAX_DEPTH:
        with pytest.raises(ConfigurationError, match="levels"):
            parse_json(text)
    else:
        assert parse_json(text) == value


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_sentence(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{+id:'a', /* c */ b: [1, 2,],} // end", {"+id": "a", "b": [1, 2]}),
        ('{"a": 0x1F, "b": -1.5e3, "c": +7}', {"a": 31, "b": -1500.0, "c": 7}),
        (r'"\u0041\x42\n"', "AB\n"),
        ("{ # shell style\n a: true }", {"a": True}),
    ],
)
def test_what_people_write_by_hand_is_read(text: str, value: object) -> None:
    assert parse_json(text) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1', "is missing|expected"),
        ('{"a" 1}', "':' is expected"),
        ("{a: +}", "a value is expected"),
        ('{"a": "b', "does not end"),
        ("{} {}", "nothing may follow"),
        ("[" * (MAX_DEPTH + 2), "levels"),
    ],
)
def test_faults_are_told_with_file_and_line(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        parse_json("\n" + text, file="g.json")
    assert str(caught.value).startswith("g.json:2: ")


def test_definitions_are_merged_and_ordered_by_put_order_then_name() -> None:
    reports: list[str] = []
    configs = GroupConfigs(reports.append)
    configs.add(
        '{"g": {+id:"x", "b": {+channel:"VAL", +putorder:1}, "z": {+type:"const", +const:1}}}', record="r1"
    )
    configs.add(
        '{"g": {+atomic:false, "a": {+channel:"DESC", +putorder:2, +trigger:"b, a", +odd:1}, "+new": 1}}',
        record="r2",
    )
    group = configs.groups["g"]
    assert [(name, field.channel) for name, field in group.ordered()] == [
        ("z", ""),
        ("b", "r1.VAL"),
        ("a", "r2.DESC"),
    ]
    assert (group.id, group.atomic) == ("x", False)
    assert group.triggers(reports.append) == {"b": (), "z": (), "a": ("a", "b")}
    assert [text for text in reports if "+odd" in text or "+new" in text] == reports


def test_without_triggers_every_field_triggers_itself() -> None:
    configs = GroupConfigs(lambda _: None)
    configs.add(
        '{"g": {"a": {"+channel": "r.VAL"}, "b": {"+channel": "s"}, "k": {"+type": "const", "+const": 2}}}'
    )
    assert configs.groups["g"].triggers(lambda _: None) == {"a": ("a",), "b": ("b",)}


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"": {}}',
        '{"g": 1}',
        '{"g": {"a": {"+putorder": "x"}}}',
        '{"g": {"+atomic": "perhaps"}}',
        '{"g": {"a": {"+channel": 1}}}',
    ],
)
def test_definitions_of_the_wrong_form_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        GroupConfigs(lambda _: None).add(text)


@pytest.mark.parametrize("name", ["a..b", "a[", "a[x]", "1a", f"a[{MAX_INDEX + 1}]", "a[-1]", "a b"])
def test_names_that_no_field_can_have_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_path(name)


def test_paths_lead_through_arrays() -> None:
    assert [tuple(step) for step in parse_path("a.b[3].c")] == [("a", None), ("b", 3), ("c", None)]
    assert parse_path("") == ()


@pytest.mark.parametrize(
    ("text", "macros"),
    [
        ("A=1,B=2", {"A": "1", "B": "2"}),
        ('A="x, y", B = z ', {"A": "x, y", "B": "z"}),
        (r"A=x\,y", {"A": "x,y"}),
        ("A=", {"A": ""}),
        ("", {}),
    ],
)
def test_macros_are_read_as_epics_writes_them(text: str, macros: dict[str, str]) -> None:
    assert parse_macros(text) == macros


def test_an_undefined_macro_is_told_with_its_line() -> None:
    assert expand("a\n$(X)${Y=d}", {"X": "1"}, file="f") == "a\n1d"
    with pytest.raises(ConfigurationError, match=r"^f:2: .*'Z'"):
        expand("a\n$(Z)", {}, file="f")
    with pytest.raises(ConfigurationError, match="NAME=VALUE"):
        parse_macros("justaname")
