"""Server and client talk to each other with no socket: what they say depends on nothing but the octets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import AccessDeniedError
from appliance.pva import commands as c
from appliance.pva.events import (
    AccessChanged,
    ChannelClosed,
    ChannelCreated,
    Execute,
    FieldReply,
    MonitorFinished,
    MonitorUpdate,
    OperationCancelled,
    OperationClosed,
    OperationReady,
    OperationReply,
    RemoteMessage,
    SearchAnswered,
    Validated,
)
from appliance.pva.search import SearchRequest
from appliance.pva.states import ConnectionState, OperationState
from appliance.pva.status import OK, Status
from appliance.pvdata import STRING, StructType, Value
from tests.helpers.wire import ALARM, ARRAY, SCALAR, Wire, bytewise, cut, request, whole

CREDENTIALS = StructType((("user", STRING), ("host", STRING)))


def last(events, kind):
    found = [event for event in events if type(event) is kind]
    assert found, events
    return found[-1]


def session(wire: Wire) -> None:
    """Use every operation once; assert at each step that it does what the specification promises."""
    identity = Value(CREDENTIALS)
    identity["user"] = "op"
    identity["host"] = "ws1"
    wire.handshake("ca", identity)
    assert Validated(OK) in wire.events
    chosen = wire.responder.events[0]
    assert (chosen.method, chosen.payload["user"]) == ("ca", "op")

    # SEARCH over the stream, section 7
    wire.client.search(SearchRequest(7, ((1, "d"), (2, "no"), (3, "a")), ("tcp",)))
    answer = last(wire.pump(), SearchAnswered).response
    assert (answer.sequence, answer.found, answer.instances) == (7, True, (1, 3))

    # channels, section 8
    channel = wire.client.create_channel("d")
    arrays = wire.client.create_channel("a")
    refused = wire.client.create_channel("no such")
    events = wire.pump()
    assert [type(event) for event in events[:2]] == [AccessChanged, ChannelCreated]
    assert channel.open
    assert channel.permissions == c.PERMIT_ALL
    assert events[-1] == ChannelCreated(refused, Status.error("there is no such PV here"))

    # GET, PUT and PUT-get, sections 9.2 and 9.3
    put = wire.operation(channel, c.CMD_PUT)
    value = Value(SCALAR)
    value["value"] = 4.5
    put.put(value)
    assert last(wire.pump(), OperationReply) == OperationReply(put, OK, None)
    put.get()
    assert last(wire.pump(), OperationReply).value["value"] == 4.5
    value["value"] = -1.0
    put.put(value)
    denied = last(wire.pump(), OperationReply)
    with pytest.raises(AccessDeniedError, match="d: Put not permitted"):
        denied.status.raise_for("d")
    get = wire.operation(channel, c.CMD_GET, "field(alarm)")
    for _ in range(2):
        get.get()
        reply = last(wire.pump(), OperationReply).value
        assert (reply.type, reply.changed, reply["value"]) == (SCALAR, 0b11000, 0.0)
    # arrays, large enough for chunks of their own
    big = Value(ARRAY)
    big["value"] = np.arange(700, dtype="f8")
    put_array = wire.operation(arrays, c.CMD_PUT)
    put_array.put(big)
    wire.pump()
    put_array.get()
    assert np.array_equal(last(wire.pump(), OperationReply).value["value"], big["value"])

    # PUT_GET and PROCESS, sections 9.4 and 9.7
    put_get = wire.operation(channel, c.CMD_PUT_GET)
    value["value"] = 8.0
    put_get.put(value)
    assert last(wire.pump(), OperationReply).value["value"] == 8.0
    put_get.get()
    assert last(wire.pump(), OperationReply).value["value"] == 8.0
    process = wire.operation(channel, c.CMD_PROCESS)
    process.process()
    assert last(wire.pump(), OperationReply) == OperationReply(process, OK, None)

    # RPC, section 9.6
    rpc = wire.operation(channel, c.CMD_RPC)
    rpc.call(big)
    assert np.array_equal(last(wire.pump(), OperationReply).value["value"], big["value"])
    rpc.call(None)
    assert last(wire.pump(), OperationReply) == OperationReply(rpc, OK, None)

    # GET_FIELD, section 9.8
    channel.get_field("alarm")
    assert last(wire.pump(), FieldReply).type == ALARM
    channel.get_field("nonsense")
    assert not last(wire.pump(), FieldReply).status.ok

    # MONITOR, section 9.5
    monitor = wire.operation(channel, c.CMD_MONITOR)
    assert type(wire.events[-1]) is OperationReady
    monitor.start()
    update = last(wire.pump(), MonitorUpdate)
    assert (update.store[1], update.bits) == (9.0, SCALAR.leaf_mask)
    value["value"] = 10.0
    put.put(value)
    assert last(wire.pump(), MonitorUpdate).bits == 0b10
    monitor.stop()
    wire.pump()
    put.put(value)
    assert not any(type(event) is MonitorUpdate for event in wire.pump())
    monitor.start()
    assert last(wire.pump(), MonitorUpdate).store[1] == 10.0
    monitor.close()
    piped = wire.operation(channel, c.CMD_MONITOR, "record[pipeline=true,queueSize=2]", window=2)
    piped.start()
    wire.pump()
    for number in range(4):
        value["value"] = float(number)
        put.put(value)
        wire.pump()
    sent = [
        event.store[1] for event in wire.events if type(event) is MonitorUpdate and event.operation is piped
    ]
    assert sent == [10.0, 0.0]
    piped.acknowledge(2)
    assert [event.store[1] for event in wire.pump()] == [1.0, 2.0]
    piped.acknowledge(2)
    wire.pump()
    wire.server.operations[piped.ioid].finish()
    assert wire.pump() == [MonitorFinished(piped, OK)]

    # CANCEL, DESTROY, section 9.9
    wire.responder.hold = {Execute}
    get.get()
    wire.pump()
    cancelled = wire.server.operations[get.ioid]
    get.cancel()
    wire.pump()
    successor = wire.server.operations[get.ioid]
    assert OperationCancelled(cancelled, successor) in wire.responder.events
    assert cancelled.state is OperationState.DEAD
    assert successor.state is OperationState.IDLE
    wire.responder.hold = set()
    get.close()
    wire.pump()
    assert get.ioid not in wire.server.operations
    assert OperationClosed(successor) in wire.responder.events

    # ECHO, MESSAGE, ACL_CHANGE, sections 12 and 13
    before = wire.client.received
    wire.client.echo(b"12345")
    assert wire.pump() == []
    assert wire.client.received >= before + 13
    wire.server.send_message(put.ioid, c.MESSAGE_WARNING, "mind the gap")
    assert wire.pump() == [RemoteMessage(put.ioid, c.MESSAGE_WARNING, "mind the gap")]
    wire.client.send_message(0, c.MESSAGE_INFO, "thanks")
    wire.pump()
    assert wire.responder.events[-1] == RemoteMessage(0, c.MESSAGE_INFO, "thanks")
    wire.server.channels[channel.sid].set_permissions(c.PERMIT_RPC)
    assert wire.pump() == [AccessChanged(channel)]
    assert channel.permissions == c.PERMIT_RPC

    # the end of channels, from both sides, section 8.4
    arrays.close()
    assert ChannelClosed(arrays) in wire.pump()
    wire.server.channels[channel.sid].close()
    assert wire.pump()[-1] == ChannelClosed(channel)
    assert not wire.server.channels
    assert not wire.server.operations
    assert not wire.client.channels
    assert not wire.client.operations
    assert wire.server.request_octets == 0
    assert wire.client.receive_eof() == []
    assert wire.server.receive_eof() == []
    assert wire.server.state is wire.client.state is ConnectionState.CLOSED


def told(events) -> list[str]:
    """Events as text: objects of two sessions are never equal."""

    def text(said) -> str:
        return str(said.store) + bin(said.changed) if isinstance(said, Value) else str(said)

    return [
        ",".join([type(event).__name__, *(text(getattr(event, name)) for name in event.__match_args__)])
        for event in events
    ]


_REFERENCE: dict = {}


def reference(*, big: bool, segment_size: int) -> Wire:
    key = (big, segment_size)
    if key not in _REFERENCE:
        _REFERENCE[key] = Wire(whole, big=big, segment_size=segment_size)
        session(_REFERENCE[key])
    return _REFERENCE[key]


@pytest.mark.parametrize("segment_size", [0, 1, 9, 1000])
@pytest.mark.parametrize("big", [False, True])
def test_every_operation_works_in_both_byte_orders_and_in_segments_of_any_size(big, segment_size):
    wire = reference(big=big, segment_size=segment_size)
    assert len(wire.to_server) > 1000


@pytest.mark.parametrize("segment_size", [0, 9])
@pytest.mark.parametrize("big", [False, True])
def test_byte_by_byte_means_the_same_as_whole(big, segment_size):
    wire = Wire(bytewise, big=big, segment_size=segment_size)
    session(wire)
    same(wire, reference(big=big, segment_size=segment_size))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40) | st.integers(1, 6000), min_size=1, max_size=8),
    big=st.booleans(),
    segment_size=st.sampled_from([0, 5, 64]),
)
def test_however_it_is_cut_the_meaning_is_the_same(sizes, big, segment_size):
    wire = Wire(cut(sizes), big=big, segment_size=segment_size)
    session(wire)
    same(wire, reference(big=big, segment_size=segment_size))


def same(wire: Wire, other: Wire) -> None:
    assert wire.to_server == other.to_server
    assert wire.to_client == other.to_client
    assert told(wire.events) == told(other.events)
    assert told(wire.responder.events) == told(other.responder.events)


def test_messages_of_other_commands_between_segments_are_understood():
    """Section 11.3: standalone messages may come between the segments of another message."""
    wire = Wire(segment_size=16).handshake()
    wire.client.search(SearchRequest(1, ((5, "d"),), ("tcp",)))
    pieces = [bytes(chunk) for chunk in wire.client.data_to_send()]
    echo = b"\xca\x02\x00\x02\x03\x00\x00\x00abc"
    stream = b"".join(piece if len(piece) != 8 else echo + piece for piece in pieces)
    for data in bytewise(stream):
        wire.responder(wire.server.receive_data(data))
    out = b"".join(bytes(chunk) for chunk in wire.server.data_to_send())
    assert out.count(b"abc") == len(pieces) // 2
    assert out.count(bytes(range(12))) == 1


@pytest.mark.parametrize("chunks", [whole, bytewise, cut([17 * 3 + 1])])
def test_prepared_answers_never_overtake_earlier_requests(chunks):
    """A PUT and GETs in one read: the GETs before it see the old value, those after it the new one."""
    wire = Wire(chunks).handshake()
    channel = wire.open("prepared")
    put = wire.operation(channel, c.CMD_PUT)
    gets = [wire.operation(channel, c.CMD_GET) for _ in range(6)]
    for get in gets:
        get.get()
    wire.pump()
    value = Value(SCALAR)
    value["value"] = 3.0
    for get in gets[:3]:
        get.get()
    put.put(value)
    for get in gets[3:]:
        get.get()
    replies = wire.pump()
    assert [event.operation for event in replies] == [*gets[:3], put, *gets[3:]]
    assert [event.value["value"] for event in replies if event.value] == [0.0] * 3 + [3.0] * 3


def test_a_client_may_ask_for_more_than_one_call_takes_and_loses_nothing():
    """More events than EVENTS_PER_CALL and more answers than OUT_LIMIT in one read come out in order."""
    wire = Wire().handshake()
    channel = wire.open("a")
    big = Value(ARRAY)
    big["value"] = np.arange(60_000, dtype="f8")
    put = wire.operation(channel, c.CMD_PUT)
    gets = [wire.operation(channel, c.CMD_GET) for _ in range(100)]
    put.put(big)
    for get in gets:
        get.get()
    events = wire.pump()
    assert [event.operation for event in events if type(event) is OperationReply] == [put, *gets]
    assert all(np.array_equal(event.value["value"], big["value"]) for event in events[-100:])


def test_request_options_reach_the_server():
    wire = Wire().handshake()
    operation = wire.operation(wire.open(), c.CMD_MONITOR, "record[queueSize=7]")
    there = wire.server.operations[operation.ioid]
    assert (there.queue_size, there.pipeline, there.request.type) == (
        7,
        False,
        request("record[queueSize=7]").type,
    )
