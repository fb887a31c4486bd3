"""A server behind the gateway goes and comes back, perhaps with another type: clients see it at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from appliance.client import Connected, Disconnected
from appliance.errors import OperationError, RemoteError
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.types import FLOAT64, INT32, STRING
from appliance.pvdata.value import Value
from appliance.server import Operation, Server, SharedPV
from tests.helpers.gateways import client_to, direct, gateway_to, server_of
from tests.helpers.live import promptly
from tests.helpers.ours import double, served, server_config
from tests.helpers.ports import free_port

SOON_S = 0.5
"""How soon a client sees that a server behind the gateway is gone."""


def restarted(udp: int, tcp: int, **pvs: SharedPV) -> Server:
    return served(
        dict(pvs),
        config=server_config(udp, server_port=tcp, beacon_addr_list="127.255.255.255", beacon_period=0.1),
    )


async def until(updates: Any, wanted: Any) -> Any:
    async with asyncio.timeout(30):
        async for item in updates:
            if wanted(item):
                return item
    raise AssertionError("the subscription ended")


async def test_a_subscriber_sees_the_loss_at_once_and_goes_on_with_the_new_type():
    udp = free_port()
    first = restarted(udp, 0, pv=double(1.0))
    await first.start()
    async with gateway_to(udp) as gateway, client_to(gateway) as client:
        async with client.monitor("pv", notify=True) as updates:
            assert isinstance(await anext(updates), Connected)
            assert (await anext(updates)).type == NTScalar(FLOAT64)
            await first.stop()
            lost = asyncio.create_task(until(updates, lambda item: isinstance(item, Disconnected)))
            await promptly(lost.done, SOON_S)
            await lost
            assert not gateway.clients["inner"].known["pv"].active
            text = SharedPV.mailbox(Value(NTScalar(STRING), {"value": "new"}))
            async with restarted(udp, 0, pv=text):
                value = await until(updates, lambda item: isinstance(item, Value))
                assert (value["value"], value.type) == ("new", NTScalar(STRING))


async def test_a_name_is_claimed_only_while_its_server_is_there():
    udp = free_port()
    first = restarted(udp, 0, pv=double(1.0))
    await first.start()
    async with gateway_to(udp) as gateway, client_to(gateway) as client:
        assert (await client.get("pv"))["value"] == 1.0
        source = gateway.servers["outer"].source
        assert source.claims("pv", "127.0.0.1")
        assert list(source.names()) == ["pv"]
        await first.stop()
        await promptly(lambda: not source.claims("pv", "127.0.0.1"), SOON_S)
        assert list(source.names()) == []
        assert not list(server_of(gateway).channels())


async def test_a_server_comes_back_with_another_type():
    udp = free_port()
    async with gateway_to(udp) as gateway, client_to(gateway) as client:
        for number, (kind, value) in enumerate([(FLOAT64, 1.5), (STRING, "text"), (INT32, 7)] * 2):
            pv = SharedPV.mailbox(Value(NTScalar(kind), {"value": value}))
            async with restarted(udp, 0, pv=pv), client_to(gateway) as other:
                for each in (client, other):
                    got = await each.get("pv", timeout=30)
                    assert (got["value"], got.type) == (value, NTScalar(kind)), number
                    async with each.monitor("pv") as updates:
                        assert (await until(updates, lambda item: isinstance(item, Value)))["value"] == value
                await client.put("pv", value)


@asynccontextmanager
async def watched(client: Any, name: str) -> AsyncIterator[list[Any]]:
    seen: list[Any] = []
    monitor = client.monitor(name, notify=True, on_update=seen.append)
    try:
        yield seen
    finally:
        monitor.close()


async def test_a_server_is_restarted_again_and_again_under_load():
    udp = free_port()
    async with gateway_to(udp) as gateway:
        clients = [client_to(gateway) for _ in range(5)]
        for client in clients:
            await client.start()
        names = [f"pv{number}" for number in range(20)]
        seen: list[list[Any]] = [[] for _ in clients]
        for client, into in zip(clients, seen, strict=True):
            for name in names:
                client.monitor(name, on_update=into.append)

        async def load(client: Any) -> None:
            while True:
                await client.get(names, timeout=0.2, return_exceptions=True)

        loads = [asyncio.create_task(load(client)) for client in clients]
        for generation in range(5):
            pvs = {name: double(float(generation)) for name in names}
            async with restarted(udp, 0, **pvs):
                async with asyncio.timeout(30):
                    while not all(
                        sum(isinstance(item, Value) and item["value"] == generation for item in items)
                        >= len(names)
                        for items in seen
                    ):
                        for pv in pvs.values():
                            pv.post(pv.current["value"])
                        await asyncio.sleep(0.02)
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        for client in clients:
            await client.close()
        inner = gateway.clients["inner"]
        async with asyncio.timeout(30):
            while any(upstream.in_use or upstream.monitors or upstream.gets for upstream in inner):
                await asyncio.sleep(0.02)


async def test_a_put_that_was_under_way_may_be_done_or_not():
    reached = asyncio.Event()

    class Slow(SharedPV):
        def put(self, operation: Operation, value: Value) -> None:
            reached.set()

    server = served({"pv": Slow(Value(NTScalar(FLOAT64)))})
    await server.start()
    async with gateway_to(server) as gateway, client_to(gateway) as client:
        putting = asyncio.create_task(client.put("pv", 1.0, timeout=30))
        await reached.wait()
        await server.stop()
        with pytest.raises(RemoteError, match="the server was lost during the put, which may be done or not"):
            await putting


async def test_one_channel_that_its_server_closes_is_closed_at_once():
    server = served({"pv": double(1.0), "other": double(2.0)})
    async with server, gateway_to(server) as gateway, client_to(gateway) as client:
        async with watched(client, "pv") as seen, watched(client, "other") as others:
            while len(seen) < 2 or len(others) < 2:
                await asyncio.sleep(0.01)
            server.remove_pv("pv")
            await promptly(lambda: isinstance(seen[-1], Disconnected), SOON_S)
            assert not isinstance(others[-1], Disconnected)
            with pytest.raises(OperationError):
                await client.get("pv", server=direct(gateway), timeout=0.2)
            server.add_pv("pv", double(5.0))
            async with asyncio.timeout(30):
                while not (isinstance(seen[-1], Value) and seen[-1]["value"] == 5.0):
                    await asyncio.sleep(0.01)


async def test_a_gateway_that_stops_closes_its_clients_channels_and_leaves_nothing_at_the_server():
    async with served({"pv": double(1.0)}) as server:
        async with gateway_to(server) as gateway, client_to(gateway) as client:
            async with watched(client, "pv") as seen:
                while len(seen) < 2:
                    await asyncio.sleep(0.01)
                await gateway.stop()
                await promptly(lambda: isinstance(seen[-1], Disconnected), SOON_S)
        async with asyncio.timeout(30):
            while list(server.channels()):
                await asyncio.sleep(0.01)


class Asked(SharedPV):
    """Notes for which fields the type was asked."""

    def __init__(self, initial: Value) -> None:
        super().__init__(initial)
        self.fields: list[str] = []

    def introspect(self, operation: Operation, field: str) -> None:
        self.fields.append(field)
        super().introspect(operation, field)


async def test_the_whole_type_is_asked_for_once_as_long_as_the_server_stays():
    udp = free_port()
    pv, other = Asked(Value(NTScalar(FLOAT64))), Asked(Value(NTScalar(STRING)))
    first = restarted(udp, 0, pv=pv)
    await first.start()
    async with gateway_to(udp) as gateway, client_to(gateway) as one, client_to(gateway) as two:
        for client in (one, two, one):
            info = await client.info("pv")
            assert info.type == NTScalar(FLOAT64)
            assert info.server == f"127.0.0.1:{server_of(gateway).tcp_port}"
        assert (await one.info("pv", "alarm")).type.id == "alarm_t"  # type: ignore[union-attr]
        assert pv.fields == ["", "alarm"]
        await first.stop()
        async with restarted(udp, 0, pv=other):
            while (await one.info("pv", timeout=30)).type != NTScalar(STRING):
                await asyncio.sleep(0)
        assert other.fields == [""]
