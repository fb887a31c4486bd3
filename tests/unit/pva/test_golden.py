"""Every message of a connection, octet for octet, in both directions and both byte orders.

The octets are written by hand from the protocol specification; what one end says is what the other one hears.
"""

from __future__ import annotations

import struct

import pytest

from appliance.errors import RemoteProtocolError
from appliance.pva import commands as c
from appliance.pva.client_connection import ClientConnection
from appliance.pva.events import (
    AccessChanged,
    AuthenticationOffered,
    AuthenticationReceived,
    ChannelClosed,
    ChannelCreated,
    ChannelRequested,
    Execute,
    FieldReply,
    FieldRequested,
    MonitorFinished,
    MonitorUpdate,
    MonitorWindow,
    OperationCancelled,
    OperationClosed,
    OperationReady,
    OperationReply,
    OperationRequested,
    RemoteMessage,
    SearchAnswered,
    SearchReceived,
    Validated,
)
from appliance.pva.search import SearchRequest, SearchResponse
from appliance.pva.selection import encode_update
from appliance.pva.server_connection import ServerConnection
from appliance.pva.states import ConnectionState, OperationState
from appliance.pva.status import OK, Status
from appliance.pvdata import FLOAT64, INT32, STRING, ArrayType, StructType, Value
from tests.helpers.wire import feed, frame, request, take, u16, u32

ALARM = StructType((("severity", INT32), ("message", STRING)), "alarm_t")
KIND = StructType((("value", FLOAT64), ("alarm", ALARM)), "demo")
KIND_OCTETS = b"\x80\x04demo\x02\x05value\x43\x05alarm\x80\x07alarm_t\x02\x08severity\x22\x07message\x60"
EMPTY_REQUEST = b"\x80\x00\x01\x05field\x80\x00\x00"
OCTETS_OK = b"\xff"


def f64(value: float, big: bool) -> bytes:
    return struct.pack(">d" if big else "<d", value)


def kind_value(value: float, severity: int, message: str) -> Value:
    made = Value(KIND)
    made["value"] = value
    made["alarm.severity"] = severity
    made["alarm.message"] = message
    made.changed = 1
    return made


class Talk:
    """Each step states what an end says, octet for octet, and gives what the other end understands."""

    def __init__(self, big: bool) -> None:
        self.big = big
        self.server = ServerConnection(big=big)
        self.client = ClientConnection()

    def server_says(self, *messages: tuple[int, bytes], raw: bytes = b"") -> list:
        expected = raw + b"".join(
            frame(command, body, server=True, big=self.big) for command, body in messages
        )
        said = take(self.server)
        assert said.hex(" ") == expected.hex(" ")
        return feed(self.client, said)

    def client_says(self, *messages: tuple[int, bytes]) -> list:
        expected = b"".join(frame(command, body, big=self.big) for command, body in messages)
        said = take(self.client)
        assert said.hex(" ") == expected.hex(" ")
        return feed(self.server, said)

    def opened(self):
        """The handshake and one channel, ``pv``; cid and sid are 1."""
        big = self.big
        offer = u32(0x10000, big) + u16(0x7FFF, big) + b"\x02\x09anonymous\x02ca"
        endian = bytes((0xCA, 2, 0xC1 if big else 0x41, 2, 0, 0, 0, 0))
        assert self.server_says((1, offer), raw=endian) == [AuthenticationOffered(("anonymous", "ca"))]
        self.client.authenticate("anonymous")
        chosen = u32(0x10000, big) + u16(0x7FFF, big) + u16(0, big) + b"\x09anonymous\xff"
        assert self.client_says((1, chosen)) == [AuthenticationReceived("anonymous", None)]
        self.server.validated(OK)
        assert self.server_says((9, OCTETS_OK)) == [Validated(OK)]
        channel = self.client.create_channel("pv")
        (wanted,) = self.client_says((7, u16(1, big) + u32(1, big) + b"\x02pv"))
        assert type(wanted) is ChannelRequested
        wanted.channel.accept(c.PERMIT_PUT | c.PERMIT_RPC)
        assert self.server_says((6, u32(1, big) + b"\x05"), (7, u32(1, big) + u32(1, big) + OCTETS_OK)) == [
            AccessChanged(channel),
            ChannelCreated(channel, OK),
        ]
        assert (channel.sid, channel.permissions) == (1, 5)
        return channel, wanted.channel

    def initialised(
        self, channel, command: int, answer_types: int, *, sub: int = 8, tail: bytes = b"", window=0
    ):
        """INIT of operation 1."""
        big = self.big
        operation = channel.operation(command, request(), window=window)
        asked = u32(1, big) + u32(1, big) + bytes((sub,)) + EMPTY_REQUEST + tail
        (wanted,) = self.client_says((command, asked))
        assert type(wanted) is OperationRequested
        there = wanted.operation
        assert (there.command, there.window) == (command, window)
        assert there.request.type == StructType((("field", StructType(())),))
        there.ready(KIND if answer_types else None)
        answer = u32(1, big) + bytes((sub,)) + OCTETS_OK + KIND_OCTETS * answer_types
        assert self.server_says((command, answer)) == [OperationReady(operation, OK)]
        assert operation.type == (KIND if answer_types else None)
        return operation, there


