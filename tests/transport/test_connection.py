"""Connections over real sockets: segments, byte orders, peers that vanish, loss and return, ends of all kinds."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from appliance.client import Connected, Context, Disconnected, Monitor
from appliance.client.end import Timings
from appliance.errors import (
    ChannelClosedError,
    OperationError,
    OperationTimeoutError,
    PVDataError,
    RemoteError,
)
from appliance.pva.server_connection import ServerConnection
from appliance.pvdata.nt import NTScalar, NTScalarArray
from appliance.pvdata.types import FLOAT64, STRING
from appliance.pvdata.value import Value
from appliance.server import Handler, Operation, SharedPV
from appliance.server.channel import Channel
from appliance.tls.context import client_context, server_context
from tests.helpers.live import until
from tests.helpers.ours import client_config, client_of, double, gallery, served, server_config
from tests.helpers.pki import site
from tests.helpers.ports import free_port
from tests.helpers.raw import RawClient

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("size", [64, 1000, 70_000])
async def test_segmented_messages_go_both_ways(size: int) -> None:
    pvs = gallery()
    count = 1000 if size == 64 else 20_000
    async with served(pvs, segment_size=size) as server, client_of(server, segment_size=size) as ctx:
        await ctx.put("our:array", {"value": np.arange(count, dtype=float)})
        assert (await ctx.get("our:array"))["value"].tolist() == list(range(count))
        async with ctx.monitor("our:string") as updates:
            assert (await anext(updates))["value"] == "grüße ☃ 日本 🚀"
        result = await ctx.rpc("our:add", {"lhs": 1.0, "rhs": 2.0})
        assert result is not None
        assert result["value"] == 3.0


async def test_a_client_that_ends_leaves_no_answer_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that found the socket closed would come back as a reset, an error in the log of a PVXS server."""
    received = bytearray()

    class Recording(ServerConnection):
        __slots__ = ()

        def receive_data(self, data):  # type: ignore[no-untyped-def]
            received.extend(data)
            return super().receive_data(data)

    monkeypatch.setattr("appliance.server.peer.ServerConnection", Recording)
    async with served(gallery()) as server:
        async with client_of(server) as ctx, ctx.monitor("our:string") as updates:
            await anext(updates)
            await ctx.get("our:array")
        while server.peers:
            await asyncio.sleep(0.005)
    assert b"\xca\x02\x00\x0a" in received, "GET was seen"
    assert b"\xca\x02\x00\x08" not in received, "DESTROY_CHANNEL would be answered"


async def test_a_big_endian_server_is_understood_and_answered_in_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from appliance.server import peer as module

    made: list[ServerConnection] = []

    def big(**options: object) -> ServerConnection:
        made.append(ServerConnection(**options, big=True))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(module, "ServerConnection", big)
    pvs = gallery()
    async with served(pvs) as server, client_of(server) as ctx:
        for name, pv in pvs.items():
            if pv.type is not None:
                assert (await ctx.get(name)).to_dict() == pv.current.to_dict()
        await ctx.put("our:array", {"value": [1.5, -2.5]})
        assert pvs["our:array"].current["value"].tolist() == [1.5, -2.5]
        async with ctx.monitor("our:int") as updates:
            assert (await anext(updates))["value"] == 42
        (link,) = ctx._links.by_address.values()
        assert link.connection is not None
        assert link.connection.big
    assert made


async def test_a_monitor_comes_back_after_a_restart_without_the_callers_help() -> None:
    udp = free_port()
    pv = double(1.0)
    async with Context(client_config(udp), beacons=False) as ctx:
        async with ctx.monitor("c:pv", notify=True) as updates:
            async with served({"c:pv": pv}, config=server_config(udp)):
                assert isinstance(await anext(updates), Connected)
                assert (await anext(updates))["value"] == 1.0
            assert isinstance(await anext(updates), Disconnected)
            async with served({"c:pv": double(2.0)}, config=server_config(udp)):
                assert isinstance(await anext(updates), Connected)
                assert (await anext(updates))["value"] == 2.0


async def test_a_get_in_flight_is_repeated_at_the_next_server() -> None:
    udp = free_port()

    class Silent(SharedPV):
        asked: asyncio.Event

        def get(self, operation: Operation) -> None:
            self.asked.set()

    silent = Silent(Value(NTScalar(FLOAT64)))
    silent.asked = asyncio.Event()
    async with Context(client_config(udp), beacons=False) as ctx:
        async with served({"c:pv": silent}, config=server_config(udp)):
            waiting = asyncio.ensure_future(ctx.get("c:pv", timeout=30))
            await silent.asked.wait()
        async with served({"c:pv": double(2.0)}, config=server_config(udp)):
            assert (await waiting)["value"] == 2.0


