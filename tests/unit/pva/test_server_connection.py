"""What a server's end does where the specification leaves room, where peers differ, and where a peer is hostile."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from appliance.errors import DecodeError, LocalProtocolError, RemoteProtocolError
from appliance.pva import commands as c
from appliance.pva.connection import EVENTS_PER_CALL, OUT_LIMIT
from appliance.pva.events import (
    AuthenticationReceived,
    ChannelClosed,
    ChannelRequested,
    Execute,
    FieldRequested,
    OperationClosed,
    OperationRequested,
    RemoteMessage,
)
from appliance.pva.limits import Limits
from appliance.pva.selection import encode_answer
from appliance.pva.server_connection import ServerConnection
from appliance.pva.server_operation import PreparedAnswer
from appliance.pva.states import ConnectionState, OperationState
from appliance.pva.status import OK, Status
from appliance.pvdata import FLOAT64, StructType
from tests.helpers.wire import ARRAY, SCALAR, feed, frame, ready_server, take, u16, u32

EMPTY = b"\x80\0\x01\x05field\x80\0\0"
VALUE = encode_answer(SCALAR, 0b10, [None, 1.0, None, 0, ""], big=False)


def create(*names: str, count: int | None = None) -> bytes:
    body = u16(len(names) if count is None else count)
    for cid, name in enumerate(names, 1):
        body += u32(cid) + bytes((len(name),)) + name.encode()
    return frame(c.CMD_CREATE_CHANNEL, body)


def op(command: int, ioid: int, sub: int, rest: bytes = b"", *, sid: int = 1) -> bytes:
    return frame(command, u32(sid) + u32(ioid) + bytes((sub,)) + rest)


def opened(**options) -> ServerConnection:
    connection = ready_server(**options)
    (event,) = feed(connection, create("d"))
    event.channel.accept()
    take(connection)
    return connection


def ready(connection: ServerConnection, command: int, ioid: int = 1, request: bytes = EMPTY):
    (event,) = feed(connection, op(command, ioid, c.SUB_INIT, request))
    assert type(event) is OperationRequested
    event.operation.ready(None if command in (c.CMD_RPC, c.CMD_PROCESS) else SCALAR)
    take(connection)
    return event.operation


# -- flow control --------------------------------------------------------------------------------------


def test_a_call_returns_a_bounded_number_of_events_and_the_rest_follows_in_order():
    connection = opened()
    operations = [ready(connection, c.CMD_GET, ioid) for ioid in range(1, 101)]
    data = b"".join(op(c.CMD_GET, ioid, 0) for ioid in range(1, 101)) + b"\xca"
    got = []
    events = connection.receive_data(data)
    while True:
        assert len(events) <= EVENTS_PER_CALL
        got += [event.operation for event in events]
        if not connection.stalled:
            break
        events = connection.receive_data(b"")
    assert got == operations
    # what arrives while something waits comes after it
    for operation in operations:
        operation.reply_value([None, 0.0, None, 0, ""])
    first = connection.receive_data(data[1:-17] if data.startswith(b"\x02") else data[1:])
    assert connection.stalled
    second = connection.receive_data(op(c.CMD_GET, 1, 0)[:5])
    while connection.stalled:
        second += connection.receive_data(b"")
    assert [event.operation for event in [*first, *second]] == operations


def test_waiting_output_stops_the_parsing():
    """A peer that asks and never reads gets no more than OUT_LIMIT and one answer."""
    connection = opened()
    operation = ready(connection, c.CMD_GET)
    answer = PreparedAnswer()
    operation.prepared = answer
    for octets in (100, 100_000):
        answer.tail = b"\xff" + bytes(octets)
        data = op(c.CMD_GET, 1, 0) * 200_000 if octets == 100 else op(c.CMD_GET, 1, 0) * 1000
        assert connection.receive_data(data) == []
        assert connection.stalled
        assert connection.outbox.size <= OUT_LIMIT + octets + 14
        assert connection.receive_data(b"") == []
        assert connection.outbox.size <= OUT_LIMIT + 2 * (octets + 14)
        total = 0
        while connection.stalled:
            total += len(take(connection))
            connection.receive_data(b"")
        assert total + len(take(connection)) == (octets + 14) * (len(data) // 17)


def test_refusals_count_as_output_too():
    connection = opened()
    connection.receive_data(op(c.CMD_GET, 99, 0) * 200_000)
    assert connection.stalled
    assert connection.outbox.size < OUT_LIMIT + 200


def test_prepared_answers_are_segmented_like_all_others():
    connection = opened(segment_size=10)
    operation = ready(connection, c.CMD_GET)
    operation.prepared = answer = PreparedAnswer()
    answer.tail = VALUE
    assert connection.receive_data(op(c.CMD_GET, 1, 0)) == []
    whole = u32(1) + b"\0" + VALUE
    first = frame(c.CMD_GET, whole[:10], server=True, flags=0x10)
    assert take(connection) == first + frame(c.CMD_GET, whole[10:], server=True, flags=0x20)


def test_a_connection_that_is_refused_while_more_waits_does_not_stall_for_ever():
    """The shell goes on while ``stalled``: after the end nothing is left to wait for."""
    connection = ServerConnection()
    searches = frame(c.CMD_SEARCH, u32(1) + bytes(4) + bytes(18) + b"\x01\x03tcp" + u16(0)) * (
        2 * EVENTS_PER_CALL
    )
    events = connection.receive_data(frame(1, bytes(8) + b"\x03bad\xff") + searches)
    assert type(events[0]) is AuthenticationReceived
    assert connection.stalled
    connection.validated(Status.error("no"))
    assert connection.state is ConnectionState.CLOSED
    assert not connection.stalled


def test_a_caller_may_reuse_its_buffer():
    connection = ready_server()
    buffer = bytearray(create("some name"))
    assert connection.receive_data(buffer[:3]) == []
    part = buffer[3:10]
    assert connection.receive_data(part) == []
    part[:] = bytes(len(part))
    (event,) = connection.receive_data(buffer[10:])
    assert event.channel.name == "some name"
    mine = bytearray(frame(c.CMD_ECHO, b"abc")[:9])
    connection.receive_data(mine)
    connection.receive_data(b"bc")
    assert len(mine) == 9


# -- limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_message_over_the_limit_is_refused_however_it_arrives(cut):
    connection = ServerConnection(limits=Limits(max_message_unvalidated=64))
    data = frame(c.CMD_ECHO, bytes(65))
    with pytest.raises(RemoteProtocolError, match="65 octets exceeds the limit of 64"):
        for pos in range(0, len(data), cut):
            connection.receive_data(data[pos : pos + cut])
    assert connection.receive_data(b"more") == []


def test_segments_count_together():
    connection = ServerConnection(limits=Limits(max_message_unvalidated=64))
    connection.receive_data(frame(2, bytes(40), flags=0x10))
    with pytest.raises(RemoteProtocolError, match="exceeds the limit"):
        connection.receive_data(frame(2, bytes(40), flags=0x30))


def test_channels_that_wait_for_an_answer_count():
    connection = ready_server(limits=Limits(max_channels=2))
    events = feed(connection, create("a", "b", "c"))
    assert [event.channel.name for event in events] == ["a", "b"]
    assert b"this connection has 2 channels already" in take(connection)
    events[0].channel.reject("no")
    take(connection)
    (event,) = feed(connection, create("d"))
    event.channel.accept()
    events[1].channel.accept()
    assert len(connection.channels) == 2
    assert feed(connection, create("e")) == []


def test_operations_are_limited_whatever_their_command():
    connection = opened(limits=Limits(max_operations=1))
    ready(connection, c.CMD_GET)
    assert feed(connection, op(c.CMD_PUT, 2, 8, EMPTY)) == []
    assert b"too many operations" in take(connection)
    assert feed(connection, frame(c.CMD_GET_FIELD, u32(1) + u32(3) + b"\0")) == []
    assert b"too many operations" in take(connection)


def test_requests_that_are_all_different_are_limited_and_equal_ones_are_free():
    connection = opened(limits=Limits(max_request_octets=100_000))
    for ioid in range(1, 1001):
        ready(connection, c.CMD_GET, ioid)
    window = op(c.CMD_MONITOR, 1001, 0x88, EMPTY + u32(4))
    assert len(feed(connection, window)) == 1
    used = connection.request_octets
    assert used < 3000
    ioid = 2000
    while feed(connection, op(c.CMD_GET, ioid, 8, b"\x80\0\x01\x07f%06d\x80\0\0" % ioid)):
        ioid += 1
    assert 2020 < ioid < 2100
    assert b"pvRequests on this connection exceed 100000 octets" in take(connection)
    feed(connection, frame(c.CMD_DESTROY_REQUEST, u32(1) + u32(2000)))
    assert len(feed(connection, op(c.CMD_GET, 3000, 8, b"\x80\0\x01\x07f003000\x80\0\0"))) == 1
    feed(connection, frame(c.CMD_DESTROY_CHANNEL, u32(1) + u32(1)))
    assert connection.request_octets == 0


def test_names_and_fields_that_are_too_long_are_refused_by_name():
    connection = opened(limits=Limits(max_name=8))
    assert feed(connection, create("ninechars", "")) == []
    out = take(connection)
    assert b"longer than 8 characters" in out
    assert b"the PV name is empty" in out
    assert feed(connection, frame(c.CMD_GET_FIELD, u32(1) + u32(1) + b"\x09ninechars")) == []
    assert b"too long" in take(connection)


def test_text_of_a_message_is_cut():
    connection = ready_server()
    body = u32(0) + b"\0\xfe" + u32(100_000) + b"x" * 100_000
    (event,) = feed(connection, frame(c.CMD_MESSAGE, body))
    assert event == RemoteMessage(0, 0, "x" * 4096)


# -- channels ------------------------------------------------------------------------------------------


def test_several_names_in_one_request_are_answered_one_by_one():
    """Section 8.1."""
    connection = ready_server()
    events = feed(connection, create("a", "b"))
    events[1].channel.accept()
    events[0].channel.accept()
    assert [channel.name for channel in connection.channels.values()] == ["b", "a"]


@pytest.mark.parametrize("count", [3, 65535])
def test_more_names_claimed_than_sent_break_the_protocol(count):
    connection = ready_server()
    with pytest.raises(DecodeError, match="CREATE_CHANNEL"):
        connection.receive_data(create("a", "b", count=count))


def test_a_channel_is_destroyed_by_its_sid():
    """PVXS looks at the sid alone; an unknown one has crossed our own end of the channel and gets no answer."""
    connection = opened()
    (event,) = feed(connection, frame(c.CMD_DESTROY_CHANNEL, u32(1) + u32(77)))
    assert type(event) is ChannelClosed
    assert take(connection) == frame(c.CMD_DESTROY_CHANNEL, u32(1) + u32(77), server=True)
    assert feed(connection, frame(c.CMD_DESTROY_CHANNEL, u32(1) + u32(1))) == []
    assert take(connection) == b""


def test_requests_that_cross_the_end_of_their_channel_get_an_error_and_the_connection_lives():
    connection = opened()
    operation = ready(connection, c.CMD_GET)
    connection.channels[1].close()
    assert connection.pending_events() == [OperationClosed(operation), ChannelClosed(operation.channel)]
    take(connection)
    assert feed(connection, op(c.CMD_PUT, 2, 8, EMPTY)) == []
    assert take(connection) == frame(
        c.CMD_PUT, u32(2) + b"\x08\x02\x21there is no such channel any more\0", server=True
    )
    assert feed(connection, op(c.CMD_GET, 1, 0)) == []
    assert take(connection) == frame(
        c.CMD_GET, u32(1) + b"\0\x02\x23there is no such operation any more\0", server=True
    )
    assert feed(connection, frame(c.CMD_GET_FIELD, u32(1) + u32(3) + b"\0")) == []
    assert take(connection)[8:13] == u32(3) + b"\x02"
    assert feed(connection, op(c.CMD_MONITOR, 1, 0x80, u32(1)) + op(c.CMD_GET, 1, 0x10)) == []
    assert take(connection) == b""
    assert connection.state is ConnectionState.READY


def test_permissions_are_told_once_per_change():
    connection = opened()
    channel = connection.channels[1]
    channel.set_permissions(7)
    channel.set_permissions(0)
    channel.set_permissions(0)
    assert take(connection) == frame(c.CMD_ACL_CHANGE, u32(1) + b"\0", server=True)


# -- operations ----------------------------------------------------------------------------------------


def test_a_request_while_one_is_in_progress_is_answered_by_an_error():
    """pvAccessCPP answers in the same way, PVXS not at all; the one in progress is not disturbed."""
    connection = opened()
    operation = ready(connection, c.CMD_GET)
    assert feed(connection, op(c.CMD_GET, 1, 0)) == [Execute(operation, None)]
    assert feed(connection, op(c.CMD_GET, 1, 0x40)) == []
    assert b"\x40\x02" in take(connection)
    operation.reply_value([None, 2.0, None, 0, ""])
    assert take(connection)[12:14] == b"\0\xff"


@pytest.mark.parametrize("command", [c.CMD_GET, c.CMD_PROCESS])
def test_the_destroy_bit_alone_asks_for_one_last_answer(command):
    """pvAccessCPP and PVXS do it and then destroy; the specification (9.2.3) destroys without an answer."""
    connection = opened()
    operation = ready(connection, command)
    assert feed(connection, op(command, 1, 0x10)) == [Execute(operation, None)]
    assert operation.last
    operation.reply_done() if command == c.CMD_PROCESS else operation.reply_value([None, 1.0, None, 0, ""])
    assert take(connection)[8:14] == u32(1) + b"\x10\xff"
    assert connection.pending_events() == [OperationClosed(operation)]
    assert not connection.operations


@pytest.mark.parametrize("command", [c.CMD_PUT, c.CMD_PUT_GET, c.CMD_RPC])
def test_the_destroy_bit_without_a_value_destroys(command):
    """Section 9.2.3: no answer."""
    connection = opened()
    operation = ready(connection, command)
    assert feed(connection, op(command, 1, 0x10)) == [OperationClosed(operation)]
    assert take(connection) == b""


def test_the_destroy_bit_with_a_value_is_the_last_put():
    connection = opened()
    operation = ready(connection, c.CMD_PUT)
    (event,) = feed(connection, op(c.CMD_PUT, 1, 0x10, VALUE[1:]))
    assert event.argument["value"] == 1.0
    operation.fail("no")
    assert connection.pending_events() == [OperationClosed(operation)]
    operation = ready(connection, c.CMD_PUT)
    assert feed(connection, op(c.CMD_PUT, 1, 0x50)) == [Execute(operation, None)]
    operation.reply_value([None, 1.0, None, 0, ""])
    assert take(connection)[12:14] == b"\x50\xff"
    assert not connection.operations


@pytest.mark.parametrize("command", [c.CMD_GET, c.CMD_RPC, c.CMD_MONITOR])
def test_destroy_may_come_before_init_was_answered(command):
    connection = opened()
    (event,) = feed(connection, op(command, 1, 8, EMPTY))
    assert feed(connection, op(command, 1, 0x10)) == [OperationClosed(event.operation)]
    event.operation.ready(SCALAR if command != c.CMD_RPC else None)
    event.operation.fail("late")
    assert take(connection) == b""


def test_a_put_brings_only_what_the_request_selects():
    connection = opened()
    (event,) = feed(connection, op(c.CMD_PUT, 1, 8, EMPTY))
    event.operation.ready(SCALAR, 0b10)
    body = b"\x01\x01" + bytes(8) + u32(5) + b"\0"
    (event,) = feed(connection, op(c.CMD_PUT, 1, 0, body))
    assert event.argument.changed == 0b10


def test_a_put_of_a_field_that_the_type_has_not_breaks_the_protocol():
    connection = opened()
    ready(connection, c.CMD_PUT)
    with pytest.raises(DecodeError, match="a field that its type does not have"):
        connection.receive_data(op(c.CMD_PUT, 1, 0, b"\x01\x40"))


def test_a_failing_subscription_ends_with_its_reason():
    """An answer to INIT that comes a second time would make PVXS close the connection."""
    connection = opened()
    operation = ready(connection, c.CMD_MONITOR)
    feed(connection, op(c.CMD_MONITOR, 1, 0x44))
    operation.fail("source lost")
    assert take(connection) == frame(c.CMD_MONITOR, u32(1) + b"\x10\x02\x0bsource lost\0", server=True)
    assert operation.state is OperationState.DEAD


def test_no_update_leaves_outside_the_window():
    connection = opened()
    operation = ready(connection, c.CMD_MONITOR)
    with pytest.raises(LocalProtocolError, match="cannot send an update now"):
        operation.send_update(b"")
    feed(connection, frame(c.CMD_DESTROY_REQUEST, u32(1) + u32(1)))
    operation.send_update(b"")
    assert take(connection) == b""


def test_the_request_of_init_may_be_null():
    """pvxs accepts it for RPC; it selects everything."""
    connection = opened()
    operation = ready(connection, c.CMD_RPC, request=b"\xff")
    assert operation.request.type == StructType(())
    ready(connection, c.CMD_GET, 2, request=b"\xff")


def test_a_bare_scalar_is_an_argument_too():
    """PVXS takes any type for the argument of an RPC; a structure is made around what is none."""
    connection = opened()
    ready(connection, c.CMD_RPC)
    (event,) = feed(connection, op(c.CMD_RPC, 1, 0, b"\x22" + u32(9)))
    assert event.argument["value"] == 9


def test_a_pv_request_that_uses_type_ids_is_read_anew_each_time():
    """The same octets mean another type after the ID was given to another one."""
    connection = opened()

    def requested(ioid: int, octets: bytes):
        (event,) = feed(connection, op(c.CMD_GET, ioid, 8, octets))
        return event.operation.request.type

    define_a = b"\xfd\1\0\x80\0\x01\x05field\x80\0\x01\x01a\x80\0\0"
    define_b = b"\xfd\1\0\x80\0\x01\x05field\x80\0\x01\x01b\x80\0\0"
    refer = b"\x80\0\x01\x01x\xfe\1\0"
    first = requested(1, define_a)
    assert requested(2, refer).members["x"] == first
    second = requested(3, define_b)
    assert requested(4, refer).members["x"] == second
    assert requested(5, b"\xfe\1\0") == second


@pytest.mark.parametrize("state", ["gone", "busy"])
def test_types_in_requests_that_are_refused_are_remembered(state):
    """pvAccessCPP sends a type once per connection: to skip its definition would break every later message."""
    connection = opened()
    operation = ready(connection, c.CMD_RPC)
    define = b"\xfd\2\0\x80\0\x01\x01v\x22" + u32(5)
    if state == "gone":
        feed(connection, frame(c.CMD_DESTROY_REQUEST, u32(1) + u32(1)))
    else:
        feed(connection, op(c.CMD_RPC, 1, 0, b"\xff"))
    assert feed(connection, op(c.CMD_RPC, 1, 0, define)) == []
    if state == "gone":
        operation = ready(connection, c.CMD_RPC)
    else:
        operation.reply_rpc(None)
    (event,) = feed(connection, op(c.CMD_RPC, 1, 0, b"\xfe\2\0" + u32(6)))
    assert event.argument["v"] == 6


def test_get_field_with_the_dot_of_the_specification():
    """Section 9.8 writes ``.substruct.field``."""
    connection = opened()
    (event,) = feed(connection, frame(c.CMD_GET_FIELD, u32(1) + u32(1) + b"\x06.a.b.c"))
    assert event == FieldRequested(event.operation, "a.b.c")


def test_an_operation_cannot_change_its_command_or_channel():
    for message in (op(c.CMD_PUT, 1, 0), op(c.CMD_GET, 1, 0, sid=2), op(c.CMD_GET, 1, 8, EMPTY)):
        connection = opened()
        ready(connection, c.CMD_GET)
        with pytest.raises(RemoteProtocolError):
            connection.receive_data(message)


def test_destroy_and_cancel_need_the_right_channel():
    connection = opened()
    ready(connection, c.CMD_GET)
    for command in (c.CMD_DESTROY_REQUEST, c.CMD_CANCEL_REQUEST):
        assert feed(connection, frame(command, u32(2) + u32(1))) == []
    assert 1 in connection.operations


ANSWERS = {
    c.CMD_GET: lambda operation: operation.reply_tail_once(VALUE),
    c.CMD_PUT: lambda operation: operation.reply_done(),
    c.CMD_PROCESS: lambda operation: operation.reply_done(),
    c.CMD_RPC: lambda operation: operation.reply_rpc(None),
}
PUT_VALUE = b"\x01\x02" + bytes(8)


@pytest.mark.parametrize("fails", [False, True], ids=["answer", "error"])
@pytest.mark.parametrize("command", ANSWERS, ids=lambda command: c.OPERATION_NAMES[command])
def test_the_late_answer_of_a_cancelled_request_is_not_taken_for_the_next_ones(command, fails):
    """Section 9.9."""
    connection = opened()
    operation = ready(connection, command)
    again = op(command, 1, 0, {c.CMD_PUT: PUT_VALUE, c.CMD_RPC: b"\xff"}.get(command, b""))
    cancel = frame(c.CMD_CANCEL_REQUEST, u32(1) + u32(1))
    first, cancelled, second = feed(connection, again + cancel + again)
    assert first.operation is cancelled.operation is operation
    assert second.operation is cancelled.successor is not operation
    if fails:
        operation.fail("too late")
    else:
        ANSWERS[command](operation)
    assert take(connection) == b""
    assert second.operation.state is OperationState.EXECUTING
    ANSWERS[command](second.operation)
    assert take(connection).count(b"\xca\x02") == 1
    # The octets that the pvRequest costs are given back once, by the one that lives.
    (closed,) = feed(connection, frame(c.CMD_DESTROY_REQUEST, u32(1) + u32(1)))
    assert closed == OperationClosed(second.operation)
    assert connection.request_octets == 0
    assert not connection.operations


def test_a_cancelled_get_is_answered_at_once_again_while_its_answer_is_prepared():
    connection = opened()
    operation = ready(connection, c.CMD_GET)
    prepared = operation.prepared = PreparedAnswer()
    feed(connection, op(c.CMD_GET, 1, 0) + frame(c.CMD_CANCEL_REQUEST, u32(1) + u32(1)))
    prepared.tail = VALUE
    assert feed(connection, op(c.CMD_GET, 1, 0)) == []
    assert take(connection) == frame(c.CMD_GET, u32(1) + b"\0" + VALUE, server=True)


def test_an_answer_that_cannot_be_kept_is_made_for_each_get_and_the_handler_asked_where_it_cannot_be_made():
    class Live(PreparedAnswer):
        __slots__ = ("made",)

        def make_tail(self):
            return self.made.pop(0)

    connection = opened()
    operation = ready(connection, c.CMD_GET)
    live = operation.prepared = Live()
    live.made = [b"\xff\x01", b"\xff\x02", None]
    assert feed(connection, op(c.CMD_GET, 1, 0) * 2) == []
    answers = [frame(c.CMD_GET, u32(1) + b"\0" + made, server=True) for made in (b"\xff\x01", b"\xff\x02")]
    assert take(connection) == b"".join(answers)
    assert [event.operation for event in feed(connection, op(c.CMD_GET, 1, 0))] == [operation]
    assert live.made == []


@pytest.mark.parametrize(
    ("size", "pipeline", "taken", "warned"),
    [
        ("7", "false", 7, False),
        ("1", "false", 2, False),
        ("0", "false", 4, True),
        ("-3", "false", 4, True),
        ("99999999", "false", 65536, True),
        ("many", "false", 4, True),
        ("9" * 200, "false", 65536, True),
        ("0", "true", None, False),
        ("many", "true", None, False),
        ("3", "true", 3, False),
    ],
)
def test_queue_size(size, pipeline, taken, warned):
    """Section 9.5.4: both ends count by queueSize when they pipeline, so nothing else than what was asked will do."""
    connection = opened()
    options = b"\x80\0\x02\x08pipeline\x60\x09queueSize\x60"
    request = b"\x80\0\x01\x06record\x80\0\x01\x08_options" + options
    request += bytes((len(pipeline),)) + pipeline.encode() + bytes((len(size),)) + size.encode()
    events = feed(connection, op(c.CMD_MONITOR, 1, 8, request))
    out = take(connection)
    if taken is None:
        assert [type(event) for event in events] == [OperationClosed]
        assert b"pipeline needs a queueSize from 1 to 65536" in out
    else:
        assert events[0].operation.queue_size == taken
        assert (out[3:4] == b"\x12") is warned


def test_arrays_are_not_served_and_say_so():
    connection = opened()
    assert feed(connection, op(c.CMD_ARRAY, 1, 8, EMPTY)) == []
    assert b"array operations are not served" in take(connection)


def test_unknown_commands_are_skipped_and_later_versions_are_understood():
    """Section 16.3 against 4.3 and 16.1: PVXS skips commands that it does not know and looks at no version but 0."""
    connection = ready_server()
    assert feed(connection, frame(200, b"abc", version=3) + frame(c.CMD_ECHO, b"x")) == []
    assert take(connection) == frame(c.CMD_ECHO, b"x", server=True)


@pytest.mark.parametrize(
    "data",
    [
        b"\xcb" + frame(2, b"")[1:],
        frame(2, b"", version=0),
        frame(2, b"", server=True),
        frame(2, b"", flags=0x20),
        frame(2, b"a", flags=0x10) + frame(2, b"b"),
        frame(2, b"a", flags=0x10) + frame(2, b"b", flags=0x10),
        frame(2, b"a", flags=0x10) + frame(3, b"b", flags=0x20),
    ],
    ids=["magic", "version", "direction", "last first", "none", "first twice", "other command"],
)
def test_framing_faults_close_the_connection(data):
    """Sections 4.1, 4.2 and 11."""
    connection = ready_server()
    with pytest.raises(RemoteProtocolError):
        connection.receive_data(data)
    assert connection.state is ConnectionState.CLOSED
    assert connection.receive_data(frame(2, b"")) == []


def test_what_a_fault_ended_is_told_at_the_end():
    connection = opened()
    operation = ready(connection, c.CMD_GET)
    with pytest.raises(RemoteProtocolError):
        connection.receive_data(op(c.CMD_GET, 1, 0) + b"garbage!")
    assert connection.receive_eof() == [OperationClosed(operation), ChannelClosed(operation.channel)]
    assert connection.receive_eof() == []


def test_large_answers_are_not_copied():
    connection = opened()
    (event,) = feed(connection, op(c.CMD_GET, 1, 8, EMPTY))
    event.operation.ready(ARRAY)
    connection.data_to_send()
    feed(connection, op(c.CMD_GET, 1, 0))
    tail = encode_answer(ARRAY, 2, [None, np.zeros(10_000), None, 0, ""], big=False)
    event.operation.reply_tail_once(tail)
    assert any(chunk is tail for chunk in connection.data_to_send())


def test_validation_happens_once():
    connection = ServerConnection()
    feed(connection, frame(1, bytes(8) + b"\0\xff"))
    with pytest.raises(RemoteProtocolError, match="not allowed while authenticating"):
        connection.receive_data(frame(1, bytes(8) + b"\0\xff"))
    connection = ready_server()
    with pytest.raises(RemoteProtocolError, match="second time"):
        connection.receive_data(frame(1, bytes(8) + b"\0\xff"))


def test_a_payload_may_be_missing_altogether():
    connection = ServerConnection()
    assert feed(connection, frame(1, bytes(8) + b"\x09anonymous")) == [
        AuthenticationReceived("anonymous", None)
    ]
    connection.validated(OK)
    assert connection.state is ConnectionState.READY
    assert [type(event) for event in feed(connection, create("d"))] == [ChannelRequested]
    assert StructType((("value", FLOAT64),)).leaf_mask == 2


class Ready:
    """An update that was serialised before."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def encoded(self, mask: int, big: bool) -> bytes:
        return self.body