@pytest.fixture(params=[False, True], ids=["little", "big"])
def talk(request) -> Talk:
    return Talk(request.param)


def test_handshake_and_channel(talk):
    """Sections 6.1 to 6.3, 8.1, 8.2, 12.3 and 13: permissions go out before the channel."""
    talk.opened()


def test_credentials_travel_as_a_typed_value(talk):
    """Section 6.2: auth_data is a FieldDesc and a value; for "ca" it holds two strings."""
    take(talk.client)
    feed(talk.client, take(talk.server))
    payload = Value(StructType((("user", STRING), ("host", STRING))))
    payload["user"] = "me"
    payload["host"] = "box"
    talk.client.authenticate("ca", payload)
    big = talk.big
    head = u32(0x10000, big) + u16(0x7FFF, big) + u16(0, big)
    (event,) = talk.client_says((1, head + b"\x02ca\x80\x00\x02\x04user\x60\x04host\x60\x02me\x03box"))
    assert (event.method, event.payload["user"], event.payload["host"]) == ("ca", "me", "box")


def test_a_refused_client_is_told_why_and_both_ends_are_closed(talk):
    """Section 6.3: after an ERROR the connection is over."""
    feed(talk.client, take(talk.server))
    talk.client.authenticate("anonymous")
    feed(talk.server, take(talk.client))
    talk.server.validated(Status.error("go away"))
    assert talk.server_says((9, b"\x02\x07go away\x00")) == [Validated(Status(2, "go away"))]
    assert talk.server.state is talk.client.state is ConnectionState.CLOSED


def test_a_verdict_that_comes_before_the_choice_is_passed_over(talk):
    """PVXS 1.5 with certificate status says VALIDATED when the client's status is good, and again when it has chosen."""
    big = talk.big
    early = frame(9, OCTETS_OK, server=True, big=big)
    assert feed(talk.client, early) == []
    feed(talk.client, take(talk.server))
    assert feed(talk.client, early) == []
    assert talk.client.state is ConnectionState.AUTHENTICATING
    talk.client.authenticate("anonymous")
    assert len(feed(talk.server, take(talk.client))) == 1
    talk.server.validated(OK)
    assert talk.server_says((9, OCTETS_OK)) == [Validated(OK)]
    assert feed(talk.client, early) == []
    assert talk.client.state is ConnectionState.READY


@pytest.mark.parametrize("together", [True, False])
def test_channels_asked_for_before_the_verdict_wait_for_it(talk, together):
    """PVXS 1.5 with certificate status creates channels as soon as the server's status is good."""
    big = talk.big
    feed(talk.client, take(talk.server))
    talk.client.authenticate("anonymous")
    early = frame(7, u16(1, big) + u32(1, big) + b"\x02pv", big=big) + frame(2, b"x", big=big)
    pieces = [take(talk.client) + early] if together else [take(talk.client), early[:20], early[20:]]
    events = [event for piece in pieces for event in feed(talk.server, piece)]
    assert events == [AuthenticationReceived("anonymous", None)]
    assert talk.server.held
    assert not talk.server.stalled
    assert feed(talk.server, frame(2, b"y", big=big)) == []
    talk.server.validated(OK)
    assert (talk.server.held, talk.server.stalled) == (False, True)
    (wanted,) = feed(talk.server, b"")
    assert type(wanted) is ChannelRequested
    echoes = (2, b"x"), (2, b"y")
    assert talk.server_says((9, OCTETS_OK), *echoes) == [Validated(OK)]


