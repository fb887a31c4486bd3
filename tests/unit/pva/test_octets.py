"""Octets that are passed on as they came: measured at the client's end, sent at the server's end, squashed in between."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import DecodeError
from appliance.pva import commands as c
from appliance.pva.events import (
    MonitorFinished,
    MonitorOctets,
    MonitorUpdate,
    OperationReply,
    ReplyOctets,
    UpdatesTogether,
)
from appliance.pva.octets import Batch, Octets, answer_in_order, decoded, squash, whole
from appliance.pva.selection import encode_update
from appliance.pva.status import OK, Status
from appliance.pva.typed import encode_typed
from appliance.pvdata import ANY, FLOAT64, INT32, STRING, StructType, Value
from appliance.pvdata.codec import codec
from appliance.server.operation import Update
from tests.helpers.wire import (
    ARRAY,
    SCALAR,
    Wire,
    bytewise,
    cut,
    feed,
    frame,
    request,
    take,
    u32,
)
from tests.helpers.wire import (
    whole as at_once,
)

KIND = StructType((("a", FLOAT64), ("b", INT32), ("c", STRING)))
LEAVES = KIND.leaf_mask
WAYS = [(at_once, False, 0), (bytewise, False, 0), (cut([7]), True, 0), (at_once, True, 64)]


def raw_monitor(wire: Wire, name: str = "d", *, window: int = 0):
    channel = wire.open(name)
    operation = channel.operation(c.CMD_MONITOR, request(), window=window, raw=True)
    wire.pump()
    return operation


@pytest.mark.parametrize(("chunks", "big", "segment_size"), WAYS)
def test_an_update_is_reported_as_the_octets_that_came(chunks, big, segment_size):
    wire = Wire(chunks, big=big, segment_size=segment_size).handshake()
    operation = raw_monitor(wire)
    operation.start()
    (event,) = wire.pump()
    value = Value(SCALAR)
    body = encode_update(SCALAR, SCALAR.leaf_mask, 0, value.store, big=big)
    assert event == MonitorOctets(operation, big, 1, 0, [body])
    wire.responder.values["d"]["value"] = 2.5
    wire.responder.post(wire.responder.monitors[0], 2)
    (event,) = wire.pump()
    assert event == MonitorOctets(
        operation, big, 2, 0, [encode_update(SCALAR, 2, 0, wire.responder.values["d"].store, big=big)]
    )
    assert operation.last_store is None, "nothing is kept"


def test_updates_of_one_read_are_one_event_while_they_are_alike():
    wire = Wire().handshake()
    one, two = raw_monitor(wire), raw_monitor(wire, "a")
    for operation in (one, two):
        operation.start()
    take(wire.client)

    def update(operation, body):
        return frame(c.CMD_MONITOR, u32(operation.ioid) + b"\0" + body, server=True)

    number = b"\x01\x02" + bytes(8)
    kinds = [number + b"\0", b"\x01\x0c" + bytes(5) + b"\0", number + b"\x01\x02"]
    first, other, overrun = kinds
    array = b"\x01\x02\x01" + bytes(8) + b"\0"
    data = b"".join(
        update(operation, body)
        for operation, body in (
            (one, first),
            (two, array),
            (one, first),
            (two, array),
            (one, other),
            (one, first),
            (one, overrun),
            (one, first),
        )
    )
    assert feed(wire.client, data) == [
        MonitorOctets(one, False, 2, 0, [first, first]),
        MonitorOctets(two, False, 2, 0, [array, array]),
        MonitorOctets(one, False, 12, 0, [other]),
        MonitorOctets(one, False, 2, 0, [first]),
        MonitorOctets(one, False, 2, 2, [overrun]),
        MonitorOctets(one, False, 2, 0, [first]),
    ]
    assert feed(wire.client, update(one, first)) == [MonitorOctets(one, False, 2, 0, [first])], "a new read"


def test_updates_of_many_operations_are_one_event_if_they_are_gathered():
    wire = Wire().handshake()
    one, two, other = (raw_monitor(wire) for _ in range(3))
    for operation in (one, two, other):
        operation.gathered = operation is not other
        operation.start()
    take(wire.client)

    def update(operation, body):
        return frame(c.CMD_MONITOR, u32(operation.ioid) + b"\0" + body, server=True)

    first, second = (b"\x01\x02" + bytes(7) + end + b"\0" for end in (b"\1", b"\2"))
    severity = b"\x01\x0c" + bytes(5) + b"\0"
    # What an update looks like is learnt from one that comes alone.
    assert feed(wire.client, update(one, first) + update(two, first)) == [
        MonitorOctets(one, False, 2, 0, [first]),
        MonitorOctets(two, False, 2, 0, [first]),
    ]
    pairs = [(one, second), (two, first), (one, first), (other, first), (one, second), (two, severity)]
    pairs += [(two, severity), (one, first)]
    assert feed(wire.client, b"".join(update(*pair) for pair in pairs)) == [
        UpdatesTogether([(one, second), (two, first), (one, first)]),
        MonitorOctets(other, False, 2, 0, [first]),
        UpdatesTogether([(one, second)]),
        MonitorOctets(two, False, 12, 0, [severity, severity]),
        UpdatesTogether([(one, first)]),
    ], "those of one PV never change places"


def test_the_byte_order_of_each_message_is_its_own():
    wire = Wire().handshake()
    operation = raw_monitor(wire)
    operation.start()
    take(wire.client)
    body = b"\x01\x02" + bytes(7) + b"\x01\0"
    data = frame(c.CMD_MONITOR, u32(operation.ioid) + b"\0" + body, server=True)
    swapped = frame(c.CMD_MONITOR, u32(operation.ioid, True) + b"\0" + body, server=True, big=True)
    assert feed(wire.client, data + swapped) == [
        MonitorOctets(operation, False, 2, 0, [body]),
        MonitorOctets(operation, True, 2, 0, [body]),
    ]


@pytest.mark.parametrize(
    ("sent", "passed", "overrun"),
    [
        (b"\x01\x02" + bytes(8), b"\x01\x02" + bytes(8) + b"\0", 0),
        (b"\x01\x02" + bytes(8) + b"\0junk", b"\x01\x02" + bytes(8) + b"\0", 0),
        (b"\x01\x02" + bytes(8) + b"\x02\x06\xff", b"\x01\x02" + bytes(8) + b"\x01\x1a", 0x1A),
        (b"\x01\x02" + bytes(8) + b"\x01\x04", b"\x01\x02" + bytes(8) + b"\x01\x18", 0x18),
    ],
    ids=["no overrun at all", "octets behind it", "bits that the type has not", "a structure's bit"],
)
def test_what_every_client_can_read_is_passed(sent, passed, overrun):
    wire = Wire().handshake()
    operation = raw_monitor(wire)
    operation.start()
    take(wire.client)
    (event,) = feed(wire.client, frame(c.CMD_MONITOR, u32(operation.ioid) + b"\0" + sent, server=True))
    assert event == MonitorOctets(operation, False, 2, overrun, [passed])


@pytest.mark.parametrize(
    "body",
    [b"", b"\x01\x02" + bytes(7), b"\x01\x20", b"\x01\x10\x05ab", b"\x01\x02" + bytes(8) + b"\x03"],
    ids=["nothing", "cut off", "unknown field", "short string", "cut overrun"],
)
def test_a_malformed_update_ends_the_connection_that_brought_it(body):
    wire = Wire().handshake()
    operation = raw_monitor(wire)
    operation.start()
    with pytest.raises(DecodeError):
        feed(wire.client, frame(c.CMD_MONITOR, u32(operation.ioid) + b"\0" + body, server=True))
    assert wire.client.state.value == "closed"


def test_the_last_value_comes_before_the_end():
    wire = Wire().handshake()
    operation = raw_monitor(wire)
    operation.start()
    take(wire.client)
    body = b"\x01\x02" + bytes(8) + b"\0"
    data = frame(c.CMD_MONITOR, u32(operation.ioid) + b"\x10\xff" + body, server=True)
    assert feed(wire.client, data) == [
        MonitorOctets(operation, False, 2, 0, [body]),
        MonitorFinished(operation, OK),
    ]


def test_a_type_that_holds_an_any_comes_decoded():
    kind = StructType((("value", ANY),))
    wire = Wire().handshake()
    wire.responder.values["v"] = Value(kind)
    operation = raw_monitor(wire, "v")
    assert operation.raw is False
    operation.start()
    (event,) = wire.pump()
    assert type(event) is MonitorUpdate
    got = wire.open("v").operation(c.CMD_GET, request(), raw=True)
    wire.pump()
    got.get()
    (event,) = wire.pump()
    assert type(event) is OperationReply


@pytest.mark.parametrize("command", [c.CMD_GET, c.CMD_PUT, c.CMD_PUT_GET])
@pytest.mark.parametrize(("chunks", "big", "segment_size"), WAYS)
def test_an_answer_is_reported_as_octets(command, chunks, big, segment_size):
    wire = Wire(chunks, big=big, segment_size=segment_size).handshake()
    channel = wire.open("a")
    operation = channel.operation(command, request(), raw=True)
    wire.pump()
    for _ in range(2):
        operation.get()
        (event,) = wire.pump()
        tail = codec(ARRAY, big).encode_marked(Value(ARRAY).store, 1)
        assert event == ReplyOctets(operation, OK, big, 1, tail)


@pytest.mark.parametrize("kind", [KIND, StructType((("a", FLOAT64), ("b", INT32)))], ids=["text", "numbers"])
def test_the_same_answer_again_is_the_same_event_and_another_one_is_not(kind):
    wire = Wire().handshake()
    wire.responder.values["k"] = value = Value(kind)
    operation = wire.open("k").operation(c.CMD_GET, request(), raw=True)
    wire.pump()

    def read():
        operation.get()
        (event,) = wire.pump()
        assert event == ReplyOctets(operation, OK, False, 1, codec(kind, False).encode_marked(value.store, 1))
        return event

    first = read()
    assert read() is first
    value["a"] = 2.5
    second = read()
    assert second is not first
    assert read() is second
    if kind is KIND:
        value["c"] = "longer"
        assert read() is not second
    operation.close()
    assert operation.quick_event is None  # it refers to the operation: a cycle would keep both


def test_an_answer_without_a_value_or_with_an_error_has_no_octets():
    wire = Wire().handshake()
    operation = wire.open("d").operation(c.CMD_PUT, request(), raw=True)
    wire.pump()
    value = Value(SCALAR)
    for number, status in ((1.0, OK), (-1.0, Status.error("Put not permitted"))):
        value["value"] = number
        operation.put(value)
        assert wire.pump() == [OperationReply(operation, status, None)]


def test_the_answer_of_a_call_has_its_type_in_full():
    wire = Wire().handshake()
    operation = wire.open("d").operation(c.CMD_RPC, request(), raw=True)
    wire.pump()
    described = codec(KIND, False).description
    value = codec(KIND, False).encode(Value(KIND).store)
    answers = [b"\xfd\x07\x00" + described + value, b"\xfe\x07\x00" + value]
    for answer in answers:  # the second one refers to the first one's type
        operation.call(None)
        take(wire.client)
        data = frame(c.CMD_RPC, u32(operation.ioid) + b"\0\xff" + answer, server=True)
        assert feed(wire.client, data) == [ReplyOctets(operation, OK, False, 1, described + value)]
    for answer in (b"\xff", codec(StructType((("v", ANY),)), False).description + b"\xff", b"\x22" + u32(5)):
        operation.call(None)
        take(wire.client)
        (event,) = feed(wire.client, frame(c.CMD_RPC, u32(operation.ioid) + b"\0\xff" + answer, server=True))
        assert type(event) is OperationReply


# -- at the server's end -------------------------------------------------------------------------------


def subscribed(wire: Wire, *, window: int = 0, text: str = ""):
    """A subscription of the wire's client, and the operation at the server."""
    channel = wire.open("d")
    operation = channel.operation(c.CMD_MONITOR, request(text), window=window)
    wire.pump()
    operation.start()
    wire.pump()
    return operation, wire.responder.monitors[-1]


