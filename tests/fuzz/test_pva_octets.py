"""Whatever octets come: nothing but RemoteProtocolError escapes, the connection is closed afterwards, memory is bounded."""

from __future__ import annotations

import contextlib
import gc
import struct
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.errors import ApplianceError, ChannelClosedError, DecodeError, RemoteProtocolError
from appliance.pva import commands as c
from appliance.pva.client_connection import ClientConnection
from appliance.pva.events import AuthenticationOffered, ChannelCreated, MonitorUpdate, OperationReady
from appliance.pva.limits import Limits
from appliance.pva.search import Beacon, SearchRequest, decode_datagram, pack_message
from appliance.pva.server_connection import ServerConnection
from appliance.pva.states import ConnectionState
from tests.helpers.recording import load, use_server
from tests.helpers.wire import (
    GUID,
    Responder,
    Wire,
    bytewise,
    frame,
    ready_client,
    ready_server,
    request,
    take,
    u16,
    u32,
    whole,
)
from tests.property.test_pva_session import session

SMALL = Limits(
    max_message=1 << 20,
    max_message_unvalidated=1 << 14,
    max_name=64,
    max_channels=20,
    max_operations=50,
    max_request_octets=1 << 16,
    max_types=500,
    max_queue_size=16,
    max_search_names=100,
)
CHUNKS = [whole, bytewise]


def recordings() -> list[tuple[bytes, bytes]]:
    out = []
    for big in (False, True):
        for segment_size in (0, 64):
            wire = Wire(big=big, segment_size=segment_size)
            session(wire)
            out.append((bytes(wire.to_server), bytes(wire.to_client)))
    return out


def spoken(name: str, side: str) -> bytes:
    return b"".join(octets for who, octets in load(name) if who == side)


PEERS = ("pva_client_pvxs.hex", "pva_client_cpp.hex", "pva_server_pvxs.hex", "pva_server_cpp.hex")
RECORDED = recordings() + [(spoken(name, "C"), spoken(name, "S")) for name in PEERS]


def drive_server(data: bytes, chunks) -> ServerConnection:
    """A server with a layer above that answers everything."""
    connection = ServerConnection(limits=SMALL)
    responder = Responder(connection)
    try:
        for piece in chunks(data):
            responder(connection.receive_data(piece))
            while connection.stalled:
                take(connection)
                responder(connection.receive_data(b""))
            take(connection)
    except RemoteProtocolError:
        assert connection.state is ConnectionState.CLOSED
        assert connection.receive_data(data[:64]) == []
    responder(connection.receive_eof())
    assert connection.state is ConnectionState.CLOSED
    assert not connection.channels
    assert not connection.operations
    assert not connection.pending
    assert connection.request_octets == 0
    return connection


class Caller:
    """A client with a layer above that uses whatever it is given."""

    def __init__(self) -> None:
        self.connection = ClientConnection(limits=SMALL)
        self.requests = [request(), request("field(value)record[pipeline=true,queueSize=4]")]

    def __call__(self, events) -> None:
        for event in events:
            with contextlib.suppress(ChannelClosedError):
                self.act(event)

    def act(self, event) -> None:
        match event:
            case AuthenticationOffered():
                self.connection.authenticate("anonymous")
            case ChannelCreated(channel, status) if status.ok:
                for command in (c.CMD_GET, c.CMD_PUT, c.CMD_MONITOR, c.CMD_RPC, c.CMD_PUT_GET):
                    channel.operation(command, self.requests[0])
                channel.get_field()
            case OperationReady(operation, status) if status.ok:
                if operation.command == c.CMD_MONITOR:
                    operation.start()
                elif operation.command == c.CMD_RPC:
                    operation.call(None)
                else:
                    operation.get()
            case MonitorUpdate(operation):
                operation.acknowledge(1)

    def drive(self, data: bytes, chunks) -> None:
        connection = self.connection
        opened = False
        try:
            for piece in chunks(data):
                self(connection.receive_data(piece))
                while connection.stalled:
                    self(connection.receive_data(b""))
                if connection.state is ConnectionState.READY and not opened:
                    opened = True
                    for name in ("d", "a", "no such"):
                        connection.create_channel(name)
                take(connection)
        except RemoteProtocolError:
            assert connection.state is ConnectionState.CLOSED
            assert connection.receive_data(data[:64]) == []
        connection.receive_eof()
        assert not connection.channels
        assert not connection.operations


