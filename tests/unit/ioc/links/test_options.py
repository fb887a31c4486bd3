"""The options of PVA links."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.errors import PVDataError
from appliance.ioc.links.options import LinkOptions, Process, Severity, parse_options


def test_a_text_is_the_name_of_the_pv() -> None:
    assert parse_options("a:pv") == LinkOptions("a:pv")


def test_every_key_of_the_reference_is_understood() -> None:
    found = parse_options(
        [
            ("pv", "tgt"), ("field", "a.b"), ("local", True), ("Q", 9), ("pipeline", True), ("proc", "CPP"),
            ("sevr", "MSI"), ("time", True), ("monorder", -3), ("retry", True), ("always", True), ("defer", True),
            ("atomic", True),
        ]
    )  # fmt: skip
    assert found == LinkOptions(
        "tgt", "a.b", 9, True, Process.CPP, Severity.MSI, True, -3, True, True, True, True, True
    )


def test_the_defaults_of_the_documentation_are_the_defaults() -> None:
    written = [
        ("pv", "tgt"), ("field", ""), ("local", False), ("Q", 4), ("pipeline", False), ("proc", None), ("sevr", False),
        ("time", False), ("monorder", 0), ("retry", False), ("always", False), ("defer", False),
    ]  # fmt: skip
    assert parse_options(written) == LinkOptions("tgt")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        (None, Process.DEFAULT), ("", Process.DEFAULT), (True, Process.PP), (False, Process.NPP), ("PP", Process.PP),
        ("NPP", Process.NPP), ("CP", Process.CP), ("CPP", Process.CPP),
    ],
)  # fmt: skip
def test_processing(word: Any, meant: Process) -> None:
    assert parse_options([("pv", "x"), ("proc", word)]).proc is meant


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        (None, Severity.NMS), (False, Severity.NMS), (True, Severity.MS), ("NMS", Severity.NMS), ("MS", Severity.MS),
        ("MSI", Severity.MSI), ("MSS", Severity.MS),
    ],
)  # fmt: skip
def test_severities(word: Any, meant: Severity) -> None:
    assert parse_options([("pv", "x"), ("sevr", word)]).sevr is meant


@pytest.mark.parametrize(
    ("key", "number", "meant"), [("Q", 0, 1), ("Q", 1 << 40, 65_536), ("monorder", 5000, 1024), ("monorder", -5000, -1024)]
)  # fmt: skip
def test_numbers_out_of_bounds_are_limited(key: str, number: int, meant: int) -> None:
    found = parse_options([("pv", "x"), (key, number)])
    assert (found.queue_size if key == "Q" else found.monorder) == meant


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("", "the name of the PV is empty"),
        ("x" * 2000, "a search datagram takes"),
        (None, "null names no PV"),
        (5, "5 names no PV"),
        ([], "the key pv is missing"),
        ([("field", "a")], "the key pv is missing"),
        ([("pv", 5)], "pv must be text, not 5"),
        ([("pv", "")], "the name of the PV is empty"),
        ([("pv", "x"), ("pv", "y")], "the key pv is given twice"),
        ([("pv", "x"), ("field", None)], "field must be text, not null"),
        ([("pv", "x"), ("secr", "MS")], "there is no key 'secr'; the keys are pv, field"),
        ([("pv", "x"), ("proc", "cp")], "proc must be"),
        ([("pv", "x"), ("proc", 1)], "proc must be"),
        ([("pv", "x"), ("sevr", "MAJOR")], "sevr must be"),
        ([("pv", "x"), ("sevr", 0)], "sevr must be"),
        ([("pv", "x"), ("time", 1)], "time must be true or false, not 1"),
        ([("pv", "x"), ("defer", "yes")], "defer must be true or false, not 'yes'"),
        ([("pv", "x"), ("Q", 4.0)], "Q must be a whole number, not 4.0"),
        ([("pv", "x"), ("Q", True)], "Q must be a whole number, not true"),
        ([("pv", "x"), ("monorder", "1")], "monorder must be a whole number, not '1'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(said: Any, why: str) -> None:
    with pytest.raises(PVDataError) as raised:
        parse_options(said)
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)


def test_null_for_local_means_false_as_in_the_reference() -> None:
    assert parse_options([("pv", "x"), ("local", None)]).local is False
