"""Updates that come very fast are read together; one that comes alone passes at once."""

from __future__ import annotations

import pytest

from appliance.client.crowd import BURST, PERIOD_S, REST_S, Crowd


def waits(crowd: Crowd, start: float, gaps: list[float]) -> list[bool]:
    """What each of the reads is told."""
    told = []
    now = start
    for gap in gaps:
        now += gap
        told.append(crowd.is_dense(now))
    return told


def test_a_burst_passes_at_once_and_what_follows_waits() -> None:
    crowd = Crowd()
    assert waits(crowd, 100.0, [0.0] * (BURST - 1)) == [False] * (BURST - 1)
    assert waits(crowd, 100.0, [0.0] * 3) == [True] * 3


def test_updates_that_come_now_and_then_never_wait() -> None:
    assert not any(waits(Crowd(), 100.0, [PERIOD_S * 1.5] * BURST * 10))


@pytest.mark.parametrize("late", [0.0, PERIOD_S / 2, PERIOD_S * 4])
def test_a_server_that_pauses_now_and_then_is_read_once_in_a_period_on_average(late: float) -> None:
    """A gap between two bursts does not make the next one free: busy machines make gaps all the time."""
    crowd = Crowd()
    now, reads = 100.0, 0
    while now < 101.0:
        reads += 1
        now += REST_S + late if crowd.is_dense(now) else PERIOD_S / 100
    assert reads <= 1.0 / PERIOD_S + BURST


def test_who_was_quiet_has_the_whole_burst_again() -> None:
    crowd = Crowd()
    assert waits(crowd, 100.0, [0.0] * BURST)[-1]
    assert waits(crowd, 100.0 + PERIOD_S * BURST, [0.0] * (BURST - 1)) == [False] * (BURST - 1)