def test_channels_asked_for_before_a_refusal_are_not_looked_at(talk):
    big = talk.big
    feed(talk.client, take(talk.server))
    talk.client.authenticate("anonymous")
    feed(talk.server, take(talk.client) + frame(7, u16(1, big) + u32(1, big) + b"\x02pv", big=big))
    talk.server.validated(Status.error("no"))
    assert (talk.server.held, talk.server.stalled) == (False, False)
    assert feed(talk.server, b"") == []


def test_a_client_that_has_not_chosen_may_not_create_channels(talk):
    with pytest.raises(RemoteProtocolError, match="not allowed while validating"):
        talk.server.receive_data(frame(7, u16(1, talk.big) + u32(1, talk.big) + b"\x02pv", big=talk.big))


def test_search_over_the_stream(talk):
    """Sections 7.1 and 7.2."""
    talk.opened()
    big = talk.big
    asked = SearchRequest(258, ((1, "a"), (2, "bc")), ("tls", "tcp"), must_reply=True)
    talk.client.search(asked)
    octets = u32(258, big) + b"\x01\0\0\0" + bytes(10) + b"\xff\xff" + bytes(4) + u16(0, big)
    octets += b"\x02\x03tls\x03tcp" + u16(2, big) + u32(1, big) + b"\x01a" + u32(2, big) + b"\x02bc"
    assert talk.client_says((3, octets)) == [SearchReceived(asked)]
    answer = SearchResponse(b"0123456789ab", 258, None, 5076, "tls", True, (2,))
    talk.server.search_response(answer)
    octets = b"0123456789ab" + u32(258, big) + bytes(10) + b"\xff\xff" + bytes(4) + u16(5076, big)
    octets += b"\x03tls\x01" + u16(1, big) + u32(2, big)
    assert talk.server_says((4, octets)) == [SearchAnswered(answer)]


def test_an_answer_over_the_stream_may_have_port_zero(talk):
    """Section 7.2; what Phoebus' server sends over TCP, and means the connection by it."""
    big = talk.big
    feed(talk.client, take(talk.server))
    octets = (
        b"0123456789ab" + u32(7, big) + bytes(16) + u16(0, big) + b"\x03tcp\x01" + u16(1, big) + u32(2, big)
    )
    (event,) = feed(talk.client, frame(4, octets, server=True, big=big))
    assert event == SearchAnswered(SearchResponse(b"0123456789ab", 7, None, 0, "tcp", True, (2,)))


def test_channels_are_refused_and_destroyed(talk):
    """Sections 8.3 and 8.4."""
    channel, there = talk.opened()
    big = talk.big
    refused = talk.client.create_channel("nope")
    (wanted,) = talk.client_says((7, u16(1, big) + u32(2, big) + b"\x04nope"))
    wanted.channel.reject("unknown")
    octets = u32(2, big) + b"\xff\xff\xff\xff" + b"\x02\x07unknown\x00"
    assert talk.server_says((7, octets)) == [ChannelCreated(refused, Status(2, "unknown"))]
    channel.close()
    assert talk.client.pending_events() == [ChannelClosed(channel)]
    assert talk.client_says((8, u32(1, big) + u32(1, big))) == [ChannelClosed(there)]
    assert talk.server_says((8, u32(1, big) + u32(1, big))) == []


def test_a_server_takes_a_channel_away_and_changes_permissions(talk):
    """Sections 8.4 and 13."""
    channel, there = talk.opened()
    big = talk.big
    there.set_permissions(c.PERMIT_PUT)
    there.set_permissions(c.PERMIT_PUT)
    assert talk.server_says((6, u32(1, big) + b"\x01")) == [AccessChanged(channel)]
    there.close()
    assert talk.server_says((8, u32(1, big) + u32(1, big))) == [ChannelClosed(channel)]


