"""Substitution files: what they load, and one sentence with the line for each fault."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import ConfigurationError
from appliance.ioc import substitutions
from appliance.ioc.substitutions import Load, parse_substitutions


def parse(text: str, given_macros: str = "") -> list[tuple[str, str, int]]:
    return [tuple(load) for load in parse_substitutions(text, "f.substitutions", given_macros).loads]


def refused(text: str) -> tuple[int | None, str]:
    with pytest.raises(ConfigurationError) as caught:
        parse_substitutions(text, "f.substitutions", most_names=100)
    assert caught.value.file == "f.substitutions"
    assert "\n" not in str(caught.value)
    return caught.value.line, caught.value.why


def test_a_pattern_gives_each_set_its_names() -> None:
    text = '# a comment\nfile "a.db" {\n  pattern { P, R }\n  { "A:", x }\n  { "B:" , \'y z\' }\n}\n'
    assert parse(text) == [("a.db", 'P="A:",R=x', 4), ("a.db", 'P="B:",R="y z"', 5)]


def test_sets_may_name_their_values_and_globals_hold_until_the_end() -> None:
    text = 'global {S=1}\nfile a.db { {P="A:"} global {T="2"} {P="B:"} }\nfile b.db { {} }\nfile c.db {}'
    assert parse(text, "Q=0") == [
        ("a.db", 'Q=0,S=1,P="A:"', 2),
        ("a.db", 'Q=0,S=1,T="2",P="B:"', 2),
        ("b.db", 'Q=0,S=1,T="2"', 3),
    ]


def test_commas_are_as_free_as_in_epics_and_values_may_be_missing() -> None:
    assert parse('file a.db { pattern {P R,,S} {"1" 2} {3,} {4,,5} } global {X=1,} file a.db { {A=1} }') == [
        ("a.db", 'P="1",R=2', 1), ("a.db", "P=3", 1), ("a.db", "P=4,R=5", 1), ("a.db", "X=1,A=1", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("", 1, "the file is empty: it must begin with 'file' or 'global'"),
        ("# only\n# comments\n", 3, "the file is empty"),
        ('record(ai, "x") {}\n', 1, "expected 'file' or 'global', and not 'record'; databases are loaded with dbLoadRecords"),
        ("\n\nfiles a.db {}\n", 3, "expected 'file' or 'global', and not 'files'"),
        ("file {\n", 1, "expected the name of a database after 'file', and not '{'"),
        ("file a.db\n", 2, "expected '{' after the name 'a.db', and not the end of the file"),
        ("file a.db {\n patern {P}\n {1}\n}\n", 2, "'patern' is not known here: did you mean 'pattern'?"),
        ("file a.db {\n macros {P}\n {1}\n}\n", 2, "expected '=' and a value after 'P'"),
        ("file a.db {\n {P=1}\n P=2\n}\n", 3, "expected 'pattern', 'global' or a set of values in braces, and not 'P'"),
        ("file a.db {\n pattern P\n", 2, "expected '{' after 'pattern', and not 'P'"),
        ('file a.db {\n pattern {"P"}\n', 2, "expected the name of a macro, without quotes and '=', and not '\"P\"'"),
        ("file a.db {\n pattern {P\n {1}\n}\n", 2, "a brace is opened here that nothing closes: a '}' is missing"),
        ("file a.db {\n pattern {P}\n {1\n {2}\n}\n", 3, "a brace is opened here that nothing closes"),
        ("\nfile a.db {\n pattern {P}\n {1}\n", 2, "a brace is opened here that nothing closes"),
        ("file a.db {\n {P=1}\n}\n}\n", 4, "this '}' closes nothing: a '{' is missing, or this is one too many"),
        ("file a.db {\n pattern {P}\n {P=1}\n}\n", 3, "with 'pattern' only the values are written, without 'NAME='"),
        ('file a.db {\n {"1"}\n}\n', 2, "expected NAME=value, and not '\"1\"': without 'pattern' each value needs its name"),
        ("file a.db {\n {P=1,\n R}\n}\n", 3, "expected '=' and a value after 'R'"),
        ("file a.db {\n {P=}\n}\n", 2, "expected a value after 'P=', and not '}'; an empty one is \"\""),
        ("global {P=1\nfile a.db { {R=2} }\n", 2, "the '{' of line 1 is not closed, or this word needs quotes"),
        ('file a.db {\n {P="1}\n}\n', 2, "a quote is opened here that is not closed on the same line"),
        ("file a.db {\n {P=$(X)}\n}\n", 2, "'$' is only permitted inside quotes"),
        ("file a.db {\n {P=1, R=(2)}\n}\n", 2, "'(' is only permitted inside quotes"),
        ("\udcff\udcfe", 1, "this is no text: it contains the octet 0xff"),
        ("file a.db { {P=1} }\x00", 1, "this is no text: it contains the octet 0x00"),
        ("file a.db {\n {,A=1}\n}\n", 2, "a list cannot begin with a comma: remove it"),
        ("\nglobal {,}\n", 2, "a list cannot begin with a comma"),
        ("file a.db {\n pattern {,A}\n {1}\n}\n", 2, "a list cannot begin with a comma"),
        ("file a.db {\n pattern {A}\n {1}\n {,}\n}\n", 4, "a list cannot begin with a comma"),
        ("file a.db {\n {A=1}\n row {}\n}\n", 3, "a set without macros cannot have a word before it: remove 'row'"),
        (f"file a.db {{\n pattern {{{' '.join(f'N{n}' for n in range(101))}}}\n}}\n", 2, "there are 101 names, and EPICS Base has room for 100: set 'var dbTemplateMaxVars 101' before"),
        (f'file a.db {{\n\n {{P="{"x" * 5000}"}}\n}}\n', 3, "the macros of this set have 5004 octets, and EPICS Base has room for 4998: set 'var dbTemplateMaxVars 101' before"),
    ],
)  # fmt: skip
def test_each_fault_is_one_sentence_with_its_line(text: str, line: int, why: str) -> None:
    found = refused(text)
    assert found[0] == line
    assert why in found[1]


def test_the_room_for_macros_is_that_of_dbtemplatemaxvars_to_the_octet() -> None:
    # EPICS Base writes a comma before them and a NUL after them into a buffer of 50 octets for each name.
    for names, size in ((100, 4998), (1, 48), (200, 9998)):
        assert parse_substitutions(f"file a.db {{ {{P={'x' * (size - 2)}}} }}", "f", most_names=names).loads
        with pytest.raises(ConfigurationError, match=f"dbTemplateMaxVars {names + 1}"):
            parse_substitutions(f"file a.db {{ {{P={'x' * (size - 1)}}} }}", "f", most_names=names)
    parse_substitutions("file a.db {}", "f", "P=" + "x" * 46, most_names=1)
    with pytest.raises(ConfigurationError, match="f:1: the macros of the command have 49 octets"):
        parse_substitutions("file a.db {}", "f", "P=" + "x" * 47, most_names=1)


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("file a.db {\n pattern {P}\n {1, 2}\n}\n", "f.substitutions:3: there are 2 values for 1 names: the last ones have no effect"),
        ("file a.db {\n {P=1}\n {}\n}\n", "f.substitutions:3: this set has no macros, and EPICS Base loads it with those of the set before it: give it one"),
        ("file a.db {\n row {P=1}\n}\n", "f.substitutions:2: the word 'row' before '{' has no effect"),
    ],
)  # fmt: skip
def test_what_epics_ignores_is_a_warning(text: str, warning: str) -> None:
    found = parse_substitutions(text, "f.substitutions")
    assert list(found.warnings) == [warning]
    assert found.loads[0].macros == "P=1"


def test_one_file_asks_for_so_many_loads_only(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "file a.db {\n" + "{}\n" * 250_000
    assert len(parse(text + "}")) == 250_000
    line, why = refused(text + "{} }")
    assert (line, why) == (250_002, "the file has more than 250000 sets: divide it")
    monkeypatch.setattr(substitutions, "_MOST_OCTETS", 5000)
    assert parse(f"global {{A={'x' * 998}}} file a.db {{ {{B=1}} {{B=2}} {{B=3}} {{B=4}} {{}} }}")
    line, why = refused(f"global {{A={'x' * 998}}} file a.db {{\n{{B=1}} {{B=2}} {{B=3}} {{B=4}}\n{{B=5}} }}")
    assert (line, why) == (3, "the macros of all sets up to here have more than 5000 octets: divide the file")


_PARTS = st.lists(
    st.sampled_from(
        [
            "file",
            "global",
            "pattern",
            "{",
            "}",
            ",",
            "=",
            "a",
            '"b"',
            "'c'",
            "\n",
            " ",
            "#x\n",
            '"',
            "$",
            "\x00",
            "é",
        ]
    ),
    max_size=40,
)


@given(_PARTS.map(" ".join))
def test_any_text_is_understood_or_refused_with_a_line(text: str) -> None:
    line: int | None = 1
    try:
        found = parse_substitutions(text, "f.substitutions")
        assert all(isinstance(load, Load) and load.file for load in found.loads)
    except ConfigurationError as error:
        line = error.line
    assert line in range(1, text.count("\n") + 2)
