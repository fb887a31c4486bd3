"""Finding PVs with real sockets on loopback."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from appliance.client import Context, Discovered
from appliance.client.end import Timings
from appliance.errors import ChannelClosedError, OperationTimeoutError
from appliance.pva import commands as c
from appliance.pva.search import SearchRequest, SearchResponse, decode_datagram, pack_message
from appliance.server import Server
from tests.helpers.live import never_comes
from tests.helpers.ours import client_config, client_of, double, served, server_config
from tests.helpers.peers import Peer, server_environment
from tests.helpers.ports import free_port


def beaconing(udp: int) -> Server:
    """A server of ``s:pv`` whose beacons come often."""
    return served(
        {"s:pv": double(1.0)},
        config=server_config(udp, beacon_addr_list="127.255.255.255", beacon_period=0.1),
    )


@pytest.mark.parametrize(
    "where",
    ["127.0.0.1", "127.255.255.255", "localhost", "224.0.1.99,1@127.0.0.1", "224.0.1.99,1@lo"],
    ids=["unicast", "broadcast", "name", "multicast", "multicast by interface name"],
)
async def test_a_search_finds_the_server(where: str) -> None:
    config = server_config(intf_addr_list="127.0.0.1 224.0.1.99@lo")
    async with served({"s:pv": double(2.5)}, config=config) as server:
        config_ = client_config(addr_list=where, broadcast_port=server.udp_port)
        async with Context(config_, beacons=False) as ctx:
            assert (await ctx.get("s:pv"))["value"] == 2.5


async def test_a_unicast_search_is_heard_by_every_server_of_the_host() -> None:
    udp = free_port()
    ours = [served({f"fan:{number}": double(number)}, config=server_config(udp)) for number in range(3)]
    with Peer("p4p_server.py", environ=server_environment(udp, PREFIX="fan:")):
        for server in ours:
            await server.start()
        try:
            async with Context(client_config(udp), beacons=False) as ctx:
                values = await ctx.get(["fan:0", "fan:1", "fan:2", "fan:double"])
                assert [value["value"] for value in values] == [0, 1, 2, 1.5]
        finally:
            for server in ours:
                await server.stop()


async def test_a_client_that_listens_for_beacons_takes_no_searches_from_a_server() -> None:
    udp = free_port()
    async with served({"s:pv": double(1.0)}, config=server_config(udp)):
        # This client opened the port last: the kernel would give unicast to it.
        async with (
            Context(client_config(udp)) as listening,
            Context(client_config(udp), beacons=False) as ctx,
        ):
            for port in listening._links.ports._beacon_ports:
                assert port._sock.getsockname()[0] != "0.0.0.0"
                port.close()
                port._on_message = None  # whatever comes is lost
            assert (await ctx.get("s:pv"))["value"] == 1.0


async def test_a_process_that_binds_the_search_port_does_not_take_the_searches_of_the_host() -> None:
    """It may be a client that was stopped, or anybody else: what it is given it never reads."""
    udp = free_port()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as before,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as after,
    ):
        for sock in (before, after):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        before.bind(("", udp))
        async with (
            served({"s:one": double(1.0)}, config=server_config(udp)),
            served({"s:two": double(2.0)}, config=server_config(udp)),
        ):
            after.bind(("", udp))
            async with Context(client_config(udp), beacons=False) as ctx:
                assert (await ctx.get("s:one"))["value"] == 1.0
                assert (await ctx.get("s:two"))["value"] == 2.0


async def test_a_server_of_ipv6_only_is_found_and_opens_nothing_of_ipv4() -> None:
    config = server_config(intf_addr_list="[::1]")
    async with served({"s:pv": double(6.0)}, config=config) as server:
        assert [port.is_ipv6 for port in server._announcer._ports] == [True]
        assert not server._announcer._by_address
        client = client_config(server.udp_port, addr_list="[::1]")
        async with Context(client, beacons=False) as ctx:
            assert (await ctx.get("s:pv"))["value"] == 6.0
            assert (await ctx.info("s:pv")).server == f"[::1]:{server.tcp_port}"


async def test_a_list_of_both_kinds_finds_servers_of_both_kinds() -> None:
    udp = free_port()
    four = server_config(udp)
    six = server_config(udp, intf_addr_list="[::1]")
    async with served({"s:four": double(4.0)}, config=four), served({"s:six": double(6.0)}, config=six):
        client = client_config(udp, addr_list="127.0.0.1 [::1]")
        async with Context(client, beacons=False) as ctx:
            values = await ctx.get(["s:four", "s:six"])
            assert [value["value"] for value in values] == [4.0, 6.0]


async def test_a_direct_server_needs_no_search() -> None:
    async with served({"s:pv": double(3.0)}) as server, Context(client_config(), beacons=False) as ctx:
        address = ("127.0.0.1", server.tcp_port, False)
        assert (await ctx.get("s:pv", server=address))["value"] == 3.0
        info = await ctx.info("s:pv", server=address)
        assert info.server == f"127.0.0.1:{server.tcp_port}"


async def test_several_name_servers_are_asked_and_one_is_enough() -> None:
    async with served({"a:pv": double(1.0)}) as one, served({"b:pv": double(2.0)}) as two:
        dead = free_port()
        names = f"127.0.0.1:{dead} 127.0.0.1:{one.tcp_port} 127.0.0.1:{two.tcp_port}"
        async with Context(client_config(name_servers=names), beacons=False) as ctx:
            values = await ctx.get(["a:pv", "b:pv"])
            assert [value["value"] for value in values] == [1.0, 2.0]


async def test_a_name_server_that_comes_later_is_asked_at_once() -> None:
    port = free_port()
    config = client_config(name_servers=f"127.0.0.1:{port}")
    async with Context(config, beacons=False, timings=Timings(name_server_retry_s=0.1)) as ctx:
        waiting = asyncio.ensure_future(ctx.get("s:pv"))
        with pytest.raises(OperationTimeoutError):
            await ctx.get("s:other", timeout=0.3)
        async with served({"s:pv": double(4.0)}, config=server_config(server_port=port)):
            assert (await waiting)["value"] == 4.0


async def test_the_names_of_name_servers_and_their_silence_hurt_no_one_else() -> None:
    async with served({"s:pv": double(5.0)}) as server:
        config = client_config(server.udp_port, name_servers="does-not-exist.invalid:5075")
        async with Context(config, beacons=False) as ctx:
            assert (await ctx.get("s:pv"))["value"] == 5.0


async def next_news(news: asyncio.Queue[Discovered]) -> Discovered:
    async with asyncio.timeout(30):
        return await news.get()


async def test_beacons_tell_of_a_new_server_and_of_its_restart() -> None:
    udp = free_port()
    news: asyncio.Queue[Discovered] = asyncio.Queue()
    async with Context(client_config(udp)) as ctx:
        ctx._links.servers.subscribe(news.put_nowait)
        async with beaconing(udp) as first:
            came = await next_news(news)
            assert (came.online, came.guid) == (True, first.guid)
            assert came.server == f"127.0.0.1:{first.tcp_port}"
            port = first.tcp_port
        config = server_config(udp, server_port=port, beacon_addr_list="127.255.255.255", beacon_period=0.1)
        async with served({"s:pv": double()}, config=config) as second:
            gone, back = await next_news(news), await next_news(news)
            assert (gone.online, gone.guid) == (False, first.guid)
            assert (back.online, back.guid) == (True, second.guid)


async def test_the_beacon_of_a_new_server_ends_the_back_off() -> None:
    udp = free_port()
    an_hour = Timings(search_s=(0.01, 0.01, 0.01, 0.01, 3600.0), longest_search_s=3600.0)
    async with Context(client_config(udp), timings=an_hour) as ctx:
        waiting = asyncio.ensure_future(ctx.get("s:pv", timeout=30))
        await asyncio.sleep(0)
        searcher = ctx._links.searcher
        (name,) = searcher._wanted.values()
        async with asyncio.timeout(30):
            while name.attempts < 4:
                await asyncio.sleep(0.01)
        async with beaconing(udp):
            assert (await waiting)["value"] == 1.0


async def test_a_forged_beacon_does_not_cost_the_connection() -> None:
    async with served({"s:pv": double(1.0)}) as server, client_of(server) as ctx:
        await ctx.get("s:pv")
        (link,) = ctx._links.by_address.values()
        stream = link.stream
        heard = stream.heard  # type: ignore[union-attr]
        ctx._links.restarted(link.address, b"another guid")
        async with asyncio.timeout(30):
            while stream.heard == heard:  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
        assert link.stream is stream
        assert not stream.is_closing  # type: ignore[union-attr]


async def test_a_server_that_takes_no_connections_is_not_asked_in_a_tight_loop() -> None:
    searches = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as liar:
        liar.bind(("127.0.0.1", 0))
        liar.setblocking(False)
        loop = asyncio.get_running_loop()
        dead = free_port()

        def answer() -> None:
            nonlocal searches
            data, sender = liar.recvfrom(65536)
            for request in decode_datagram(data):
                assert isinstance(request, SearchRequest)
                searches += 1
                found = tuple(instance for instance, _ in request.names)
                response = SearchResponse(bytes(12), request.sequence, None, dead, "tcp", True, found)
                liar.sendto(pack_message(c.CMD_SEARCH_RESPONSE, response.encode(), from_server=True), sender)

        loop.add_reader(liar.fileno(), answer)
        try:
            config = client_config(liar.getsockname()[1])
            async with Context(config, beacons=False) as ctx:
                await never_comes(lambda: ctx.get("s:pv", timeout=0.6), "cannot connect")
        finally:
            loop.remove_reader(liar.fileno())
    assert 2 <= searches <= 6


async def test_a_name_that_fits_no_datagram_is_refused_and_others_are_found() -> None:
    async with served({"s:pv": double(1.0)}) as server, client_of(server) as ctx:
        with pytest.raises(ChannelClosedError, match="octets"):
            await ctx.get("x" * 3000)
        assert (await ctx.get("s:pv"))["value"] == 1.0


async def test_a_batch_with_a_bad_name_leaves_nothing_behind() -> None:
    async with served({"s:pv": double(1.0)}) as server, client_of(server) as ctx:
        with pytest.raises(ChannelClosedError, match="empty"):
            await ctx.get(["s:none", ""])
        assert not any(channel.requests for channel in ctx._links.channels)


async def test_ten_thousand_names_are_found_in_a_stream_of_datagrams() -> None:
    pvs = {f"many:{number}": double(number) for number in range(10_000)}
    async with served(pvs) as server, client_of(server) as ctx:
        values = await ctx.get(list(pvs), timeout=100)
        assert [value["value"] for value in values] == list(range(10_000))
        ctx.hurry_up()
        assert len(ctx._links.searcher._heap) < 30_000


async def test_hurrying_does_not_make_the_list_of_searches_grow() -> None:
    async with Context(client_config(free_port()), beacons=False) as ctx:
        waiting = [asyncio.ensure_future(ctx.get(f"none:{n}", timeout=None)) for n in range(100)]
        await asyncio.sleep(0)
        for _ in range(200):
            ctx.hurry_up()
        assert len(ctx._links.searcher._heap) <= 1000 + 5 * 100
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_wildcard_names_are_found_and_made_when_they_are_opened() -> None:
    from appliance.server import WildcardSource

    source = WildcardSource("wild:*:temp", lambda name, parts: double(float(parts[0])))
    server = served({})
    server.add_source("wild", source)
    async with server, client_of(server) as ctx:
        assert (await ctx.get("wild:21:temp"))["value"] == 21.0
        assert list(source.pvs) == ["wild:21:temp"]
        with pytest.raises(OperationTimeoutError):
            await ctx.get("wild:21:pressure", timeout=0.2)


async def test_a_source_that_is_removed_gives_no_new_channel_and_keeps_those_that_are_open() -> None:
    from appliance.server import StaticSource

    source = StaticSource()
    source.pvs = {"extra:a": double(1.0), "extra:b": double(2.0)}
    server = served({})
    server.add_source("extra", source)
    async with server, client_of(server) as ctx:
        assert (await ctx.get("extra:a"))["value"] == 1.0
        server.remove_source("extra")
        assert (await ctx.get("extra:a"))["value"] == 1.0
        with pytest.raises(OperationTimeoutError):
            await ctx.get("extra:b", timeout=0.2)


async def test_a_taken_port_is_replaced_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with served({"s:pv": double(1.0)}) as first:
        caplog.set_level(logging.WARNING)
        config = server_config(server_port=first.tcp_port)
        async with served({"s:other": double(2.0)}, config=config) as second:
            assert second.tcp_port != first.tcp_port
            assert f"unable to bind TCP port {first.tcp_port}, falling back to" in caplog.text
            async with client_of(second) as ctx:
                assert (await ctx.get("s:other"))["value"] == 2.0


async def test_all_addresses_of_a_server_share_one_port() -> None:
    taken = socket.socket()
    with taken:
        taken.bind(("127.0.0.2", 0))
        taken.listen()
        for port in (0, taken.getsockname()[1]):
            config = server_config(intf_addr_list="127.0.0.1 127.0.0.2 127.0.0.3", server_port=port)
            async with served({"s:pv": double(1.0)}, config=config) as server:
                ports = {sock.getsockname()[1] for item in server._listeners for sock in item.sockets}
                assert ports == {server.tcp_port}
                async with Context(client_config(), beacons=False) as ctx:
                    for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
                        value = await ctx.get("s:pv", server=(host, server.tcp_port, False))
                        assert value["value"] == 1.0


async def test_a_search_that_came_to_another_address_is_not_answered() -> None:
    async with served({"s:pv": double(1.0)}, config=server_config(intf_addr_list="127.0.0.2")) as server:
        for where, found in (("127.0.0.1", False), ("127.0.0.2", True)):
            config = client_config(addr_list=where, broadcast_port=server.udp_port)
            async with Context(config, beacons=False) as ctx:
                if found:
                    assert (await ctx.get("s:pv"))["value"] == 1.0
                else:
                    with pytest.raises(OperationTimeoutError, match="no server answered"):
                        await ctx.get("s:pv", timeout=0.3)


async def test_an_ignored_client_is_not_answered() -> None:
    config = server_config(ignore_addr_list="127.0.0.1")
    async with served({"s:pv": double(1.0)}, config=config) as server, client_of(server) as ctx:
        with pytest.raises(OperationTimeoutError):
            await ctx.get("s:pv", timeout=0.3)