async def test_a_put_in_flight_is_not_repeated() -> None:
    asked = asyncio.Event()
    puts: list[float] = []

    async def never(pv: SharedPV, operation: Operation, value: Value) -> None:
        puts.append(value["value"])
        asked.set()
        await asyncio.Event().wait()

    async with Context(client_config(udp := free_port()), beacons=False) as ctx:
        pv = SharedPV(Value(NTScalar(FLOAT64)), on_put=never)
        async with served({"c:pv": pv}, config=server_config(udp)):
            waiting = asyncio.ensure_future(ctx.put("c:pv", 1.0, timeout=30))
            await asked.wait()
        with pytest.raises(ChannelClosedError, match="lost the server during the put"):
            await waiting
    assert puts == [1.0]


async def test_a_failed_batch_names_the_bad_and_keeps_the_good() -> None:
    pvs = {f"c:{n}": double(n) for n in range(50)}
    async with served(pvs) as server, client_of(server) as ctx:
        names = [*pvs, "c:none"]
        await ctx.get([*pvs])
        values = await ctx.get(names, timeout=3.0, return_exceptions=True)
        assert [value["value"] for value in values[:-1]] == list(range(50))
        assert isinstance(values[-1], OperationTimeoutError)
        with pytest.raises(OperationTimeoutError, match="c:none"):
            await ctx.get(names, timeout=0.3)


async def test_closing_the_context_ends_what_waits() -> None:
    async with served({"c:pv": double()}) as server:
        ctx = client_of(server)
        await ctx.start()
        await ctx.get("c:pv")
        get = asyncio.ensure_future(ctx.get("c:none", timeout=None))
        updates: Monitor = ctx.monitor("c:pv")
        await anext(updates)
        nothing = asyncio.ensure_future(anext(updates))
        await asyncio.sleep(0)
        await ctx.close()
        with pytest.raises(ChannelClosedError):
            await get
        with pytest.raises(ChannelClosedError):
            await nothing
        with pytest.raises(ChannelClosedError, match="context is closed"):
            await ctx.get("c:pv")
        async with asyncio.timeout(30):
            while server.peers:
                await asyncio.sleep(0.01)


async def test_closing_the_context_while_it_connects_leaves_nothing() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)
        ctx = Context(client_config(), beacons=False)
        await ctx.start()
        address = ("127.0.0.1", deaf.getsockname()[1], False)
        waiting = asyncio.ensure_future(ctx.get("c:pv", server=address, timeout=None))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await ctx.close()
        with pytest.raises(ChannelClosedError):
            await waiting
    assert not ctx._links._tasks


async def test_a_cancelled_get_leaves_nothing_at_either_end() -> None:
    never = SharedPV(on_rpc=lambda *_: asyncio.Event().wait())  # type: ignore[arg-type,return-value]
    async with served({"c:pv": never}) as server, client_of(server) as ctx:
        waiting = asyncio.ensure_future(ctx.rpc("c:pv", {"a": 1}))
        async with asyncio.timeout(30):
            while not any(peer.connection.operations for peer in server.peers.values()):
                await asyncio.sleep(0.01)
            waiting.cancel()
            while any(peer.connection.operations for peer in server.peers.values()):
                await asyncio.sleep(0.01)
        (channel,) = ctx._links.channels
        assert not channel.requests


