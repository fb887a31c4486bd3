"""What a client's end does where the specification leaves room, where servers differ, and where one is hostile."""

from __future__ import annotations

import pytest

from appliance.errors import (
    AccessDeniedError,
    DecodeError,
    LocalProtocolError,
    PVDataError,
    RemoteError,
    RemoteProtocolError,
)
from appliance.pva import commands as c
from appliance.pva.client_connection import ClientConnection
from appliance.pva.events import (
    AccessChanged,
    AuthenticationOffered,
    ChannelClosed,
    ChannelCreated,
    MonitorFinished,
    MonitorUpdate,
    OperationReady,
    OperationReply,
    Validated,
)
from appliance.pva.states import ConnectionState, OperationState
from appliance.pva.status import OK, Status
from appliance.pvdata import STRING, StructType, Value
from tests.helpers.wire import feed, frame, ready_client, request, take, u32

TYPE = b"\x80\0\x02\x05value\x43\x01s\x80\0\x01\x01n\x22"


def say(command: int, body: bytes) -> bytes:
    return frame(command, body, server=True)


def opened(**options):
    connection = ready_client(**options)
    channel = connection.create_channel("d")
    feed(connection, say(c.CMD_CREATE_CHANNEL, u32(1) + u32(5) + b"\xff"))
    take(connection)
    return connection, channel


def ready(connection, channel, command: int, answer: bytes = b"\xff" + TYPE):
    operation = channel.operation(command, request())
    feed(connection, say(command, u32(operation.ioid) + b"\x08" + answer))
    take(connection)
    return operation


def reply(operation, body: bytes, sub: int = 0) -> bytes:
    return say(operation.command, u32(operation.ioid) + bytes((sub,)) + body)


# -- handshake -----------------------------------------------------------------------------------------


def test_a_refusal_before_the_choice_ends_the_connection_with_its_reason():
    """Otherwise the caller, told of the offer in the same read, would find its answer refused as its own fault."""
    connection = ClientConnection()
    with pytest.raises(RemoteProtocolError, match="before it had chosen: revoked"):
        connection.receive_data(say(1, bytes(7)) + say(9, b"\x02\x07revoked\0"))
    assert connection.state is ConnectionState.CLOSED


def test_a_refusal_after_the_verdict_ends_the_connection():
    connection = ready_client()
    assert feed(connection, say(9, b"\x02\x02no\0")) == [Validated(Status(2, "no"))]
    assert connection.state is ConnectionState.CLOSED


def test_a_choice_is_made_once():
    connection = ClientConnection()
    assert feed(connection, say(1, bytes(6) + b"\x01\x02ca")) == [AuthenticationOffered(("ca",))]
    connection.authenticate("anonymous")
    with pytest.raises(LocalProtocolError, match="already"):
        connection.authenticate("ca")
    with pytest.raises(RemoteProtocolError, match="not allowed while authenticating"):
        connection.receive_data(say(1, bytes(6) + b"\x01\x02ca"))


def test_a_second_verdict_is_ignored():
    assert feed(ready_client(), say(9, b"\xff")) == []


def test_a_refusal_closes():
    connection = ClientConnection()
    feed(connection, say(1, bytes(7)))
    connection.authenticate("anonymous")
    assert feed(connection, say(9, b"\x02\x02no\0")) == [Validated(Status(2, "no"))]
    assert connection.state is ConnectionState.CLOSED


def test_an_absurd_offer_is_refused():
    for octets in (b"\xff", b"\x21" + b"\x01x" * 33, b"\xfe\xff\xff\xff\x7f"):
        with pytest.raises(DecodeError):
            ClientConnection().receive_data(say(1, bytes(6) + octets))


def test_set_endian_counts_at_any_time():
    """Section 12.3; what matters is the flag of the message, as with every existing peer, not its value."""
    connection = ready_client()
    feed(connection, bytes((0xCA, 2, 0xC1, 2, 0, 0, 0, 0)))
    connection.echo(b"x")
    assert take(connection) == frame(2, b"x", big=True)
    feed(connection, bytes((0xCA, 2, 0x41, 2, 255, 255, 255, 255)))
    connection.echo(b"x")
    assert take(connection) == frame(2, b"x")


# -- channels ------------------------------------------------------------------------------------------


def test_permissions_may_come_before_after_and_without_a_channel():
    """Section 13 sends them first; PVXS and pvAccessCPP send none at all."""
    connection = ready_client()
    channel = connection.create_channel("d")
    assert channel.permissions == c.PERMIT_ALL
    acl = say(c.CMD_ACL_CHANGE, u32(1) + b"\x02")
    assert feed(connection, acl) == [AccessChanged(channel)]
    assert channel.permissions == c.PERMIT_PUT_GET
    assert feed(connection, say(c.CMD_ACL_CHANGE, u32(9) + b"\x01")) == []