def test_get(talk):
    """Section 9.2; the request's sub-command is 0, as of every existing client, and is repeated in the answer."""
    channel, _ = talk.opened()
    operation, there = talk.initialised(channel, c.CMD_GET, 1)
    big = talk.big
    operation.get()
    assert talk.client_says((10, u32(1, big) + u32(1, big) + b"\0")) == [Execute(there, None)]
    there.reply_value(kind_value(1.5, 2, "hot").store)
    octets = OCTETS_OK + b"\x01\x01" + f64(1.5, big) + u32(2, big) + b"\x03hot"
    (reply,) = talk.server_says((10, u32(1, big) + b"\0" + octets))
    assert (reply.status, reply.value.changed, reply.value.store) == (OK, 1, [None, 1.5, None, 2, "hot"])
    # only what is valid, as bits of leaves
    operation.get()
    feed(talk.server, take(talk.client))
    there.reply_value(kind_value(0, 3, "").store, 0b100)
    (reply,) = talk.server_says((10, u32(1, big) + b"\0" + OCTETS_OK + b"\x01\x18" + u32(3, big) + b"\0"))
    assert (reply.value.changed, reply.value.store) == (1, [None, 1.5, None, 3, ""])
    # an error brings no value
    operation.get()
    feed(talk.server, take(talk.client))
    there.fail("no")
    assert talk.server_says((10, u32(1, big) + b"\0\x02\x02no\0")) == [
        OperationReply(operation, Status(2, "no"), None)
    ]


@pytest.mark.parametrize("command", [c.CMD_GET, c.CMD_PUT, c.CMD_PUT_GET], ids=["get", "put", "put-get"])
@pytest.mark.parametrize("whole_first", [True, False])
def test_a_read_that_is_repeated_is_answered_with_what_has_changed(talk, command, whole_first):
    """pvAccessCPP's servers do (section 9.2.2 sends the changed fields): what was read before still holds."""
    channel, _ = talk.opened()
    operation, _ = talk.initialised(channel, command, 2 if command == c.CMD_PUT_GET else 1)
    big = talk.big
    sub = b"\0" if command == c.CMD_GET else b"\x40"

    def read(bits: bytes, body: bytes):
        operation.get()
        take(talk.client)
        (reply,) = feed(
            talk.client, frame(command, u32(1, big) + sub + OCTETS_OK + bits + body, server=True, big=big)
        )
        return reply.value

    first = f64(1.5, big) + u32(2, big) + b"\x03hot"
    value = read(*((b"\x01\x01", first) if whole_first else (b"\x01\x1a", first)))
    assert (value.changed, value.store) == (1, [None, 1.5, None, 2, "hot"])
    value["alarm.message"] = "the caller's own"
    value = read(b"\0", b"")
    assert (value.changed, value.store) == (1, [None, 1.5, None, 2, "hot"])
    value = read(b"\x01\x02", f64(2.5, big))
    assert (value.changed, value.store) == (1, [None, 2.5, None, 2, "hot"])
    value = read(b"\x01\x04", u32(0, big) + b"\0")
    assert (value.changed, value.store) == (1, [None, 2.5, None, 0, ""])


def test_what_a_server_has_never_sent_is_not_said_to_be_there(talk):
    channel, _ = talk.opened()
    operation, _ = talk.initialised(channel, c.CMD_GET, 1)
    big = talk.big
    for bits, body, changed in (
        (b"\x01\x02", f64(1.5, big), 0b10),
        (b"\x01\x08", u32(2, big), 0b1010),
        (b"\0", b"", 0b1010),
    ):
        operation.get()
        (reply,) = feed(talk.client, frame(10, u32(1, big) + b"\0\xff" + bits + body, server=True, big=big))
        assert reply.value.changed == changed


def test_what_a_caller_changes_in_an_update_is_not_in_the_next_one(talk):
    channel, _ = talk.opened()
    talk.initialised(channel, c.CMD_MONITOR, 1)
    big = talk.big
    first = b"\x01\x01" + f64(1.0, big) + u32(2, big) + b"\x01a\0"
    second = b"\x01\x02" + f64(2.0, big) + b"\0"
    third = b"\x01\x08" + u32(3, big) + b"\0"
    stores = []
    for octets in (first, second, third):
        (event,) = feed(talk.client, frame(13, u32(1, big) + b"\0" + octets, server=True, big=big))
        stores.append(event.store.copy())
        event.store[:] = [None, -1.0, None, -1, "the caller's own"]
    assert stores == [[None, 1.0, None, 2, "a"], [None, 2.0, None, 2, "a"], [None, 2.0, None, 3, "a"]]


