"""When a connection stops reading for a moment, and that it goes on: without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from appliance.pva.client_connection import ClientConnection
from appliance.transport.stream import EARLY, LARGE_READ, LARGE_READS, StreamLink


class Socket(asyncio.Transport):
    """Notes whether it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = True
        self.is_over = False
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def is_closing(self) -> bool:
        return self.is_over


class Owner:
    def link_made(self, link: StreamLink) -> bool:
        return True

    def link_up(self, link: StreamLink) -> None:
        pass

    act: Callable[[], None] = staticmethod(lambda: None)

    def link_events(self, link: StreamLink, events: list[Any]) -> None:
        self.act()

    def link_writable(self, link: StreamLink) -> None:
        pass

    def link_down(self, link: StreamLink, reason: Exception | None) -> None:
        pass


def linked() -> tuple[StreamLink, Socket]:
    link = StreamLink(ClientConnection(), Owner())
    socket = Socket()
    link.connection_made(socket)
    return link, socket


MESSAGE = b"\xca\x02\x40\x12\x06\0\0\0" + bytes(6)


async def test_what_a_read_causes_at_another_connection_leaves_when_the_read_ends() -> None:
    link, _ = linked()
    other, socket = linked()

    def ask() -> None:
        before = socket.written
        for _ in range(2):
            other.connection.echo()
            other.flush_at_end()
        assert socket.written == before

    link.owner.act = ask  # type: ignore[attr-defined]
    link.data_received(MESSAGE)
    assert len(socket.written) == 16
    link.data_received(MESSAGE)
    assert len(socket.written) == 32


async def test_many_requests_leave_before_the_read_ends() -> None:
    link, _ = linked()
    other, socket = linked()

    def ask() -> None:
        other.connection.echo(bytes(EARLY))
        other.flush_at_end()
        assert len(socket.written) == 8 + EARLY

    link.owner.act = ask  # type: ignore[attr-defined]
    link.data_received(MESSAGE)


async def test_outside_a_read_it_leaves_at_the_end_of_the_turn() -> None:
    other, socket = linked()
    other.connection.echo()
    other.flush_at_end()
    assert socket.written == b""
    await until(lambda: len(socket.written) == 8)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_others_have_their_turn_between_the_parts_of_a_very_long_message() -> None:
    link, socket = linked()
    head = b"\xca\x02\x40\x0d" + (200 << 20).to_bytes(4, "little")
    link.connection.limits = link.connection.limits._replace(max_message_unvalidated=256 << 20)
    link.connection._small = 256 << 20
    link.data_received(head + bytes(LARGE_READ))
    for _ in range(LARGE_READS - 2):
        link.data_received(bytes(LARGE_READ))
    assert socket.reads
    link.data_received(bytes(LARGE_READ))
    assert not socket.reads
    await until(lambda: socket.reads)
    link.data_received(bytes(LARGE_READ))
    assert socket.reads


async def test_a_rest_ends_by_itself_and_nothing_else_ends_it() -> None:
    link, socket = linked()
    link.rest(0.02)
    link.rest(0.02)
    assert not socket.reads
    link._read_on()
    assert not socket.reads
    await until(lambda: socket.reads)


async def test_a_rest_that_ends_after_the_connection_does_nothing() -> None:
    link, socket = linked()
    link.rest(0.001)
    link.connection_lost(None)
    await asyncio.sleep(0.01)
    assert not socket.reads
    link.rest(0.001)
