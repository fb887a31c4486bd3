"""The names of one client side: how many there may be, and when they are given back."""

from __future__ import annotations

import asyncio

from tests.helpers.gateways import client_to, direct, gateway_to, names
from tests.helpers.ours import double, served


async def test_a_name_that_nobody_uses_is_given_back():
    async with served({"pv": double(1.0), "kept": double(2.0)}) as server:
        async with gateway_to(server, bounds={"idle_name_s": 0.2}) as gateway:
            inner = gateway.clients["inner"]
            async with client_to(gateway) as client, client_to(gateway) as other:
                async with other.monitor("kept") as updates:
                    await anext(updates)
                    await client.get("pv")
                    assert names(inner) == {"pv", "kept"}
                    await client.close()
                    while "pv" in inner.known:
                        await asyncio.sleep(0.02)
                    assert names(inner) == {"kept"}
                    while len(list(server.channels())) > 1:
                        await asyncio.sleep(0.02)


async def test_names_without_a_server_give_way_to_new_ones():
    async with served({"pv": double(1.0)}) as server:
        async with gateway_to(server, bounds={"names": 16}) as gateway, client_to(gateway) as client:
            inner = gateway.clients["inner"]
            assert (await client.get("pv"))["value"] == 1.0
            for number in range(30):
                assert inner.want(f"absent{number}") is not None
            assert names(inner) == {"pv", *(f"absent{number}" for number in range(22, 30))}
            assert inner.dropped == 22
            assert inner.active == 1
            assert (await client.get("pv", server=direct(gateway)))["value"] == 1.0


async def test_names_that_no_search_can_carry_are_not_looked_for():
    async with served({}) as server, gateway_to(server) as gateway:
        assert gateway.clients["inner"].want("x" * 2000) is None


async def test_a_side_that_is_full_of_used_names_takes_no_more():
    pvs = {f"pv{number}": double(number) for number in range(16)}
    async with served({**pvs}) as server, gateway_to(server, bounds={"names": 16}) as gateway:
        async with client_to(gateway) as client:
            await client.get(list(pvs))
            assert gateway.clients["inner"].want("more") is None
