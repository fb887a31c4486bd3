"""What waits to be sent: headers, segments, byte order, and what is not copied."""

from __future__ import annotations

import pytest

from appliance.pva import commands as c
from appliance.pva.outbox import COPY_LIMIT, Outbox
from tests.helpers.wire import frame


def sent(outbox: Outbox) -> bytes:
    assert outbox.size == sum(len(chunk) for chunk in outbox.chunks)
    return b"".join(bytes(chunk) for chunk in outbox.take())


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("server", [False, True])
def test_messages_leave_in_order_with_direction_and_byte_order_in_their_headers(server, big):
    outbox = Outbox(from_server=server, big=big)
    outbox.send(c.CMD_ECHO, b"one")
    outbox.send_parts(c.CMD_GET, [b"tw", b"o"])
    assert sent(outbox) == frame(c.CMD_ECHO, b"one", server=server, big=big) + frame(
        c.CMD_GET, b"two", server=server, big=big
    )


def test_a_control_message_has_a_value_and_no_payload():
    outbox = Outbox(from_server=True)
    outbox.control(c.CTRL_ACK_MARKER, 0x01020304)
    assert sent(outbox) == bytes((0xCA, 2, 0x41, 1, 4, 3, 2, 1))


def test_what_was_taken_is_forgotten():
    outbox = Outbox(from_server=False)
    outbox.send(c.CMD_ECHO, b"x")
    first = outbox.take()
    assert outbox.take() == []
    outbox.send(c.CMD_ECHO, b"y")
    assert b"".join(first) == frame(c.CMD_ECHO, b"x")
    assert sent(outbox) == frame(c.CMD_ECHO, b"y")


def test_another_byte_order_counts_from_the_next_message_on():
    outbox = Outbox(from_server=False)
    outbox.send(c.CMD_ECHO, b"x")
    outbox.set_byte_order(big=True)
    outbox.send(c.CMD_ECHO, b"y")
    assert sent(outbox) == frame(c.CMD_ECHO, b"x") + frame(c.CMD_ECHO, b"y", big=True)


def test_a_short_payload_is_joined_to_its_header_and_a_long_one_is_not_copied():
    outbox = Outbox(from_server=False)
    long = bytes(COPY_LIMIT + 1)
    array = memoryview(bytearray(COPY_LIMIT))
    outbox.send(c.CMD_ECHO, long[:-1])
    outbox.send(c.CMD_ECHO, long)
    outbox.send_parts(c.CMD_PUT, [b"head", array])
    assert [len(chunk) for chunk in outbox.chunks] == [8 + COPY_LIMIT, 8, COPY_LIMIT + 1, 8, 4, COPY_LIMIT]
    assert outbox.chunks[2] is long
    assert outbox.chunks[5] is array


@pytest.mark.parametrize(
    ("size", "parts"), [(4, [(0x00, 4)]), (5, [(0x10, 4), (0x20, 1)]), (9, [(0x10, 4), (0x30, 4), (0x20, 1)])]
)
def test_a_message_longer_than_a_segment_leaves_in_segments(size, parts):
    payload = bytes(range(size))
    outbox = Outbox(from_server=False, segment_size=4)
    expected = b""
    start = 0
    for flags, octets in parts:
        expected += frame(c.CMD_RPC, payload[start : start + octets], flags=flags)
        start += octets
    outbox.send(c.CMD_RPC, payload)
    assert sent(outbox) == expected
    outbox.send_parts(c.CMD_RPC, [payload[:2], payload[2:]])
    assert sent(outbox) == expected


def test_nobody_makes_a_message_of_one_piece_where_messages_leave_in_segments():
    assert Outbox(from_server=True).one_piece == COPY_LIMIT
    assert Outbox(from_server=True, segment_size=1000).one_piece < 0
