"""A server and a client under stress: slow, greedy, broken and very many peers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.client import Context
from appliance.errors import OperationTimeoutError, RemoteError
from appliance.pva import commands as c
from appliance.pva.limits import DEFAULT_LIMITS
from appliance.pva.search import SearchRequest, pack_message
from appliance.pvdata.nt import NTScalarArray
from appliance.pvdata.types import FLOAT64
from appliance.pvdata.value import Value
from appliance.server import Server, SharedPV
from appliance.server.admission import AdmissionTimings
from appliance.server.peer import Peer
from appliance.tls.context import server_context
from tests.helpers.live import never_comes, until
from tests.helpers.ours import client_config, client_of, double, gallery, served, server_config
from tests.helpers.pki import site
from tests.helpers.raw import RawClient
from tests.helpers.turns import GIVES_WAY, longest_turn

MB = 1024 * 1024


def resident() -> int:
    """Octets of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def array_pv(megabytes: int) -> SharedPV:
    return SharedPV.mailbox(Value(NTScalarArray(FLOAT64), {"value": np.zeros(megabytes * MB // 8)}))


async def answers(server: Server, name: str, times: int = 20) -> None:
    """The server still serves others, quickly."""
    async with client_of(server) as ctx, asyncio.timeout(30):
        for _ in range(times):
            await ctx.get(name)


@pytest.mark.parametrize(
    ("queue_size", "updates", "limit"),
    # A longer queue is bounded by its octets: 64 MB, and as much of the values that they were made of.
    [(0, 300, 60 * MB), (60_000, 400, 220 * MB)],
    ids=["usual queue", "long queue"],
)
async def test_a_subscriber_that_does_not_read_costs_a_bounded_amount_of_memory(
    queue_size: int, updates: int, limit: int
) -> None:
    fast = array_pv(1)
    async with served({"r:fast": fast, "r:pv": double()}) as server:
        slow = await RawClient.connect(server.tcp_port, receive_buffer=4096)
        async with slow:
            await slow.monitor("r:fast", queue_size=queue_size)
            before = resident()
            store = np.zeros(MB // 8)
            for number in range(updates):
                store[0] = number
                fast.post({"value": store.copy()})
                await asyncio.sleep(0)
            assert resident() - before < limit
            await answers(server, "r:pv")


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
async def test_a_client_that_asks_for_eight_megabytes_again_and_again_and_never_reads(tls: bool) -> None:
    context = server_context(site().server, require_client_cert=False) if tls else None
    async with served({"r:big": array_pv(8), "r:pv": double()}, tls=context) as server:
        greedy = await RawClient.connect(
            server.tls_port if tls else server.tcp_port, receive_buffer=4096, tls=tls
        )
        async with greedy:
            operation = await greedy.get_init("r:big")
            await greedy.send(operation)
            await answers(server, "r:pv")  # from now on the server has the answer at hand
            before = resident()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await greedy.send(operation * 20_000)
            await answers(server, "r:pv")
            assert resident() - before < 80 * MB


async def test_a_slow_reader_is_kept_as_long_as_it_reads_and_given_up_when_it_stops() -> None:
    async with served({"r:big": array_pv(8)}, config=server_config(conn_tmo=1.5)) as server:
        slow = await RawClient.connect(server.tcp_port, receive_buffer=4096)
        async with slow:
            operation = await slow.get_init("r:big")
            await slow.send(operation)
            async with client_of(server) as other:
                await other.info("r:big")  # from now on the server has the answer at hand
            await slow.send(operation * 50)
            loop = asyncio.get_running_loop()
            until = loop.time() + 3.0  # longer than the time-out
            while loop.time() < until:
                assert await slow.read_some(65536)
                await asyncio.sleep(0.02)
            assert len(server.peers) == 1
            async with asyncio.timeout(30):
                while server.peers:
                    await asyncio.sleep(0.02)


def peers_in_memory(server: Server) -> list[Peer]:
    """Find the clients of one server: those of others may outlive a test."""
    return [each for each in gc.get_objects() if isinstance(each, Peer) and each._host is server]


async def test_thousands_of_connections_leak_neither_memory_nor_descriptors() -> None:
    async with served({"r:pv": double()}) as server:
        address = ("127.0.0.1", server.tcp_port, False)

        async def once() -> None:
            async with Context(client_config(), beacons=False) as ctx:
                await ctx.get("r:pv", server=address)

        async def round_(count: int) -> tuple[int, int]:
            for _ in range(count // 10):
                await asyncio.gather(*(once() for _ in range(10)))
            async with asyncio.timeout(30):
                while server.peers:
                    await asyncio.sleep(0.01)
            gc.collect()
            return resident(), descriptors()

        await round_(300)
        memory, open_ = await round_(200)
        memory_after, open_after = await round_(1000)
        assert open_after <= open_ + 2
        assert memory_after - memory < 6 * MB
        assert not peers_in_memory(server), "nothing holds what has ended"


@pytest.mark.parametrize("tls", [None, server_context(site().server, require_client_cert=False)])
async def test_a_connection_that_has_ended_is_freed_without_a_collection_of_garbage(tls: Any) -> None:
    async with served({"r:pv": double()}, tls=tls) as server:
        gc.collect()
        gc.disable()
        try:
            async with client_of(server) as ctx:
                await ctx.get("r:pv")
                assert peers_in_memory(server)
            await until(lambda: not server.peers)
            await until(lambda: not peers_in_memory(server))
        finally:
            gc.enable()


async def test_channels_and_operations_leave_nothing_in_a_long_connection() -> None:
    async with served({f"r:{n}": double(n) for n in range(200)}) as server, client_of(server) as ctx:
        for _ in range(10):
            await ctx.get([f"r:{n}" for n in range(200)])
            ctx._links.channels.close(tell=True)
        await ctx.get("r:0")
        (peer,) = server.peers.values()
        assert len(peer.connection.channels) == 1
        assert len(peer.connection.operations) == 1


async def test_three_hundred_clients_get_fair_service() -> None:
    async with served({"r:pv": double()}) as server:
        clients = [await RawClient.connect(server.tcp_port) for _ in range(300)]
        counts = [0] * len(clients)
        stop = asyncio.Event()

        async def work(index: int) -> None:
            client = clients[index]
            operation = await client.get_init("r:pv")
            await client.send(operation)
            size = await client.message_size()
            while not stop.is_set():
                await client.send(operation * 10)
                await client.skip(size * 10)
                counts[index] += 10

        tasks = [asyncio.ensure_future(work(index)) for index in range(len(clients))]
        await asyncio.sleep(1.5)
        stop.set()
        await asyncio.gather(*tasks)
        assert min(counts) >= 10
        assert max(counts) <= 3 * min(counts), (min(counts), max(counts))
        for client in clients:
            await client.close()


async def test_garbage_of_every_kind_leaves_the_server_serving() -> None:
    context = server_context(site().server, require_client_cert=False)
    async with served({"r:pv": double()}, tls=context) as server:
        dice = random.Random(4)
        for number in range(120):
            port = server.tls_port if number % 3 == 0 else server.tcp_port
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            data = dice.randbytes(dice.choice((1, 7, 8, 100, 5000)))
            if number % 2:
                data = bytes((0xCA, 2, 0, dice.randrange(32))) + struct.pack("<I", len(data)) + data
            writer.write(data)
            if number % 5 == 0:
                writer.write_eof()
            if number % 7 == 0:
                writer.transport.abort()
            else:
                writer.close()
            del reader
        await answers(server, "r:pv")
        async with asyncio.timeout(30):
            while server.peers:
                await asyncio.sleep(0.01)


async def test_clients_that_never_finish_their_handshake_are_cut_off() -> None:
    context = server_context(site().server, require_client_cert=False)
    timings = AdmissionTimings(handshake_s=0.3)
    async with served({"r:pv": double()}, tls=context, timings=timings) as server:
        ports = (server.tcp_port, server.tls_port) * 3
        lorises = [await asyncio.open_connection("127.0.0.1", port) for port in ports]

        async def dribble(writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, RuntimeError):  # uvloop's word for a closed transport
                for octet in b"\xca\x02\x00\x01\xff\x00\x00\x00" + bytes(200):
                    writer.write(bytes((octet,)))
                    await writer.drain()
                    await asyncio.sleep(0.02)

        tasks = [asyncio.ensure_future(dribble(writer)) for _, writer in lorises]
        async with asyncio.timeout(30):
            for reader, _ in lorises:
                with contextlib.suppress(ConnectionError):
                    await reader.read(-1)
        # Who sends no TLS is told so, and has a moment to read it.
        await until(lambda: not server.peers)
        await asyncio.gather(*tasks)
        await answers(server, "r:pv")
        for _, writer in lorises:
            writer.close()


async def test_too_many_connections_are_refused_and_the_others_served() -> None:
    context = server_context(site().server, require_client_cert=False)
    async with served({"r:pv": double()}, max_connections=5, tls=context) as server:
        held = [await asyncio.open_connection("127.0.0.1", server.tls_port) for _ in range(4)]
        async with client_of(server) as ctx:
            await ctx.get("r:pv")
            for port in (server.tcp_port, server.tls_port):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                with contextlib.suppress(ConnectionError):
                    assert await reader.read(1) == b""
                writer.close()
            await ctx.get("r:pv")
        for _, writer in held:
            writer.close()


async def test_channels_and_operations_beyond_the_limit_are_refused() -> None:
    limits = DEFAULT_LIMITS._replace(max_channels=3, max_operations=4)
    async with served(gallery("r:"), limits=limits) as server, client_of(server) as ctx:
        for name in ("r:int", "r:double", "r:string"):
            await ctx.get(name)
        await never_comes(lambda: ctx.get("r:array", timeout=0.3), "has 3 channels already")
        updates = ctx.monitor("r:int")
        await anext(updates)
        with pytest.raises(RemoteError, match="too many operations"):
            await ctx.put("r:int", 1)
        assert (await ctx.get("r:int"))["value"] == 42


FLOOD = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
where, data = ("127.255.255.255", int(sys.argv[1])), bytes.fromhex(sys.argv[2])
sock.sendto(data, where)
print("begun", flush=True)
for _ in range(2_000_000):
    sock.sendto(data, where)
"""


async def test_a_flood_of_searches_does_not_starve_connections() -> None:
    async with served({"r:pv": double()}) as server, client_of(server) as ctx:
        await ctx.get("r:pv")
        names = tuple((number, f"none:{number}") for number in range(60))
        search = SearchRequest(1, names, ("tcp",), reply_port=9)
        datagram = pack_message(c.CMD_SEARCH, search.encode(), from_server=False)
        flood = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FLOOD, str(server.udp_port), datagram.hex(), stdout=subprocess.PIPE
        )
        assert flood.stdout is not None
        await flood.stdout.readline()  # it has begun
        with longest_turn() as turns:
            for _ in range(100):
                await ctx.get("r:pv")
        assert flood.returncode is None, "the flood ended before the test"
        flood.kill()
        await flood.wait()
        assert turns.longest < GIVES_WAY


async def test_a_garbage_server_costs_a_client_a_time_out_and_nothing_else() -> None:
    dice = random.Random(5)
    hello = bytes((0xCA, 2, 0x41, 2)) + bytes(4)

    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind = dice.randrange(4)
        with contextlib.suppress(OSError):
            if kind:
                writer.write(hello)
            if kind > 1:
                body = dice.randbytes(dice.randrange(300))
                writer.write(bytes((0xCA, 2, 0x40, dice.randrange(24))) + struct.pack("<I", len(body)) + body)
            writer.write(dice.randbytes(200))
            await writer.drain()
        writer.close()

    bad = await asyncio.start_server(garbage, "127.0.0.1", 0)
    port = bad.sockets[0].getsockname()[1]
    async with served({"r:pv": double(1.0)}) as server, client_of(server) as ctx:
        with pytest.raises(OperationTimeoutError):
            await ctx.get("r:x", server=("127.0.0.1", port, False), timeout=1.5)
        assert (await ctx.get("r:pv"))["value"] == 1.0
    bad.close()
    await bad.wait_closed()


async def test_a_pv_that_is_read_by_a_client_of_pipelined_gets_does_not_starve_the_others() -> None:
    async with served({"r:pv": double(), "r:other": double()}) as server:
        greedy = await RawClient.connect(server.tcp_port)
        async with greedy:
            operation = await greedy.get_init("r:pv")
            stop = asyncio.Event()

            await greedy.send(operation)
            await greedy.message_size()

            async def ask() -> None:
                while not stop.is_set():
                    await greedy.send(operation * 2000)

            async def drop() -> None:
                while await greedy.read_some(MB):
                    pass

            tasks = [asyncio.ensure_future(ask()), asyncio.ensure_future(drop())]
            await answers(server, "r:other", 100)
            stop.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
