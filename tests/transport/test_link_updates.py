"""Updates of PVs that an IOC's links read from another server: over a real connection, with a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from appliance.client import Context
from appliance.ioc.links.channel import ChannelKey, LinkChannel
from appliance.ioc.links.remote import RemoteSource
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.types import FLOAT64, INT32, STRING, StructType
from appliance.pvdata.value import Value
from appliance.server import SharedPV
from tests.helpers.live import until
from tests.helpers.ours import client_of, served


class Loop:
    """What a channel asks of the IOC: its links have no records here."""

    def push(self, work: Any) -> None:
        """Do nothing."""

    def on_loop(self, function: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(function)


@asynccontextmanager
async def followed(context: Context, name: str) -> AsyncIterator[tuple[LinkChannel, list[Value]]]:
    """The channel of links to a PV, and the values that it gets."""
    channel = LinkChannel(ChannelKey(name, 32, False, False), Loop())  # type: ignore[arg-type]
    values: list[Value] = []
    take = channel.take

    def taken(item: Any) -> None:
        take(item)
        values.append(Value.from_store(item.kind, list(item.store)))

    channel.take = taken  # type: ignore[method-assign]
    source = channel.source = RemoteSource(channel, context)
    source.start()
    try:
        await until(lambda: values)
        yield channel, values
    finally:
        source.close()


async def test_updates_with_other_fields_in_one_read_keep_their_order() -> None:
    """As an IOC sends them: an alarm comes, goes, and comes, and marks other fields than a plain number."""
    kind = NTScalar(FLOAT64)
    pv = SharedPV(Value(kind, 0.0))

    def post(number: float, severity: int | None = None) -> None:
        changed = Value(kind)
        changed["value"] = number
        changed["timeStamp.secondsPastEpoch"] = int(number)
        if severity is not None:
            changed["alarm.severity"] = severity
        pv.post(changed)

    async with served({"pv": pv}) as server, client_of(server) as context:
        async with followed(context, "pv") as (_, values):
            number = 0.0
            for _ in range(20):
                alarms = [None, 2, None, 0, None, None, 1, 0, None]
                for severity in alarms:
                    number += 1
                    post(number, severity)
                await until(lambda: values[-1]["value"] == number)  # noqa: B023
            assert [value["value"] for value in values] == [float(each) for each in range(181)]


async def test_an_update_is_read_by_its_own_fields_whatever_follows_it() -> None:
    kind = StructType(
        (("value", INT32), ("other", INT32), *((f"text{each}", STRING) for each in range(12))), "t:1"
    )
    pv = SharedPV(Value(kind))

    def post(**fields: Any) -> None:
        changed = Value(kind)
        for name, value in fields.items():
            changed[name] = value
        pv.post(changed)

    async with served({"pv": pv}) as server, client_of(server) as context:
        async with followed(context, "pv") as (channel, values):
            post(value=1)
            await until(lambda: values[-1]["value"] == 1)
            for each in range(7):
                post(**{f"text{each}": "x"})
                await until(lambda: values[-1][f"text{each}"] == "x")  # noqa: B023
            # More kinds of updates than are remembered, and two of fixed size after each other.
            post(text7="y")
            post(value=2)
            post(other=77)
            await until(lambda: values[-1]["other"] == 77)
            for number in (3, 4, 5):
                post(value=number)
                await until(lambda: values[-1]["value"] == number)  # noqa: B023
            assert [(value["value"], value["other"]) for value in values[-6:]] == [
                (1, 0), (2, 0), (2, 77), (3, 77), (4, 77), (5, 77)
            ]  # fmt: skip
            assert not channel.disconnects


async def test_an_update_that_cannot_be_used_ends_its_own_subscription_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("appliance.ioc.links.remote._RETRY_S", 0.05)
    kind = NTScalar(FLOAT64)
    pvs = {name: SharedPV(Value(kind, 0.0)) for name in ("one", "two", "three")}
    async with served(pvs) as server, client_of(server) as context:
        async with (
            followed(context, "one") as (one, ones),
            followed(context, "two") as (two, twos),
            followed(context, "three") as (three, threes),
        ):
            take = two.take
            two.take = lambda _: 1 / 0  # type: ignore[method-assign,assignment,return-value]
            for number in (1.0, 2.0):
                for pv in pvs.values():
                    pv.post(number)
                await until(lambda: ones[-1]["value"] == threes[-1]["value"] == number)  # noqa: B023
            assert (one.disconnects, three.disconnects) == (0, 0)
            await until(lambda: two.disconnects)
            two.take = take  # type: ignore[method-assign]
            await until(lambda: twos[-1]["value"] == 2.0)
            (link,) = server.peers
            assert not link.is_closing
    assert "PVA links to two: an update could not be used" in caplog.text