BODY = [b"\x01\x02" + bytes(7) + bytes((n,)) + b"\0" for n in range(5)]


@pytest.mark.parametrize("big", [False, True])
def test_many_updates_leave_as_they_are(big):
    wire = Wire(big=big).handshake()
    operation, served = subscribed(wire)
    for bodies in (BODY, [BODY[0]], [BODY[0], b"\x01\x10\x03abc\0", BODY[1]], BODY[:2]):
        assert served.send_octets(bodies, 1 << 20) == len(bodies)
        assert served.outbox.size == sum(13 + len(body) for body in bodies)
        assert take(wire.server) == b"".join(
            frame(c.CMD_MONITOR, u32(operation.ioid, big) + b"\0" + body, server=True, big=big)
            for body in bodies
        )


@pytest.mark.parametrize("segment_size", [0, 4000])
def test_a_large_update_is_not_copied_into_its_message(segment_size):
    wire = Wire(big=True, segment_size=segment_size).handshake()
    _, served = subscribed(wire)
    body = b"\x01\x10\xfe" + u32(6000, True) + bytes(6000) + b"\0"
    assert served.send_octets([body], 1 << 20) == 1
    if not segment_size:
        assert served.outbox.chunks[-1] is body
    (event,) = feed(wire.client, take(wire.server))
    assert event.store[SCALAR.offsets["alarm.message"]] == "\0" * 6000