def test_structures_that_a_caller_changes_in_its_value_are_not_in_the_next_answer(talk):
    channel, _ = talk.opened()
    big = talk.big
    operation = channel.operation(c.CMD_GET, request())
    take(talk.client)
    kind = StructType((("list", ArrayType(StructType((("n", INT32),)))),))
    octets = b"\x80\0\x01\x04list\x88\x80\0\x01\x01n\x22"
    feed(talk.client, frame(10, u32(1, big) + b"\x08\xff" + octets, server=True, big=big))
    assert operation.type == kind
    whole = b"\x01\x01\x01\x01" + u32(7, big)
    for answer in (whole, b"\0"):
        operation.get()
        (reply,) = feed(talk.client, frame(10, u32(1, big) + b"\0\xff" + answer, server=True, big=big))
        assert reply.value["list"][0]["n"] == 7
        reply.value["list"][0]["n"] = 8


def test_the_answers_to_calls_are_whole_each(talk):
    """Section 9.6: each result brings its type; nothing of the one before is left in it."""
    channel, _ = talk.opened()
    operation, _ = talk.initialised(channel, c.CMD_RPC, 0)
    big = talk.big
    for octets, store in (
        (KIND_OCTETS + f64(3.0, big) + u32(1, big) + b"\x01x", [None, 3.0, None, 1, "x"]),
        (b"\x80\0\x01\x05value\x43" + f64(4.0, big), [None, 4.0]),
    ):
        operation.call(None)
        (reply,) = feed(talk.client, frame(20, u32(1, big) + b"\0\xff" + octets, server=True, big=big))
        assert reply.value.store == store


def test_get_as_the_specification_writes_it(talk):
    """Section 9.2.2: the sub-command 0x40 is accepted and repeated."""
    channel, _ = talk.opened()
    operation, there = talk.initialised(channel, c.CMD_GET, 1)
    big = talk.big
    asked = frame(c.CMD_GET, u32(1, big) + u32(1, big) + b"\x40", big=big)
    assert feed(talk.server, asked) == [Execute(there, None)]
    there.reply_value([None, 0.0, None, 0, ""], 0b10)
    operation.state = OperationState.EXECUTING
    operation.wants_value = True
    (reply,) = talk.server_says((10, u32(1, big) + b"\x40\xff\x01\x02" + f64(0, big)))
    assert reply.value["value"] == 0.0


def test_a_failed_init_ends_the_operation(talk):
    """Section 9.2.1."""
    channel, _ = talk.opened()
    big = talk.big
    operation = channel.operation(c.CMD_PUT, request())
    (wanted,) = feed(talk.server, take(talk.client))
    wanted.operation.fail("not today")
    octets = u32(1, big) + b"\x08\x02\x09not today\0"
    assert talk.server_says((11, octets)) == [OperationReady(operation, Status(2, "not today"))]
    assert operation.state is wanted.operation.state is OperationState.DEAD
    assert talk.server.pending_events() == [OperationClosed(wanted.operation)]


def test_put_and_the_get_of_a_put(talk):
    """Section 9.3; a value travels with sub-command 0, as every existing client sends it."""
    channel, _ = talk.opened()
    operation, there = talk.initialised(channel, c.CMD_PUT, 1)
    big = talk.big
    value = Value(KIND)
    value["value"] = -2.0
    operation.put(value)
    octets = u32(1, big) + u32(1, big) + b"\0\x01\x02" + f64(-2.0, big)
    (event,) = talk.client_says((11, octets))
    assert (event.operation, event.argument.changed, event.argument["value"]) == (there, 0b10, -2.0)
    there.reply_done()
    assert talk.server_says((11, u32(1, big) + b"\0\xff")) == [OperationReply(operation, OK, None)]
    operation.get()
    assert talk.client_says((11, u32(1, big) + u32(1, big) + b"\x40")) == [Execute(there, None)]
    there.reply_value(kind_value(-2.0, 0, "").store, 2)
    (reply,) = talk.server_says((11, u32(1, big) + b"\x40\xff\x01\x02" + f64(-2.0, big)))
    assert reply.value["value"] == -2.0


