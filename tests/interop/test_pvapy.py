"""Both directions with pvapy (pvAccessCPP)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from appliance.client import Connected, Context, Disconnected
from appliance.pvdata.types import INT32, STRING, StructType
from appliance.pvdata.value import Value
from appliance.server import SharedPV
from tests.helpers.ours import client_config, gallery, served, server_config
from tests.helpers.peers import Peer, PeerError, client_environment, server_environment
from tests.helpers.ports import free_port

pytestmark = pytest.mark.interop
SIZE = 1_048_576


@pytest.fixture(scope="module")
def server_udp() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(server_udp: int) -> Iterator[Peer]:
    with Peer("pvapy_server.py", environ=server_environment(server_udp)) as peer:
        yield peer


@pytest.fixture
async def ctx(server: Peer, server_udp: int) -> AsyncIterator[Context]:
    async with Context(client_config(server_udp), beacons=False) as ctx:
        yield ctx


async def test_our_client_reads_every_kind_of_pv(ctx: Context) -> None:
    values = await ctx.get(
        [f"pvapy:{name}" for name in ("double", "string", "enum", "table", "image", "struct")]
    )
    number, text, enum, table, image, struct = values
    assert number["value"] == 1.5
    assert text["value"] == "grüße ☃"
    assert enum["value"].to_dict() == {"index": 1, "choices": ["OFF", "ON"]}
    assert table["value"].to_dict() == {"column0": [1.5, 2.5], "column1": ["q1", "q2"]}
    assert image["value"].name == "ubyteValue"
    assert image["value"].value.tolist() == list(range(12))
    assert [item["size"] for item in image["dimension"]] == [4, 3]
    assert struct.to_dict() == {
        "point": {"x": 2.5, "name": "p"},
        "list": [{"n": 1}, {"n": 2}],
        "any": None,
    }


async def test_a_read_that_is_repeated_gives_the_whole_value_each_time(ctx: Context) -> None:
    """pvAccessCPP answers the second and later reads of one operation with what has changed, often nothing."""
    names = [f"pvapy:{name}" for name in ("double", "enum", "struct")]
    first = [value.to_dict() for value in await ctx.get(names)]
    assert first[1]["value"] == {"index": 1, "choices": ["OFF", "ON"]}
    for _ in range(3):
        assert [value.to_dict() for value in await ctx.get(names)] == first
        assert (await ctx.get("pvapy:double")).to_dict() == first[0]
    await ctx.put("pvapy:enum", "OFF")
    assert (await ctx.get("pvapy:enum"))["value"].to_dict() == {"index": 0, "choices": ["OFF", "ON"]}
    await ctx.put("pvapy:enum", "ON")
    assert (await ctx.get("pvapy:enum"))["value"].to_dict() == first[1]["value"]


async def test_our_client_writes(ctx: Context) -> None:
    await ctx.put("pvapy:double", 7.25)
    assert (await ctx.get("pvapy:double"))["value"] == 7.25
    await ctx.put("pvapy:enum", "OFF")
    assert (await ctx.get("pvapy:enum"))["value.index"] == 0
    await ctx.put("pvapy:struct", {"point": {"name": "ž"}, "list": [{"n": 5}]})
    struct = (await ctx.get("pvapy:struct")).to_dict()
    assert struct["point"] == {"x": 2.5, "name": "ž"}
    assert struct["list"] == [{"n": 5}]


async def test_our_client_moves_eight_megabytes_both_ways(ctx: Context) -> None:
    value = (await ctx.get("pvapy:big", timeout=30))["value"]
    assert np.array_equal(value, np.arange(SIZE, dtype=float))
    await ctx.put("pvapy:big", {"value": np.arange(SIZE, dtype=float) + 1}, timeout=30)
    assert (await ctx.get("pvapy:big", timeout=30))["value"][-1] == SIZE


async def test_our_client_calls(ctx: Context) -> None:
    result = await ctx.rpc("pvapy:add", {"lhs": 1.0, "rhs": 2.5})
    assert result is not None
    assert result["value"] == 3.5


async def test_our_client_learns_the_type(ctx: Context) -> None:
    info = await ctx.info("pvapy:struct")
    assert isinstance(info.type, StructType)
    assert info.type.leaf_types[info.type.offsets["point.name"]] == STRING
    field = await ctx.info("pvapy:array", "value")
    assert field.type.element == INT32  # type: ignore[attr-defined]


async def test_our_monitor_follows(ctx: Context, server: Peer) -> None:
    # One post at a time: this server loses the end of a burst, whoever the client is.
    await ctx.put("pvapy:double", 0.0)
    async with ctx.monitor("pvapy:double") as updates:
        while (await anext(updates))["value"] != 0.0:
            pass
        for value in range(1, 30):
            await server.do("post", pv="double", value=float(value))
            assert (await anext(updates))["value"] == value


async def test_our_pipelined_monitor_begins(ctx: Context) -> None:
    # No more than its beginning: this server repeats itself and stalls in a pipeline, whoever the client is.
    await ctx.put("pvapy:double", 4.0)
    async with ctx.monitor("pvapy:double", "record[queueSize=8,pipeline=true]") as updates:
        assert (await anext(updates))["value"] == 4.0


async def test_our_discovery_finds_the_server(ctx: Context) -> None:
    async with asyncio.timeout(30):
        async for found in ctx.discover():
            assert found.online
            assert found.server.startswith("127.0.0.1:")
            break


async def test_our_monitor_outlives_a_restart() -> None:
    udp = free_port()
    async with Context(client_config(udp)) as ctx:
        with Peer("pvapy_server.py", environ=server_environment(udp)) as first:
            updates = ctx.monitor("pvapy:double", notify=True)
            assert isinstance(await anext(updates), Connected)
            assert (await anext(updates))["value"] == 1.5
            first.kill()
            assert isinstance(await anext(updates), Disconnected)
        with Peer("pvapy_server.py", environ=server_environment(udp)):
            async with asyncio.timeout(30):
                assert isinstance(await anext(updates), Connected)
                assert (await anext(updates))["value"] == 1.5
        updates.close()


# -- their client, our server --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client_udp() -> int:
    return free_port()


@pytest.fixture(scope="module")
def client(client_udp: int) -> Iterator[Peer]:
    with Peer("pvapy_client.py", environ=client_environment(client_udp)) as peer:
        yield peer


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name}:"


@pytest.fixture
async def pvs(client: Peer, client_udp: int, name: str) -> AsyncIterator[dict[str, SharedPV]]:
    pvs = gallery(name)
    async with served(pvs, config=server_config(client_udp)):
        yield {pv.rpartition(":")[2]: handler for pv, handler in pvs.items()}
        client.events.clear()


def updates_of(pv: str) -> Any:
    return lambda event: event["event"] == "update" and event["pv"] == pv


async def test_their_client_reads_every_kind_of_pv(client: Peer, pvs: dict[str, SharedPV], name: str) -> None:
    assert (await client.do("get", pv=name + "double"))["value"] == 1.5
    assert (await client.do("get", pv=name + "double", request="field(value)"))["value"] == 1.5
    assert (await client.do("get", pv=name + "string"))["value"] == "grüße ☃ 日本 🚀"
    assert (await client.do("get", pv=name + "strings"))["value"] == ["ä", "", "z" * 300]
    assert (await client.do("get", pv=name + "enum"))["value"] == {
        "index": 1,
        "choices": ["OFF", "ON", "BROKEN"],
    }
    assert (await client.do("get", pv=name + "table"))["value"] == {
        "name": ["q1", "q2"],
        "current": [1.5, 2.0],
    }
    assert "ushortValue" in str((await client.do("get", pv=name + "image"))["value"])


async def test_their_client_writes(client: Peer, pvs: dict[str, SharedPV], name: str) -> None:
    await client.do("put", pv=name + "double", value=2.5)
    assert pvs["double"].current["value"] == 2.5
    await client.do("put", pv=name + "string", value="žluťoučký 🐎")
    assert pvs["string"].current["value"] == "žluťoučký 🐎"
    with pytest.raises(PeerError, match="interlock is active"):
        await client.do("put", pv=name + "refusing", value=1.0)


async def test_their_put_get_returns_what_the_pv_holds_afterwards(
    client: Peer, pvs: dict[str, SharedPV], name: str
) -> None:
    assert (await client.do("put_get", pv=name + "int", value=9))["value"] == 9
    assert pvs["int"].current["value"] == 9


async def test_their_client_moves_eight_megabytes_both_ways(
    client: Peer, pvs: dict[str, SharedPV], name: str
) -> None:
    value = (await client.do("get", pv=name + "big"))["value"]
    assert (value["size"], value["last"]) == (SIZE, SIZE - 1.0)
    await client.do("put_big", pv=name + "array", count=SIZE)
    assert np.array_equal(pvs["array"].current["value"], np.arange(SIZE, dtype=float))


async def test_their_client_learns_the_type(client: Peer, pvs: dict[str, SharedPV], name: str) -> None:
    kind = await client.do("typeof", pv=name + "odd")
    assert kind["points"] == [{"x": "DOUBLE", "label": "STRING"}]


async def test_their_client_calls(client: Peer, pvs: dict[str, SharedPV], name: str) -> None:
    assert (await client.do("rpc", pv=name + "add", lhs=1.5, rhs=2.0))["value"] == 3.5


@pytest.mark.parametrize("request_", ["field()", "record[queueSize=8,pipeline=true]field()"])
async def test_their_monitor_follows_to_the_latest_value(
    client: Peer, client_udp: int, request_: str
) -> None:
    pvs = gallery(f"mon{len(request_)}:")
    name = f"mon{len(request_)}:int"
    async with served(pvs, config=server_config(client_udp)):
        await client.do("monitor", pv=name, request=request_)
        assert (await client.saw(updates_of(name)))["value"]["value"] == 42
        for value in range(100, 600):
            pvs[name].post(value)
            if value % 20 == 0:
                await asyncio.sleep(0)
        last = 42
        while last != 599:
            value = (await client.saw(updates_of(name)))["value"]["value"]
            assert value > last
            last = value
        await client.do("unmonitor", pv=name)


async def test_their_monitor_outlives_a_restart_of_our_server(client: Peer, client_udp: int) -> None:
    first = gallery("again:")
    async with served(first, config=server_config(client_udp)):
        await client.do("monitor", pv="again:int", connection=True)
        await client.saw(updates_of("again:int"))
    await client.saw(lambda event: event["event"] == "connection" and not event["connected"])
    second = gallery("again:")
    value: Value = second["again:int"].current
    value["value"] = 43
    second["again:int"].post(value)
    config = server_config(client_udp, beacon_addr_list="127.0.0.1", beacon_period=0.2)
    async with served(second, config=config):
        assert (await client.saw(updates_of("again:int")))["value"]["value"] == 43
    await client.do("unmonitor", pv="again:int")
