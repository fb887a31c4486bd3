"""Our gateway and p4p's in a row, in both orders, between servers and clients of both."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.client import Context
from appliance.pvdata.value import Value
from tests.helpers.gateway_process import p4ps
from tests.helpers.gateways import client_to, gateway_to, server_of
from tests.helpers.ours import client_config, double, gallery, served, server_config
from tests.helpers.peers import Peer, client_environment, server_environment
from tests.helpers.ports import free_port

pytestmark = pytest.mark.interop
SHAPES = ["double", "int", "string", "strings", "array", "big", "enum", "table", "image", "odd"]


@pytest.fixture(scope="module")
def p4p_server() -> Iterator[int]:
    udp = free_port()
    with Peer("p4p_server.py", environ=server_environment(udp)):
        yield udp


async def next_value(updates: Any) -> Any:
    async with asyncio.timeout(30):
        async for item in updates:
            if isinstance(item, Value):
                return item
    raise AssertionError("the subscription ended")


async def test_p4p_s_gateway_behind_ours(p4p_server: int, tmp_path: Path) -> None:
    async with p4ps(tmp_path, p4p_server) as theirs:
        async with gateway_to(theirs.udp) as gateway, client_to(gateway) as client:
            async with Context(client_config(p4p_server), beacons=False) as near:
                for shape in SHAPES:
                    name = f"p4p:{shape}"
                    there = await near.get(name, timeout=30)
                    assert await client.get(name, timeout=30) == there
                    if shape == "odd":
                        continue  # see below
                    async with client.monitor(name) as updates:
                        assert await next_value(updates) == there
                await client.put("p4p:int", 7)
                assert (await near.get("p4p:int"))["value"] == 7
                await client.put("p4p:int", 42)
                answer = await client.rpc("p4p:call:add", {"lhs": 1, "rhs": 2.5})
                assert answer is not None
                assert answer["value"] == 3.5
                info = await client.info("p4p:enum", "value", timeout=30)
                assert info.type.id == "epics:nt/NTEnum:1.0", "PVXS tells the whole type"


async def test_p4p_s_gateway_spoils_updates_of_arrays_of_unions_and_ours_does_not(
    p4p_server: int, tmp_path: Path
) -> None:
    async with gateway_to(p4p_server) as gateway, client_to(gateway) as client:
        async with client.monitor("p4p:odd") as updates:
            assert (await next_value(updates))["choices"][0].value == 7
    async with p4ps(tmp_path, p4p_server) as theirs:
        with Peer("p4p_client.py", environ=client_environment(theirs.udp)) as peer:
            await peer.do("monitor", pv="p4p:odd")
            await peer.saw(lambda event: event["event"] == "disconnected")  # before the first connection
            await peer.saw(lambda event: event["event"] == "disconnected")
            await peer.printed("sends invalid MONITOR")


async def test_p4p_s_gateway_before_ours(tmp_path: Path) -> None:
    pvs = gallery()
    async with served({**pvs}) as server, gateway_to(server) as gateway:
        async with p4ps(tmp_path, server_of(gateway).udp_port) as theirs:
            async with Context(client_config(theirs.udp), beacons=False) as client:
                for shape in SHAPES:
                    name = f"our:{shape}"
                    async with client_to(gateway) as near:
                        there = await near.get(name, timeout=30)
                    assert await client.get(name, timeout=30) == there
                    if shape == "odd":
                        continue  # see above
                    async with client.monitor(name) as updates:
                        assert await next_value(updates) == there
                await client.put("our:double", 7.5)
                assert pvs["our:double"].current["value"] == 7.5
                answer = await client.rpc("our:add", {"lhs": 1, "rhs": 2.5})
                assert answer is not None
                assert answer["value"] == 3.5
            with Peer("p4p_client.py", environ=client_environment(theirs.udp)) as peer:
                assert (await peer.do("get", pv="our:int"))["value"] == 42
                await peer.do("monitor", pv="our:double")
                await peer.saw(lambda event: event["event"] == "update" and event["value"]["value"] == 7.5)
                pvs["our:double"].post(8.5)
                await peer.saw(lambda event: event["event"] == "update" and event["value"]["value"] == 8.5)


async def test_ours_p4p_s_and_ours_and_the_server_is_restarted(tmp_path: Path) -> None:
    udp = free_port()
    async with gateway_to(udp) as inner:
        async with p4ps(tmp_path, server_of(inner).udp_port) as theirs:
            async with gateway_to(theirs.udp) as outer, client_to(outer) as client:
                async with client.monitor("pv", notify=True) as updates:
                    for value in (1.0, 2.0):
                        async with served({"pv": double(value)}, config=server_config(udp)):
                            assert (await next_value(updates))["value"] == value
                            assert (await client.get("pv", timeout=30))["value"] == value


async def test_both_gateways_beside_each_other(p4p_server: int, tmp_path: Path) -> None:
    """A client finds either; when ours stops, it goes on with p4p's."""
    seen: list[Any] = []
    async with p4ps(tmp_path, p4p_server) as theirs:
        async with gateway_to(p4p_server, pva={"broadcast_port": theirs.udp}) as gateway:
            async with Context(client_config(theirs.udp), beacons=False) as client:
                monitor = client.monitor("p4p:string", on_update=seen.append, notify=True)
                async with asyncio.timeout(30):
                    while not any(isinstance(item, Value) for item in seen):
                        await asyncio.sleep(0.02)
                await gateway.stop()
                async with asyncio.timeout(30):
                    assert (await client.get("p4p:string", timeout=30))["value"] == "grüße ☃ 日本 🚀"
                monitor.close()


async def test_p4p_clients_through_ours_to_p4p_servers(p4p_server: int) -> None:
    async with gateway_to(p4p_server) as gateway:
        with Peer("p4p_client.py", environ=client_environment(server_of(gateway).udp_port)) as peer:
            assert (await peer.do("get", pv="p4p:double"))["value"] == 1.5, "the first one is not refused"
            assert (await peer.do("get", pv="p4p:enum"))["value"]["choices"] == ["OFF", "ON", "BROKEN"]
            assert (await peer.do("get", pv="p4p:big"))["value"]["size"] == 1_048_576
            await peer.do("put", pv="p4p:double", value=4.5)
            assert (await peer.do("get", pv="p4p:double"))["value"] == 4.5
            await peer.do("put", pv="p4p:double", value=1.5)
            assert (await peer.do("rpc", pv="p4p:call:add", lhs=1, rhs=2.5))["value"] == 3.5
            await peer.do("monitor", pv="p4p:array", request="field(value)")
            await peer.saw(lambda event: event["event"] == "update" and event["value"]["value"] == [1.0, 2.5])
            with pytest.raises(Exception, match="interlock is active"):
                await peer.do("put", pv="p4p:refusing", value=1.0)
