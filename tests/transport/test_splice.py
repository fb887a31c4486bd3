"""A relay passes octets and nothing else: in order, with back-pressure, both ends for themselves, within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from appliance.errors import TransportError
from appliance.server.quota import who
from appliance.transport.address import SocketAddress
from appliance.transport.proxy_header import Header, ProxyReader
from appliance.transport.splice import SpliceBounds, Splices
from tests.transport.test_bounds import until

HOST = "127.0.0.1"
OTHER = "127.0.0.2"
DENIED = "127.0.0.66"
HELLO = b"\x16hello"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Relay:
    """A relay, and the server behind it as far as a test plays it."""

    def __init__(self, bounds: SpliceBounds) -> None:
        self.splices = Splices(self, bounds)
        self.arrived: asyncio.Queue[Streams] = asyncio.Queue()
        self.address: SocketAddress | None = None
        self.port = 0
        self.lost: list[SocketAddress] = []
        self.asked = 0
        self.silent: list[tuple[SocketAddress, str]] = []

    async def target(self) -> SocketAddress:
        self.asked += 1
        if self.address is None:
            raise TransportError("there is no server")
        return self.address

    def unreachable(self, address: SocketAddress) -> None:
        self.lost.append(address)

    def unanswered(self, address: SocketAddress, here: str) -> None:
        self.silent.append((address, here))

    def admits(self, host: str) -> bool:
        return host != DENIED

    def host_key(self, host: str) -> str:
        return who(host)

    async def connect(self, source: str = HOST) -> Streams:
        return await asyncio.open_connection(HOST, self.port, local_addr=(source, 0))

    async def server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Header]:
        reader, writer = await asyncio.wait_for(self.arrived.get(), 30)
        proxy = ProxyReader()
        header = proxy.feed(await reader.readexactly(28))
        assert header is not None
        return reader, writer, header


@contextlib.asynccontextmanager
async def relay(*, listening: bool = True, **bounds: Any) -> AsyncIterator[Relay]:
    made = Relay(SpliceBounds(**bounds))
    loop = asyncio.get_running_loop()

    async def arrive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.arrived.put_nowait((reader, writer))

    behind = await asyncio.start_server(arrive, HOST, 0)
    front = await loop.create_server(made.splices.accept, HOST, 0)
    if listening:
        made.address = SocketAddress(*behind.sockets[0].getsockname())
    made.port = front.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        front.close()
        behind.close()
        made.splices.close()
        await until(lambda: not made.splices.open)


async def ended(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await asyncio.wait_for(reader.read(65536), 30):
            pass


async def test_the_server_learns_the_client_and_gets_its_octets_unchanged() -> None:
    async with relay() as made:
        reader, writer = await made.connect(OTHER)
        writer.write(HELLO)
        far_reader, far_writer, header = await made.server()
        assert header == Header(
            SocketAddress(*writer.get_extra_info("sockname")), SocketAddress(HOST, made.port)
        )
        assert await far_reader.readexactly(len(HELLO)) == HELLO
        far_writer.write(b"answer")
        assert await reader.readexactly(6) == b"answer"
        writer.close()
        assert await far_reader.read() == b""
        far_writer.close()


async def test_megabytes_pass_both_ways_at_once_and_in_order() -> None:
    size = 8 << 20
    there, back = HELLO + os.urandom(size), os.urandom(size)
    async with relay() as made:
        reader, writer = await made.connect()
        writer.write(there)
        far_reader, far_writer, _ = await made.server()
        far_writer.write(back)
        came, went = await asyncio.wait_for(
            asyncio.gather(far_reader.readexactly(len(there)), reader.readexactly(size)), 30
        )
        assert hashlib.sha256(came).digest() == hashlib.sha256(there).digest()
        assert hashlib.sha256(went).digest() == hashlib.sha256(back).digest()
        writer.close()
        far_writer.close()


async def test_who_does_not_read_stops_its_own_other_side_and_costs_little_memory() -> None:
    async with relay() as made:
        reader, writer = await made.connect()
        writer.write(HELLO)
        far_reader, far_writer, _ = await made.server()
        (splice,) = made.splices.open
        block = bytes(1 << 20)
        # The relay stops reading as soon as the client does not: the server's writes are then not taken any more.
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        taken = 0
        with contextlib.suppress(TimeoutError):
            while taken < 256:
                far_writer.write(block)
                await asyncio.wait_for(far_writer.drain(), 0.5)
                taken += 1
        assert taken < 64, "kernel buffers and no more"
        assert splice.client.transport is not None
        assert splice.client.transport.get_write_buffer_size() < 2 << 20
        writer.write(b"meanwhile")  # the other direction goes on
        assert (await asyncio.wait_for(far_reader.readexactly(15), 30)).endswith(b"meanwhile")
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await asyncio.wait_for(reader.readexactly(taken << 20), 30)) == taken << 20
        writer.close()
        far_writer.close()


async def test_each_side_may_finish_for_itself() -> None:
    async with relay() as made:
        reader, writer = await made.connect()
        writer.write(HELLO)
        writer.write_eof()
        far_reader, far_writer, _ = await made.server()
        assert await asyncio.wait_for(far_reader.read(), 30) == HELLO
        far_writer.write(b"the answer comes after the end of the question")
        far_writer.close()
        assert await asyncio.wait_for(reader.read(), 30) == b"the answer comes after the end of the question"
        writer.close()
        await until(lambda: not made.splices.open)


async def test_a_reset_on_one_side_ends_the_other_at_once() -> None:
    async with relay() as made:
        for client_resets in (True, False):
            reader, writer = await made.connect()
            writer.write(HELLO)
            far_reader, far_writer, _ = await made.server()
            who_resets, other = (writer, far_reader) if client_resets else (far_writer, reader)
            await far_reader.readexactly(len(HELLO))
            sock = who_resets.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            who_resets.transport.abort()
            await ended(other)
            await until(lambda: not made.splices.open)
            writer.close()
            far_writer.close()


async def test_a_silent_client_costs_the_server_nothing_and_has_its_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with relay(speak_s=0.2) as made:
        reader, writer = await made.connect()
        await ended(reader)
        assert made.asked == 0
        assert "the client has said nothing in 0 s" in caplog.text
        writer.close()


async def test_a_server_that_does_not_answer_has_its_time(caplog: pytest.LogCaptureFixture) -> None:
    async with relay(speak_s=0.2) as made:
        reader, writer = await made.connect()
        writer.write(HELLO)
        _, far_writer, _ = await made.server()
        await ended(reader)
        assert "the server has not answered in 0 s" in caplog.text
        writer.close()
        far_writer.close()


async def test_idle_connections_end(caplog: pytest.LogCaptureFixture) -> None:
    async with relay(speak_s=0.2, idle_s=0.3, half_closed_s=0.1) as made:
        reader, writer = await made.connect()
        writer.write(HELLO)
        _, far_writer, _ = await made.server()
        far_writer.write(b"answer")
        await ended(reader)
        assert "nothing has passed in 0 s" in caplog.text
        writer.close()
        far_writer.close()


@pytest.mark.parametrize(
    "octets", [b"GET / HTTP/1.1\r\n\r\n", b"\xca\x02\0\x01", b"\r\n\r\n\0\r\nQUIT\n\x21\x11"]
)
async def test_only_tls_is_passed_on(octets: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A client cannot send a header of its own, nor speak plain PVAccess."""
    async with relay() as made:
        reader, writer = await made.connect()
        writer.write(octets)
        await ended(reader)
        assert made.asked == 0
        assert "does not begin with TLS" in caplog.text
        writer.close()


