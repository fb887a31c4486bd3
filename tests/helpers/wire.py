"""Both ends of a PVAccess connection in one place, with a string of octets in between instead of a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from appliance.errors import PVDataError
from appliance.pva import commands as c
from appliance.pva.client_connection import ClientConnection
from appliance.pva.connection import Connection
from appliance.pva.events import (
    AuthenticationOffered,
    AuthenticationReceived,
    ChannelRequested,
    Execute,
    FieldRequested,
    MonitorWindow,
    OperationRequested,
    SearchReceived,
)
from appliance.pva.search import SearchResponse
from appliance.pva.selection import encode_update, leaves
from appliance.pva.server_connection import ServerConnection
from appliance.pva.server_operation import PreparedAnswer
from appliance.pva.status import OK
from appliance.pvdata import FLOAT64, INT32, STRING, ArrayType, StructType, Value
from appliance.pvdata.pvrequest import PVRequest, request_mask

GUID = bytes(range(12))
ALARM = StructType((("severity", INT32), ("message", STRING)), "alarm_t")
SCALAR = StructType((("value", FLOAT64), ("alarm", ALARM)), "epics:nt/NTScalar:1.0")
ARRAY = StructType((("value", ArrayType(FLOAT64)), ("alarm", ALARM)), "epics:nt/NTScalarArray:1.0")

Chunks = Callable[[bytes], Iterable[bytes]]


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def bytewise(data: bytes) -> Iterator[bytes]:
    for pos in range(len(data)):
        yield data[pos : pos + 1]


def cut(sizes: list[int]) -> Chunks:
    """Cut into pieces of these sizes, over and over."""

    def chunks(data: bytes) -> Iterator[bytes]:
        pos = turn = 0
        while pos < len(data):
            size = sizes[turn % len(sizes)]
            yield data[pos : pos + size]
            pos += size
            turn += 1

    return chunks


def take(connection: Connection) -> bytes:
    """Give what the connection wants to send."""
    data = b"".join(bytes(chunk) for chunk in connection.data_to_send())
    assert connection.outbox.size == 0
    return data


def feed(connection: Connection, data: bytes, chunks: Chunks = whole) -> list:
    """Hand ``data`` over in pieces; whatever stalls is taken up at once. Output stays queued."""
    events = []
    for piece in chunks(data):
        events += connection.receive_data(piece)
        while connection.stalled:
            events += connection.receive_data(b"")
    return events


def request(text: str = "") -> Value:
    return PVRequest(text).value


def scalar(value: float = 0.0, message: str = "") -> Value:
    made = Value(SCALAR)
    made["value"] = value
    made["alarm.message"] = message
    made.changed = 1
    return made


class Responder:
    """A small server on top of ServerConnection: what a test would otherwise spell out again and again.

    PVs are ``d`` (SCALAR), ``a`` (ARRAY) and ``prepared`` (SCALAR, its GETs answered from prepared octets);
    names that start with ``no`` do not exist.
    """

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.events: list = []
        self.values = {"d": Value(SCALAR), "prepared": Value(SCALAR), "a": Value(ARRAY)}
        self.answer = PreparedAnswer()
        self.monitors: list = []
        self.port = 5075
        """Where a search is told to connect."""
        self.hold: set[type] = set()
        """Events of these kinds are recorded and not acted on."""

    def value(self, name: str) -> Value:
        return self.values.get(name, self.values["d"])

    def __call__(self, events: list) -> None:
        for event in events:
            self.events.append(event)
            if type(event) not in self.hold:
                self.act(event)

    def act(self, event) -> None:
        connection = self.connection
        match event:
            case AuthenticationReceived():
                connection.validated(OK)
            case SearchReceived(asked):
                found = tuple(instance for instance, name in asked.names if not name.startswith("no"))
                if found or asked.must_reply:
                    connection.search_response(
                        SearchResponse(GUID, asked.sequence, None, self.port, "tcp", bool(found), found)
                    )
            case ChannelRequested(channel):
                if channel.name.startswith("no"):
                    channel.reject("there is no such PV here")
                else:
                    channel.accept(c.PERMIT_ALL)
            case OperationRequested(operation):
                self.init(operation)
            case Execute(operation, argument):
                self.execute(operation, argument)
            case FieldRequested(operation, field):
                kind = self.value(operation.channel.name).type
                if field and field not in kind.offsets:
                    operation.fail(f"no field {field!r}")
                else:
                    operation.reply_field(kind.leaf_types[kind.offsets[field]])
            case MonitorWindow(operation):
                self.flow(operation)

    def init(self, operation) -> None:
        if operation.command in (c.CMD_RPC, c.CMD_PROCESS):
            operation.ready()
            return
        kind = self.value(operation.channel.name).type
        try:
            mask = request_mask(operation.request, kind) & kind.leaf_mask
        except PVDataError as error:
            operation.fail(str(error))
            return
        operation.ready(kind, mask)
        if operation.command == c.CMD_MONITOR:
            operation.context = []
            self.monitors.append(operation)
            self.post(operation, kind.leaf_mask)

    def execute(self, operation, argument) -> None:
        name = operation.channel.name
        if operation.command == c.CMD_RPC:
            operation.reply_rpc(argument)
        elif operation.command == c.CMD_PROCESS:
            self.value(name)["value"] += 1
            operation.reply_done()
        elif operation.is_get:
            if name == "prepared" and operation.command == c.CMD_GET:
                self.prepare(operation)
                operation.reply_tail_once(self.answer.tail)
            else:
                operation.reply_value(self.value(name).store)
        else:
            if self.value(name).type is SCALAR and argument["value"] == -1.0:
                operation.fail("Put not permitted")
                return
            self.put(name, argument)
            if operation.command == c.CMD_PUT:
                operation.reply_done()
            else:
                operation.reply_value(self.value(name).store)

    def prepare(self, operation) -> None:
        from appliance.pva.selection import encode_answer

        if self.answer.tail is None:
            value = self.values["prepared"]
            self.answer.tail = encode_answer(
                value.type, value.type.leaf_mask, value.store, big=self.connection.big
            )
        operation.prepared = self.answer

    def put(self, name: str, argument: Value) -> None:
        target = self.value(name)
        bits = leaves(target.type, argument.changed)
        for number in range(target.type.count):
            if bits >> number & 1:
                target.store[number] = argument.store[number]
        self.answer.tail = None
        for operation in self.monitors:
            if operation.channel.name == name:
                self.post(operation, bits)

    def post(self, operation, bits: int) -> None:
        value = self.value(operation.channel.name)
        if operation.context is not None:
            operation.context.append((bits & operation.mask, list(value.store)))
            self.flow(operation)

    def flow(self, operation) -> None:
        kind = operation.type
        queue = operation.context
        while kind is not None and queue and operation.may_send:
            bits, store = queue.pop(0)
            operation.send_update(encode_update(kind, bits, 0, store, big=self.connection.big))


class Wire:
    """A ServerConnection with a Responder, a ClientConnection, and everything that crossed between them."""

    def __init__(
        self, chunks: Chunks = whole, *, big: bool = False, segment_size: int = 0, **server_options
    ) -> None:
        self.chunks = chunks
        self.server = ServerConnection(big=big, segment_size=segment_size, **server_options)
        self.client = ClientConnection(segment_size=segment_size)
        self.responder = Responder(self.server)
        self.to_server = bytearray()
        self.to_client = bytearray()
        self.events: list = []
        """At the client."""

    def pump(self) -> list:
        """Carry octets until there are none; return the client's new events."""
        start = len(self.events)
        while True:
            self.responder(self.server.pending_events())
            self.events += self.client.pending_events()
            down = take(self.server)
            self.to_client += down
            for piece in self.chunks(down) if down else ():
                self.events += self.client.receive_data(piece)
                while self.client.stalled:
                    self.events += self.client.receive_data(b"")
            up = take(self.client)
            self.to_server += up
            for piece in self.chunks(up) if up else ():
                self._serve(piece)
            if not up and not down and not self.server.outbox.chunks:
                return self.events[start:]

    def _serve(self, piece: bytes) -> None:
        server = self.server
        self.responder(server.receive_data(piece))
        while server.stalled:
            down = take(server)  # what was answered so far leaves first, as in the transport
            self.to_client += down
            self.events += feed(self.client, down, self.chunks)
            self.responder(server.receive_data(b""))

    def handshake(self, method: str = "anonymous", payload: Value | None = None) -> Wire:
        assert AuthenticationOffered(("anonymous", "ca")) in self.pump()
        self.client.authenticate(method, payload)
        self.pump()
        return self

    def open(self, name: str = "d"):
        channel = self.client.create_channel(name)
        self.pump()
        return channel

    def operation(self, channel, command: int, text: str = "", *, window: int = 0):
        operation = channel.operation(command, request(text), window=window)
        self.pump()
        return operation


