"""One operation at the client's end, from INIT to its end."""

from __future__ import annotations

from typing import Any, Final, Protocol

from appliance.errors import (
    ChannelClosedError,
    DecodeError,
    LocalProtocolError,
    PVDataError,
    RemoteProtocolError,
)
from appliance.pva import commands as c
from appliance.pva.events import (
    ClientEvent,
    FieldReply,
    MonitorFinished,
    MonitorOctets,
    MonitorUpdate,
    OperationClosed,
    OperationReady,
    OperationReply,
    ReplyOctets,
)
from appliance.pva.octets import RawArgument, cut
from appliance.pva.outbox import Outbox
from appliance.pva.packing import REQUEST, REQUEST_HEAD, U32, U32_U32
from appliance.pva.selection import leaves, wire_bits
from appliance.pva.states import (
    CREATING,
    DEAD,
    EXECUTING,
    IDLE,
    MONITOR_TRANSITIONS,
    REQUEST_TRANSITIONS,
    OperationInput,
)
from appliance.pva.status import OK, Status
from appliance.pva.typed import decode_typed, encode_typed
from appliance.pvdata.bitset import decode_bitset, encode_bitset
from appliance.pvdata.codec import codec
from appliance.pvdata.fielddesc import TypeReader, decode_type
from appliance.pvdata.measure import Measurer, measurer
from appliance.pvdata.primitives import Buffer
from appliance.pvdata.store import octet_store
from appliance.pvdata.types import AnyType, ArrayType, ScalarType, StructType, TypeDesc, UnionType
from appliance.pvdata.value import Value

__all__ = ["ClientOperation", "OperationOwner"]

_HAS_TYPE: Final = frozenset({c.CMD_GET, c.CMD_PUT, c.CMD_PUT_GET, c.CMD_MONITOR})
_GETS: Final = frozenset({c.CMD_GET, c.CMD_PUT, c.CMD_PUT_GET})
_PUTS: Final = frozenset({c.CMD_PUT, c.CMD_PUT_GET})
_CALLS: Final = frozenset({c.CMD_RPC})
_QUICK: Final = 2048
"""Octets of a raw answer up to which the next one is compared with it."""
_PROCESSES: Final = frozenset({c.CMD_PROCESS})


def _is_deep(leaf: TypeDesc) -> bool:
    """Whether values of this type hold what a caller may change in place."""
    if isinstance(leaf, ArrayType):
        return not isinstance(leaf.element, ScalarType)
    return isinstance(leaf, UnionType | AnyType)


class OperationOwner(Protocol):
    """What an operation needs of its connection."""

    outbox: Outbox
    events: list[ClientEvent]
    types: TypeReader
    operations: dict[int, ClientOperation]
    gathering: list[ClientOperation]
    passes_on: bool


class OperationChannel(Protocol):
    """What an operation needs of its channel."""

    sid: int
    name: str
    operations: dict[int, ClientOperation]
    context: Any

    @property
    def connection(self) -> OperationOwner:
        """The connection of both."""


