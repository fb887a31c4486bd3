"""A monitor's queue: what a slow caller skips, what a server may send ahead, what a lost connection leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from appliance.client.end import ClientEnd
from appliance.client.monitor import FLAPS, Connected, Disconnected, Monitor
from appliance.config.pva import ClientConfig
from appliance.errors import RemoteError
from appliance.pva.status import OK, Status
from appliance.pvdata.pvrequest import PVRequest
from appliance.pvdata.types import FLOAT64, INT32, STRING, StructType
from appliance.pvdata.value import Value

TYPE = StructType((("value", FLOAT64), ("count", INT32)))
VALUE, COUNT = 0b010, 0b100


class Operation:
    """The monitor's operation in the protocol."""

    def __init__(self, kind: StructType, window: int) -> None:
        self.type = kind
        self.window = window
        self.context: object = None
        self.granted: list[int] = []
        self.is_started = self.is_closed = False

    def start(self) -> None:
        self.is_started = True

    def acknowledge(self, count: int) -> None:
        self.granted.append(count)

    def close(self) -> None:
        self.is_closed = True


class Wire:
    """The channel in the protocol."""

    def __init__(self, kind: StructType = TYPE) -> None:
        self.kind = kind

    def operation(self, command: int, request: Value, *, window: int = 0, raw: bool = False) -> Operation:
        return Operation(self.kind, window)


class Link:
    peer = "10.0.0.1:5075"

    def schedule_flush(self) -> None:
        pass


class Channel:
    """As much of a channel as a monitor uses."""

    def __init__(self) -> None:
        self.name = "pv"
        self.end = ClientEnd(ClientConfig())
        self.end.start(asyncio.get_running_loop())
        self.link = Link()
        self.wire = Wire()
        self.removed = 0

    def remove(self, request: Monitor) -> None:
        self.removed += 1


def monitor(**options: Any) -> Monitor:
    options = {"queue_size": 3, "pipeline": False, "notify": False, "on_update": None} | options
    made = Monitor(Channel(), PVRequest("").value, **options)  # type: ignore[arg-type]
    made.start()
    made.ready(OK)
    return made


def store(value: float) -> list[Any]:
    return Value(TYPE, {"value": value}).store


async def numbers(made: Monitor, count: int) -> list[float]:
    return [(await anext(made))["value"] for _ in range(count)]


async def test_updates_come_in_order_and_are_complete():
    made = monitor()
    assert made.operation.is_started
    for value in (1.0, 2.0):
        made.update(VALUE, store(value), 0)
    assert await numbers(made, 2) == [1.0, 2.0]


async def test_a_slow_caller_skips_values_in_between_and_never_the_latest():
    made = monitor()
    for value in range(10):
        made.update(VALUE if value % 2 else COUNT, store(float(value)), 0)
    assert made.squashed == 7
    assert await numbers(made, 2) == [0.0, 1.0]
    last = await anext(made)
    assert last["value"] == 9.0
    assert last.changed == VALUE | COUNT


async def test_what_the_server_merged_is_counted():
    made = monitor()
    made.update(VALUE, store(1.0), VALUE)
    assert made.overruns == 1


async def test_with_a_pipeline_the_server_is_granted_half_a_queue_at_a_time():
    made = monitor(queue_size=4, pipeline=True)
    assert made.operation.window == 4
    for value in range(4):
        made.update(VALUE, store(float(value)), 0)
    assert made.operation.granted == []
    await numbers(made, 4)
    assert made.operation.granted == [2, 2]


async def test_a_new_connection_is_not_granted_room_for_what_the_former_one_brought():
    made = monitor(queue_size=4, pipeline=True)
    for value in range(4):
        made.update(VALUE, store(float(value)), 0)
    made.disconnected("cut")
    made.start()
    await numbers(made, 4)
    assert made.operation.granted == []


async def test_lost_connections_are_told_to_who_asks_for_it():
    made = monitor(notify=True)
    made.update(VALUE, store(1.0), 0)
    made.disconnected("cut")
    made.start()
    made.ready(OK)
    assert await anext(made) == Connected("10.0.0.1:5075")
    assert (await anext(made))["value"] == 1.0
    assert await anext(made) == Disconnected("cut")
    assert await anext(made) == Connected("10.0.0.1:5075")


async def test_a_connection_that_comes_and_goes_fills_no_memory():
    made = monitor(notify=True)
    for _ in range(1000):
        made.disconnected("cut")
        made.start()
        made.ready(OK)
    assert len(made._queue) == made.queue_size + FLAPS


async def test_a_value_of_another_type_is_not_merged_with_the_one_before():
    made = monitor(queue_size=2)
    for value in range(2):
        made.update(VALUE, store(float(value)), 0)
    other = StructType((("value", STRING),))
    made.disconnected("cut")
    made.channel.wire = Wire(other)  # type: ignore[assignment]
    made.start()
    made.update(0b10, Value(other, {"value": "text"}).store, 0)
    assert [(await anext(made))["value"] for _ in range(3)] == [0.0, 1.0, "text"]


@pytest.mark.parametrize(
    ("status", "why"), [(OK, None), (Status.error("the PV is gone"), "pv: the PV is gone")]
)
async def test_the_servers_end_of_a_monitor_is_told_after_the_last_value(status, why):
    made = monitor()
    made.update(VALUE, store(1.0), 0)
    made.finished(status)
    assert await numbers(made, 1) == [1.0]
    if why is None:
        with pytest.raises(StopAsyncIteration):
            await anext(made)
    else:
        with pytest.raises(RemoteError, match=why):
            await anext(made)
    assert made.channel.removed == 1  # type: ignore[attr-defined]


async def test_who_waits_when_the_monitor_is_closed_waits_no_longer():
    made = monitor()
    operation = made.operation
    waiting = asyncio.ensure_future(anext(made))
    await asyncio.sleep(0)
    made.close()
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert operation.is_closed


async def test_a_defect_of_the_callers_function_harms_nobody(caplog):
    told: list[object] = []

    def take(item: object) -> None:
        told.append(item)
        raise RuntimeError("a defect of the caller")

    made = monitor(on_update=take)
    made.update(VALUE, store(1.0), 0)
    made.finished(Status.error("the PV is gone"))
    assert [type(item) for item in told] == [Value, RemoteError]
    assert "a defect of the caller" in caplog.text
