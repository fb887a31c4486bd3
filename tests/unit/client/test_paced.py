"""Monitors with a limit of their rate, on a clock of their own: when a value comes, what it brings, what is never lost."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from appliance.client.end import ClientEnd
from appliance.client.monitor import Connected, Disconnected
from appliance.client.paced import PacedMonitor, checked_rate
from appliance.config.pva import ClientConfig
from appliance.errors import ChannelClosedError, RemoteError
from appliance.pva.status import OK, Status
from appliance.pvdata.pvrequest import PVRequest
from appliance.pvdata.types import STRING, StructType
from appliance.pvdata.value import Value
from tests.helpers.clock import FakeClock
from tests.unit.client.test_monitor import COUNT, VALUE, Channel, store


class Bench:
    """A monitor of ten values per second, and what its caller gets at which time."""

    def __init__(self, rate: float = 10.0, *, reads: bool = False, **options: Any) -> None:
        self.clock = FakeClock()
        self.began = self.clock.now
        self.channel = Channel()
        self.channel.end = ClientEnd(ClientConfig())
        self.channel.end.start(asyncio.get_running_loop(), self.clock)
        self.got: list[tuple[float, Any]] = []
        options = {"queue_size": 4, "pipeline": False, "notify": False, "on_update": self.take} | options
        if reads:
            options["on_update"] = None
        self.monitor: PacedMonitor[Any] = PacedMonitor(
            self.channel,  # type: ignore[arg-type]
            PVRequest("").value,
            max_rate=rate,
            **options,
        )
        self.connect()

    def connect(self) -> None:
        self.monitor.start()
        self.monitor.ready(OK)

    def take(self, item: Any) -> None:
        shown = item["value"] if isinstance(item, Value) else item
        self.got.append((round(self.clock.now - self.began, 6), shown))

    def send(self, *values: float, bits: int = VALUE) -> None:
        for value in values:
            self.monitor.update(bits, store(value), 0)


async def test_the_first_value_comes_at_once_and_the_latest_when_its_time_has_come():
    bench = Bench()
    bench.send(1.0, 2.0, 3.0)
    assert bench.got == [(0.0, 1.0)]
    bench.clock.advance(0.0999)
    assert bench.got == [(0.0, 1.0)]
    bench.clock.advance(0.1)
    assert bench.got == [(0.0, 1.0), (0.1, 3.0)]
    assert bench.monitor.squashed == 1


async def test_no_second_has_more_values_than_the_rate():
    bench = Bench()
    for step in range(5000):
        bench.send(float(step))
        bench.clock.advance(0.001)
    bench.clock.advance(1.0)
    times = [when for when, _ in bench.got]
    assert len(times) == 51
    assert min(later - sooner for sooner, later in pairwise(times)) >= 0.0999
    assert bench.got[-1][1] == 4999.0


async def test_a_slow_pv_is_not_delayed_and_needs_no_timer():
    bench = Bench()
    for step in range(5):
        bench.send(float(step))
        bench.clock.advance(0.25)
    assert bench.got == [(0.25 * step, float(step)) for step in range(5)]
    assert bench.clock._calls == []


async def test_after_a_quiet_time_the_next_value_comes_at_once():
    bench = Bench()
    bench.send(1.0, 2.0)
    bench.clock.advance(60.0)
    bench.send(3.0)
    assert bench.got == [(0.0, 1.0), (0.1, 2.0), (60.0, 3.0)]


async def test_a_clock_that_calls_too_early_does_not_raise_the_rate():
    bench = Bench(rate=1000.0)
    due = []
    bench.clock.call_at, call_at = (  # type: ignore[method-assign]
        lambda when, call: (due.append(when), call_at(when - 0.0005, call))[1],
        bench.clock.call_at,
    )
    for step in range(101):
        bench.send(float(step), float(step) + 0.5)
        bench.clock.advance(0.0005)
    assert due == sorted(due)
    # Each is called early, but the time of the next counts on from when it was due.
    assert [round(when - bench.began, 6) for when in due[:3]] == [0.001, 0.002, 0.003]


async def test_marks_of_merged_values_are_united():
    values: list[Value] = []
    bench = Bench(on_update=values.append)
    bench.send(1.0)
    bench.send(2.0)
    bench.send(3.0, bits=COUNT)
    bench.clock.advance(0.1)
    assert [value.changed for value in values] == [VALUE, VALUE | COUNT]


async def test_what_the_server_merged_is_counted():
    bench = Bench()
    bench.monitor.update(VALUE, store(1.0), VALUE)
    assert bench.monitor.overruns == 1


async def test_a_loss_is_told_at_once_after_the_latest_value():
    bench = Bench(notify=True)
    bench.send(1.0, 2.0)
    bench.monitor.disconnected("cut")
    bench.connect()
    bench.send(3.0)
    bench.clock.advance(60.0)
    assert bench.got == [
        (0.0, Connected("10.0.0.1:5075")),
        (0.0, 1.0),
        (0.0, 2.0),
        (0.0, Disconnected("cut")),
        (0.0, Connected("10.0.0.1:5075")),
        (0.1, 3.0),
    ]


async def test_a_value_of_another_type_takes_the_place_of_the_one_before():
    bench = Bench()
    bench.send(1.0, 2.0)
    other = StructType((("value", STRING),))
    bench.monitor.operation.type = other
    bench.monitor.update(0b10, Value(other, {"value": "text"}).store, 0)
    bench.clock.advance(1.0)
    assert bench.got == [(0.0, 1.0), (0.1, "text")]


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (lambda monitor: monitor.finished(OK), ChannelClosedError),
        (lambda monitor: monitor.finished(Status.error("gone")), RemoteError),
        (lambda monitor: monitor.fail(ChannelClosedError("closed")), ChannelClosedError),
    ],
)
async def test_the_latest_value_comes_before_the_end(end, error):
    bench = Bench()
    bench.send(1.0, 2.0)
    end(bench.monitor)
    bench.clock.advance(60.0)
    assert bench.got[:2] == [(0.0, 1.0), (0.0, 2.0)]
    assert [type(item) for _, item in bench.got[2:]] == [error]


async def test_nothing_comes_after_the_caller_has_closed_it():
    bench = Bench()
    bench.send(1.0, 2.0)
    bench.monitor.close()
    bench.clock.advance(60.0)
    assert bench.got == [(0.0, 1.0)]


async def test_a_reader_that_was_late_gets_the_latest_and_not_several_at_once():
    bench = Bench(reads=True)
    for step in range(10):
        bench.send(float(step))
        bench.clock.advance(0.1)
    assert bench.monitor.waiting == 1
    assert (await anext(bench.monitor))["value"] == 9.0


async def test_a_reader_gets_news_of_the_connection_in_their_order():
    bench = Bench(reads=True, notify=True)
    bench.send(1.0, 2.0)
    bench.monitor.disconnected("cut")
    found = [await anext(bench.monitor) for _ in range(bench.monitor.waiting)]
    assert found[0] == Connected("10.0.0.1:5075")
    assert found[1]["value"] == 2.0
    assert found[2:] == [Disconnected("cut")]


@pytest.mark.parametrize("reads", [True, False])
async def test_with_a_pipeline_the_server_is_granted_an_update_for_each_that_came(reads):
    bench = Bench(reads=reads, pipeline=True)
    operation = bench.monitor.operation
    assert operation.window == 4
    for step in range(100):
        bench.send(float(step))
        bench.clock.advance(0.03)
        if reads and not step % 7:
            await anext(bench.monitor)
    # All but those that wait, and a part of a window, which is granted with the next ones.
    assert 96 <= sum(operation.granted) <= 100


async def test_a_server_that_was_lost_is_granted_nothing():
    bench = Bench(pipeline=True)
    operation = bench.monitor.operation
    bench.send(1.0, 2.0)
    bench.channel.link = None  # type: ignore[assignment]
    bench.monitor.disconnected("cut")
    assert operation.granted == []
    assert bench.got == [(0.0, 1.0), (0.0, 2.0)]


@pytest.mark.parametrize("rate", [0, -1, 0.0, float("nan"), float("inf"), -float("inf")])
def test_a_rate_that_is_not_above_zero_is_refused(rate):
    with pytest.raises(ValueError, match="max_rate is a number of updates per second above 0, or None"):
        checked_rate(rate, "max_rate")


@pytest.mark.parametrize("rate", ["10", b"10", True, [10], 1j])
def test_a_rate_that_is_no_number_is_refused(rate):
    with pytest.raises(TypeError, match=r"limitHz is a number .* it cannot be (str|bytes|bool|list|complex)"):
        checked_rate(rate, "limitHz")


async def test_a_rate_that_means_never_again_still_gives_the_first_value():
    bench = Bench(rate=5e-324)
    bench.send(1.0, 2.0)
    bench.clock.advance(1e9)
    assert bench.got == [(0.0, 1.0)]


def test_numpys_numbers_are_rates_too():
    assert [checked_rate(kind(10), "max_rate") for kind in (np.float32, np.float64, np.int16)] == [10.0] * 3
    assert checked_rate(None, "max_rate") is None