class ClientOperation:
    """A request that is initialised once and may be used often. ``context`` is the layer above's to use.

    Requests raise LocalProtocolError if the state tables do not allow them, and ChannelClosedError once the
    server has ended the operation or its channel, which it may do between two events of one read. Calls that
    only tell the server something (``start``, ``stop``, ``acknowledge``, ``cancel``, ``close``) do nothing then.
    """

    __slots__ = (
        "_asked_with",
        "_asking",
        "_closed_here",
        "_deep",
        "channel",
        "command",
        "connection",
        "context",
        "gathered",
        "get_type",
        "ioid",
        "last_bits",
        "last_store",
        "measure",
        "outbox",
        "pending",
        "quick_bits",
        "quick_bodies",
        "quick_event",
        "quick_head",
        "quick_size",
        "quick_tail",
        "raw",
        "state",
        "type",
        "wants_value",
    )

    def __init__(
        self,
        channel: OperationChannel,
        ioid: int,
        command: int,
        request: Value | None,
        window: int,
        *,
        raw: bool = False,
    ) -> None:
        self.channel = channel
        self.connection = connection = channel.connection
        self.outbox = connection.outbox
        self.ioid = ioid
        self.command = command
        self.state = CREATING
        self.type: StructType | None = None
        """The type that is transferred: by PUT_GET, towards the server."""
        self.get_type: StructType | None = None
        """PUT_GET: the type of the answer. Elsewhere the same as ``type``."""
        self.wants_value = False
        self.last_store: list[Any] | None = None
        """Everything that the updates of a MONITOR, or the answers to the reads of another operation, add up to."""
        self.last_bits = 0
        """Reads: which fields of it the server has ever sent, in leaf form."""
        self.raw = raw
        """Whether values come as octets (`MonitorOctets`, `ReplyOctets`). After INIT it is False if the type holds an
        ``any``: its octets mean nothing elsewhere. Then values come decoded, as without it."""
        self.measure: Measurer | None = None
        """Measures little-endian values if ``raw``."""
        self.gathered = False
        """Raw: whether updates that are like the last one come together with those of other operations (`UpdatesTogether`)."""
        self.pending: MonitorOctets | None = None
        """The event of the present read that takes more updates."""
        self.quick_head = b""
        """Raw: the bit set of the last update or answer if all its fields have a fixed size, since the next one is probably like
        it; else something that no update begins with."""
        self.quick_size = -1
        """Octets of that update or answer."""
        self.quick_bits = -1
        self.quick_tail = b""
        """Raw: the last answer to a GET if it was short and has ``quick_size``. The same octets are the same event again."""
        self.quick_event: ReplyOctets | None = None
        """Its event."""
        self.quick_bodies: list[bytes] | None = None
        """The updates of ``pending`` if they are like that one: the next one joins them at once."""
        self._deep = False
        """Whether values hold what is changed in place: structures in arrays, unions and anys."""
        self.context: Any = None
        self._asking = b""
        self._asked_with = -1
        """The flags of ``_asking``, the message that asks for the present value: kept, since it is always the same."""
        self._closed_here = False
        connection.operations[ioid] = channel.operations[ioid] = self
        if command == c.CMD_GET_FIELD:
            self.state = EXECUTING
            return
        assert request is not None
        big = self.outbox.big
        sub = c.SUB_INIT | (c.SUB_ACK if window else 0)
        body: list[Buffer] = [REQUEST_HEAD[big].pack(channel.sid, ioid, sub), *encode_typed(request, big=big)]
        if window:
            body.append(U32[big].pack(window))
        self.outbox.send(command, b"".join(body))

    @property
    def name(self) -> str:
        """The command's name in messages."""
        return c.OPERATION_NAMES[self.command]

    def _advance(self, what: OperationInput) -> None:
        table = MONITOR_TRANSITIONS if self.command == c.CMD_MONITOR else REQUEST_TRANSITIONS
        following = table.get((self.state, what))
        if following is None:
            if self.state is DEAD and not self._closed_here:
                raise ChannelClosedError(f"{self.channel.name}: the server ended the {self.name}")
            raise LocalProtocolError(
                f"{self.name} {self.ioid} is {self.state.value}: it cannot do {what.value} now"
            )
        self.state = following

    def _execute(self, allowed: frozenset[int]) -> None:
        if self.command not in allowed:
            raise LocalProtocolError(f"{self.name} {self.ioid} does not support this request")
        self._advance(OperationInput.EXECUTE)

    def _request(self, sub: int, body: bytes = b"") -> None:
        outbox = self.outbox
        outbox.send(self.command, REQUEST_HEAD[outbox.big].pack(self.channel.sid, self.ioid, sub) + body)

    def _tell(self, command: int) -> None:
        outbox = self.outbox
        outbox.send(command, U32_U32[outbox.big].pack(self.channel.sid, self.ioid))

    # -- to the server ---------------------------------------------------------------------------------

    def get(self) -> None:
        """Ask for the present value (GET, PUT, PUT_GET)."""
        if self.state is not IDLE or self.command not in _GETS:
            self._execute(_GETS)  # raises, and says why
        self.state = EXECUTING
        self.wants_value = True
        outbox = self.outbox
        if self._asked_with != outbox.flags:
            self._asked_with = outbox.flags
            self._asking = REQUEST[outbox.big].pack(
                c.MAGIC,
                c.VERSION,
                outbox.flags,
                self.command,
                9,
                self.channel.sid,
                self.ioid,
                0 if self.command == c.CMD_GET else c.SUB_GET,
            )
        outbox.chunks.append(self._asking)
        outbox.size += 17

    def put(self, value: Value) -> None:
        """Send the changed fields of ``value``, which is of type ``self.type`` (PUT, PUT_GET)."""
        kind = self.type
        if kind is not None and value.type != kind:
            raise LocalProtocolError("the value is not of the type that the server announced")
        before = self.state
        self._execute(_PUTS)
        assert kind is not None
        big = self.outbox.big
        bits = wire_bits(kind, leaves(kind, value.changed))
        try:
            body = codec(kind, big).encode_partial_chunks(value.store, bits)
        except PVDataError:
            self.state = before  # nothing was sent
            raise
        self.wants_value = self.command == c.CMD_PUT_GET
        chunks: list[Buffer] = [
            REQUEST_HEAD[big].pack(self.channel.sid, self.ioid, 0) + encode_bitset(bits, big),
            *body,
        ]
        self.outbox.send_parts(self.command, chunks)

    def put_octets(self, argument: RawArgument) -> None:
        """Send a value of type ``self.type`` as it came (PUT, PUT_GET)."""
        kind = self.type
        if kind is None or argument.full or argument.kind != kind:
            raise LocalProtocolError("the value is not of the type that the server announced")
        big = self.outbox.big
        if argument.big is not big:
            self.put(argument.value())
            return
        self._execute(_PUTS)
        self.wants_value = self.command == c.CMD_PUT_GET
        head = REQUEST_HEAD[big].pack(self.channel.sid, self.ioid, 0)
        self.outbox.send_parts(self.command, [head, argument.body])

    def call_octets(self, argument: RawArgument) -> None:
        """Call (RPC) with an argument as it came. Its type is written in full: an ID of it means nothing elsewhere."""
        big = self.outbox.big
        if argument.big is not big:
            self.call(argument.value())
            return
        self._execute(_CALLS)
        self.wants_value = True
        head = REQUEST_HEAD[big].pack(self.channel.sid, self.ioid, 0)
        self.outbox.send_parts(self.command, [head, codec(argument.kind, big).description, argument.body])

    def call(self, argument: Value | None) -> None:
        """Call (RPC); None sends the null type."""
        big = self.outbox.big
        body = encode_typed(argument, big=big)
        self._execute(_CALLS)
        self.wants_value = True
        self.outbox.send_parts(self.command, [REQUEST_HEAD[big].pack(self.channel.sid, self.ioid, 0), *body])

    def process(self) -> None:
        """Process the record (PROCESS)."""
        self._execute(_PROCESSES)
        self.wants_value = False
        self._request(0)

    def start(self) -> None:
        """Start, or start again, the updates (MONITOR)."""
        if not self._ended_there:
            self._advance(OperationInput.START)
            self._request(c.SUB_MONITOR_START)

    def stop(self) -> None:
        """Pause the updates (MONITOR). Those that are on their way still come."""
        if not self._ended_there:
            self._advance(OperationInput.STOP)
            self._request(c.SUB_MONITOR_STOP)

    @property
    def _is_dead(self) -> bool:
        return self.state is DEAD

    @property
    def _ended_there(self) -> bool:
        return self.state is DEAD and not self._closed_here

    def acknowledge(self, count: int) -> None:
        """Grant ``count`` more updates (MONITOR with pipeline)."""
        if self.command != c.CMD_MONITOR:
            raise LocalProtocolError(f"{self.name} {self.ioid} has nothing to acknowledge")
        if self.state in (IDLE, EXECUTING):
            self._request(c.SUB_ACK, U32[self.outbox.big].pack(count))

    def cancel(self) -> None:
        """Abandon the request in progress.

        Whether its answer still comes nobody can tell (section 9.9), so the only thing to do with the operation
        afterwards is to close it; a MONITOR may be started again.
        """
        if self.state is EXECUTING:
            self._tell(c.CMD_CANCEL_REQUEST)

    def close(self) -> None:
        """End the operation here and at the server."""
        if self.state is DEAD:
            return
        self._tell(c.CMD_DESTROY_REQUEST)
        self._closed_here = True
        self._forget()

    def _forget(self) -> None:
        self.state = DEAD
        self.quick_event = None  # it refers to this operation
        self.connection.operations.pop(self.ioid, None)
        self.channel.operations.pop(self.ioid, None)

    def drop(self) -> None:
        """End with the channel, and report it."""
        self._forget()
        self.connection.events.append(OperationClosed(self))

    # -- from the server -------------------------------------------------------------------------------

    def receive(self, sub: int, buf: Buffer, pos: int, end: int, big: bool) -> None:
        """Handle an answer."""
        if sub & c.SUB_INIT:
            self._receive_init(buf, pos, end, big)
        elif self.command == c.CMD_MONITOR:
            self._receive_monitor(sub, buf, pos, end, big)
        else:
            self._receive_reply(buf, pos, end, big)

    def _receive_init(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if self.state is not CREATING:
            raise RemoteProtocolError(f"the INIT of {self.name} {self.ioid} was answered a second time")
        status, pos = Status.decode(buf, pos, end, big=big)
        if status.ok:
            if self.command in _HAS_TYPE:
                self.type, pos = self._decode_struct(buf, pos, end, big)
                self.get_type = self.type
                if self.command == c.CMD_PUT_GET:
                    self.get_type, pos = self._decode_struct(buf, pos, end, big)
                self.raw = self.raw and not self.get_type.holds_any
                if self.raw:
                    self.connection.passes_on = True
                    self.measure = measurer(self.get_type, False)
                else:
                    self._deep = any(_is_deep(leaf) for leaf in self.get_type.leaf_types)
            if self._is_dead:
                return  # it was given up while a long type was read
            self.state = IDLE
        else:
            self._forget()
        self.connection.events.append(OperationReady(self, status))

    def _decode_struct(self, buf: Buffer, pos: int, end: int, big: bool) -> tuple[StructType, int]:
        kind, pos = decode_type(buf, pos, end, big, self.connection.types)
        if not isinstance(kind, StructType):
            raise DecodeError(f"the type of a {self.name} is not a structure")
        return kind, pos

    def _receive_reply(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if self.state is CREATING:
            raise RemoteProtocolError(f"{self.name} {self.ioid} was answered before its INIT")
        status, pos = Status.decode(buf, pos, end, big=big)
        value: Value | None = None
        if status.ok and self.wants_value:
            if self.raw and self._take_reply(status, buf, pos, end, big):
                return
            if self.command == c.CMD_RPC:
                value, pos = decode_typed(buf, pos, end, big, self.connection.types)
            else:
                value, pos = self._decode_partial(buf, pos, end, big)
        if self.state is EXECUTING:
            self.state = IDLE
            self.connection.events.append(OperationReply(self, status, value))

    def receive_value(self, buf: Buffer, pos: int, end: int) -> None:
        """Handle the little-endian answer to a GET whose Status was OK; ``pos`` is behind that Status."""
        if self.raw:
            self._take_reply(OK, buf, pos, end, False)
            return
        value, _ = self._decode_partial(buf, pos, end, False)
        self.state = IDLE
        self.connection.events.append(OperationReply(self, OK, value))

    def _measure(self, big: bool) -> Measurer:
        measure = self.measure
        if big or measure is None:
            assert self.get_type is not None
            measure = measurer(self.get_type, big)
        return measure

    def _take_reply(self, status: Status, buf: Buffer, pos: int, end: int, big: bool) -> bool:
        """Report an answer as octets; return whether that was possible."""
        if self.command == c.CMD_RPC:
            kind, after = decode_type(buf, pos, end, big, self.connection.types)
            if not isinstance(kind, StructType) or kind.holds_any:
                return False
            bits = 1
            end = measurer(kind, big)(buf, after, end)
            # A type may have come by an ID, which means nothing elsewhere.
            tail = codec(kind, big).description + cut(buf, after, end)
        else:
            measure = self._measure(big)
            bits, end = measure.marked(buf, pos, end)
            tail = cut(buf, pos, end)
        if self.state is not EXECUTING:
            return True  # it was given up while a long value was read
        self.state = IDLE
        event = ReplyOctets(self, status, big, bits, tail)
        self.connection.events.append(event)
        if self.command == c.CMD_GET and not big and status is OK and len(tail) <= _QUICK:
            # Fields of fixed size need no other look while there are as many octets; others none while they are the same.
            self.quick_bits = bits
            self.quick_size = len(tail)
            self.quick_head = encode_bitset(bits, False) if self._measure(False).is_fixed(bits) else tail
            self.quick_tail = tail
            self.quick_event = event
        return True

    def answer_again(self, tail: bytes) -> ReplyOctets:
        """Return the event for an answer that begins with ``quick_head`` and has ``quick_size`` octets, and remember it."""
        self.quick_tail = tail
        event = self.quick_event = ReplyOctets(self, OK, False, self.quick_bits, tail)
        return event

    def take_update(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        """Report an update as octets."""
        bits, over = self._measure(big).marked(buf, pos, end)
        overrun = 0
        if over < end and not buf[over]:
            body = cut(buf, pos, over + 1)
            if bits != self.quick_bits and not big and self._measure(False).is_fixed(bits):
                self.quick_bits = bits
                self.quick_head = encode_bitset(bits, False)
                self.quick_size = len(body)
        else:
            kind = self.type
            assert kind is not None
            if over < end:
                overrun = leaves(kind, decode_bitset(buf, over, end, big)[0])
            body = cut(buf, pos, over) + encode_bitset(overrun, big)
        if self._is_dead:
            return  # it was given up while a long value was read
        self.add_update(body, big, bits, overrun)

    def add_update(self, body: bytes, big: bool, bits: int, overrun: int) -> None:
        """Report an update that was measured: with those before it in the same read, if it is like them."""
        pending = self.pending
        if pending is not None:
            if pending.bits == bits and pending.big is big and not overrun and not pending.overrun:
                pending.bodies.append(body)
                return
        else:
            self.connection.gathering.append(self)
        bodies = [body]
        self.quick_bodies = bodies if bits == self.quick_bits and not big and not overrun else None
        self.pending = event = MonitorOctets(self, big, bits, overrun, bodies)
        self.connection.events.append(event)

    def _decode_partial(self, buf: Buffer, pos: int, end: int, big: bool) -> tuple[Value, int]:
        kind = self.get_type
        assert kind is not None
        bits, pos = decode_bitset(buf, pos, end, big)
        types = self.connection.types
        if bits == 1:
            store, pos = codec(kind, big).decode(buf, pos, end, types)
            value = Value.from_store(kind, store, 1)
            self.last_bits = kind.leaf_mask
        else:
            if bits > kind.full_mask:
                raise DecodeError(
                    f"{self.name} {self.ioid}: the server sent a field that its type does not have"
                )
            # pvAccessCPP answers a read with what has changed since the one before it, often nothing.
            last = self.last_store
            value = Value(kind) if last is None else Value.from_store(kind, last)
            pos = codec(kind, big).decode_partial(buf, pos, end, bits, value.store, types)
            self.last_bits |= leaves(kind, bits)
            value.changed = wire_bits(kind, self.last_bits)
        # The value is the caller's, to change as it likes; what it has read is ours, for the next answer.
        self.last_store = self._own(kind, value.store)
        return value, pos

    def _own(self, kind: StructType, store: list[Any]) -> list[Any]:
        """Copy a store, with everything in it that can be changed in place."""
        return Value.from_store(kind, store).clone().store if self._deep else store.copy()

    def _receive_monitor(self, sub: int, buf: Buffer, pos: int, end: int, big: bool) -> None:
        kind = self.type
        if kind is None:
            raise RemoteProtocolError(f"MONITOR {self.ioid} sends updates before its INIT was answered")
        connection = self.connection
        if sub & c.SUB_DESTROY:
            # pvAccessCPP ends a subscription without a Status.
            status, pos = Status.decode(buf, pos, end, big=big) if pos < end else (OK, pos)
            if status.ok and pos < end:
                self._receive_update(kind, buf, pos, end, big)  # the last value may come with the end
            self._forget()
            connection.events.append(MonitorFinished(self, status))
            return
        self._receive_update(kind, buf, pos, end, big)

    def _receive_update(self, kind: StructType, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if self.raw:
            self.take_update(buf, pos, end, big)
            return
        begin = pos
        bits, pos = decode_bitset(buf, pos, end, big)
        types = self.connection.types
        # As with reads: what is handed out is the caller's to change, the last value is ours.
        if bits == 1:
            last, pos = codec(kind, big).decode(buf, pos, end, types)
        else:
            if bits > kind.full_mask:
                raise DecodeError(f"MONITOR {self.ioid}: the server sent a field that its type does not have")
            last = self.last_store or (octet_store(kind) if types.octets else Value(kind).store)
            pos = codec(kind, big).decode_partial(buf, pos, end, bits, last, types)
        overrun = leaves(kind, decode_bitset(buf, pos, end, big)[0]) if pos < end else 0
        if self._is_dead:
            return  # it was given up while a long value was read
        self.last_store = last
        self.connection.events.append(
            MonitorUpdate(self, leaves(kind, bits), self._own(kind, last), overrun, end - begin)
        )

    def receive_field(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        """Handle the answer to GET_FIELD."""
        status, pos = Status.decode(buf, pos, end, big=big)
        kind = decode_type(buf, pos, end, big, self.connection.types)[0] if status.ok else None
        if self._is_dead:
            return
        self._forget()
        self.connection.events.append(FieldReply(self, status, kind))

    def __repr__(self) -> str:
        return f"<ClientOperation {self.name} {self.channel.name!r} ioid={self.ioid} {self.state.value}>"
