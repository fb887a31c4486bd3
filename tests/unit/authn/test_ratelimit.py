"""Token buckets with a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.authn.ratelimit import RateLimiter, SharedLimiter, peer_key, retry_sentence
from tests.helpers.tokens import Clock


def test_a_burst_then_the_sustained_rate() -> None:
    clock = Clock()
    limiter = RateLimiter(60, 3, clock=clock)
    assert [limiter.take("a") for _ in range(4)] == [0, 0, 0, 1]
    assert limiter.take("b") == 0
    clock.now += 0.5
    assert limiter.wait("a") == pytest.approx(0.5)
    assert limiter.take("a") == pytest.approx(0.5)
    clock.now += 0.5
    assert limiter.take("a") == 0
    clock.now += 1000
    assert [limiter.take("a") for _ in range(4)] == [0, 0, 0, 1]


def test_a_limit_for_all_together_beside_that_for_each_and_a_refusal_takes_nothing() -> None:
    clock = Clock()
    limiter = SharedLimiter(60, 2, clock=clock, overall=RateLimiter(120, 3, clock=clock))
    assert [limiter.take("a") for _ in range(4)] == [0, 0, 1, 1], "its own limit"
    assert [limiter.take(key) for key in "bcb"] == [0, 0.5, 0.5], "that of all"
    clock.now += 0.5
    assert [limiter.take(key) for key in "bc"] == [0, 0.5]
    assert [SharedLimiter(0, 1, clock=clock, overall=RateLimiter(60, 2, clock=clock)).take("a")] == [0]


def test_zero_switches_it_off() -> None:
    limiter = RateLimiter(0, 1, clock=Clock())
    assert not any(limiter.take("a") for _ in range(1000))
    assert limiter.wait("a") == 0


def test_asking_costs_nothing() -> None:
    limiter = RateLimiter(60, 1, clock=Clock())
    assert [limiter.wait("a") for _ in range(5)] == [0] * 5
    assert limiter.take("a") == 0
    assert limiter.wait("a") == 1


def test_a_clock_that_goes_back_gives_nothing() -> None:
    clock = Clock()
    limiter = RateLimiter(60, 1, clock=clock)
    limiter.take("a")
    clock.now -= 100
    assert limiter.take("a") == 1


def test_memory_is_bounded_and_the_busy_are_remembered() -> None:
    clock = Clock()
    limiter = RateLimiter(60, 1, clock=clock, max_keys=10)
    for number in range(100):
        limiter.take("busy")
        limiter.take(str(number))
    assert len(limiter._buckets) == 10
    assert limiter.take("busy") > 0


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="per_minute"):
        RateLimiter(rate, 1, clock=Clock())


@given(st.lists(st.floats(0, 30), max_size=100))
def test_never_more_than_burst_and_rate_allow(gaps: list[float]) -> None:
    clock = Clock()
    limiter = RateLimiter(30, 4, clock=clock)
    taken = 0
    for gap in gaps:
        clock.now += gap
        taken += limiter.take("a") == 0
    assert taken <= 4 + sum(gaps) / 2 + 1e-6


def test_the_sentence_rounds_up() -> None:
    assert retry_sentence(0.01) == "rate limited, retry in 1 s"
    assert retry_sentence(1.01) == "rate limited, retry in 2 s"


@pytest.mark.parametrize(
    ("peer", "key"),
    [
        ("192.0.2.7:5075", "192.0.2.7"),
        ("192.0.2.7", "192.0.2.7"),
        ("[2001:db8:1:2:3::4]:5075", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("[fe80::1%eth0]:1", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("[::1]:9", "::1"),
        ("", ""),
        ("a:b:c", "a:b:c"),
    ],
)
def test_a_peer_is_a_machine_not_a_connection(peer: str, key: str) -> None:
    assert peer_key(peer) == key