def test_put_get(talk):
    """Section 9.4: two types in the answer to INIT, both values in one exchange."""
    channel, _ = talk.opened()
    operation, there = talk.initialised(channel, c.CMD_PUT_GET, 2)
    big = talk.big
    operation.put(kind_value(1.0, 0, ""))
    value = b"\x01\x01" + f64(1.0, big) + u32(0, big) + b"\0"
    (event,) = talk.client_says((12, u32(1, big) + u32(1, big) + b"\0" + value))
    assert event.argument.changed == KIND.leaf_mask
    there.reply_value(event.argument.store)
    (reply,) = talk.server_says((12, u32(1, big) + b"\0\xff" + value))
    assert reply.value["value"] == 1.0
    operation.get()
    assert talk.client_says((12, u32(1, big) + u32(1, big) + b"\x40")) == [Execute(there, None)]
    there.reply_value(event.argument.store, 2)
    (reply,) = talk.server_says((12, u32(1, big) + b"\x40\xff\x01\x02" + f64(1.0, big)))
    assert reply.value["value"] == 1.0


def test_process(talk):
    """Section 9.7."""
    channel, _ = talk.opened()
    operation, there = talk.initialised(channel, c.CMD_PROCESS, 0)
    big = talk.big
    operation.process()
    assert talk.client_says((16, u32(1, big) + u32(1, big) + b"\0")) == [Execute(there, None)]
    there.reply_done()
    assert talk.server_says((16, u32(1, big) + b"\0\xff")) == [OperationReply(operation, OK, None)]


def test_rpc(talk):
    """Section 9.6: types travel with the argument and the result; either may be null."""
    channel, _ = talk.opened()
    operation, there = talk.initialised(channel, c.CMD_RPC, 0)
    big = talk.big
    operation.call(kind_value(3.0, 0, "x"))
    typed = KIND_OCTETS + f64(3.0, big) + u32(0, big) + b"\x01x"
    (event,) = talk.client_says((20, u32(1, big) + u32(1, big) + b"\0" + typed))
    assert event.argument["alarm.message"] == "x"
    there.reply_rpc(event.argument)
    (reply,) = talk.server_says((20, u32(1, big) + b"\0\xff" + typed))
    assert reply.value["value"] == 3.0
    operation.call(None)
    assert talk.client_says((20, u32(1, big) + u32(1, big) + b"\0\xff")) == [Execute(there, None)]
    there.reply_rpc(None)
    assert talk.server_says((20, u32(1, big) + b"\0\xff\xff")) == [OperationReply(operation, OK, None)]


def test_get_field(talk):
    """Section 9.8."""
    channel, _ = talk.opened()
    big = talk.big
    operation = channel.get_field("alarm")
    (event,) = talk.client_says((17, u32(1, big) + u32(1, big) + b"\x05alarm"))
    assert event == FieldRequested(event.operation, "alarm")
    event.operation.reply_field(INT32)
    assert talk.server_says((17, u32(1, big) + b"\xff\x22")) == [FieldReply(operation, OK, INT32)]
    operation = channel.get_field()
    (event, _) = talk.client_says((17, u32(1, big) + u32(2, big) + b"\0"))[::-1]
    event.operation.fail("no")
    assert talk.server_says((17, u32(2, big) + b"\x02\x02no\0")) == [
        FieldReply(operation, Status(2, "no"), None)
    ]