def frame(
    command: int, payload: bytes, *, server: bool = False, big: bool = False, flags: int = 0, version: int = 2
) -> bytes:
    """Put a header in front, by hand, so that tests do not check the code with itself."""
    flags |= (0x40 if server else 0) | (0x80 if big else 0)
    return (
        bytes((0xCA, version, flags, command))
        + len(payload).to_bytes(4, "big" if big else "little")
        + payload
    )


def u16(value: int, big: bool = False) -> bytes:
    return value.to_bytes(2, "big" if big else "little")


def u32(value: int, big: bool = False) -> bytes:
    return value.to_bytes(4, "big" if big else "little")


def ready_server(**options) -> ServerConnection:
    """A server's end that has validated an anonymous client and has nothing to send."""
    connection = ServerConnection(**options)
    feed(connection, frame(c.CMD_CONNECTION_VALIDATION, bytes(8) + b"\x09anonymous\xff"))
    connection.validated(OK)
    take(connection)
    return connection


def ready_client(**options) -> ClientConnection:
    """A client's end that was validated and has nothing to send."""
    connection = ClientConnection(**options)
    feed(connection, frame(c.CMD_CONNECTION_VALIDATION, bytes(6) + b"\x01\x09anonymous", server=True))
    connection.authenticate("anonymous")
    feed(connection, frame(c.CMD_CONNECTION_VALIDATED, b"\xff", server=True))
    take(connection)
    return connection