class _Slow(Handler):
    """A PV whose GETs wait until a test answers them."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        self.asked: asyncio.Queue[Operation] = asyncio.Queue()

    def init(self, operation: Operation) -> None:
        operation.ready(NTScalar(FLOAT64))

    def get(self, operation: Operation) -> None:
        operation.state = (operation.state or 0) + 1
        self.asked.put_nowait(operation)


async def test_an_answer_that_comes_after_cancel_is_not_taken_for_the_next_gets() -> None:
    slow = _Slow()
    async with served({"slow": slow}) as server, await RawClient.connect(server.tcp_port) as client:
        get = await client.get_init("slow")
        cancel = b"\xca\x02\x00\x15" + struct.pack("<I", 8) + get[8:16]
        await client.send(get)
        first = await slow.asked.get()
        assert first.alive
        await client.send(cancel + get)
        second = await slow.asked.get()
        assert not first.alive
        assert second.state == 2, "what the handler keeps with the operation goes on"
        first.reply(Value(NTScalar(FLOAT64), {"value": 1.0}))
        first.fail("too late")
        second.reply(Value(NTScalar(FLOAT64), {"value": 2.0}))
        await client.send(get)
        (await slow.asked.get()).reply(Value(NTScalar(FLOAT64), {"value": 3.0}))
        answers = [await client.message(), await client.message()]
        assert [(command, struct.unpack_from("<d", body, 8)[0]) for command, body in answers] == [
            (10, 2.0),
            (10, 3.0),
        ]


async def test_a_call_that_goes_on_after_cancel_does_not_answer_the_next_one() -> None:
    calls: list[asyncio.Future[None]] = []
    called = asyncio.Event()

    async def call(pv: SharedPV, operation: Operation, argument: Value | None) -> Value:
        done = asyncio.get_running_loop().create_future()
        calls.append(done)
        number = len(calls)
        called.set()
        await done
        return Value(NTScalar(FLOAT64), {"value": float(number)})

    async with (
        served({"call": SharedPV(on_rpc=call)}) as server,
        await RawClient.connect(server.tcp_port) as client,
    ):
        head = struct.pack("<II", await client.channel("call"), 77)

        def message(command: int, rest: bytes) -> bytes:
            return b"\xca\x02\x00" + bytes((command,)) + struct.pack("<I", 8 + len(rest)) + head + rest

        await client.send(message(20, b"\x08\xff"))
        assert (await client.message())[0] == 20
        await client.send(message(20, b"\x00\xff") + message(21, b"") + message(20, b"\x00\xff"))
        while len(calls) < 2:
            called.clear()
            await called.wait()
        for done in calls:
            done.set_result(None)
        command, body = await client.message()
        assert (command, body[4], body[5]) == (20, 0, 0xFF)
        assert struct.pack("<d", 2.0) in body
        assert struct.pack("<d", 1.0) not in body


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
async def test_the_end_of_a_client_is_an_orderly_end_for_the_server(
    tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """No answer may come to a socket that is closed: that would reset the connection."""
    caplog.set_level(logging.DEBUG, "appliance.server")
    context = server_context(site().server, require_client_cert=False) if tls else None
    mine = client_context(site().client, want_staple=False) if tls else None
    async with served({"pv": double()}, tls=context) as server:
        for _ in range(10):
            async with client_of(server, tls=mine) as ctx:
                await ctx.get("pv")
                await ctx.put("pv", 4.0)
                await ctx.info("pv")
                async with ctx.monitor("pv") as updates:
                    async for _value in updates:
                        break
        await until(lambda: not server.peers)
    ends = [record.getMessage() for record in caplog.records if "disconnected" in record.getMessage()]
    assert len(ends) == 10
    assert all(end.endswith(" disconnected") for end in ends), ends


async def test_a_client_that_leaves_with_something_on_its_way_to_it_is_a_quiet_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "appliance.server")
    pv = double()
    async with served({"pv": pv}) as server:
        client = await RawClient.connect(server.tcp_port)
        await client.monitor("pv")
        (peer,) = server.peers.values()
        client.pause()
        before = peer.stream.sent
        pv.post(1.0)
        await until(lambda: peer.stream.drained > before)
        await client.close()
        await until(lambda: not server.peers)
    (end,) = [record for record in caplog.records if "disconnected" in record.getMessage()]
    assert end.levelno == logging.DEBUG
    assert "reset" in end.getMessage()


async def test_calls_that_clients_gave_up_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.server.sharedpv.MAX_TASKS", 5)
    go = asyncio.Event()
    running = 0

    async def call(pv: SharedPV, operation: Operation, argument: Value | None) -> None:
        nonlocal running
        running += 1
        await go.wait()
        running -= 1

    async with served({"call": SharedPV(on_rpc=call)}) as server, client_of(server) as ctx:
        for number in range(5):
            with pytest.raises(OperationTimeoutError):
                await ctx.rpc("call", timeout=0.05 if number else 1.0)
        await until(lambda: running == 5)
        with pytest.raises(RemoteError, match="5 requests in progress; try again later"):
            await ctx.rpc("call")
        go.set()
        await until(lambda: running == 0)
        assert await ctx.rpc("call") is None


async def test_messages_for_the_log_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "appliance.server")
    async with served({}) as server:
        client = await RawClient.connect(server.tcp_port)
        body = struct.pack("<IB", 0, 0) + b"\x02hi"
        await client.send((b"\xca\x02\x00\x12" + struct.pack("<I", len(body)) + body) * 1000)
        echo = b"\xca\x02\x00\x02" + struct.pack("<I", 4) + b"done"
        await client.send(echo)
        while (await client.message())[1] != b"done":
            pass
        await client.close()
    said = [record.getMessage() for record in caplog.records if "message" in record.getMessage()]
    assert len(said) == 21
    assert "further messages" in said[-1]


async def test_a_function_of_the_caller_that_fails_hurts_only_its_own_put(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pvs = {"c:pv": double(1.0)}
    async with served(pvs) as server, client_of(server) as ctx:
        updates: asyncio.Queue[float] = asyncio.Queue()

        def take(value: Value) -> None:
            updates.put_nowait(value["value"])
            raise RuntimeError("a defect of the caller")

        ctx.monitor("c:pv", on_update=take)
        assert await updates.get() == 1.0
        with pytest.raises(ZeroDivisionError):
            await ctx.put("c:pv", lambda present: 1 / 0)
        with pytest.raises(PVDataError):
            await ctx.put("c:pv", {"value": [1, 2]})
        with pytest.raises(RuntimeError, match="StopIteration"):
            await ctx.put("c:pv", lambda present: next(iter(())), timeout=30)

        def cancel(present: Value) -> Value:
            raise asyncio.CancelledError

        with pytest.raises(OperationError, match="CancelledError"):
            await ctx.put("c:pv", cancel, timeout=30)
        pvs["c:pv"].post(2.0)
        assert await updates.get() == 2.0
        assert len(ctx._links.by_address) == 1
        assert "a defect of the caller" in caplog.text


async def test_a_pv_that_is_opened_again_with_another_type_is_read_and_followed() -> None:
    pv = double(1.0)
    async with served({"c:pv": pv}) as server, client_of(server) as ctx:
        async with ctx.monitor("c:pv") as updates:
            assert (await anext(updates))["value"] == 1.0
            assert (await ctx.get("c:pv"))["value"] == 1.0
            pv.close()
            pv.open(Value(NTScalar(STRING), {"value": "text"}))
            assert (await anext(updates))["value"] == "text"
            assert (await ctx.get("c:pv"))["value"] == "text"


async def test_an_idle_get_survives_a_change_of_type_without_subscribers() -> None:
    pv = double(1.0)
    async with served({"c:pv": pv}) as server, client_of(server) as ctx:
        assert (await ctx.get("c:pv"))["value"] == 1.0
        pv.close()
        pv.open(Value(NTScalar(STRING), {"value": "text"}))
        assert (await ctx.get("c:pv"))["value"] == "text"


async def test_a_removed_pv_is_found_at_another_server() -> None:
    udp = free_port()
    async with served({"c:pv": double(1.0)}, config=server_config(udp)) as first:
        async with served({}, config=server_config(udp)) as second:
            async with Context(client_config(udp), beacons=False) as ctx, ctx.monitor("c:pv") as updates:
                assert (await anext(updates))["value"] == 1.0
                first.remove_pv("c:pv")
                second.add_pv("c:pv", double(2.0))
                assert (await anext(updates))["value"] == 2.0


async def test_links_without_channels_are_closed() -> None:
    timings = Timings(idle_channel_s=0.05)
    async with served({"c:pv": double()}) as server, client_of(server, timings=timings) as ctx:
        await ctx.get("c:pv")
        async with asyncio.timeout(30):
            while server.peers:
                await asyncio.sleep(0.01)
        assert not ctx._links.by_address
        assert not len(ctx._links.channels)
        assert (await ctx.get("c:pv"))["value"] == 0.0


async def test_a_name_servers_link_is_kept_without_channels() -> None:
    async with served({"c:pv": double()}) as server:
        config = client_config(name_servers=f"127.0.0.1:{server.tcp_port}")
        async with Context(config, beacons=False, timings=Timings(idle_channel_s=0.05)) as ctx:
            await ctx.get("c:pv")
            (link,) = ctx._links.name_servers
            async with asyncio.timeout(30):
                while len(ctx._links.channels):
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert ctx._links.name_servers == [link]
            assert link.ready


SERVER = """
import asyncio, sys
sys.path.insert(0, {root!r})
from tests.helpers.ours import double, served, server_config
async def main():
    async with served({{"v:pv": double(1.0)}}, config=server_config({udp})) as server:
        print(server.tcp_port, flush=True)
        await server.wait_closed()
