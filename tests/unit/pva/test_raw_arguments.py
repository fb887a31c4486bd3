"""What a client sends with PUT, PUT_GET and RPC, passed on as it came."""

from __future__ import annotations

import pytest

from appliance.errors import DecodeError, LocalProtocolError
from appliance.pva import commands as c
from appliance.pva.events import Execute, OperationReply
from appliance.pva.octets import RawArgument
from appliance.pva.typed import encode_typed
from appliance.pvdata import ANY, FLOAT64, STRING, StructType, Value
from appliance.pvdata.codec import codec
from tests.helpers.wire import ARRAY, SCALAR, Wire, bytewise, cut, feed, frame, request, u32
from tests.helpers.wire import whole as at_once

WAYS = [(at_once, False, 0), (bytewise, False, 0), (cut([7]), True, 0), (at_once, True, 64)]
ARGUMENT = Value(StructType((("lhs", FLOAT64), ("note", STRING)), id="call"), {"lhs": 1.5, "note": "x" * 300})


def taking_octets(wire: Wire) -> list[RawArgument | Value | None]:
    """Have all operations of a wire's server take octets; gives what they get."""
    came: list[RawArgument | Value | None] = []
    init, execute = wire.responder.init, wire.responder.execute

    def begin(operation) -> None:
        operation.takes_octets = True
        init(operation)

    def record(operation, argument) -> None:
        came.append(argument)
        execute(operation, argument.value() if isinstance(argument, RawArgument) else argument)

    wire.responder.init, wire.responder.execute = begin, record
    return came


def operation_of(wire: Wire, command: int, name: str = "d"):
    operation = wire.open(name).operation(command, request())
    wire.pump()
    return operation


@pytest.mark.parametrize("command", [c.CMD_PUT, c.CMD_PUT_GET])
@pytest.mark.parametrize(("chunks", "big", "segment_size"), WAYS)
def test_a_put_comes_as_the_octets_that_were_sent(command, chunks, big, segment_size):
    wire = Wire(chunks, big=big, segment_size=segment_size).handshake()
    came = taking_octets(wire)
    operation = operation_of(wire, command)
    value = Value(SCALAR)
    value["value"] = 2.5
    operation.put(value)
    (event,) = wire.pump()
    assert type(event) is OperationReply
    assert event.status.ok
    (argument,) = came
    assert isinstance(argument, RawArgument)
    assert (argument.kind, argument.big, argument.full) == (SCALAR, big, False)
    assert argument.body == codec(SCALAR, big).encode_marked(value.store, 2)
    assert (argument.value().store[1], argument.value().changed) == (2.5, 2)


@pytest.mark.parametrize(("chunks", "big", "segment_size"), WAYS)
def test_the_argument_of_a_call_comes_with_its_type(chunks, big, segment_size):
    wire = Wire(chunks, big=big, segment_size=segment_size).handshake()
    came = taking_octets(wire)
    operation = operation_of(wire, c.CMD_RPC)
    for argument in (ARGUMENT, None):
        operation.call(argument)
        (event,) = wire.pump()
        assert event.value == argument
    raw, nothing = came
    assert isinstance(raw, RawArgument)
    assert (raw.kind, raw.full, raw.value()) == (ARGUMENT.type, True, ARGUMENT)
    assert raw.kind.id == "call"
    assert nothing is None


@pytest.mark.parametrize("from_big", [False, True])
@pytest.mark.parametrize("to_big", [False, True])
def test_it_is_passed_on_and_written_anew_for_the_other_byte_order(from_big, to_big, monkeypatch):
    near, far = Wire(big=from_big).handshake(), Wire(big=to_big).handshake()
    near_came = taking_octets(near)
    array = Value(ARRAY)
    array["value"] = [1.0, 2.0, 3.0]
    put, call = operation_of(near, c.CMD_PUT, "a"), operation_of(near, c.CMD_RPC)
    put.put(array)
    call.call(ARGUMENT)
    near.pump()
    if from_big is to_big:
        monkeypatch.setattr(RawArgument, "value", None)  # nothing is decoded
    far_put, far_call = operation_of(far, c.CMD_PUT, "a"), operation_of(far, c.CMD_RPC)
    far_put.put_octets(near_came[0])
    (event,) = far.pump()
    assert event.status.ok
    assert list(far.responder.values["a"]["value"]) == [1.0, 2.0, 3.0]
    far_call.call_octets(near_came[1])
    (event,) = far.pump()
    assert event.value == ARGUMENT


def test_what_holds_an_any_comes_decoded():
    wire = Wire().handshake()
    came = taking_octets(wire)
    argument = Value(StructType((("query", ANY),)))
    operation = operation_of(wire, c.CMD_RPC)
    operation.call(argument)
    wire.pump()
    wire.responder.values["any"] = Value(StructType((("value", ANY),)))
    put = operation_of(wire, c.CMD_PUT, "any")
    put.put(Value(put.type))
    wire.pump()
    assert [type(one) for one in came] == [Value, Value]


def test_a_put_of_another_type_is_not_sent():
    wire = Wire().handshake()
    operation = operation_of(wire, c.CMD_PUT)
    for wrong in (
        RawArgument(ARRAY, b"\x01\x02\0", False),
        RawArgument(SCALAR, b"", False, full=True),
    ):
        with pytest.raises(LocalProtocolError, match="not of the type"):
            operation.put_octets(wrong)
    operation.get()
    (event,) = wire.pump()
    assert event.status.ok


@pytest.mark.parametrize("body", [b"\x01\x02" + bytes(7), b"\x01\x80", b"\x02\x00\x01" + bytes(8), b""])
def test_malformed_octets_end_the_connection_of_their_sender(body):
    wire = Wire().handshake()
    came = taking_octets(wire)
    operation = operation_of(wire, c.CMD_PUT)
    operation.put_octets(RawArgument(SCALAR, body, False))
    with pytest.raises(DecodeError):
        wire.pump()
    assert not came
    assert wire.server.state.value == "closed"


def test_the_successor_of_a_cancelled_request_takes_octets_too():
    wire = Wire().handshake()
    taking_octets(wire)
    operation = operation_of(wire, c.CMD_RPC)
    wire.responder.hold.add(Execute)
    operation.call(ARGUMENT)
    operation.cancel()
    wire.pump()
    head = u32(operation.channel.sid) + u32(operation.ioid) + b"\0"
    (event,) = feed(wire.server, frame(c.CMD_RPC, head + b"".join(encode_typed(ARGUMENT, big=False))))
    assert type(event.argument) is RawArgument


def test_its_repr_shows_no_value():
    raw = RawArgument(ARGUMENT.type, b"".join(encode_typed(ARGUMENT, big=False)[1:]), False, full=True)
    assert "xxx" not in repr(raw)
