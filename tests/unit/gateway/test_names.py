"""Bounds of what clients ask for, by a clock of the test's own."""

from __future__ import annotations

import logging

import pytest

from appliance.gateway import names
from appliance.gateway.names import NewNames, Promises


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_host_has_a_share_that_is_renewed():
    clock = Clock()
    share = NewNames(10, clock)
    assert [share.admits("10.0.0.1") for _ in range(12)] == [True] * 10 + [False] * 2
    assert share.admits("10.0.0.2"), "another host has its own"
    clock.now = 1.0
    assert [share.admits("10.0.0.1") for _ in range(2)] == [True, False]
    clock.now = 100.0
    assert [share.admits("10.0.0.1") for _ in range(11)] == [True] * 10 + [False]
    assert share.refused == 4


def test_an_ipv6_address_stands_for_its_network():
    share = NewNames(1, Clock())
    assert share.admits("2001:db8::1")
    assert not share.admits("2001:db8::2")
    assert share.admits("2001:db8:0:1::1")


def test_a_host_that_asks_too_much_is_named_once(caplog: pytest.LogCaptureFixture):
    share = NewNames(1, Clock())
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            share.admits("10.0.0.1")
    assert [record.message for record in caplog.records] == [
        "10.0.0.1 asks for more than 1 new names in 10 s: further ones are not looked for until it asks more slowly"
    ]


def test_hosts_that_are_silent_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(names, "MAX_HOSTS", 3)
    clock = Clock()
    share = NewNames(1, clock)
    for number in range(3):
        assert share.admits(f"10.0.0.{number}")
    assert share.admits("10.0.0.3"), "the first one gives way"
    assert share.admits("10.0.0.0")
    clock.now = 20.0
    assert share.admits("10.0.0.9")
    assert len(share._hosts) == 1


def test_a_promise_is_kept_once_and_in_time():
    clock = Clock()
    promises = Promises(10.0, clock)
    said: list[str] = []
    promises.add("pv", "a", lambda: said.append("old"))
    promises.add("pv", "a", lambda: said.append("a"))  # the same client searched again
    promises.add("pv", "b", lambda: said.append("b"))
    promises.add("other", "a", lambda: said.append("other"))
    assert len(promises) == 3
    promises.keep("pv")
    promises.keep("pv")
    assert said == ["a", "b"]
    clock.now = 11.0
    promises.keep("other")
    assert said == ["a", "b"]
    assert len(promises) == 0


def test_promises_are_bounded(monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    promises = Promises(10.0, clock)
    said: list[int] = []
    for number in range(20):
        promises.add("pv", number, lambda number=number: said.append(number))  # type: ignore[misc]
    promises.keep("pv")
    assert said == list(range(12, 20)), "the latest eight"
    monkeypatch.setattr(names, "MAX_PROMISES", 5)
    for number in range(9):
        promises.add(number, "a", lambda: None)
    assert len(promises) == 5
    clock.now = 11.0
    promises.add("fresh", "a", lambda: None)
    assert len(promises) == 1, "old ones give way"
    promises.drop("fresh")
    promises.drop("nothing")
    assert len(promises) == 0