def test_monitor(talk):
    """Section 9.5.1 to 9.5.3 and 9.5.5."""
    channel, _ = talk.opened()
    operation, there = talk.initialised(channel, c.CMD_MONITOR, 1)
    big = talk.big
    operation.start()
    assert talk.client_says((13, u32(1, big) + u32(1, big) + b"\x44")) == [MonitorWindow(there)]
    assert there.may_send
    there.send_update(encode_update(KIND, KIND.leaf_mask, 0, kind_value(1.0, 2, "a").store, big=big))
    octets = b"\x01\x01" + f64(1.0, big) + u32(2, big) + b"\x01a\x00"
    first = [None, 1.0, None, 2, "a"]
    assert talk.server_says((13, u32(1, big) + b"\0" + octets)) == [
        MonitorUpdate(operation, KIND.leaf_mask, first, 0)
    ]
    there.send_update(encode_update(KIND, 0b10, 0b10, kind_value(2.0, 0, "").store, big=big))
    octets = b"\x01\x02" + f64(2.0, big) + b"\x01\x02"
    assert talk.server_says((13, u32(1, big) + b"\0" + octets)) == [
        MonitorUpdate(operation, 0b10, [None, 2.0, None, 2, "a"], 0b10)
    ]
    operation.stop()
    assert talk.client_says((13, u32(1, big) + u32(1, big) + b"\x04")) == [MonitorWindow(there)]
    assert not there.may_send
    operation.close()
    assert talk.client_says((15, u32(1, big) + u32(1, big))) == [OperationClosed(there)]


def test_pipeline(talk):
    """Section 9.5.4: the window in INIT, acknowledgements, no update beyond them."""
    channel, _ = talk.opened()
    big = talk.big
    operation = channel.operation(c.CMD_MONITOR, request("record[pipeline=true,queueSize=2]"), window=2)
    options = b"\x80\x00\x01\x08_options\x80\x00\x02\x08pipeline\x60\x09queueSize\x60"
    asked = b"\x80\x00\x02\x05field\x80\x00\x00\x06record" + options + b"\x04true\x012" + u32(2, big)
    (event,) = talk.client_says((13, u32(1, big) + u32(1, big) + b"\x88" + asked))
    there = event.operation
    assert (there.pipeline, there.window, there.queue_size) == (True, 2, 2)
    there.ready(KIND)
    # 0x80 belongs to the request alone (9.2.1, 9.5.1): Phoebus waits for 0x08
    answer = u32(1, big) + b"\x08" + OCTETS_OK + KIND_OCTETS
    assert talk.server_says((13, answer)) == [OperationReady(operation, OK)]
    operation.start()
    feed(talk.server, take(talk.client))
    update = encode_update(KIND, 2, 0, kind_value(1.0, 0, "").store, big=big)
    there.send_update(update)
    there.send_update(update)
    assert not there.may_send
    assert len(feed(talk.client, take(talk.server))) == 2
    operation.acknowledge(3)
    assert talk.client_says((13, u32(1, big) + u32(1, big) + b"\x80" + u32(3, big))) == [MonitorWindow(there)]
    assert there.window == 3


def test_a_pipelined_init_is_refused_without_the_bit_of_its_window(talk):
    """Sections 9.2.1 and 9.5.1: whatever goes wrong, the answer to INIT is 0x08."""
    channel, there = talk.opened()
    big = talk.big
    pipelined = request("record[pipeline=true,queueSize=2]")
    channel.operation(c.CMD_MONITOR, pipelined, window=2)
    (event,) = feed(talk.server, take(talk.client))
    event.operation.fail("no")
    refused = talk.server_says((13, u32(1, big) + b"\x08\x02\x02no\0"))
    assert [type(event) for event in refused] == [OperationReady]
    channel.operation(c.CMD_MONITOR, request("record[pipeline=true,queueSize=0]"), window=2)
    feed(talk.server, take(talk.client))
    text = b"pipeline needs a queueSize from 1 to 65536, not '0'"
    talk.server_says((13, u32(2, big) + b"\x08\x02" + bytes((len(text),)) + text + b"\0"))
    channel.operation(c.CMD_MONITOR, pipelined, window=2)
    there.close()
    feed(talk.server, take(talk.client))
    text = b"there is no such channel any more"
    gone = (13, u32(3, big) + b"\x08\x02" + bytes((len(text),)) + text + b"\0")
    talk.server_says((8, u32(1, big) + u32(1, big)), gone)


@pytest.mark.parametrize("status", [OK, Status(2, "gone")])
def test_the_server_ends_a_subscription(talk, status):
    """Section 9.5.5, from the server: sub-command 0x10 and a Status."""
    channel, _ = talk.opened()
    operation, there = talk.initialised(channel, c.CMD_MONITOR, 1)
    there.finish(status)
    octets = b"\xff" if status.ok else b"\x02\x04gone\0"
    assert talk.server_says((13, u32(1, talk.big) + b"\x10" + octets)) == [MonitorFinished(operation, status)]
    assert operation.state is there.state is OperationState.DEAD


