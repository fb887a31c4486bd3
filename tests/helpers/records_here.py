"""A database with its server in the test's own process, and a raw client of it. For :mod:`tests.helpers.isolated`."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

MONITOR = 13


class Client:
    """A raw client that reads when it is told to."""

    def __init__(self, port: int) -> None:
        from bench.wire import Driver

        self.driver = Driver(port)
        self.driver.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.got: dict[int, list[tuple[int, bytes]]] = {}
        """By ioid, the changed fields of each update as a mask of wire bits, and what follows them."""
        self.ended: dict[int, bytes] = {}
        """By ioid, the status with which the server ended it."""

    def watch(self, names: Sequence[str], requests: Sequence[str] = ()) -> None:
        """Watch records, each with its own text of a pvRequest; all fields without one."""
        from bench.wire import EMPTY_REQUEST

        numbered = list(enumerate(self.driver.channels(names), 1))
        for ioid, sid in numbered:
            request = encoded_request(requests[ioid - 1]) if requests else EMPTY_REQUEST
            self.driver.send(MONITOR, struct.pack("<IIB", sid, ioid, 8) + request)
            self.driver.wait_for(MONITOR)
        for ioid, sid in numbered:
            self.driver.send(MONITOR, struct.pack("<IIB", sid, ioid, 0x44))

    def read(self) -> None:
        """Read one update."""
        payload = self.driver.wait_for(MONITOR)
        (ioid, what) = struct.unpack_from("<IB", payload)
        if what & 0x10:
            self.ended[ioid] = payload[5:]
            return
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


def encoded_request(text: str) -> bytes:
    """The octets of a pvRequest."""
    from appliance.pva.typed import encode_typed
    from appliance.pvdata.pvrequest import PVRequest

    return b"".join(bytes(part) for part in encode_typed(PVRequest(text).value, big=False))


class Served:
    """A database with its server in this process."""

    def __init__(self, server: Any, stream: Any, names: Sequence[str]) -> None:
        from appliance.ioc import dbcore

        self.server = server
        self.stream = stream
        self.port: int = server.tcp_port
        self.channels = {name: dbcore.DBChannel(name) for name in names}

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

    def shrink(self) -> None:
        """Let the kernel hold only little for each client."""
        for link in self.server.peers:
            link._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    async def clog(self, names: Sequence[str]) -> None:
        """Change records until the connections of all clients take nothing more."""
        self.shrink()
        number = 1000
        async with asyncio.timeout(120):
            while any(link.writable for link in self.server.peers):
                number += 1
                for name in names:
                    self.channels[name].put(number)
                await asyncio.sleep(0)


@asynccontextmanager
async def served(records: str, names: Sequence[str]) -> AsyncIterator[Served]:
    """Serve records; ``names`` are those that the test writes."""
    from appliance.ioc import dbcore
    from appliance.ioc.access import FieldAccess
    from appliance.ioc.event_stream import EventStream
    from appliance.ioc.putlog import PutLog
    from appliance.ioc.record_source import RecordSource
    from appliance.server import Server
    from tests.helpers.ours import server_config

    dbcore.boot()
    dbcore.load_records_text(records)
    dbcore.ioc_init()
    config = server_config()
    access = FieldAccess(lambda _: None, lambda _: None, config)
    stream = EventStream(asyncio.get_running_loop())
    source = RecordSource(stream, access, PutLog(access.traps))
    access.attach(stream)
    server = Server(config)
    server.add_source("records", source)
    async with server:
        yield Served(server, stream, names)
    source.close()
    await access.close()
    stream.close()


def run(test: Callable[[], Any], make_loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Run an isolated test with its event loop, then end EPICS."""
    from appliance.ioc import dbcore

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(test())
    dbcore.shutdown()
