"""Files of autosave: what it writes is read, and what is written it can read."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import ConfigurationError
from appliance.ioc.autosave.savefile import escaped, format_saved, parse_saved, requested, unescaped
from appliance.ioc.macros import parse_macros

AUTOSAVE = """# save/restore V5.9\tAutomatically generated - DO NOT MODIFY - 2021-03-04 11:22:33
! 1 channel(s) not connected - or not all gets were successful
xxx:ao.VAL 1.5
xxx:ao.DESC two  words\\t\\"quoted\\"
xxx:empty.DESC{blank}
#xxx:gone.VAL Not Connected
xxx:wf @array@ { "1" "2.5" "-3" }
xxx:names @array@ { "a b" "c\\"d" "" }
xxx:split @array@ { "1"
"2" }
$(P):m.VAL 4
<END>
""".replace("{blank}", " ")
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
names = st.from_regex(r"[a-z]{1,8}:[a-z]{1,8}(\.[A-Z]{3,4})?", fullmatch=True)


def test_a_file_of_autosave_is_read() -> None:
    saved = parse_saved(AUTOSAVE, {"P": "yyy"}, file="x.sav")
    assert dict(saved.values) == {
        "xxx:ao.VAL": "1.5",
        "xxx:ao.DESC": 'two  words\t"quoted"',
        "xxx:empty.DESC": "",
        "xxx:wf": ("1", "2.5", "-3"),
        "xxx:names": ("a b", 'c"d', ""),
        "xxx:split": ("1", "2"),
        "yyy:m.VAL": "4",
    }
    assert saved.missing == 1


@given(st.dictionaries(names, text | st.lists(text, max_size=4).map(tuple) | st.none(), max_size=6))
def test_what_is_written_is_read_back(values) -> None:
    written = format_saved(values.items(), program="save/restore V5.11", written="now")
    saved = parse_saved(written, {}, file="x.sav")
    assert dict(saved.values) == {name: value for name, value in values.items() if value is not None}
    assert saved.missing == sum(value is None for value in values.values())
    assert written.endswith("<END>\n")


@pytest.mark.parametrize("value", ["@array@ { ", '@array@ { "1" "2" }', "@array@", "@", "\\x40array@ {"])
def test_no_text_of_a_client_becomes_an_array_or_takes_the_lines_of_other_pvs(value: str) -> None:
    values = {"a:text": value, "a:number": "1.5", "a:wave": ("1", "2")}
    written = format_saved(values.items(), program="save/restore V5.11", written="now")
    assert dict(parse_saved(written, {}, file="x.sav").values) == values
    as_autosave = f"# V5.9\na:text {escaped(value)}\na:number 1.5\n<END>\n"
    assert dict(parse_saved(as_autosave, {}, file="x.sav").values)["a:number"] == "1.5"


@given(text)
def test_a_value_keeps_to_its_line(value: str) -> None:
    assert "\n" not in escaped(value)
    assert unescaped(escaped(value)) == value


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_a_sentence(content: str) -> None:
    for end in ("", "\n<END>\n"):
        with contextlib.suppress(ConfigurationError):
            parse_saved(content + end, {}, file="x.sav")


def test_a_file_that_was_not_written_to_its_end_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="<END> is missing"):
        parse_saved(AUTOSAVE.replace("<END>", ""), {}, file="x.sav")


def test_request_files_include_others_with_macros_of_their_own() -> None:
    files = {
        "top.req": '# comment\n$(P):a.VAL\nfile "part.req" N=$(P)1, M="2"\nfile part.req N=x,M=3\n$(P):b extra words\n',
        "part.req": "$(N):$(M).DESC\n$(N):same\n",
    }

    def read(name: str) -> tuple[str, str]:
        return name, files[name]

    found = requested("top.req", {"P": "q"}, read, parse_macros)
    assert found == ["q:a.VAL", "q1:2.DESC", "q1:same", "x:3.DESC", "x:same", "q:b"]
    with pytest.raises(ConfigurationError, match=r"top\.req:2: a macro of"):
        requested("top.req", {}, read, parse_macros)
    files["part.req"] = "file part.req\n"
    with pytest.raises(ConfigurationError, match="include each other"):
        requested("part.req", {}, read, parse_macros)