def test_cancel_and_destroy(talk):
    """Section 9.9."""
    channel, _ = talk.opened()
    operation, there = talk.initialised(channel, c.CMD_GET, 1)
    big = talk.big
    operation.get()
    feed(talk.server, take(talk.client))
    operation.cancel()
    (event,) = talk.client_says((21, u32(1, big) + u32(1, big)))
    successor = talk.server.operations[operation.ioid]
    assert event == OperationCancelled(there, successor)
    operation.close()
    assert talk.client_says((15, u32(1, big) + u32(1, big))) == [OperationClosed(successor)]


def test_echo_and_message(talk):
    """Sections 12.1 and 12.4."""
    talk.opened()
    big = talk.big
    talk.client.echo(b"abc")
    assert talk.client_says((2, b"abc")) == []
    assert talk.server_says((2, b"abc")) == []
    talk.server.send_message(7, c.MESSAGE_ERROR, "oh")
    assert talk.server_says((18, u32(7, big) + b"\x02\x02oh")) == [RemoteMessage(7, 2, "oh")]
    talk.client.send_message(7, c.MESSAGE_INFO, "ah")
    assert talk.client_says((18, u32(7, big) + b"\0\x02ah")) == [RemoteMessage(7, 0, "ah")]


@pytest.mark.parametrize("end", [ServerConnection, ClientConnection])
@pytest.mark.parametrize("big", [False, True])
def test_a_marker_is_acknowledged(end, big):
    """Section 12.2: AckMarker repeats the position; AckMarker itself asks for nothing."""
    connection = end()
    take(connection)
    from_server = 0 if end is ServerConnection else 0x40
    marker = bytes((0xCA, 2, 1 | from_server | (0x80 if big else 0), 0)) + u32(0x01020304, big)
    assert feed(connection, marker) == []
    ours = 0x40 if end is ServerConnection else 0
    assert take(connection) == bytes((0xCA, 2, 1 | ours, 1)) + u32(0x01020304)
    feed(connection, bytes((0xCA, 2, 1 | from_server, 1)) + u32(5))
    assert take(connection) == b""


def test_the_byte_order_of_each_message_is_its_own(talk):
    """Section 4.2: a server reads either order whatever was agreed; section 12.3: only a server sets the order."""
    talk.opened()
    other = not talk.big
    (event,) = feed(
        talk.server, frame(c.CMD_CREATE_CHANNEL, u16(1, other) + u32(9, other) + b"\x01x", big=other)
    )
    assert (event.channel.cid, event.channel.name) == (9, "x")
    feed(talk.server, bytes((0xCA, 2, 0x81 if other else 0x01, 2, 0, 0, 0, 0)))
    event.channel.reject("")
    assert take(talk.server) == frame(
        7, u32(9, talk.big) + b"\xff\xff\xff\xff\x02\0\0", server=True, big=talk.big
    )


def test_a_warning_comes_with_its_value(talk):
    """Section 15.2: WARN is success."""
    channel, _ = talk.opened()
    operation, _ = talk.initialised(channel, c.CMD_GET, 1)
    operation.get()
    body = u32(1, talk.big) + b"\0\x01\x03old\0\x01\x02" + f64(1.0, talk.big)
    (reply,) = feed(talk.client, frame(10, body, server=True, big=talk.big))
    assert reply.status == Status(1, "old")
    assert reply.value["value"] == 1.0


def test_segments(talk):
    """Section 11.1: first 0x10, middle 0x30, last 0x20; the order of octets is that of the whole."""
    talk.opened()
    talk.client.outbox.segment_size = 4
    talk.client.echo(b"abcdefghij")
    sent = take(talk.client)
    expected = b"".join(
        frame(2, part, big=talk.big, flags=flags)
        for flags, part in ((0x10, b"abcd"), (0x30, b"efgh"), (0x20, b"ij"))
    )
    assert sent == expected
    feed(talk.server, sent)
    assert take(talk.server) == frame(2, b"abcdefghij", server=True, big=talk.big)