@pytest.mark.parametrize(("chunks", "big", "segment_size"), WAYS)
def test_an_answer_that_is_given_again_is_the_message_of_the_request(chunks, big, segment_size):
    wire = Wire(chunks, big=big, segment_size=segment_size).handshake()
    operation = wire.open("a").operation(c.CMD_GET, request(), raw=True)
    wire.pump()
    waiting = []
    wire.responder.execute = lambda served, argument: waiting.append(served)
    tails = [b"\x01" + bytes(100), b"\x00"]
    for sub in (0, 0, c.SUB_GET, 0, c.SUB_DESTROY):
        for tail in tails * 2 if sub != c.SUB_DESTROY else tails[:1]:
            wire.responder(
                feed(
                    wire.server,
                    frame(c.CMD_GET, u32(operation.channel.sid) + u32(operation.ioid) + bytes((sub,))),
                    chunks,
                )
            )
            waiting.pop().reply_again(tail)
            sent = take(wire.server)
            body = u32(operation.ioid, big) + bytes((sub,)) + b"\xff" + tail
            if not segment_size or len(body) <= segment_size:
                assert sent == frame(c.CMD_GET, body, server=True, big=big)
            else:
                assert len(sent) > len(body) + 8
    assert wire.server.operations == {}, "the last request ends the operation"


