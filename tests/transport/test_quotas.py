"""One address does not take what is there for all: connections, channels and subscriptions are shared out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from appliance.server.quota import Quota, who
from tests.helpers.ours import client_of, double, served
from tests.helpers.turns import NAMED, Hostile
from tests.transport.test_bounds import until

OTHER = "127.0.0.2"


@contextlib.asynccontextmanager
async def clients() -> AsyncIterator[list[Hostile]]:
    """Whatever is put into the list is closed in the end."""
    held: list[Hostile] = []
    try:
        yield held
    finally:
        for hostile in held:
            hostile.close()


async def join(
    held: list[Hostile], port: int, *names: str, source: str = OTHER, named: bool = False
) -> Hostile:
    options = {"validation": NAMED} if named else {}
    hostile = await asyncio.to_thread(lambda: Hostile(port, *names, source=source, **options))
    held.append(hostile)
    return hostile


async def test_idle_connections_of_one_address_leave_room_for_other_addresses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quota = Quota(connections=20)
    async with served({"pv": double()}, quota=quota, max_connections=30) as server, clients() as held:
        for _ in range(20):
            await join(held, server.tcp_port)
        for _ in range(3):
            with pytest.raises((EOFError, ConnectionError)):
                await join(held, server.tcp_port)
        async with client_of(server) as ctx:
            assert (await ctx.get("pv"))["value"] == 0.0
        held.pop().close()
        await until(lambda: len(server.peers) <= 20)
        await join(held, server.tcp_port)  # there is room again
    assert (
        caplog.text.count(f"further connections from {OTHER} are refused: this address has 20, the most") == 1
    )
    await until(lambda: not len(server.shares))


async def test_anonymous_clients_have_fewer_places_than_those_that_say_who_they_are() -> None:
    quota = Quota(connections=20, anonymous_connections=5)
    async with served({"pv": double()}, quota=quota) as server, clients() as held:
        for _ in range(5):
            await join(held, server.tcp_port)
        with pytest.raises((EOFError, ConnectionError)):
            refused = await join(held, server.tcp_port)
            await asyncio.to_thread(refused.wait_for, 99)
        named = await join(held, server.tcp_port, "pv", named=True)
        assert named.sids


async def test_channels_of_one_address_are_bounded_together_and_free_again_when_they_close() -> None:
    quota = Quota(channels=6, anonymous_channels=4)
    async with served({"pv": double()}, quota=quota) as server, clients() as held:
        one = await join(held, server.tcp_port, "pv", "pv", "pv")
        await join(held, server.tcp_port, "pv")
        refused = await join(held, server.tcp_port, "pv")
        assert refused.sids == [0xFFFFFFFF]
        assert b"your address has 4 channels of anonymous clients already" in refused.last
        assert (await join(held, server.tcp_port, "pv", "pv", named=True)).sids[-1] != 0xFFFFFFFF
        refused = await join(held, server.tcp_port, "pv", named=True)
        assert b"your address has 6 channels already" in refused.last
        assert (await join(held, server.tcp_port, "pv", source="127.0.0.3")).sids[-1] != 0xFFFFFFFF
        one.close()
        held.remove(one)
        await until(lambda: sum(1 for _ in server.channels()) == 4)
        assert (await join(held, server.tcp_port, "pv")).sids[-1] != 0xFFFFFFFF


async def test_subscriptions_of_one_pv_by_one_address_are_bounded() -> None:
    quota = Quota(subscriptions=5, anonymous_subscriptions=3)
    async with served({"pv": double(), "other": double()}, quota=quota) as server, clients() as held:
        one = await join(held, server.tcp_port, "pv", "other")
        for ioid in range(1, 4):
            assert (await asyncio.to_thread(one.monitor, one.sids[0], ioid))[0] == 0xFF
        answer = await asyncio.to_thread(one.monitor, one.sids[0], 4)
        assert b"your address watches this PV 3 times already" in answer
        assert (await asyncio.to_thread(one.monitor, one.sids[1], 5))[0] == 0xFF
        again = await join(held, server.tcp_port, "pv")
        assert b"3 times already" in await asyncio.to_thread(again.monitor, again.sids[0], 1)
        one.close()
        held.remove(one)
        await until(lambda: len(server.peers) == 1)
        assert (await asyncio.to_thread(again.monitor, again.sids[0], 2))[0] == 0xFF


def test_an_ipv6_network_of_64_bits_and_a_mapped_address_count_as_one() -> None:
    assert who("2001:db8::1") == who("2001:db8::2:3") != who("2001:db8:0:1::1")
    assert who("::ffff:10.0.0.1") == who("10.0.0.1") == "10.0.0.1"
    assert who("fe80::1%eth0") == who("fe80::2")
