"""Gateways among themselves: in a row, beside each other, facing each other, and one that links networks in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from appliance.client import Disconnected
from appliance.gateway.gateway import Gateway
from appliance.pvdata.value import Value
from appliance.server import SharedPV
from tests.helpers.gateways import (
    client_side,
    client_to,
    direct,
    gateway_to,
    gateway_with,
    refusal,
    server_of,
    server_side,
)
from tests.helpers.ours import double, served, server_config
from tests.helpers.ports import free_port

QUICK = {"open_patience_s": 0.3, "promise_s": 0.3}


async def settled(condition: Any, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_row_of_three_gateways():
    pv = double(1.0)
    async with served({"pv": pv}) as server, gateway_to(server) as first:
        async with gateway_to(server_of(first)) as second, gateway_to(server_of(second)) as third:
            async with client_to(third) as client:
                assert (await client.get("pv", server=direct(third)))["value"] == 1.0
                await client.put("pv", 2.0)
                async with client.monitor("pv") as updates:
                    assert (await anext(updates))["value"] == 2.0
                    pv.post(3.0)
                    assert (await anext(updates))["value"] == 3.0


async def test_a_gateway_that_links_two_networks_in_both_directions():
    async with served({"a": double(1.0)}) as left, served({"b": double(2.0)}) as right:
        clients = {"left": client_side(left), "right": client_side(right)}
        servers = {"to_left": server_side("right"), "to_right": server_side("left")}
        async with gateway_with(clients, servers) as gateway:
            async with client_to(gateway, "to_left") as here, client_to(gateway, "to_right") as there:
                assert (await here.get("b"))["value"] == 2.0
                assert (await there.get("a"))["value"] == 1.0
                for client, side, name in ((here, "to_left", "a"), (there, "to_right", "b")):
                    assert name not in set(server_of(gateway, side).names())
                    del client


async def test_several_clients_and_servers_are_linked_as_the_configuration_says():
    async with (
        served({"a": double(1.0), "same": double(10.0)}) as one,
        served({"b": double(2.0), "same": double(20.0)}) as two,
    ):
        clients = {"one": client_side(one), "two": client_side(two)}
        servers = {"both": server_side("two", "one"), "only": server_side("one")}
        async with gateway_with(clients, servers, bounds=QUICK) as gateway:
            async with client_to(gateway, "both") as both, client_to(gateway, "only") as only:
                values = await both.get(["a", "b"])
                assert [value["value"] for value in values] == [1.0, 2.0]
                for name in ("one", "two"):
                    gateway.clients[name].want("same")
                await settled(
                    lambda: all(gateway.clients[name].known["same"].active for name in ("one", "two"))
                )
                assert (await both.get("same"))["value"] == 20.0, "the order of the configuration counts"
                assert (await only.get("same"))["value"] == 10.0
                why = await refusal(only, "b", direct(gateway, "only"))
                assert "no server behind this gateway has the PV 'b'" in why


@asynccontextmanager
async def facing(real: int, *, a: int, b: int) -> AsyncIterator[tuple[Gateway, Gateway]]:
    """Two gateways, each a client of the other's server side; the real server may be at the port ``real``."""
    sides = [
        ({"in": client_side(real, b)}, {"out": server_side("in", pva={"broadcast_port": a})}),
        ({"in": client_side(real, a)}, {"out": server_side("in", pva={"broadcast_port": b})}),
    ]
    async with gateway_with(*sides[0], bounds=QUICK) as one, gateway_with(*sides[1], bounds=QUICK) as two:
        yield one, two


