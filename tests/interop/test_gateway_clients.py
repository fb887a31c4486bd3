"""Servers and clients of other implementations on both sides of the gateway: what is read, watched and written is the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from appliance.client import Context
from appliance.errors import RemoteError
from appliance.gateway.gateway import Gateway
from appliance.pvdata.value import Value
from tests.helpers.gateways import client_to, gateway_to
from tests.helpers.ours import client_config
from tests.helpers.peers import Peer, PeerError, client_environment, server_environment
from tests.helpers.ports import free_port

pytestmark = pytest.mark.interop
DATA = Path(__file__).parent / "data"
NAMES = {
    "p4p": ("p4p:", ["double", "int", "string", "strings", "array", "big", "enum", "table", "image", "odd"]),
    "pvapy": ("pvapy:", ["double", "string", "array", "struct", "enum", "table", "big", "image"]),
    "qsrv": ("ioc:", ["ao", "counter", "string", "long_string", "enum", "wave", "grp", "locked"]),
}
"""The servers behind the gateway, their prefixes and PVs of every shape that they have."""


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, int]]:
    """The UDP ports of servers of PVXS (p4p), pvAccessCPP (pvapy) and of an IOC with QSRV2 (pvxslibs)."""
    ports = {name: free_port() for name in NAMES}
    files = (str(DATA / "interop.db"), str(DATA / "interop.acf"))
    with (
        Peer("p4p_server.py", environ=server_environment(ports["p4p"])),
        Peer("pvapy_server.py", environ=server_environment(ports["pvapy"])),
        Peer("qsrv_ioc.py", *files, environ=server_environment(ports["qsrv"])),
    ):
        yield ports


@pytest.fixture(scope="module")
def udp() -> int:
    return free_port()


@pytest.fixture
async def gateway(servers: dict[str, int], udp: int) -> AsyncIterator[Gateway]:
    """One gateway before all three servers."""
    async with gateway_to(*servers.values(), pva={"broadcast_port": udp}) as gateway:
        yield gateway


@pytest.fixture(params=["p4p", "pvapy"])
def peer(request: pytest.FixtureRequest, udp: int) -> Iterator[Peer]:
    """A new process for each test: pvAccessCPP is slow to find a gateway that has been started again."""
    with Peer(f"{request.param}_client.py", environ=client_environment(udp)) as peer:
        yield peer


async def first_of(context: Context, name: str) -> Value:
    async with asyncio.timeout(30), context.monitor(name) as updates:
        value = await anext(updates)
        assert isinstance(value, Value)
        return value


@pytest.mark.parametrize("server", NAMES)
async def test_our_client_gets_the_same_through_the_gateway(
    servers: dict[str, int], gateway: Gateway, server: str
) -> None:
    prefix, shapes = NAMES[server]
    async with client_to(gateway) as through, Context(client_config(servers[server]), beacons=False) as near:
        for shape in shapes:
            name = prefix + shape
            there = await near.get(name, timeout=30)
            for _ in range(2):  # pvAccessCPP answers a repeated read with what has changed
                here = await through.get(name, timeout=30)
                assert here == there, name
                assert here.type == there.type
            watched, wanted = await first_of(through, name), await first_of(near, name)
            if (
                shape == "grp"
            ):  # a group of QSRV2 tells the queue size of its subscription, which is the gateway's
                assert watched["record._options.queueSize"] == 16
                watched["record._options.queueSize"] = wanted["record._options.queueSize"]
            assert watched == wanted, name
            assert await through.get(name, "field()record[_x=1]", timeout=30) == there


async def test_our_client_writes_through_the_gateway(servers: dict[str, int], gateway: Gateway) -> None:
    async with client_to(gateway) as client:
        for name, new, old in (("p4p:double", 7.5, 1.5), ("pvapy:double", 8.5, 1.5), ("ioc:counter", 9, 7)):
            before = (await client.get(name, timeout=30))["value"]
            assert before == old
            async with client.monitor(name) as updates:
                await anext(updates)
                await client.put(name, new)
                while (await anext(updates))["value"] != new:
                    pass
            assert (await client.get(name))["value"] == new
            await client.put(name, old)
        await client.put("ioc:grp", {"x": 5.0, "y": 6.0}, "record[process=true]")
        assert (await client.get("ioc:grp"))["y.value"] == 6.0
        with pytest.raises(RemoteError, match=r"(?i)write|access|permi"):
            await client.put("ioc:locked", 4.0)
        for name, sum_ in (("p4p:call:add", 3.5), ("pvapy:add", 3.5)):
            answer = await client.rpc(name, {"lhs": 1, "rhs": 2.5})
            assert answer is not None
            assert answer["value"] == sum_


async def test_peers_read_and_watch_through_the_gateway(peer: Peer, gateway: Gateway) -> None:
    for name, value in (
        ("p4p:double", 1.5),
        ("p4p:string", "grüße ☃ 日本 🚀"),
        ("p4p:array", [1.0, 2.5]),
        ("pvapy:double", 1.5),
        ("pvapy:string", "grüße ☃"),
        ("pvapy:array", [1, 2, 3]),
        ("ioc:counter", 7),
        ("ioc:string", "hello"),
    ):
        # Watched before it is read: pvapy crashes if a channel that is connected gets a callback.
        await peer.do("monitor", pv=name)
        await peer.saw(
            lambda event, name=name, value=value: (  # type: ignore[misc]
                event["event"] == "update" and event["pv"] == name and event["value"]["value"] == value
            )
        )
        for _ in range(2):
            assert (await peer.do("get", pv=name))["value"] == value, name
    for name in ("p4p:big", "pvapy:big"):
        assert (await peer.do("get", pv=name))["value"]["size"] == 1_048_576
    assert (await peer.do("get", pv="ioc:enum"))["value"]["choices"]


async def test_peers_write_and_call_through_the_gateway(peer: Peer, gateway: Gateway) -> None:
    is_p4p = peer.script.startswith("p4p")
    for name, new, old in (("p4p:int", 7, 42), ("pvapy:double", 9.5, 1.5), ("ioc:counter", 8, 7)):
        for value in (new, old):
            await peer.do("put", pv=name, value={"value": value} if is_p4p else value)
            assert (await peer.do("get", pv=name))["value"] == value
    with pytest.raises(PeerError):
        await peer.do("put", pv="ioc:locked", value={"value": 4.0} if is_p4p else 4.0)
    with pytest.raises(PeerError, match="interlock is active"):
        await peer.do("put", pv="p4p:refusing", value={"value": 1.0} if is_p4p else 1.0)
    if is_p4p:
        assert (await peer.do("rpc", pv="p4p:call:add", lhs=1, rhs=2.5))["value"] == 3.5
    assert (await peer.do("rpc", pv="pvapy:add", lhs=1.0, rhs=2.5))["value"] == 3.5


async def test_a_put_get_of_pvapy_through_the_gateway(gateway: Gateway, udp: int) -> None:
    """What it writes and what it reads can be of different types."""
    with Peer("pvapy_client.py", environ=client_environment(udp)) as peer:
        for request, answer in (
            ("putField(value)getField(value)", {"value": 3.5}),
            ("putField(value)getField()", {"value": 3.5}),
        ):
            assert await peer.do("put_get", pv="pvapy:double", value=3.5, request=request) == answer
        other = "putField(value.index)getField(value.choices)"
        assert await peer.do("put_get", pv="pvapy:enum", value=1, request=other) == {
            "value": {"choices": ["OFF", "ON"]}
        }
        await peer.do("put", pv="pvapy:double", value=1.5)