asyncio.run(main())
"""


async def test_a_server_that_vanishes_is_noticed_and_the_next_one_found() -> None:
    udp = free_port()
    code = textwrap.dedent(SERVER.format(root=str(ROOT), udp=udp))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            await asyncio.to_thread(process.stdout.readline)
            # The least time-out that there is: 2 s.
            async with Context(client_config(udp, conn_tmo=1.5), beacons=False) as ctx:
                async with ctx.monitor("v:pv", notify=True) as updates:
                    assert isinstance(await anext(updates), Connected)
                    assert (await anext(updates))["value"] == 1.0
                    process.send_signal(signal.SIGSTOP)
                    began = asyncio.get_running_loop().time()
                    async with asyncio.timeout(30):  # less than by default
                        lost = await anext(updates)
                    assert isinstance(lost, Disconnected)
                    assert "silent" in lost.why
                    assert asyncio.get_running_loop().time() - began > 1.5
                    process.kill()
                    async with served({"v:pv": double(2.0)}, config=server_config(udp)):
                        assert isinstance(await anext(updates), Connected)
                        assert (await anext(updates))["value"] == 2.0
        finally:
            process.kill()


async def test_a_quiet_connection_is_kept_alive_by_echoes() -> None:
    config = server_config(conn_tmo=1.5)
    async with served({"c:pv": double()}, config=config) as server:
        async with client_of(server, config=client_config(server.udp_port, conn_tmo=1.5)) as ctx:
            async with ctx.monitor("c:pv") as updates:
                await anext(updates)
                (link,) = ctx._links.by_address.values()
                await asyncio.sleep(2.6)  # longer than the time-out of either end
                assert list(ctx._links.by_address.values()) == [link]
                assert len(server.peers) == 1


async def test_a_client_that_only_listens_is_not_given_up_by_a_server_that_talks_all_the_time() -> None:
    """Section 12.1: a server waits for signs of life too, and updates that it sends are none of the client's."""
    pv = double()
    async with served({"c:pv": pv}, config=server_config(conn_tmo=1.5)) as server:
        async with client_of(server, config=client_config(server.udp_port, conn_tmo=1.5)) as ctx:
            async with ctx.monitor("c:pv", notify=True) as updates:
                assert isinstance(await anext(updates), Connected)
                # Longer than the time-out of either end, which is 2 s, and an eighth of it.
                for number in range(60):
                    pv.post(float(number))
                    while True:
                        update = await anext(updates)
                        assert not isinstance(update, Disconnected), update.why
                        if update["value"] == number:
                            break
                    await asyncio.sleep(0.05)


