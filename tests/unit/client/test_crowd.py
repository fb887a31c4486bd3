"""Updates that come very fast are read together; one that comes alone passes at once."""

from __future__ import annotations

from appliance.client.crowd import DENSE, REST_S, SHORT_S, Crowd


def test_only_many_reads_one_after_the_other_are_dense() -> None:
    crowd = Crowd()
    now = 100.0
    for _ in range(DENSE):
        assert not crowd.is_dense(now)
        now += SHORT_S / 2
    assert crowd.is_dense(now)
    crowd.resting(now + REST_S)
    now += REST_S + SHORT_S / 2
    assert crowd.is_dense(now), "it goes on while there is something to read as soon as it reads"
    now += SHORT_S * 2
    assert not crowd.is_dense(now)


def test_updates_that_come_now_and_then_never_wait() -> None:
    crowd = Crowd()
    assert not any(crowd.is_dense(100.0 + number * SHORT_S * 1.5) for number in range(10 * DENSE))