def test_a_channel_that_is_no_longer_wanted_is_given_back():
    connection = ready_client()
    channel = connection.create_channel("d")
    channel.close()
    channel.close()
    assert connection.pending_events() == [ChannelClosed(channel)]
    take(connection)
    assert feed(connection, say(c.CMD_CREATE_CHANNEL, u32(1) + u32(5) + b"\xff")) == []
    assert take(connection) == frame(c.CMD_DESTROY_CHANNEL, u32(5) + u32(1))
    assert feed(connection, say(c.CMD_CREATE_CHANNEL, u32(1) + u32(5) + b"\x02\0\0")) == []
    assert take(connection) == b""


def test_a_fatal_status_refuses_the_channel_and_nothing_else():
    """Section 15.2 would end the connection; PVXS says FATAL when it does not know a name."""
    connection = ready_client()
    channel = connection.create_channel("d")
    status = Status(3, "Refused to create Channel", "pvx:serv:refusechan:")
    body = b"\x03\x19Refused to create Channel\x14pvx:serv:refusechan:"
    events = feed(connection, say(c.CMD_CREATE_CHANNEL, u32(1) + b"\xff\xff\xff\xff" + body))
    assert events == [ChannelCreated(channel, status)]
    assert connection.state is ConnectionState.READY
    assert not connection.channels


def test_the_end_of_a_channel_that_crossed_our_own_is_ignored():
    connection, channel = opened()
    assert feed(connection, say(c.CMD_DESTROY_CHANNEL, u32(5) + u32(2))) == []
    assert feed(connection, say(c.CMD_DESTROY_CHANNEL, u32(6) + u32(1))) == []
    channel.close()
    connection.pending_events()
    assert feed(connection, say(c.CMD_DESTROY_CHANNEL, u32(5) + u32(1))) == []


def test_a_channel_is_not_created_twice():
    connection, _ = opened()
    with pytest.raises(RemoteProtocolError, match="a second time"):
        connection.receive_data(say(c.CMD_CREATE_CHANNEL, u32(1) + u32(5) + b"\xff"))


# -- operations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [c.CMD_PUT, c.CMD_MONITOR, c.CMD_GET_FIELD])
def test_an_answer_of_another_command_breaks_the_protocol(command):
    """PVXS closes the connection too."""
    connection, channel = opened()
    operation = ready(connection, channel, c.CMD_GET)
    with pytest.raises(RemoteProtocolError, match="GET 1 was answered by a"):
        connection.receive_data(say(command, u32(operation.ioid) + b"\0\xff\0"))
    connection, channel = opened()
    operation = channel.get_field()
    with pytest.raises(RemoteProtocolError, match="GET_FIELD 1 was answered by a GET"):
        connection.receive_data(say(c.CMD_GET, u32(operation.ioid) + b"\0\xff\0"))


@pytest.mark.parametrize("command", [c.CMD_GET, c.CMD_PUT, c.CMD_MONITOR, c.CMD_RPC, c.CMD_PROCESS])
def test_a_failed_init_ends_the_operation_and_says_why(command):
    connection, channel = opened()
    operation = channel.operation(command, request())
    events = feed(connection, say(command, u32(operation.ioid) + b"\x08\x02\x02no\0"))
    assert events == [OperationReady(operation, Status(2, "no"))]
    assert not connection.operations
    assert not channel.operations
    take(connection)
    operation.close()
    assert take(connection) == b""


def test_late_answers_are_dropped_and_their_types_are_remembered():
    """A type that a server sent once is only referred to later on."""
    connection, channel = opened()
    operation = channel.operation(c.CMD_GET, request())
    operation.close()
    assert feed(connection, reply(operation, b"\xff\xfd\1\0" + TYPE, sub=8)) == []
    field = channel.get_field()
    field.close()
    feed(connection, say(c.CMD_GET_FIELD, u32(field.ioid) + b"\xff\xfd\2\0\x80\0\x01\x01q\x22"))
    again = ready(connection, channel, c.CMD_PUT_GET, b"\xff\xfe\1\0\xfe\2\0")
    assert (list(again.type.members), list(again.get_type.members)) == (["value", "s"], ["q"])
    assert feed(connection, reply(operation, b"\xff\x01\x01")) == []


def test_an_answer_after_the_answer_is_dropped():
    """A server that answers "busy" to a second request answers the first one all the same."""
    connection, channel = opened()
    operation = ready(connection, channel, c.CMD_GET)
    operation.get()
    assert [type(event) for event in feed(connection, reply(operation, b"\x02\x04busy\0"))] == [
        OperationReply
    ]
    assert feed(connection, reply(operation, b"\xff\x01\x02" + bytes(8))) == []
    assert operation.state is OperationState.IDLE


def test_nothing_is_sent_of_a_value_that_cannot_be_encoded():
    connection, channel = opened()
    operation = ready(connection, channel, c.CMD_PUT, b"\xff\x80\0\x01\x01s\x60")
    value = Value(operation.type)
    value["s"] = "x"
    value.store[1] = "\ud800"
    with pytest.raises(PVDataError):
        operation.put(value)
    assert take(connection) == b""
    assert operation.state is OperationState.IDLE
    with pytest.raises(LocalProtocolError, match="not of the type"):
        operation.put(Value(StructType((("other", STRING),))))


