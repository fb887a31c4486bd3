"""The queue of a subscription of p4p's clients that has a limit of its rate, on a clock of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from appliance.client.end import ClientEnd
from appliance.client.monitor import Monitor
from appliance.config.pva import ClientConfig
from appliance.p4p._errors import Disconnected
from appliance.p4p.client._feed import Feed
from appliance.p4p.client._requests import Request
from appliance.pva.status import OK
from appliance.pvdata.pvrequest import PVRequest, request_options
from appliance.pvdata.value import Value
from tests.helpers.clock import FakeClock
from tests.unit.client.test_monitor import VALUE, Channel, store


class Bench(Channel):
    """A feed of ten values per second; it is its own client and its own reader."""

    def __init__(self, request: str) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.end = ClientEnd(ClientConfig())
        self.end.start(asyncio.get_running_loop(), self.clock)
        self.told = 0
        value = PVRequest(request).value
        asked = Request(request, value, request_options(value))
        self.feed = Feed(self, "pv", asked, lambda function, *args: function(*args), 10.0)
        self.feed.begin(self)  # type: ignore[arg-type]

    def channel(self, name: str) -> Channel:
        return self

    def add(self, request: Monitor[Any]) -> None:
        self.monitor = request
        request.start()
        request.ready(OK)

    def _event(self) -> None:
        self.told += 1

    def send(self, value: float) -> None:
        self.monitor.update(VALUE, store(value), 0)

    def read(self) -> list[Any]:
        found = iter(self.feed.pop, None)
        return [item["value"] if isinstance(item, Value) else item for item in found]


async def test_a_late_reader_gets_the_latest_value_alone():
    bench = Bench("")
    for step in range(10):
        bench.send(float(step))
        bench.clock.advance(0.2)
    assert bench.told == 1
    assert bench.read() == [9.0]


async def test_a_loss_comes_after_the_latest_value():
    bench = Bench("")
    bench.send(1.0)
    assert bench.read() == [1.0]
    bench.send(2.0)
    bench.monitor.disconnected("cut")
    found = bench.read()
    assert found[0] == 2.0
    assert isinstance(found[1], Disconnected)


@pytest.mark.parametrize("step_s", [0.03, 0.2])
async def test_with_a_pipeline_what_the_reader_does_not_get_is_granted_again(step_s):
    bench = Bench("record[queueSize=4,pipeline=true]")
    operation = bench.monitor.operation
    assert operation.window == 4
    for step in range(100):
        bench.send(float(step))
        bench.clock.advance(step_s)
        if not step % 7:
            bench.read()
    assert 96 <= sum(operation.granted) <= 100


async def test_after_its_end_nothing_comes():
    bench = Bench("")
    bench.send(1.0)
    bench.send(2.0)
    bench.feed.close()
    bench.clock.advance(60.0)
    assert bench.read() == []
    assert bench.monitor.operation is None
