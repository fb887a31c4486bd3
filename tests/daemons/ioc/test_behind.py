"""Clients that are behind: what their events cost, and that each record's last value arrives."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.helpers.isolated import isolated

COUNT = 50
MONITOR = 13
RECORDS = "".join(f'record(longout, "r{number}") {{}}\n' for number in range(COUNT)) + (
    'record(ao, "alarmed") { field(HIHI, "1000") field(HHSV, "MAJOR") }\nrecord(stringout, "text") {}\n'
)


class Client:
    """A raw client that reads when it is told to."""

    def __init__(self, port: int) -> None:
        from bench.wire import Driver

        self.driver = Driver(port)
        self.driver.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.got: dict[int, list[tuple[int, bytes]]] = {}
        """By ioid, the changed fields of each update as a mask of wire bits, and what follows them."""

    def watch(self, names: list[str]) -> None:
        from bench.wire import EMPTY_REQUEST

        numbered = list(enumerate(self.driver.channels(names), 1))
        for ioid, sid in numbered:
            self.driver.send(MONITOR, struct.pack("<IIB", sid, ioid, 8) + EMPTY_REQUEST)
            self.driver.wait_for(MONITOR)
        for ioid, sid in numbered:
            self.driver.send(MONITOR, struct.pack("<IIB", sid, ioid, 0x44))

    def read(self) -> None:
        """Read one update."""
        payload = self.driver.wait_for(MONITOR)
        (ioid, _) = struct.unpack_from("<IB", payload)
        size = payload[5]
        bits = int.from_bytes(payload[6 : 6 + size], "little")
        self.got.setdefault(ioid, []).append((bits, payload[6 + size :]))

    def until(self, done: Callable[[Client], bool]) -> None:
        while not done(self):
            self.read()

    def last(self, ioid: int, code: str = "<i") -> Any:
        """The last value that came."""
        for bits, rest in reversed(self.got.get(ioid, [])):
            if bits & 3:
                return struct.unpack_from(code, rest)[0]
        return None


class Counts:
    """How often records were read for updates, and how many Updates were made."""

    def __init__(self) -> None:
        from appliance.ioc import feed, number_feed

        self.read = self.made = 0
        for kind in (feed.Feed, number_feed.NumberFeed):
            self._count(kind)

    def _count(self, kind: Any) -> None:
        read, update = kind.__dict__["_read_and_post"].__func__, kind.update

        def counted_read(cls: Any, feeds: list[Any]) -> None:
            self.read += len(feeds)
            read(cls, feeds)

        def counted_update(feed: Any, bits: int, overrun: int = 0) -> Any:
            self.made += 1
            return update(feed, bits, overrun)

        kind._read_and_post = classmethod(counted_read)
        kind.update = counted_update


class Served:
    """A database with its server in this process."""

    def __init__(self, server: Any, stream: Any) -> None:
        from appliance.ioc import dbcore

        self.server = server
        self.stream = stream
        self.port: int = server.tcp_port
        self.channels = {
            name: dbcore.DBChannel(name)
            for name in (*(f"r{number}" for number in range(COUNT)), "alarmed", "text")
        }

    async def put(self, values: dict[str, Any]) -> None:
        """Write, and wait until all events have been handled."""
        for name, value in values.items():
            self.channels[name].put(value)
        await self.settled()

    async def settled(self) -> None:
        """Wait until EPICS has delivered the events so far."""
        seen = -1
        for _ in range(3):
            while seen != self.stream.hub.events or self.stream._pending:
                seen = self.stream.hub.events
                await asyncio.sleep(0.02)

    async def clog(self) -> None:
        """Change records until the connections of all clients take nothing more."""
        for link in self.server.peers:
            link._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        number = 1000
        async with asyncio.timeout(120):
            while any(link.writable for link in self.server.peers):
                number += 1
                for record in range(COUNT):
                    self.channels[f"r{record}"].put(number)
                await asyncio.sleep(0)


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    from appliance.ioc import dbcore
    from appliance.ioc.access import FieldAccess
    from appliance.ioc.event_stream import EventStream
    from appliance.ioc.putlog import PutLog
    from appliance.ioc.record_source import RecordSource
    from appliance.server import Server
    from tests.helpers.ours import server_config

    dbcore.boot()
    dbcore.load_records_text(RECORDS)
    dbcore.ioc_init()
    config = server_config()
    access = FieldAccess(lambda _: None, lambda _: None, config)
    stream = EventStream(asyncio.get_running_loop())
    source = RecordSource(stream, access, PutLog(access.traps))
    access.attach(stream)
    server = Server(config)
    server.add_source("records", source)
    async with server:
        yield Served(server, stream)
    source.close()
    await access.close()
    stream.close()


def run(test: Callable[[], Any]) -> None:
    from appliance.ioc import dbcore

    asyncio.run(test())
    dbcore.shutdown()


@isolated
def test_events_of_a_client_that_does_not_read_are_not_even_read_and_the_last_values_arrive(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        from appliance.ioc.behind import Watched

        names = [f"r{number}" for number in range(COUNT)]
        async with served() as ioc:
            client = await asyncio.to_thread(Client, ioc.port)
            await asyncio.to_thread(client.watch, names)
            await asyncio.to_thread(client.until, lambda it: len(it.got) == COUNT)
            await ioc.clog()
            await ioc.put(dict.fromkeys(names, 0))
            counts = Counts()
            unread = Watched.unread
            for number in range(1, 1001):
                for name in names:
                    ioc.channels[name].put(number * 7)
                await asyncio.sleep(0)
            await ioc.settled()
            assert Watched.unread - unread >= COUNT
            # Not one of 50 000 changes was read or made into an update.
            assert (counts.read, counts.made) == (0, 0)
            await asyncio.to_thread(
                client.until, lambda it: all(it.last(ioid) == 7000 for ioid in range(1, COUNT + 1))
            )
            assert counts.read <= 2 * COUNT
            # Each update that was late says that its record changed more than once.
            assert all(client.got[ioid][-1][1][-2:] != b"\0\0" for ioid in range(1, COUNT + 1))
            await asyncio.to_thread(client.driver.close)
            while len(ioc.stream.backlogs):
                await asyncio.sleep(0.01)

    run(test)


@isolated
def test_a_slow_client_of_a_record_does_not_hold_up_another_and_misses_no_alarm(tmp_path: Path) -> None:
    async def test() -> None:
        names = ["alarmed", "text", *(f"r{number}" for number in range(COUNT))]
        async with served() as ioc:
            slow = await asyncio.to_thread(Client, ioc.port)
            await asyncio.to_thread(slow.watch, names)
            await asyncio.to_thread(slow.until, lambda it: len(it.got) == len(names))
            await ioc.put({"alarmed": 1.0, "text": "before"})
            await ioc.clog()
            fast = await asyncio.to_thread(Client, ioc.port)
            await asyncio.to_thread(fast.watch, ["alarmed"])
            for number in range(2000, 2010):
                await ioc.put({"alarmed": float(number)})
                await asyncio.to_thread(fast.until, lambda it, n=number: it.last(1, "<d") == n)  # type: ignore[misc]
            for text in ("several", "", "the last"):
                await ioc.put({"text": text})
            slow.got.clear()
            await asyncio.to_thread(slow.until, lambda it: it.last(1, "<d") == 2009.0)
            await asyncio.to_thread(slow.until, lambda it: 2 in it.got)
            bits, rest = slow.got[2][-1]
            assert rest[:9] == b"\x08the last"
            assert rest[-2:] == bytes((1, bits & 0xFF)) or bits > 0xFF
            # value 1, alarm.severity 3, status 4, message 5
            assert slow.got[1][-1][0] & 0b111010 == 0b111010
            assert sum(len(updates) for updates in fast.got.values()) >= 10

    run(test)


@isolated
def test_a_client_that_acknowledges_nothing_costs_its_queue_and_no_more(tmp_path: Path) -> None:
    async def test() -> None:
        from appliance.pva.typed import encode_typed
        from appliance.pvdata.pvrequest import PVRequest

        request = PVRequest("record[pipeline=true,queueSize=3]field()").value
        options = b"".join(bytes(part) for part in encode_typed(request, big=False))
        async with served() as ioc:
            client = await asyncio.to_thread(Client, ioc.port)

            def watch() -> None:
                (sid,) = client.driver.channels(["r0"])
                client.driver.send(
                    MONITOR, struct.pack("<IIB", sid, 1, 0x88) + options + struct.pack("<I", 3)
                )
                client.driver.wait_for(MONITOR)
                client.driver.send(MONITOR, struct.pack("<IIB", sid, 1, 0x44))

            await asyncio.to_thread(watch)
            await asyncio.to_thread(client.read)
            counts = Counts()
            for number in range(1, 101):
                await ioc.put({"r0": number})
            # Two more fill the window of three, and three the queue. The rest only marks the record.
            assert counts.made <= 4
            assert counts.read <= 8
            (sid,) = client.driver.sids
            while client.last(1) != 100:
                await asyncio.to_thread(client.driver.send, MONITOR, struct.pack("<IIBI", sid, 1, 0x80, 1))
                await asyncio.to_thread(client.read)
            values = [struct.unpack_from("<i", rest)[0] for bits, rest in client.got[1] if bits & 3]
            assert values == [0, 1, 2, 3, 4, 5, 100], values

    run(test)
