"""A silent peer is given up; one that reads slowly is not."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.errors import ApplianceError
from appliance.transport.liveness import Liveness
from tests.helpers.clock import FakeClock


class Link:
    """What of a link liveness looks at."""

    peer = "10.0.0.1:1000"
    is_up = True

    def __init__(self) -> None:
        self.heard = self.heard_at_tick = self.silent_ticks = self.drained = self.echoes = self.flushes = 0
        self.writable = True
        self.waits = False
        self.reason: ApplianceError | None = None
        self.connection = self

    def echo(self) -> None:
        self.echoes += 1

    def schedule_flush(self) -> None:
        self.flushes += 1

    def abort(self, reason: ApplianceError) -> None:
        self.reason = reason


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr("asyncio.get_running_loop", lambda: clock)
    return clock


def watched(link: Any, *, echo: bool = False) -> Liveness:
    liveness = Liveness(lambda: (link,), 8.0, echo=echo)
    liveness.start()
    return liveness


def test_a_peer_that_says_nothing_is_given_up_after_the_time_and_not_before(clock: FakeClock) -> None:
    link = Link()
    watched(link)
    clock.advance(7.9)
    assert link.reason is None
    clock.advance(1.2)
    assert str(link.reason) == "10.0.0.1:1000 has been silent for 8 s"
    assert link.echoes == 0


def test_whatever_a_peer_sends_is_a_sign_of_life(clock: FakeClock) -> None:
    link = Link()
    watched(link)
    for _ in range(10):
        clock.advance(6.0)
        link.heard += 1
    assert link.reason is None


def test_a_peer_that_reads_slowly_lives_and_one_that_stops_does_not(clock: FakeClock) -> None:
    link = Link()
    link.writable = False
    watched(link)
    for _ in range(10):
        clock.advance(6.0)
        link.drained += 1
    assert link.reason is None
    clock.advance(10.0)
    assert "has read none of the data that waits for it for 8 s" in str(link.reason)


def test_a_peer_whose_messages_wait_for_their_turn_is_not_silent(clock: FakeClock) -> None:
    link = Link()
    link.waits = True
    watched(link)
    clock.advance(100)
    assert link.reason is None


def test_a_client_asks_every_quarter_of_the_time_also_a_server_that_talks(clock: FakeClock) -> None:
    link = Link()
    liveness = watched(link, echo=True)
    for _ in range(16):
        link.heard += 1
        clock.advance(1.0)
    assert link.echoes == link.flushes == 8
    liveness.stop()
    clock.advance(100)
    assert link.echoes == 8
    assert link.reason is None