def drive_client(data: bytes, chunks) -> None:
    Caller().drive(data, chunks)


def drive_datagram(data: bytes) -> None:
    try:
        for message in decode_datagram(data, limits=SMALL):
            repr(message)
    except DecodeError:
        pass


class Recording(bytes):
    def __repr__(self) -> str:
        return (
            f"<{len(self)} octets>"  # hypothesis keeps the example; ten thousand octets are nothing to read
        )


@st.composite
def mutated(draw, side: int):
    """A recording with pieces overwritten, removed, repeated, or with sizes turned into nonsense."""
    data = bytearray(draw(st.sampled_from(RECORDED))[side])
    for _ in range(draw(st.integers(1, 6))):
        pos = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "insert", "repeat", "size"]))
        if kind == "flip":
            data[pos] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            data[pos] = draw(
                st.sampled_from([0, 1, 8, 0x10, 0x7F, 0x80, 0x81, 0x82, 0x88, 0x8A, 0xFD, 0xFE, 0xFF])
            )
        elif kind == "cut":
            del data[pos : pos + draw(st.integers(1, 40))]
        elif kind == "insert":
            data[pos:pos] = draw(st.binary(max_size=40))
        elif kind == "repeat":
            data[pos:pos] = data[pos : pos + draw(st.integers(1, 200))]
        else:
            starts = [i for i in range(len(data) - 8) if data[i] == 0xCA and data[i + 1] == 2]
            if starts:
                at = draw(st.sampled_from(starts)) + 4
                data[at : at + 4] = struct.pack("<I", draw(st.integers(0, 100) | st.integers(0, 2**32 - 1)))
        if not data:
            data = bytearray(b"\xca")
    return Recording(data)


messages = st.builds(
    lambda command, body, flags, big: frame(command, body, flags=flags, big=big),
    st.integers(0, 23),
    st.binary(max_size=60),
    st.sampled_from([0, 0, 0, 0, 0x10, 0x20, 0x30, 1]),
    st.booleans(),
)
HELLO = frame(1, bytes(8) + b"\x09anonymous\xff") + frame(7, u16(1) + u32(1) + b"\x01d")


def aimed(server: bool):
    """Well-framed messages to channel 1 and small ioids: the deeper code."""
    head = st.builds(
        lambda sid, ioid, sub, rest: (u32(sid) if not server else b"") + u32(ioid) + bytes((sub,)) + rest,
        st.sampled_from([1, 1, 1, 2]),
        st.integers(0, 7),
        st.sampled_from([0, 4, 8, 0x10, 0x18, 0x40, 0x44, 0x50, 0x80, 0x84, 0x88, 0xC4]),
        st.one_of(
            st.just(b""),
            st.just(b"\x80\0\x01\x05field\x80\0\0"),
            st.just(b"\xff\x80\0\x01\x05value\x43"),
            st.just(b"\xff\x01\x01" + bytes(8)),
            st.just(b"\xff"),
            st.binary(max_size=24),
        ),
    )
    return st.builds(
        lambda command, body: frame(command, body, server=server),
        st.sampled_from([10, 11, 12, 13, 15, 16, 17, 20, 21, 8, 6, 7]),
        head,
    )


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=400) | st.lists(messages, max_size=12).map(b"".join))
@example(data=b"\xca\x02\x00\x02\xff\xff\xff\xff")
def test_random_octets(data):
    for chunks in CHUNKS:
        drive_server(data, chunks)
        drive_server(HELLO + data, chunks)
        drive_client(bytes(byte | 0x40 if i == 2 else byte for i, byte in enumerate(data)), chunks)
    drive_datagram(data)


@settings(max_examples=120, deadline=None)
@given(data=st.lists(aimed(server=False), max_size=30).map(b"".join))
def test_random_requests_to_a_live_channel(data):
    for chunks in CHUNKS:
        drive_server(HELLO + data, chunks)


CREATED = frame(7, u32(1) + u32(1) + b"\xff", server=True)