# -- subscriptions -------------------------------------------------------------------------------------


def test_updates_add_up():
    """Section 5.5.5: a structure's bit stands for all below it; what is not sent is what it was."""
    connection, channel = opened()
    operation = ready(connection, channel, c.CMD_MONITOR)
    operation.start()
    double = b"\0\0\0\0\0\0\xf0?"
    first = feed(connection, reply(operation, b"\x01\x02" + double + b"\0"))
    second = feed(connection, reply(operation, b"\x01\x04" + u32(7) + b"\x01\x04"))
    empty = feed(connection, reply(operation, b"\0\0"))
    assert first == [MonitorUpdate(operation, 0b10, [None, 1.0, None, 0], 0)]
    assert second == [MonitorUpdate(operation, 0b1000, [None, 1.0, None, 7], 0b1000)]
    assert empty == [MonitorUpdate(operation, 0, [None, 1.0, None, 7], 0)]
    assert first[0].store[3] == 0


def test_an_update_may_lack_the_overrun_bits():
    connection, channel = opened()
    operation = ready(connection, channel, c.CMD_MONITOR)
    (event,) = feed(connection, reply(operation, b"\x01\x02" + bytes(8)))
    assert event.overrun == 0


def test_overrun_bits_of_a_whole_structure_are_bits_of_its_leaves():
    connection, channel = opened()
    operation = ready(connection, channel, c.CMD_MONITOR)
    (event,) = feed(connection, reply(operation, b"\x01\x01" + bytes(12) + b"\x01\x01"))
    assert event.overrun == operation.type.leaf_mask


@pytest.mark.parametrize(
    ("rest", "status"), [(b"", OK), (b"\xff", OK), (b"\x02\x04gone\0", Status(2, "gone"))]
)
def test_the_end_of_a_subscription_with_and_without_a_reason(rest, status):
    connection, channel = opened()
    operation = ready(connection, channel, c.CMD_MONITOR)
    assert feed(connection, reply(operation, rest, sub=0x10)) == [MonitorFinished(operation, status)]
    assert not connection.operations


def test_the_end_of_a_subscription_may_bring_a_last_value():
    """PVXS reads an update behind the Status of the last message."""
    connection, channel = opened()
    operation = ready(connection, channel, c.CMD_MONITOR)
    events = feed(connection, reply(operation, b"\xff\x01\x04" + u32(3) + b"\0", sub=0x10))
    assert events == [
        MonitorUpdate(operation, 0b1000, [None, 0.0, None, 3], 0),
        MonitorFinished(operation, OK),
    ]


def test_fields_that_the_type_has_not_break_the_protocol():
    for command in (c.CMD_GET, c.CMD_MONITOR):
        connection, channel = opened()
        operation = ready(connection, channel, command)
        if command == c.CMD_GET:
            operation.get()
        with pytest.raises(DecodeError, match="a field that its type does not have"):
            connection.receive_data(
                reply(operation, (b"\xff" if command == c.CMD_GET else b"") + b"\x01\x40")
            )


# -- status --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Put not permitted",  # QSRV of PVXS and of pvAccessCPP
        "Put permission denied by gateway",  # p4p's gateway
        "RPC permission denied by gateway",
        "Denied",
        "no read access",  # pvAccessCPP
        "no write access",
        "no process access",
        "write access denied by access security",  # ours
        "RPC access denied by access security",
    ],
)
def test_refusals_of_access_security_are_recognised(text):
    with pytest.raises(AccessDeniedError, match=f"pv: {text}"):
        Status.error(text).raise_for("pv")


@pytest.mark.parametrize("text", ["Read-only PV", "PUT Not Implemented", "state DENIED is not known", ""])
def test_other_errors_are_not_taken_for_refusals(text):
    with pytest.raises(RemoteError) as caught:
        Status.error(text).raise_for("pv")
    assert type(caught.value) is RemoteError
    assert str(caught.value) == f"pv: {text or 'the server gave no reason'}"


def test_success_raises_nothing():
    OK.raise_for("pv")
    Status(1, "old").raise_for("pv")


def test_a_status_of_unknown_kind_is_refused():
    """Section 15.1 knows 0xFF and 0 to 3."""
    connection, channel = opened()
    operation = ready(connection, channel, c.CMD_PROCESS, b"\xff")
    operation.process()
    with pytest.raises(DecodeError, match="unknown kind 4"):
        connection.receive_data(reply(operation, b"\x04\0\0"))


def test_the_text_of_a_status_is_bounded():
    assert len(Status.error("x" * 100_000).message) == 4096


def test_an_echo_is_not_echoed_by_a_client():
    """Section 12.1 lets either end ask; an answer looks like a question, so two that both answer never stop."""
    connection = ready_client()
    assert feed(connection, say(c.CMD_ECHO, b"abc")) == []
    assert take(connection) == b""
