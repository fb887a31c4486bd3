"""Our client against an IOC: EPICS Base's records served by QSRV2."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from appliance.client import Connected, Context, Disconnected
from appliance.errors import AccessDeniedError, RemoteError
from appliance.pvdata.types import StructType
from tests.helpers.ours import client_config
from tests.helpers.peers import Peer, server_environment
from tests.helpers.ports import free_port

pytestmark = pytest.mark.interop
DATA = Path(__file__).parent / "data"
SIZE = 1_048_576


def ioc(udp: int) -> Peer:
    return Peer(
        "qsrv_ioc.py", str(DATA / "interop.db"), str(DATA / "interop.acf"), environ=server_environment(udp)
    )


@pytest.fixture(scope="module")
def udp() -> int:
    return free_port()


@pytest.fixture(scope="module")
def peer(udp: int) -> Iterator[Peer]:
    with ioc(udp) as peer:
        yield peer


@pytest.fixture
async def ctx(peer: Peer, udp: int) -> AsyncIterator[Context]:
    async with Context(client_config(udp), beacons=False) as ctx:
        yield ctx


async def test_a_record_comes_with_its_meta_data(ctx: Context) -> None:
    value = await ctx.get("ioc:ao")
    assert value["display.description"] == "Setpoint"
    assert value["display.units"] == "mm"
    assert value["display.precision"] == 3
    assert value["valueAlarm.highAlarmLimit"] == 90.0
    assert (await ctx.get("ioc:ao.DESC"))["value"] == "Setpoint"


async def test_a_put_processes_the_record_and_what_is_linked_to_it(ctx: Context) -> None:
    await ctx.put("ioc:ao", 4.0, "record[block=true]")
    assert (await ctx.get("ioc:double"))["value"] == 8.0


async def test_an_alarm_limit_raises_the_severity_and_a_monitor_tells(ctx: Context) -> None:
    await ctx.put("ioc:ao", 1.0)
    async with ctx.monitor("ioc:ao") as updates:
        assert (await anext(updates))["alarm.severity"] == 0
        await ctx.put("ioc:ao", 95.0)
        update = await anext(updates)
        assert (update["value"], update["alarm.severity"]) == (95.0, 2)
    assert (await ctx.get("ioc:double"))["alarm.severity"] == 2


async def test_enumerations_and_texts_are_written(ctx: Context) -> None:
    await ctx.put("ioc:enum", "BROKEN")
    assert (await ctx.get("ioc:enum"))["value.index"] == 2
    await ctx.put("ioc:string", "grüße")
    assert (await ctx.get("ioc:string"))["value"] == "grüße"
    await ctx.put("ioc:long_string.VAL$", {"value": np.frombuffer(b"x" * 150, dtype="i1")})
    assert bytes((await ctx.get("ioc:long_string.VAL$"))["value"])[:151] == b"x" * 150 + b"\0"[:1]


async def test_waveforms_of_eight_megabytes_go_both_ways(ctx: Context) -> None:
    await ctx.put("ioc:wave", {"value": np.arange(SIZE, dtype=float)}, timeout=30)
    value = (await ctx.get("ioc:wave", timeout=30))["value"]
    assert np.array_equal(value, np.arange(SIZE, dtype=float))


async def test_a_group_is_one_structure_and_is_written_as_one(ctx: Context) -> None:
    info = await ctx.info("ioc:grp")
    assert isinstance(info.type, StructType)
    assert info.type.id == "test:point"
    await ctx.put("ioc:grp", {"x.value": 10.0, "y.value": 20.0})
    value = await ctx.get("ioc:grp")
    assert (value["x.value"], value["y.value"]) == (10.0, 20.0)
    async with ctx.monitor("ioc:grp") as updates:
        await anext(updates)
        await ctx.put("ioc:grp:x", 11.0)
        assert (await anext(updates))["x.value"] == 11.0


async def test_a_refusal_of_access_security_is_an_error_of_its_own(ctx: Context) -> None:
    assert (await ctx.get("ioc:locked"))["value"] == 3.0
    with pytest.raises(AccessDeniedError):
        await ctx.put("ioc:locked", 4.0)
    assert (await ctx.get("ioc:locked"))["value"] == 3.0


async def test_a_field_that_takes_no_puts_says_so(ctx: Context) -> None:
    with pytest.raises(RemoteError):
        await ctx.put("ioc:ao.NAME", "other")


async def test_thousand_gets_at_once_are_answered(ctx: Context) -> None:
    values = await ctx.get(["ioc:counter", "ioc:locked"] * 500, "value")
    assert [value["value"] for value in values] == [7, 3.0] * 500


async def test_the_records_are_listed(ctx: Context) -> None:
    server = (await ctx.info("ioc:ao")).server
    host, _, port = server.rpartition(":")
    names = await ctx.rpc("server", {"op": "channels"}, server=(host, int(port), False))
    assert names is not None
    assert {"ioc:ao", "ioc:grp"} <= set(names["value"])


async def test_a_monitor_outlives_the_restart_of_the_ioc() -> None:
    udp = free_port()
    async with Context(client_config(udp)) as ctx:
        with ioc(udp) as first:
            updates = ctx.monitor("ioc:ao", notify=True)
            assert isinstance(await anext(updates), Connected)
            await anext(updates)
            first.kill()
            while not isinstance(await anext(updates), Disconnected):
                pass
        with ioc(udp):
            async with asyncio.timeout(30):
                assert isinstance(await anext(updates), Connected)
                assert (await anext(updates))["value"] == 1.5
        updates.close()