@settings(max_examples=120, deadline=None)
@given(data=st.lists(aimed(server=True), max_size=30).map(b"".join))
def test_random_answers_to_live_operations(data):
    for chunks in CHUNKS:
        caller = Caller()
        caller(caller.connection.receive_data(frame(1, bytes(7), server=True)))
        connection = caller.connection
        connection.receive_data(frame(9, b"\xff", server=True))
        connection.create_channel("d")
        caller(connection.receive_data(CREATED))
        caller.drive(data, chunks)


@settings(max_examples=120, deadline=None)
@given(data=mutated(0))
def test_mutated_recordings_at_a_server(data):
    for chunks in CHUNKS:
        drive_server(data, chunks)


@settings(max_examples=120, deadline=None)
@given(data=mutated(1))
def test_mutated_recordings_at_a_client(data):
    for chunks in CHUNKS:
        drive_client(data, chunks)


DATAGRAM = (
    pack_message(22, bytes(16), from_server=False)
    + pack_message(3, SearchRequest(1, ((1, "a"), (2, "b")), ("tls", "tcp")).encode(), from_server=False)
    + pack_message(0, Beacon(GUID, 1, 2, None, 5075, "tcp").encode(), from_server=True)
)


class EndOfTalk(Exception):  # noqa: N818
    pass


class Distorted:
    """Replays a server's answers with a few octets changed to a client that goes on as if nothing had happened."""

    def __init__(self, connection: ClientConnection, answers: list[bytes], chunks) -> None:
        self.connection = connection
        self.answers = answers
        self.chunks = chunks

    def __call__(self, kind: type, count: int = 1) -> list:
        take(self.connection)
        events: list = []
        while sum(type(event) is kind for event in events) < count:
            if not self.answers:
                raise EndOfTalk
            for piece in self.chunks(self.answers.pop(0)):
                try:
                    events += self.connection.receive_data(piece)
                except RemoteProtocolError:
                    assert self.connection.state is ConnectionState.CLOSED
                    raise EndOfTalk from None
                except Exception as error:
                    raise AssertionError(f"{type(error).__name__} escaped") from error
        return events


