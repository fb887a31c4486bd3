"""Substitution files: what EPICS Base's own parser accepts, ours accepts, and nothing else."""

from __future__ import annotations

from pathlib import Path

from appliance.errors import ConfigurationError
from appliance.ioc.substitutions import parse_substitutions
from tests.helpers.isolated import isolated

VALID = (
    "file a { pattern { A , B } { 1 , 2 } w { 3 } global { C = 4 } { } { 5 , , } }",
    "global { A = 1 , B = '2' , } file 'a' { { C = 3 } w { C = 4 D = 5 } { } global { } }",
    "global { } file a { pattern { } } file a { } file a { pattern { } { } { 1 } }",
    'file a { pattern { A B } } global { A = 1 } global { B = "x" , , C = 2 }',
)
"""Files that use every rule of the grammar, with blanks between the tokens."""
TOKENS = ("{", "}", ",", "=", "w", "'q'", "file", "global", "pattern", "$")


def variants() -> list[str]:
    """Every file that differs by one token from one of those: one less, one more, another one, two exchanged."""
    found: dict[str, None] = {}
    for text in VALID:
        words = text.split()
        for at in range(len(words) + 1):
            rest = words[at + 1 :]
            changed = [[*words[:at], *rest], *([*words[:at], each, *rest] for each in TOKENS)]
            changed += [[*words[:at], each, *words[at:]] for each in TOKENS]
            if rest:
                changed.append([*words[:at], rest[0], words[at], *rest[1:]])
            found.update((" ".join(each), None) for each in changed)
    return list(found)


@isolated
def test_each_file_is_judged_as_epics_base_judges_it(tmp_path: Path) -> None:
    import os

    from appliance.ioc import dbcore
    from appliance.ioc.dbcore import _c

    os.chdir(tmp_path)
    for name in "aqw":
        (tmp_path / name).write_text("# no record\n")
    dbcore.boot()
    other: list[str] = []
    judged = {True: 0, False: 0}
    for text in variants():
        (tmp_path / "t.substitutions").write_text(text)
        with dbcore.captured_errors() as said:
            said.is_reported = True
            _c.dbLoadTemplate(b"t.substitutions", None)
        accepts = "Substitution file error" not in said.text
        try:
            parse_substitutions(text, "t", most_names=dbcore.most_template_names())
            ours = True
        except ConfigurationError:
            ours = False
        judged[accepts] += 1
        if ours is not accepts:
            other.append(f"{'accepted' if accepts else 'refused'} by EPICS Base: {text}")
    assert other == []
    assert min(judged.values()) > 100


@isolated
def test_a_set_without_macros_is_loaded_with_those_that_epics_base_takes(tmp_path: Path) -> None:
    import os

    from appliance.ioc import dbcore

    os.chdir(tmp_path)
    (tmp_path / "a.db").write_text('record(ai, "$(A=none)") { field(DESC, "$(B=none)") }\n')
    text = (
        "file a.db { {A=1} {} }\nfile a.db { pattern {A} {} }\nfile a.db { pattern {A, B} {2, x} {3} {} }\n"
    )
    (tmp_path / "t.substitutions").write_text(text)
    found = parse_substitutions(text, "t", most_names=100)
    assert [load.macros for load in found.loads] == ["A=1"] * 3 + ["A=2,B=x", "A=3", "A=3"]
    dbcore.boot()
    dbcore.load_template("t.substitutions")
    # EPICS Base appends to a record that is there.
    assert sorted(dbcore.record_names()) == ["1", "2", "3"]
    assert [warning.partition(":")[2][0] for warning in found.warnings] == ["1", "2", "3"]
