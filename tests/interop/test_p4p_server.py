"""Our client against p4p's server (PVXS)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from appliance.client import Connected, Context, Disconnected
from appliance.errors import ChannelClosedError, OperationTimeoutError, RemoteError
from appliance.pvdata.types import FLOAT64, ArrayType, StructType
from appliance.pvdata.value import Value
from tests.helpers.ours import client_config
from tests.helpers.peers import Peer, server_environment
from tests.helpers.ports import free_port

pytestmark = pytest.mark.interop
SIZE = 1_048_576


@pytest.fixture(scope="module")
def udp() -> int:
    return free_port()


@pytest.fixture(scope="module")
def peer(udp: int) -> Iterator[Peer]:
    with Peer("p4p_server.py", environ=server_environment(udp)) as peer:
        yield peer


@pytest.fixture
async def ctx(peer: Peer, udp: int) -> AsyncIterator[Context]:
    async with Context(client_config(udp)) as ctx:
        yield ctx


async def test_get_finds_the_pv_and_reads_all_its_fields(ctx: Context) -> None:
    value = await ctx.get("p4p:double")
    assert value["value"] == 1.5
    assert value.type.id == "epics:nt/NTScalar:1.0"
    assert "valueAlarm.hysteresis" in value


async def test_get_honours_the_fields_of_the_request(ctx: Context) -> None:
    value = await ctx.get("p4p:int", "field(timeStamp)")
    assert not value.is_marked("value")
    assert value["value"] == 0
    assert (await ctx.get("p4p:int", "field(value)")).is_marked("value")


async def test_put_is_seen_by_the_next_get(ctx: Context) -> None:
    await ctx.put("p4p:int", -7)
    assert (await ctx.get("p4p:int"))["value"] == -7


async def test_put_with_get_lets_a_function_change_what_is_there(ctx: Context) -> None:
    await ctx.put("p4p:int", 5)

    def increment(present: Value) -> Value:
        present["value"] = present["value"] + 1
        return present

    await ctx.put("p4p:int", increment, get=True)
    assert (await ctx.get("p4p:int"))["value"] == 6


async def test_a_refused_put_tells_the_reason_of_the_server(ctx: Context) -> None:
    with pytest.raises(RemoteError, match="interlock is active"):
        await ctx.put("p4p:refusing", 1.0)


async def test_utf8_text_goes_both_ways(ctx: Context) -> None:
    assert (await ctx.get("p4p:string"))["value"] == "grüße ☃ 日本 🚀"
    await ctx.put("p4p:string", "žluťoučký 🐎")
    assert (await ctx.get("p4p:string"))["value"] == "žluťoučký 🐎"
    assert list((await ctx.get("p4p:strings"))["value"]) == ["ä", "", "z" * 300]


async def test_arrays_of_eight_megabytes_go_both_ways(ctx: Context) -> None:
    value = (await ctx.get("p4p:big", timeout=30))["value"]
    assert np.array_equal(value, np.arange(SIZE, dtype=float))
    await ctx.put("p4p:big", {"value": np.arange(SIZE, dtype=float) * 2}, timeout=30)
    value = (await ctx.get("p4p:big", timeout=30))["value"]
    assert value[-1] == 2 * (SIZE - 1)


async def test_enumerations_are_written_by_number_and_by_text(ctx: Context) -> None:
    assert (await ctx.get("p4p:enum"))["value"].to_dict() == {"index": 1, "choices": ["OFF", "ON", "BROKEN"]}
    await ctx.put("p4p:enum", "BROKEN")
    assert (await ctx.get("p4p:enum"))["value.index"] == 2
    await ctx.put("p4p:enum", 0)
    assert (await ctx.get("p4p:enum"))["value.index"] == 0


async def test_tables_are_read_and_written(ctx: Context) -> None:
    assert (await ctx.get("p4p:table"))["value"].to_dict() == {
        "name": ["q1", "q2"],
        "current": [1.5, 2.0],
        "turns": [10, 20],
    }
    await ctx.put("p4p:table", {"value": {"name": ["s"], "current": [3.5], "turns": [1]}})
    assert (await ctx.get("p4p:table"))["value.current"].tolist() == [3.5]


async def test_images_keep_the_union_of_their_pixels(ctx: Context) -> None:
    image = await ctx.get("p4p:image")
    assert image["value"].name == "ushortValue"
    assert image["value"].value.tolist() == list(range(12))
    assert [item["size"] for item in image["dimension"]] == [4, 3]
    await ctx.put("p4p:image", {"value": {"floatValue": np.array([1.5, 2.5], dtype="f4")}})
    image = await ctx.get("p4p:image")
    assert image["value"].name == "floatValue"
    assert image["value"].value.tolist() == [1.5, 2.5]


async def test_struct_arrays_unions_and_any_are_read_and_written(ctx: Context) -> None:
    odd = (await ctx.get("p4p:odd")).to_dict()
    assert odd["points"] == [{"x": 1.0, "label": "a"}, {"x": 2.0, "label": "b"}]
    assert odd["choice"] == {"text": "ü"}
    assert odd["choices"] == [{"number": 7}, {"text": "t"}]
    assert odd["anything"] == 2.5
    assert odd["anythings"] == [1, "two"]
    assert odd["flags"] == [True, False]
    assert (odd["small"], odd["huge"]) == (-3, 2**63 + 1)
    await ctx.put(
        "p4p:odd",
        {
            "points": [{"x": 9.0, "label": "ß"}],
            "choice": {"point": {"x": 4.5}},
            "choices": [{"text": "only"}],
            "anything": "text",
            "anythings": [],
        },
    )
    odd = (await ctx.get("p4p:odd")).to_dict()
    assert odd["points"] == [{"x": 9.0, "label": "ß"}]
    assert odd["choice"] == {"point": {"x": 4.5}}
    assert odd["choices"] == [{"text": "only"}]
    assert (odd["anything"], odd["anythings"]) == ("text", [])


async def test_rpc_returns_the_result_and_the_errors_of_the_service(ctx: Context) -> None:
    result = await ctx.rpc("p4p:call:add", {"lhs": 1.5, "rhs": 2})
    assert result is not None
    assert result["value"] == 3.5
    with pytest.raises(RemoteError, match="cannot: busy"):
        await ctx.rpc("p4p:call:fail", {"why": "busy"})


async def test_info_tells_the_type_and_the_server(ctx: Context, peer: Peer) -> None:
    info = await ctx.info("p4p:array")
    assert isinstance(info.type, StructType)
    assert dict(info.type.fields)["value"] == ArrayType(FLOAT64)
    assert info.server == f"127.0.0.1:{peer.ready['tcp']}"


async def test_monitor_starts_with_the_present_value_and_follows(ctx: Context, peer: Peer) -> None:
    await ctx.put("p4p:array", [0.0])
    async with ctx.monitor("p4p:array") as updates:
        assert (await anext(updates))["value"].tolist() == [0.0]
        await peer.do("post", pv="array", value=[3.0, 4.0])
        update = await anext(updates)
        assert update["value"].tolist() == [3.0, 4.0]
        assert update.is_marked("value")
        assert not update.is_marked("alarm")


async def test_a_slow_reader_gets_the_latest_value(ctx: Context, peer: Peer) -> None:
    await ctx.put("p4p:int", 0)
    async with ctx.monitor("p4p:int") as updates:
        assert (await anext(updates))["value"] == 0
        await peer.do("post", pv="int", value=1, count=2000)
        await ctx.get("p4p:int")  # the server answers in order: all updates it wants to send are here
        seen = []
        async for update in updates:
            seen.append(update["value"])
            if seen[-1] == 2000:
                break
        assert seen == sorted(seen)
        assert len(seen) < 2000


async def test_a_pipelined_monitor_loses_nothing_that_the_server_kept(ctx: Context, peer: Peer) -> None:
    await ctx.put("p4p:int", 0)
    async with ctx.monitor("p4p:int", "record[queueSize=64,pipeline=true]") as updates:
        assert (await anext(updates))["value"] == 0
        await peer.do("post", pv="int", value=1, count=50)
        seen = [(await anext(updates))["value"] for _ in range(50)]
        assert seen == list(range(1, 51))
        assert updates.squashed == 0


async def test_a_pipelined_monitor_that_is_read_slowly_stops_the_server_not_the_client(
    ctx: Context, peer: Peer
) -> None:
    await ctx.put("p4p:int", 0)
    async with ctx.monitor("p4p:int", "record[queueSize=4,pipeline=true]") as updates:
        last = (await anext(updates))["value"]
        for round_ in range(1, 20):
            # PVXS notices an acknowledgement with the next post, not by itself: one update for each is sure.
            await peer.do("post", pv="int", value=round_ * 1000, count=100)
            await ctx.get("p4p:int")
            assert len(updates._queue) <= 4
            value = (await anext(updates))["value"]
            assert value > last
            last = value
        assert updates.squashed == 0


async def test_a_server_that_reopens_a_pv_with_another_value_is_followed(ctx: Context, peer: Peer) -> None:
    async with ctx.monitor("p4p:array", notify=True) as updates:
        assert isinstance(await anext(updates), Connected)
        await anext(updates)
        await peer.do("reopen", pv="array", value=[8.0])
        while True:
            update = await anext(updates)
            if isinstance(update, Value) and update["value"].tolist() == [8.0]:
                break
    assert (await ctx.get("p4p:array"))["value"].tolist() == [8.0]


async def test_the_list_of_a_server_is_had_from_its_own_pv(ctx: Context, peer: Peer) -> None:
    names = await ctx.rpc("server", {"op": "channels"}, server=("127.0.0.1", peer.ready["tcp"], False))
    assert names is not None
    assert "p4p:double" in names["value"]


async def test_discovery_finds_the_server(ctx: Context, peer: Peer) -> None:
    async with asyncio.timeout(30):
        async for found in ctx.discover():
            assert found.online
            assert found.server == f"127.0.0.1:{peer.ready['tcp']}"
            assert len(found.guid) == 12
            break


async def test_a_name_that_nobody_serves_times_out_and_says_so(ctx: Context) -> None:
    with pytest.raises(OperationTimeoutError, match=r"p4p:none: timeout after 0\.2 s: no server answered"):
        await ctx.get("p4p:none", timeout=0.2)


async def test_a_batch_tells_good_and_bad_apart(ctx: Context) -> None:
    await ctx.get(["p4p:double", "p4p:enum"])
    values = await ctx.get(
        ["p4p:double", "p4p:none", "p4p:enum"], "value", timeout=3.0, return_exceptions=True
    )
    assert values[0]["value"] == 1.5
    assert isinstance(values[1], OperationTimeoutError)
    assert "value.index" in values[2]


async def test_tcp_name_server_replaces_the_search_by_udp(peer: Peer) -> None:
    config = client_config(name_servers=f"127.0.0.1:{peer.ready['tcp']}")
    async with Context(config, beacons=False) as ctx:
        assert (await ctx.get("p4p:double"))["value"] == 1.5


async def test_a_monitor_outlives_the_restart_of_the_server() -> None:
    udp = free_port()
    async with Context(client_config(udp)) as ctx:
        with Peer("p4p_server.py", environ=server_environment(udp)) as first:
            updates = ctx.monitor("p4p:int", notify=True)
            assert await anext(updates) == Connected(f"127.0.0.1:{first.ready['tcp']}")
            assert (await anext(updates))["value"] == 42
            first.kill()
            assert isinstance(await anext(updates), Disconnected)
        with Peer("p4p_server.py", environ=server_environment(udp)) as second:
            async with asyncio.timeout(30):
                assert await anext(updates) == Connected(f"127.0.0.1:{second.ready['tcp']}")
                assert (await anext(updates))["value"] == 42
                assert (await ctx.get("p4p:int"))["value"] == 42
        updates.close()


async def test_what_waits_when_the_context_closes_is_told(peer: Peer, udp: int) -> None:
    ctx = Context(client_config(udp), beacons=False)
    await ctx.start()
    waiting = asyncio.ensure_future(ctx.get("p4p:none", timeout=None))
    await ctx.get("p4p:double")
    await ctx.close()
    with pytest.raises(ChannelClosedError):
        await waiting