async def test_a_silent_client_is_given_up_by_the_server() -> None:
    async with served({"c:pv": double()}, config=server_config(conn_tmo=1.5)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.tcp_port)
        async with asyncio.timeout(30):
            await reader.read(-1)
        assert not server.peers
        writer.close()


async def test_the_server_stops_in_time_with_half_open_clients() -> None:
    server = served({"c:pv": double()})
    await server.start()
    sockets = [socket.create_connection(("127.0.0.1", server.tcp_port)) for _ in range(5)]
    async with asyncio.timeout(30):
        while len(server.peers) < 5:
            await asyncio.sleep(0.01)
        await server.stop()
    assert not server.peers
    for sock in sockets:
        sock.close()


async def test_errors_of_the_server_reach_the_caller() -> None:
    async with served(gallery()) as server, client_of(server) as ctx:
        with pytest.raises(RemoteError, match="interlock is active"):
            await ctx.put("our:refusing", 1.0)
        with pytest.raises(RemoteError, match="cannot be called"):
            await ctx.rpc("our:int", {"a": 1})
        with pytest.raises(RemoteError, match="no field"):
            await ctx.info("our:int", "nothing.here")
        with pytest.raises(RemoteError):
            await ctx.get("our:int", "field(nothing)")


async def test_a_pipelined_monitor_loses_nothing() -> None:
    pv = double(0.0)
    async with served({"c:pv": pv}) as server, client_of(server) as ctx:
        async with ctx.monitor("c:pv", "record[queueSize=50,pipeline=true]") as updates:
            await anext(updates)
            for start in range(0, 1000, 40):
                for value in range(start + 1, start + 41):
                    pv.post(float(value))
                assert [(await anext(updates))["value"] for _ in range(40)] == list(
                    range(start + 1, start + 41)
                )