def test_a_pipeline_and_a_full_outbox_stop_it():
    wire = Wire().handshake()
    operation, served = subscribed(wire, window=4, text="record[pipeline=true,queueSize=4]")
    assert served.window == 3, "the first value took one"
    assert served.send_octets(BODY, 1 << 20) == 3
    assert served.send_octets(BODY, 1 << 20) == 0
    operation.acknowledge(9)
    wire.pump()
    assert served.send_octets(BODY, -1) == 0
    assert served.send_octets([BODY[0], b"\x01\x10\x03abc\0"], 1 << 20) == 2
    operation.stop()
    wire.pump()
    assert served.send_octets(BODY, 1 << 20) == 0


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("status", [OK, Status(1, "careful")])
def test_an_answer_leaves_as_it_is(big, status):
    wire = Wire(big=big).handshake()
    operation = wire.open("d").operation(c.CMD_GET, request())
    wire.pump()
    value = Value(SCALAR)
    value["value"] = 2.5
    tail = codec(SCALAR, big).encode_marked(value.store, 2)
    wire.responder.execute = lambda served, argument: served.reply_octets(status, tail)
    for _ in range(2):
        operation.get()
        (event,) = wire.pump()
        assert (event.status, event.value["value"]) == (status, 2.5)


@pytest.mark.parametrize("big", [False, True])
def test_an_answer_in_the_other_byte_order_is_written_anew(big):
    """pvAccessCPP does not look at the byte order of single messages."""
    value = Value(KIND, {"a": 1.5, "b": 2, "c": "x"})
    for bits in (1, 2, 12):
        tails = [codec(KIND, order).encode_marked(value.store, bits) for order in (big, not big)]
        assert answer_in_order(KIND, tails[0], big=not big) == tails[1]
    typed = [b"".join(encode_typed(value, big=order)) for order in (big, not big)]
    assert answer_in_order(None, typed[0], big=not big) == typed[1]
    assert answer_in_order(None, b"", big=big) == b""


