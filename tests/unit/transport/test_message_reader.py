"""The names and sizes of messages are found however the stream is cut."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from appliance.pva import commands as c
from appliance.transport.messages import MessageReader


def message(command: int, size: int, flags: int = 0) -> bytes:
    order = "big" if flags & c.FLAG_BIG_ENDIAN else "little"
    body = b"" if flags & c.FLAG_CONTROL else bytes(size)
    return bytes([c.MAGIC, 2, flags, command]) + size.to_bytes(4, order) + body  # type: ignore[arg-type]


STREAM = (
    message(c.CTRL_SET_ENDIAN, 0xFFFF, c.FLAG_CONTROL | c.FLAG_SERVER)
    + message(c.CMD_CONNECTION_VALIDATION, 30, c.FLAG_SERVER | c.FLAG_BIG_ENDIAN)
    + message(c.CMD_GET, 0)
    + message(c.CMD_MONITOR, 300, c.FLAG_SEGMENT_FIRST)
    + message(99, 5)
)
TOLD = [
    ("SET_ENDIAN", 0),
    ("CONNECTION_VALIDATION", 30),
    ("GET", 0),
    ("MONITOR, first segment", 300),
    ("message 99", 5),
]


@pytest.mark.parametrize("step", [1, 3, 7, 8, 9, 64, 10_000])
def test_every_message_is_told_once(step: int) -> None:
    told: list[tuple[str, int]] = []
    reader = MessageReader(lambda name, size: told.append((name, size)))
    for pos in range(0, len(STREAM), step):
        reader.feed(memoryview(STREAM)[pos : pos + step])
    assert told == TOLD


def test_what_is_no_message_ends_the_telling() -> None:
    told: list[str] = []
    reader = MessageReader(lambda name, size: told.append(name))
    reader.feed(message(c.CMD_ECHO, 1) + b"\x16\x03\x01 no PVAccess" * 10)
    reader.feed(STREAM)
    assert told == ["ECHO"]


async def test_a_connection_that_nobody_watches_is_not_touched(caplog: pytest.LogCaptureFixture) -> None:
    from appliance.pva.client_connection import ClientConnection
    from appliance.transport.stream import StreamLink

    connection = ClientConnection()
    owner: Any = None
    caplog.set_level(logging.WARNING, "appliance")
    assert StreamLink(connection, owner).connection is connection
    caplog.set_level(logging.DEBUG, "appliance")
    watched = StreamLink(connection, owner)
    assert watched.connection is not connection
    watched.peer = "10.0.0.1:5075"
    watched.connection.receive_data(message(c.CTRL_SET_ENDIAN, 0, c.FLAG_CONTROL | c.FLAG_SERVER))
    assert "10.0.0.1:5075 -> SET_ENDIAN (0 octets)" in caplog.text
    assert watched.connection.state is connection.state