@pytest.mark.parametrize(("segment_size", "size"), [(0, 10), (0, 5000), (100, 150)])
def test_a_queue_is_sent_in_order_while_the_client_takes_it(segment_size, size):
    """Section 9.5.4: as many as the window allows; what cannot leave stays in the queue."""
    connection = opened(segment_size=segment_size)
    pipeline = b"\x80\0\x01\x06record\x80\0\x01\x08_options\x80\0\x01\x08pipeline\x60\x04true"
    (event,) = feed(connection, op(c.CMD_MONITOR, 1, 0x88, pipeline + u32(3)))
    operation = event.operation
    operation.ready(SCALAR)
    take(connection)
    queue = deque(Ready(bytes((number,)) * size) for number in range(5))
    assert operation.drain(queue, 1 << 20) is False  # not started
    assert len(queue) == 5
    feed(connection, op(c.CMD_MONITOR, 1, 0x44))
    assert operation.drain(queue, 1 << 20) is False
    assert (len(queue), operation.window, operation.may_send) == (2, 0, False)
    out = take(connection)
    assert [out.count(bytes((number,)) * 10) > 0 for number in (1, 2, 3)] == [True, True, False]
    feed(connection, op(c.CMD_MONITOR, 1, 0x80, u32(9)))
    assert operation.drain(queue, 0) is True  # one leaves, then too much waits
    assert len(queue) == 1
    feed(connection, frame(c.CMD_DESTROY_REQUEST, u32(1) + u32(1)))
    assert operation.drain(queue, 1 << 20) is False
    assert len(queue) == 1