async def test_two_gateways_that_face_each_other_do_not_keep_a_name_alive():
    real, a, b = free_port(), free_port(), free_port()
    async with facing(real, a=a, b=b) as (one, two):
        server = served({"pv": double(1.0)}, config=server_config(real))
        await server.start()
        async with client_to(one, "out") as here, client_to(two, "out") as there:
            assert (await here.get("pv", server=direct(one, "out")))["value"] == 1.0
            assert (await there.get("pv", server=direct(two, "out")))["value"] == 1.0
            await server.stop()
            known = [gateway.clients["in"].known["pv"] for gateway in (one, two)]
            await settled(lambda: not any(upstream.active for upstream in known))
            # Nothing brings it back while there is no server.
            for _ in range(20):
                await asyncio.sleep(0.05)
                assert not any(upstream.active for upstream in known)
            async with served({"pv": double(2.0)}, config=server_config(real)):
                value = await here.get("pv", server=direct(one, "out"), timeout=30)
                assert value["value"] == 2.0


async def test_a_stale_loop_dies_out_and_the_server_is_found_again():
    """Each gateway has asked the other for a channel: both requests wait, and are refused when the patience is over."""
    real, a, b = free_port(), free_port(), free_port()
    async with facing(real, a=a, b=b) as (one, two):
        # Made by hand: both believe that the other has the name, as if each had answered the search before its own loss.
        for gateway, other in ((one, two), (two, one)):
            inner = gateway.clients["in"]
            upstream = inner.want("pv")
            assert upstream is not None
            from appliance.client.search import Located

            place = Located(
                "127.0.0.1", server_of(other, "out").tcp_port, False, server_of(other, "out").guid
            )
            inner.context._links.searcher._wanted.pop(upstream.channel.instance, None)
            inner.context._links.found(upstream.channel.instance, place)
        known = [gateway.clients["in"].known["pv"] for gateway in (one, two)]
        await settled(lambda: all(upstream.channel.state.value == "creating" for upstream in known), 2)
        await settled(lambda: all(upstream.channel.state.value == "searching" for upstream in known), 5)
        assert not any(upstream.active for upstream in known)
        async with served({"pv": double(2.0)}, config=server_config(real)), client_to(one, "out") as client:
            assert (await client.get("pv", server=direct(one, "out"), timeout=30))["value"] == 2.0


async def test_two_gateways_beside_each_other_and_one_is_stopped():
    pv = double(1.0)
    udp = free_port()
    async with served({"pv": pv}) as server:
        sides = {"inner": client_side(server)}, {"outer": server_side("inner", pva={"broadcast_port": udp})}
        seen: list[Any] = []
        async with gateway_with(*sides) as one, gateway_with(*sides) as two:
            async with client_to(one) as client:
                client.monitor("pv", notify=True, on_update=seen.append)
                await settled(lambda: any(isinstance(item, Value) for item in seen))
                (peer,) = [gateway for gateway in (one, two) if list(server_of(gateway).channels())]
                other = two if peer is one else one
                await peer.stop()
                await settled(lambda: any(isinstance(item, Disconnected) for item in seen))
                pv.post(2.0)
                await settled(lambda: isinstance(seen[-1], Value) and seen[-1]["value"] == 2.0)
                assert list(server_of(other).channels())


async def test_gateways_beside_each_other_do_not_use_each_other_if_told():
    """Both hear the searches of both networks; the ignored address keeps them from each other's outer side."""
    udp = free_port()
    async with served({"pv": SharedPV.mailbox(double(1.0).current)}, config=server_config(udp)):
        outer = server_side("inner", pva={"broadcast_port": udp})
        async with gateway_with({"inner": client_side(udp)}, {"outer": outer}) as one:
            ignore = [f"127.0.0.1:{server_of(one).tcp_port}"]
            clients = {"inner": client_side(udp, ignore_servers=ignore)}
            async with gateway_with(clients, {"outer": outer}) as two, client_to(two) as client:
                async with client_to(one) as first:
                    await first.get("pv", server=direct(one))
                for name in ("pv", "absent"):
                    two.clients["inner"].want(name)
                await client.get("pv", server=direct(two))
                links = two.clients["inner"].context._links.by_address
                assert all(address.port != server_of(one).tcp_port for address in links)