async def test_a_slow_reader_skips_values_and_has_the_latest() -> None:
    pv = double(0.0)
    async with served({"c:pv": pv}) as server, client_of(server) as ctx:
        async with ctx.monitor("c:pv") as updates:
            await anext(updates)
            for value in range(1, 5001):
                pv.post(float(value))
                if value % 50 == 0:
                    await asyncio.sleep(0)
            await ctx.get("c:pv")
            assert len(updates._queue) <= updates.queue_size
            last = 0.0
            while last != 5000.0:
                last = (await anext(updates))["value"]
            assert updates.squashed


async def test_a_connection_that_flaps_does_not_fill_the_queue_of_a_reader_who_sleeps() -> None:
    async with served({"c:pv": double()}) as server, client_of(server) as ctx:
        async with ctx.monitor("c:pv", notify=True) as updates:
            await anext(updates)
            for _ in range(30):
                async with asyncio.timeout(30):
                    while updates.channel.state.value != "active" or not updates.operation:
                        await asyncio.sleep(0)
                server.close_peers()
                async with asyncio.timeout(30):
                    while server.peers:
                        await asyncio.sleep(0)
            assert len(updates._queue) <= updates.queue_size + 9


async def test_an_array_of_eight_megabytes_goes_both_ways() -> None:
    pv = SharedPV.mailbox(Value(NTScalarArray(FLOAT64), {"value": np.zeros(1)}))
    async with served({"c:pv": pv}) as server, client_of(server) as ctx:
        data = np.random.default_rng(1).random(1_048_576)
        await ctx.put("c:pv", {"value": data})
        assert np.array_equal((await ctx.get("c:pv"))["value"], data)


async def test_what_is_asked_of_a_pv_without_value_is_answered_when_it_has_one() -> None:
    """As with PVXS: a client that comes early waits, it is not sent away."""
    pv = SharedPV()
    async with served({"early": pv}) as server, client_of(server) as ctx, ctx.monitor("early") as updates:
        read = asyncio.ensure_future(ctx.get("early"))
        told = asyncio.ensure_future(ctx.info("early"))
        given_up = asyncio.ensure_future(ctx.get("early", "field(value)", timeout=0.2))
        with pytest.raises(OperationTimeoutError):
            await given_up
        assert not read.done()
        pv.open(Value(NTScalar(FLOAT64), {"value": 4.5}))
        assert (await read)["value"] == 4.5
        assert (await told).type == NTScalar(FLOAT64)
        assert (await anext(updates))["value"] == 4.5
        assert not pv._waiting


async def test_a_channel_that_is_closed_in_the_same_read_as_its_answer_costs_nothing_else() -> None:
    """A gateway does that when it loses the server behind it: the request begins anew, and the connection stays."""

    class Hasty(SharedPV):
        hurries = 0

        def init(self, operation: Operation) -> None:
            super().init(operation)
            if self.hurries < 3:
                self.hurries += 1
                operation.channel.close()

        def attached(self, channel: Channel) -> None:
            if self.hurries == 3:
                self.hurries += 1
                asyncio.get_running_loop().call_soon(channel.close)

    hasty = Hasty(Value(NTScalar(FLOAT64), {"value": 2.0}))
    async with served({"hasty": hasty, "pv": double(1.0)}) as server, client_of(server) as client:
        async with client.monitor("pv", notify=True) as updates:
            assert isinstance(await anext(updates), Connected)
            assert (await anext(updates))["value"] == 1.0
            assert (await client.get("hasty", timeout=30))["value"] == 2.0
            assert hasty.hurries == 4
            server._static.pvs["pv"].post(3.0)  # type: ignore[attr-defined]
            assert (await anext(updates))["value"] == 3.0, "the connection was not lost"


async def test_a_close_that_is_cancelled_as_it_ends_is_cancelled():
    """Python 3.11's wait_for loses a cancellation that comes together with the event, and the caller waits for ever."""
    async with served({"pv": double(1.0)}) as server:
        context = Context(client_config(server.udp_port))
        await context.start()
        await context.get("pv")
        closing = asyncio.create_task(context.close())
        while context._links._deserted is None:
            await asyncio.sleep(0)
        context._links._deserted.set()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
