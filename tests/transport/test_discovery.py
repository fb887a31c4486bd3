"""Context.discover: servers that are heard of, and that fall silent."""

from __future__ import annotations

import asyncio

from appliance.client import Context
from appliance.client.end import DEFAULT_TIMINGS, Timings
from appliance.config.address import Endpoint
from appliance.config.pva import ClientConfig
from appliance.pva import commands as c
from tests.helpers.tools import demo_server


def client(udp_port: int, timings: Timings = DEFAULT_TIMINGS) -> Context:
    return Context(
        ClientConfig(addr_list=(Endpoint("127.0.0.1"),), auto_addr_list=False, broadcast_port=udp_port),
        beacons=False,
        timings=timings,
    )


async def test_a_server_that_falls_silent_is_told_to_be_gone() -> None:
    timings = Timings(silence_s=0.05, silence_check_s=0.1)
    async with demo_server() as server, client(server.udp_port, timings) as context, asyncio.timeout(30):
        news = context.discover()
        online = await anext(news)
        offline = await anext(news)
        await news.aclose()  # type: ignore[attr-defined]
    assert online.online
    assert online.server == f"127.0.0.1:{server.tcp_port}"
    assert online.guid == server.guid
    assert online.version == c.VERSION
    assert online.source == f"127.0.0.1:{server.udp_port}"
    assert offline == online._replace(online=False)


async def test_who_comes_later_is_told_what_is_known() -> None:
    async with demo_server() as server, client(server.udp_port) as context, asyncio.timeout(30):
        first = await anext(context.discover())
        second = await anext(context.discover(ping=False))
        assert first == second


async def test_a_restarted_server_is_gone_and_there_again() -> None:
    async with (
        demo_server(guid=b"first server") as server,
        client(server.udp_port) as context,
        asyncio.timeout(30),
    ):
        news = context.discover()
        assert (await anext(news)).guid == b"first server"
        server.guid = b"second serve"
        context._links.searcher.ping()
        gone, back = await anext(news), await anext(news)
    assert (gone.online, gone.guid) == (False, b"first server")
    assert (back.online, back.guid) == (True, b"second serve")
