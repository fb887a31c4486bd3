"""Hosts take turns, and the connections of a host."""

from __future__ import annotations

import pytest

from appliance.transport import turns as module
from appliance.transport.address import SocketAddress
from appliance.transport.turns import SLICE_S, TURN_S, Turns
from tests.helpers.clock import FakeClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(module, "monotonic", clock.time)
    return clock


class Work:
    """Takes a slice of time, so often as it was told."""

    def __init__(
        self, name: str, host: str, turns: Turns, clock: FakeClock, log: list[str], slices: int
    ) -> None:
        self.peer_address = SocketAddress(host, 1)
        self._name = name
        self._turns = turns
        self._clock = clock
        self._log = log
        self._slices = slices
        turns.wait(self)

    def go_on(self) -> None:
        self._log.append(self._name)
        assert not self._turns.due()
        self._clock.now += SLICE_S
        assert self._turns.due()
        self._slices -= 1
        if self._slices:
            self._turns.wait(self)

    def broken(self, error: Exception) -> None:
        self._log.append(f"{self._name} is broken by {error}")


class Defective(Work):
    def go_on(self) -> None:
        raise RuntimeError("a defect")

    flush = go_on
    flushes_at_end = False


def test_a_defect_of_one_does_not_stop_the_others(clock: FakeClock) -> None:
    turns = Turns(clock)  # type: ignore[arg-type]
    log: list[str] = []
    Defective("a1", "a", turns, clock, log, 1)
    for name in ("a2", "b1"):
        Work(name, name[0], turns, clock, log, 1)
    clock.advance(1.0)
    assert log == ["a1 is broken by a defect", "b1", "a2"]


def test_a_defect_of_one_does_not_keep_the_output_of_others(clock: FakeClock) -> None:
    turns = Turns(clock)  # type: ignore[arg-type]
    log: list[str] = []
    turns.begin()
    flushing = [Defective(name, "a", turns, clock, log, 1) for name in ("a1", "a2")]
    assert all(turns.flush_at_end(each) for each in flushing)
    turns.end()
    assert log == ["a2 is broken by a defect", "a1 is broken by a defect"]
    assert not turns.flush_at_end(flushing[0])


def test_a_host_with_many_connections_waits_for_itself(clock: FakeClock) -> None:
    turns = Turns(clock)  # type: ignore[arg-type]
    log: list[str] = []
    for name in ("a1", "a2", "a3"):
        Work(name, "a", turns, clock, log, 2)
    Work("b1", "b", turns, clock, log, 2)
    clock.advance(1.0)
    assert log == ["a1", "b1", "a2", "b1", "a3", "a1", "a2", "a3"]


def test_the_loop_gets_its_turn_after_some_milliseconds(clock: FakeClock) -> None:
    turns = Turns(clock)  # type: ignore[arg-type]
    log: list[str] = []
    Work("a", "a", turns, clock, log, 1000)
    (_, _, call), *none = clock._calls
    assert not none
    clock._calls.clear()
    call.callback(*call.args)
    assert TURN_S / SLICE_S <= len(log) <= TURN_S / SLICE_S + 1
    assert len(clock._calls) == 1, "it goes on in the next turn"


def test_what_comes_during_a_full_turn_gets_no_time_before_the_next(clock: FakeClock) -> None:
    turns = Turns(clock)  # type: ignore[arg-type]
    turns.begin()
    assert not turns.due()
    clock.now += TURN_S
    turns.end()
    assert turns.is_full
    turns.begin()
    assert turns.due()
    turns.end()
    clock.advance(0)
    assert not turns.is_full
    turns.begin()
    assert not turns.due()


def test_the_last_turn_of_a_loop_takes_the_time_that_it_needs(clock: FakeClock) -> None:
    turns = Turns(clock)  # type: ignore[arg-type]
    turns.begin()
    turns.hurry()
    clock.now += 1000
    assert not turns.due()
