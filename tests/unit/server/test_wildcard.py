"""Names that are made up as they are asked for: what a pattern matches, and how many are kept."""

from __future__ import annotations

import pytest

from appliance.pva.credentials import Credentials
from appliance.server.source import Handler
from appliance.server.wildcard import WildcardSource

NOBODY = Credentials()


@pytest.mark.parametrize(
    ("pattern", "name", "parts"),
    [
        ("pv", "pv", ()),
        ("pv", "pvx", None),
        ("*", "", ("",)),
        ("*", "anything", ("anything",)),
        ("a:*", "a:b", ("b",)),
        ("a:*", "b:a:", None),
        ("*:b", "a:b", ("a",)),
        ("a:*:b", "a:x:b", ("x",)),
        ("a:*:b", "a:b", None),
        ("a*a", "a", None),
        ("*:*", "a:b:c", ("a", "b:c")),
        ("x*y*z", "xyyz", ("", "y")),
        ("x*y*z", "xz", None),
    ],
)
def test_an_asterisk_stands_for_any_text(pattern: str, name: str, parts: tuple[str, ...] | None) -> None:
    made: list[tuple[str, ...]] = []
    source = WildcardSource(pattern, lambda _, found: made.append(found) or Handler())  # type: ignore[func-returns-value]
    assert source.claims(name, "10.0.0.1") is (parts is not None)
    assert (source.open(name, NOBODY) is not None) is (parts is not None)
    assert made == ([] if parts is None else [parts])


def test_a_handler_is_made_once_for_each_name_and_no_more_than_may_be_kept() -> None:
    source = WildcardSource("w:*", lambda *_: Handler(), max_pvs=2)
    one, two = source.open("w:1", NOBODY), source.open("w:2", NOBODY)
    assert one is not two
    assert source.open("w:3", NOBODY) is None
    assert source.open("w:1", NOBODY) is one
    assert list(source.names()) == [], "what clients made up is not listed"


def test_a_name_that_is_none_is_asked_for_again() -> None:
    answers: list[Handler | None] = [None, Handler()]
    source = WildcardSource("*", lambda *_: answers.pop(0))
    assert source.open("x", NOBODY) is None
    assert source.open("x", NOBODY) is not None


def test_a_long_name_costs_no_more_than_its_length() -> None:
    source = WildcardSource("*a" * 40, lambda *_: Handler())
    assert not source.claims("a" * 39 + "b" * 60_000, "10.0.0.1")  # with backtracking this ends never