@settings(max_examples=200, deadline=None)
@given(data=st.data(), name=st.sampled_from(PEERS[2:]), chunks=st.sampled_from(CHUNKS))
def test_a_client_in_the_middle_of_a_session_survives_what_a_server_distorts(data, name, chunks):
    answers = [octets for who, octets in load(name) if who == "S"]
    for _ in range(data.draw(st.integers(1, 3))):
        turn = data.draw(st.integers(2, len(answers) - 1))
        octets = bytearray(answers[turn])
        octets[data.draw(st.integers(8, max(8, len(octets) - 1))) % len(octets)] = data.draw(
            st.integers(0, 255) | st.sampled_from([0x80, 0x82, 0x88, 0x8A, 0xFD, 0xFE, 0xFF])
        )
        answers[turn] = bytes(octets)
    client = ClientConnection(limits=SMALL)
    with contextlib.suppress(EndOfTalk, ApplianceError, KeyError, AttributeError, TypeError, IndexError):
        # What the script makes of a distorted type is its own affair.
        use_server(client, Distorted(client, answers, chunks), more="cpp" in name)
    client.receive_eof()
    assert not client.operations


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutated_datagrams(data):
    octets = bytearray(DATAGRAM)
    for _ in range(data.draw(st.integers(1, 5))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    drive_datagram(bytes(octets[: data.draw(st.integers(0, len(octets)))]))


# -- memory --------------------------------------------------------------------------------------------


def peak(call) -> int:
    """Octets that ``call`` had allocated at the most."""
    gc.collect()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def op(command: int, ioid: int, sub: int, rest: bytes = b"") -> bytes:
    return frame(command, u32(1) + u32(ioid) + bytes((sub,)) + rest)


def attack(name: str) -> bytes:
    """Octets from a client that wants our memory."""
    deep = b"\x80\0\x01\x01a" * 2000 + b"\x22"
    match name:
        case "claimed size":
            return frame(2, b"")[:4] + b"\xff\xff\xff\xff" + bytes(1000)
        case "claimed array":
            kind = b"\x80\0\x01\x05value\x4b"
            return op(20, 1, 8, b"\xff") + op(20, 1, 0, kind + b"\xfe\xff\xff\xff\x7f" + bytes(8))
        case "claimed strings":
            kind = b"\x80\0\x01\x05value\x68"
            return op(20, 1, 8, b"\xff") + op(20, 1, 0, kind + b"\xfe\xff\xff\xff\x7f" + bytes(8))
        case "claimed bit set":
            return op(11, 1, 8, b"\xff") + op(11, 1, 0, b"\xfe\xff\xff\xff\x7f" + bytes(8))
        case "claimed fields":
            return op(10, 1, 8, b"\x80\0\xfe\xff\xff\xff\x7f" + bytes(64))
        case "deep types":
            return op(10, 1, 8, deep)
        case "deep anys":
            return op(20, 1, 8, b"\xff") + op(20, 1, 0, b"\x80\0\x01\x01a\x82" + b"\x82" * 5000)
        case "empty segments":
            return frame(2, b"", flags=0x10) + frame(2, b"", flags=0x30) * 50_000
        case "tiny segments":
            return frame(2, b"x", flags=0x10) + frame(2, b"x", flags=0x30) * 50_000
        case "types":
            return b"".join(
                op(10, ioid, 8, b"\xfd" + u16(ioid) + b"\x80\0\x01\x07f%06d\x80\0\0" % ioid)
                for ioid in range(8000)
            )
        case "channels":
            return b"".join(
                frame(7, u16(1) + u32(cid) + b"\x05pv%03d" % (cid % 1000)) for cid in range(20_000)
            )
        case "operations":
            return b"".join(op(10, ioid, 8, b"\x80\0\x01\x05field\x80\0\0") for ioid in range(20_000))
        case "searches":
            names = b"".join(u32(i) + b"\x01x" for i in range(90))
            return frame(3, u32(1) + bytes(22) + b"\0" + u16(90) + names) * 200
        case "requests":
            # a type of many fields without a value, defined once and referred to ever after
            fields = b"".join(b"\x03%03d\x80\0\0" % i for i in range(900))
            big = b"\xfd\1\0\x80\0\xfe" + u32(900) + fields
            return op(10, 0, 8, big) + b"".join(op(10, ioid, 8, b"\xfe\1\0") for ioid in range(1, 5000))
        case "markers":
            return bytes((0xCA, 2, 1, 0, 0, 0, 0, 0)) * 20_000
        case "messages":
            return frame(18, u32(0) + b"\0\xfd" + b"x" * 253) * 2000
        case _:
            raise AssertionError(name)


ATTACKS = [
    "claimed size",
    "claimed array",
    "claimed strings",
    "claimed bit set",
    "claimed fields",
    "deep types",
    "deep anys",
    "empty segments",
    "tiny segments",
    "types",
    "channels",
    "operations",
    "searches",
    "requests",
    "markers",
    "messages",
]


@pytest.mark.parametrize("name", ATTACKS)
def test_a_client_cannot_make_the_server_hold_much(name):
    """What is held at any time is bounded by the limits and by one read, not by what was sent."""
    connection = ready_server(limits=SMALL)
    connection.receive_data(frame(7, u16(1) + u32(1) + b"\x01d"))
    connection.pending[1].accept()
    take(connection)
    data = attack(name)
    pieces = [data[pos : pos + 8192] for pos in range(0, len(data), 8192)]
    responder = Responder(connection)

    def run() -> None:
        try:
            for piece in pieces:
                events = connection.receive_data(piece)
                while True:
                    responder(events)
                    responder.events.clear()
                    take(connection)
                    if not connection.stalled:
                        break
                    events = connection.receive_data(b"")
        except RemoteProtocolError:
            assert connection.state is ConnectionState.CLOSED

    run_peak = peak(run)
    assert run_peak < 6_000_000, run_peak
    connection.receive_eof()
    assert not connection.operations


def test_a_server_cannot_make_the_client_hold_much():
    connection = ready_client(limits=SMALL)
    channel = connection.create_channel("d")
    connection.receive_data(frame(7, u32(1) + u32(1) + b"\xff", server=True))
    operation = channel.operation(c.CMD_MONITOR, request())
    take(connection)
    kind = b"\x80\0\x01\x05value\x4b"
    connection.receive_data(frame(13, u32(operation.ioid) + b"\x08\xff" + kind, server=True))
    claimed = frame(13, u32(operation.ioid) + b"\0\x01\x01\xfe\xff\xff\xff\x7f" + bytes(100), server=True)

    def run() -> None:
        with pytest.raises(DecodeError):
            connection.receive_data(claimed)

    assert peak(run) < 1_000_000