# -- squashing -----------------------------------------------------------------------------------------

stores = st.tuples(st.none(), st.floats(-9, 9), st.integers(-9, 9), st.text(max_size=3)).map(list)
masks = st.integers(0, 7).map(lambda bits: bits << 1)


@settings(max_examples=150, deadline=None)
@given(stores, st.lists(st.tuples(stores, masks, masks, st.booleans()), min_size=1, max_size=4))
def test_squashed_octets_say_what_squashed_updates_say(first, changes):
    """The same values, fields and lost fields as `server.Update.squash`, whatever the byte orders are."""
    present = first
    update = Update(KIND, present, LEAVES)
    octets = Octets(update.encoded(LEAVES, False), False, LEAVES)
    for store, bits, overrun, big in changes:
        present = [
            new if bits >> n & 1 else old for n, (new, old) in enumerate(zip(store, present, strict=True))
        ]
        later = Update(KIND, present, bits, overrun)
        came = Octets(later.encoded(LEAVES, big), big, bits, overrun)
        update, octets = update.squash(later), squash(KIND, octets, came)
        assert (octets.bits, octets.overrun) == (update.bits, update.overrun)
        assert octets.body == update.encoded(LEAVES, octets.big)
    swapped = octets.in_order(KIND, big=True)
    assert swapped.body == update.encoded(LEAVES, True)
    assert octets.in_order(KIND, big=True) is swapped, "all who need it share it"


def test_a_squash_of_the_same_fields_decodes_nothing(monkeypatch):
    monkeypatch.setattr("appliance.pva.octets.codec", None)
    last = Octets(b"\x01\x02" + bytes(8) + b"\0", False, 2)
    later = Octets(b"\x01\x06" + bytes(8) + b"abcd\0", False, 6)
    squashed = squash(KIND, last, later)
    assert (squashed.body, squashed.bits, squashed.overrun) == (
        b"\x01\x06" + bytes(8) + b"abcd\x01\x02",
        6,
        2,
    )
    assert squash(KIND, last, later) is squashed, "the next slow reader gets the same"
    assert squash(KIND, squashed, later).body == b"\x01\x06" + bytes(8) + b"abcd\x01\x06"


def test_a_whole_value_and_what_is_read_of_it():
    made = whole(KIND, 1, [None, 1.5, 2, "x"], overrun=4)
    assert (made.bits, made.overrun) == (LEAVES, 4)
    store = Value(KIND).store
    decoded(KIND, made, store)
    assert store == [None, 1.5, 2, "x"]


def test_a_batch_makes_its_parts_once():
    batch = Batch([b"ab", b"cde"], True, 6)
    assert batch.size == 5
    assert [one.body for one in batch.octets] == batch.bodies
    assert batch.octets[0] is batch.octets[0]
    assert (batch.octets[1].bits, batch.octets[1].big) == (6, True)