async def test_a_server_that_is_not_known_or_not_there_ends_the_connection_with_a_sentence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with relay(listening=False) as made:
        reader, writer = await made.connect()
        writer.write(HELLO)
        await ended(reader)
        assert "there is no server" in caplog.text
        writer.close()
        with socket.socket() as taken:
            taken.bind((HOST, 0))
            made.address = SocketAddress(*taken.getsockname())
            reader, writer = await made.connect()
            writer.write(HELLO)
            await ended(reader)
            assert made.lost == [made.address]
            assert "cannot be reached" in caplog.text
            writer.close()


async def test_one_host_has_its_share_and_all_together_have_theirs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with relay(per_host=3, total=5) as made:
        held = [await made.connect() for _ in range(3)]
        await until(lambda: len(made.splices.open) == 3)
        reader, writer = await made.connect()
        await ended(reader)
        writer.close()
        held += [await made.connect(OTHER) for _ in range(2)]
        await until(lambda: len(made.splices.open) == 5)
        reader, writer = await made.connect("127.0.0.3")
        await ended(reader)
        writer.close()
        assert made.splices.refused == 2
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 1, "once a minute"
        held.pop(0)[1].close()
        await until(lambda: len(made.splices.open) == 4)
        held.append(await made.connect("127.0.0.3"))
        await until(lambda: len(made.splices.open) == 5)
        for _, writer in held:
            writer.close()
        await until(lambda: not made.splices.open)
        assert not made.splices.hosts


async def test_many_come_and_go_and_nothing_stays() -> None:
    async with relay(per_host=1000, total=1000) as made:
        for _ in range(10):
            streams = [await made.connect() for _ in range(20)]
            for number, (_, writer) in enumerate(streams):
                if number % 2:
                    writer.write(HELLO)
                if number % 3 == 0:
                    writer.transport.abort()
            for _, writer in streams:
                writer.close()
        async with asyncio.TaskGroup() as ending:
            ending.create_task(until(lambda: not made.splices.open))
            while made.splices.open:
                if made.arrived.empty():
                    await asyncio.sleep(0.01)
                    continue
                far_reader, far_writer = made.arrived.get_nowait()
                await ended(far_reader)
                far_writer.close()
        assert not made.splices.hosts


async def test_a_host_to_which_the_names_are_denied_does_not_get_in(caplog: pytest.LogCaptureFixture) -> None:
    async with relay() as made:
        reader, writer = await made.connect(DENIED)
        writer.write(HELLO)
        await ended(reader)
        assert made.asked == 0
        assert f"a connection from {DENIED}:" in caplog.text
        assert "denies its host" in caplog.text
        writer.close()
