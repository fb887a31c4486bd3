"""A name that nobody asked for before: the search is answered late, and a channel waits for its server."""

from __future__ import annotations

import asyncio
import socket
import struct

from appliance.pva import commands as c
from appliance.pva.search import SearchRequest, SearchResponse, decode_datagram, pack_message
from appliance.server import Server
from tests.helpers.gateways import (
    client_side,
    client_to,
    direct,
    gateway_to,
    gateway_with,
    names,
    refusal,
    server_of,
    server_side,
)
from tests.helpers.ours import double, served, server_config
from tests.helpers.ports import free_port
from tests.helpers.raw import RawClient, message, text


async def ask_once(server: Server, *wanted: str) -> set[str]:
    """Send one search by UDP, and collect the answers until all names are found."""
    search = SearchRequest(7, tuple(enumerate(wanted)), ("tcp",), unicast=True)
    found: set[str] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(30)
        data = pack_message(c.CMD_SEARCH, search.encode(), from_server=False)
        sock.sendto(data, ("127.0.0.1", server.udp_port))
        while len(found) < len(wanted):
            for answer in decode_datagram(await asyncio.to_thread(sock.recv, 65536)):
                assert isinstance(answer, SearchResponse)
                if answer.guid != server.guid:
                    continue  # another server of the same port
                assert answer.port == server.tcp_port
                found |= {wanted[instance] for instance in answer.instances}
    return found


async def test_one_search_by_udp_is_answered_when_the_server_is_there():
    pvs = {f"pv{number}": double(number) for number in range(100)}
    async with served({**pvs}) as server, gateway_to(server) as gateway:
        assert await ask_once(server_of(gateway), *pvs) == set(pvs)
        assert await ask_once(server_of(gateway), "pv1") == {"pv1"}, "it is known now"


async def test_one_search_over_tcp_is_answered_over_the_same_connection():
    async with served({"pv": double(1.0)}) as server, gateway_to(server) as gateway:
        outer = server_of(gateway)
        async with await RawClient.connect(outer.tcp_port) as client:
            await client.send(message(c.CMD_SEARCH, SearchRequest(7, ((5, "pv"),), ("tcp",)).encode()))
            async with asyncio.timeout(30):
                command, body = await client.message()
            assert command == c.CMD_SEARCH_RESPONSE
            answer = SearchResponse.decode(body, 0, len(body), big=False)
            assert (answer.found, answer.instances, answer.port) == (True, (5,), outer.tcp_port)


async def test_a_channel_that_was_never_searched_for_opens():
    async with served({"pv": double(1.5)}) as server, gateway_to(server) as gateway:
        async with await RawClient.connect(server_of(gateway).tcp_port) as raw:
            async with asyncio.timeout(30):
                await raw.channel("pv")
        async with client_to(gateway) as client:
            assert (await client.get("pv", server=direct(gateway)))["value"] == 1.5


async def test_a_channel_waits_for_a_server_that_starts_meanwhile():
    udp = free_port()
    async with gateway_to(udp) as gateway, client_to(gateway) as client:
        waiting = asyncio.create_task(client.get("pv", server=direct(gateway), timeout=30))
        while "pv" not in gateway.clients["inner"].known:
            await asyncio.sleep(0.01)
        async with served({"pv": double(3.0)}, config=server_config(udp)):
            assert (await waiting)["value"] == 3.0


async def test_the_first_of_several_client_sides_that_has_the_pv_is_used():
    async with served({"b": double(1.0)}) as one, served({"a": double(2.0)}) as two:
        clients = {"one": client_side(one), "two": client_side(two)}
        async with gateway_with(clients, {"outer": server_side("one", "two")}) as gateway:
            async with client_to(gateway) as client:
                assert (await client.get("a", server=direct(gateway)))["value"] == 2.0
                assert (await client.get("b", server=direct(gateway)))["value"] == 1.0
                assert not any(upstream.waiting for side in gateway.clients.values() for upstream in side)


async def test_a_client_that_leaves_waits_no_longer():
    async with served({}) as server, gateway_to(server) as gateway:
        async with await RawClient.connect(server_of(gateway).tcp_port) as raw:
            await raw.send(message(7, struct.pack("<HI", 1, 1) + text("pv")))
            inner = gateway.clients["inner"]
            while not (inner.known and inner.known["pv"].waiting):
                await asyncio.sleep(0.01)
        while inner.known["pv"].waiting:
            await asyncio.sleep(0.01)


async def test_a_denied_name_is_neither_looked_for_nor_opened(tmp_path):
    pvlist = tmp_path / "gw.pvlist"
    pvlist.write_text("A.* ALLOW\nAB DENY FROM 127.0.0.1\nX(.*) ALIAS A\\1\nY(.*) ALIAS A\\1 G\n")
    async with served({"A1": double(1.0), "AB": double(2.0), "B": double(3.0)}) as server:
        async with gateway_to(server, pvlist=str(pvlist)) as gateway, client_to(gateway) as client:
            for name in ("AB", "B"):
                assert f"there is no PV '{name}' here" in await refusal(client, name, direct(gateway))
            assert not gateway.clients["inner"].known
            assert (await client.get("X1"))["value"] == (await client.get("Y1"))["value"] == 1.0
            assert names(gateway.clients["inner"]) == {"A1"}, "two aliases share one name"
            assert set(server_of(gateway).names()) == {"A1", "X1", "Y1"}


async def test_a_host_that_asks_for_very_many_names_is_told():
    async with served({"pv": double(1.0)}) as server:
        async with gateway_to(server, bounds={"new_names_per_host": 3}) as gateway:
            async with client_to(gateway) as client:
                assert (await client.get("pv"))["value"] == 1.0
                for name in ("x", "y"):
                    gateway.servers["outer"].source.promise(name, "127.0.0.1", name, lambda: None)
                why = await refusal(client, "z", direct(gateway))
                assert "your host asks for very many names" in why
                assert (await client.get("pv", server=direct(gateway)))["value"] == 1.0, (
                    "a known name costs nothing"
                )


async def test_the_gateway_does_not_find_itself():
    udp = free_port()
    async with served({"pv": double(1.0)}, config=server_config(udp)):
        sides = {"outer": server_side("inner", pva={"broadcast_port": udp})}
        async with gateway_with({"inner": client_side(udp)}, sides) as gateway, client_to(gateway) as client:
            assert await ask_once(server_of(gateway), "pv") == {"pv"}
            assert (await client.get("pv", server=direct(gateway)))["value"] == 1.0
            gateway.clients["inner"].want("absent")
            await asyncio.sleep(0.5)
            assert not gateway.clients["inner"].known["absent"].active
            assert all(
                link.peer != f"127.0.0.1:{server_of(gateway).tcp_port}"
                for link in gateway.clients["inner"].context._links.by_address.values()
            )


async def test_a_host_whose_answers_are_ignored_is_not_used():
    async with served({"pv": double(1.0)}) as server:
        async with gateway_to(
            server, client={"ignore_servers": ["127.0.0.1"]}, bounds={"open_patience_s": 0.2}
        ) as gateway:
            async with client_to(gateway) as client:
                why = await refusal(client, "pv", direct(gateway))
                assert "no server behind this gateway" in why
        other = {"ignore_servers": [f"127.0.0.1:{free_port()}"]}
        async with gateway_to(server, client=other) as gateway, client_to(gateway) as client:
            assert (await client.get("pv"))["value"] == 1.0
