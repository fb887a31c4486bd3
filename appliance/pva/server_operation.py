"""One operation at the server's end, from INIT to its end."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, Protocol, TypeVar

from appliance.errors import DecodeError, LocalProtocolError, RemoteProtocolError
from appliance.pva import commands as c
from appliance.pva.events import (
    Execute,
    MonitorWindow,
    OperationCancelled,
    OperationClosed,
    OperationRequested,
    ServerEvent,
)
from appliance.pva.limits import Limits
from appliance.pva.octets import Octets, RawArgument, cut
from appliance.pva.outbox import COPY_LIMIT, Outbox
from appliance.pva.packing import REPLY, U32
from appliance.pva.selection import encode_answer, leaves
from appliance.pva.states import (
    CREATING,
    DEAD,
    EXECUTING,
    IDLE,
    MONITOR_TRANSITIONS,
    REQUEST_TRANSITIONS,
    OperationInput,
)
from appliance.pva.status import OK, OK_BYTES, Status
from appliance.pva.typed import decode_typed, encode_typed
from appliance.pvdata.bitset import decode_bitset
from appliance.pvdata.codec import codec
from appliance.pvdata.fielddesc import TypeReader, decode_type, encode_type
from appliance.pvdata.measure import measurer
from appliance.pvdata.primitives import Buffer
from appliance.pvdata.pvrequest import request_options, truth
from appliance.pvdata.types import StructType, TypeDesc
from appliance.pvdata.value import Value

__all__ = ["OperationOwner", "PreparedAnswer", "ServerOperation", "init_answer", "stops_updates"]

_DEFAULT_QUEUE: Final = 4


def init_answer(sub: int) -> int:
    """Return the sub-command that answers an INIT: 0x80 only says that a pipelined MONITOR's INIT has a window.

    Sections 9.2.1 and 9.5.1 have 0x08 in the answer, so does PVXS; Phoebus takes nothing else for it.
    """
    return sub & ~c.SUB_ACK & 0xFF


class PreparedAnswer:
    """The serialised answer to a GET, shared by all operations that would get the same octets.

    ``tail`` is what ``encode_answer`` made, or None while nobody has asked since the last change.
    """

    __slots__ = ("tail",)

    def __init__(self) -> None:
        self.tail: bytes | None = None

    def make_tail(self) -> bytes | None:
        """Return the octets for one GET if they cannot be kept; None lets the handler answer."""
        return None

    def pass_on(self, operation: ServerOperation) -> None:
        """Have a GET answered later, by ``operation.reply_octets``: called if ``tail`` is empty. Nothing may be raised here."""
        raise NotImplementedError


class OperationOwner(Protocol):
    """What an operation needs of its connection."""

    limits: Limits
    outbox: Outbox
    events: list[ServerEvent]
    types: TypeReader
    operations: dict[int, ServerOperation]

    @property
    def big(self) -> bool:
        """Whether this end writes numbers big-endian."""

    def send_message(self, ioid: int, kind: int, text: str) -> None:
        """Send a text about an operation to the client's operator."""

    def refuse(self, command: int, sid: int, ioid: int, sub: int, message: str) -> None:
        """Answer a request with an error, without the operation that it names."""

    def drop_operation(self, operation: ServerOperation) -> None:
        """Forget an operation that has ended, and report it."""


class Encodable(Protocol):
    """An update that can be serialised for a subscriber."""

    def encoded(self, mask: int, big: bool) -> Buffer:
        """Return what ``encode_update`` makes of it, or the same octets from elsewhere."""


EncodableT = TypeVar("EncodableT", bound=Encodable)


class OperationChannel(Protocol):
    """What an operation needs of its channel."""

    sid: int
    name: str
    operations: dict[int, ServerOperation]
    context: Any

    @property
    def connection(self) -> OperationOwner:
        """The connection of both."""


def stops_updates(event: ServerEvent) -> bool:
    """Whether a subscription gets no more updates, which its handler learns from this event."""
    if isinstance(event, MonitorWindow | OperationClosed | OperationCancelled):
        operation = event.operation
        return operation.command == c.CMD_MONITOR and operation.state is not EXECUTING
    return False


class ServerOperation:
    """A request that a client initialised once and may use often. ``context`` is the layer above's to use."""

    __slots__ = (
        "channel",
        "command",
        "connection",
        "context",
        "cost",
        "head",
        "head_size",
        "ioid",
        "keeps",
        "last",
        "mask",
        "outbox",
        "pipeline",
        "prepared",
        "queue_size",
        "reply",
        "reply_sub",
        "reply_tail",
        "request",
        "sid",
        "state",
        "sub",
        "takes_octets",
        "type",
        "window",
    )

    def __init__(
        self, channel: OperationChannel, ioid: int, command: int, sub: int, request: Value | None
    ) -> None:
        self.channel = channel
        self.connection = channel.connection
        self.outbox = self.connection.outbox
        self.sid = channel.sid
        self.ioid = ioid
        self.command = command
        self.sub = sub
        """The sub-command of the request in progress, which every reply repeats."""
        self.request = request
        self.cost = 0
        """Octets that ``request`` takes from the connection's ``max_request_octets``."""
        self.state = CREATING
        self.type: StructType | None = None
        self.mask = 0
        """What the pvRequest selects, in leaf form."""
        self.last = False
        """The request in progress ends the operation."""
        self.prepared: PreparedAnswer | None = None
        self.reply = b""
        self.reply_tail: bytes | None = None
        self.reply_sub = 0
        self.head = b""
        self.head_size = -1
        """Octets of the updates or answers that ``head`` is for: see `send_octets`, `reply_octets`."""
        self.takes_octets = False
        """Whether arguments come as octets (`RawArgument`) where their type holds no ``any``. Set it before INIT is answered."""
        self.context: Any = None
        self.pipeline = False
        self.window = 0
        """MONITOR with pipeline: updates that may still be sent before the next acknowledgement."""
        self.queue_size = _DEFAULT_QUEUE
        self.keeps = False
        """MONITOR: whether the client asked for a queue, and so for updates that another end would merge earlier."""

    @property
    def name(self) -> str:
        """The command's name in messages."""
        return c.OPERATION_NAMES[self.command]

    @property
    def is_get(self) -> bool:
        """Whether the request in progress asks for the present value and brings none."""
        command = self.command
        return (
            command == c.CMD_GET
            or (command == c.CMD_PUT and bool(self.sub & c.SUB_GET))
            or (command == c.CMD_PUT_GET and bool(self.sub & (c.SUB_GET | c.SUB_ACK)))
        )

    @property
    def _idle(self) -> bool:
        return self.state is IDLE

    def _advance(self, what: OperationInput) -> None:
        table = MONITOR_TRANSITIONS if self.command == c.CMD_MONITOR else REQUEST_TRANSITIONS
        following = table.get((self.state, what))
        if following is None:
            raise LocalProtocolError(
                f"{self.name} {self.ioid} is {self.state.value}: it cannot do {what.value} now"
            )
        self.state = following

    # -- from the client -----------------------------------------------------------------------------

    def requested(self, window: int) -> None:
        """Handle INIT: check the options of the protocol, then ask the layer above."""
        if self.command == c.CMD_MONITOR and not self._subscribe(window):
            return
        self.connection.events.append(OperationRequested(self))

    def _subscribe(self, window: int) -> bool:
        assert self.request is not None
        options = request_options(self.request)
        self.pipeline = self.keeps = truth(options.get("pipeline")) is True
        self.window = window
        limit = self.connection.limits.max_queue_size
        asked = options.get("queueSize")
        if asked is None:
            return True
        try:
            size = int(asked)
        except ValueError:
            size = -1
        if 1 <= size <= limit:
            self.queue_size = max(size, 2)
            self.keeps = True
            return True
        if self.pipeline:
            # Both ends count updates by this number, so a compromise would end in a stand-still.
            self.fail(f"pipeline needs a queueSize from 1 to {limit}, not {asked[:32]!r}")
            return False
        self.queue_size = min(max(size, 2), limit) if size > 0 else _DEFAULT_QUEUE
        self.connection.send_message(
            self.ioid, c.MESSAGE_WARNING, f"queueSize {asked[:32]!r} is not usable; {self.queue_size} is used"
        )
        return True

    def receive(self, sub: int, buf: Buffer, pos: int, end: int, big: bool) -> None:
        """Handle a request that follows INIT."""
        if self.command == c.CMD_MONITOR:
            self._receive_monitor(sub, buf, pos, end, big)
            return
        creating = self.state is CREATING
        if sub == c.SUB_DESTROY and end == pos and (creating or not self._last_without_value):
            self.connection.drop_operation(self)
            return
        if creating:
            raise RemoteProtocolError(f"{self.name} {self.ioid} is used before its INIT was answered")
        argument = self._argument(sub, buf, pos, end, big)  # even if refused: it may define types
        if not self._idle:
            self.connection.refuse(
                self.command, self.sid, self.ioid, sub, "the request before this one is still in progress"
            )
            return
        self.sub = sub
        self.last = bool(sub & c.SUB_DESTROY)
        self._advance(OperationInput.EXECUTE)
        self.connection.events.append(Execute(self, argument))

    @property
    def _last_without_value(self) -> bool:
        """Whether the destroy bit alone, without a value, asks for one last request.

        The specification means "destroy, no answer", pvAccessCPP and PVXS "do it, then destroy": a client of
        either kind is content with an answer that it may ignore. PUT, PUT_GET and RPC bring a value if they mean it.
        """
        return self.command in (c.CMD_GET, c.CMD_PROCESS) and self._idle

    def _argument(self, sub: int, buf: Buffer, pos: int, end: int, big: bool) -> Value | RawArgument | None:
        connection = self.connection
        if self.command == c.CMD_RPC:
            if self.takes_octets:
                sent, after = decode_type(buf, pos, end, big, connection.types)
                if isinstance(sent, StructType) and not sent.holds_any:
                    end = measurer(sent, big)(buf, after, end)
                    return RawArgument(sent, cut(buf, after, end), big, full=True)
            return decode_typed(buf, pos, end, big, connection.types)[0]
        if self.command == c.CMD_PUT:
            brings_value = not sub & c.SUB_GET
        else:
            brings_value = self.command == c.CMD_PUT_GET and not sub & (c.SUB_GET | c.SUB_ACK)
        if not brings_value:
            return None
        kind = self.type
        assert kind is not None
        if self.takes_octets and not kind.holds_any:
            return RawArgument(kind, cut(buf, pos, measurer(kind, big).marked(buf, pos, end)[1]), big)
        bits, pos = decode_bitset(buf, pos, end, big)
        if bits > kind.full_mask:
            raise DecodeError(f"{self.name} {self.ioid}: the client sent a field that its type does not have")
        value = Value(kind)
        codec(kind, big).decode_partial(buf, pos, end, bits, value.store, connection.types)
        value.changed = leaves(kind, bits) & self.mask
        return value

    def _receive_monitor(self, sub: int, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if self.state is CREATING and not sub & c.SUB_DESTROY:
            raise RemoteProtocolError(f"MONITOR {self.ioid} is used before its INIT was answered")
        if sub & c.SUB_ACK:
            if end - pos < 4:
                raise DecodeError("MONITOR ends before its acknowledgement")
            if self.pipeline:
                (count,) = U32[big].unpack_from(buf, pos)
                self.window = min(self.window + count, 0xFFFFFFFF)
        if sub & c.SUB_DESTROY:
            self.connection.drop_operation(self)
            return
        if sub & c.SUB_PROCESS:
            self._advance(OperationInput.START if sub & c.SUB_GET else OperationInput.STOP)
        self.connection.events.append(MonitorWindow(self))

    def cancel(self) -> None:
        """Abandon the request in progress; the operation lives on (section 9.9).

        What was asked may still be answered by whoever works on it, and the client may have asked the next thing
        under the same ioid by then. So this object dies, with every answer that still comes to it, and a
        successor takes its place. A MONITOR has no answer that could be taken for another's: it is stopped.
        """
        if self.state is not EXECUTING:
            return
        self._advance(OperationInput.CANCEL)
        successor = self
        if self.command != c.CMD_MONITOR:
            successor = ServerOperation(self.channel, self.ioid, self.command, self.sub, self.request)
            successor.cost = self.cost
            successor.state = self.state
            successor.type = self.type
            successor.mask = self.mask
            successor.prepared = self.prepared
            successor.takes_octets = self.takes_octets
            self.connection.operations[self.ioid] = self.channel.operations[self.ioid] = successor
            self.state = DEAD
            self.prepared = None
        self.connection.events.append(OperationCancelled(self, successor))

    # -- from the layer above --------------------------------------------------------------------------

    def ready(
        self,
        kind: StructType | None = None,
        mask: int | None = None,
        *,
        answered: StructType | None = None,
    ) -> None:
        """Answer INIT.

        Args:
            kind: The type that this operation transfers; None for RPC and PROCESS.
            mask: What the pvRequest selects, in leaf form; None selects everything.
            answered: PUT_GET: the type of the answers if it is another one; they must come as octets (`reply_octets`).

        Raises:
            LocalProtocolError: INIT was answered already, or the command has no type, or needs one.
        """
        if self.state is DEAD:
            return
        has_type = self.command not in (c.CMD_RPC, c.CMD_PROCESS)
        if (kind is not None) is not has_type:
            raise LocalProtocolError(f"{self.name} {'needs a' if has_type else 'has no'} type")
        self._advance(OperationInput.READY)
        self.type = kind
        big = self.outbox.big
        parts = [U32[big].pack(self.ioid), bytes((init_answer(self.sub),)), OK_BYTES]
        if kind is not None:
            self.mask = kind.leaf_mask if mask is None else mask & kind.leaf_mask
            described = codec(kind, big).description
            parts.append(described)
            if self.command == c.CMD_PUT_GET:
                parts.append(described if answered is None else encode_type(answered, big))
        self.outbox.send(self.command, b"".join(parts))

    def fail(self, message: str) -> None:
        """Answer INIT or the request in progress with an error; a MONITOR ends with it."""
        if self.state is DEAD:
            return
        big = self.outbox.big
        creating = self.state is CREATING
        if self.command == c.CMD_MONITOR and not creating:
            self.finish(Status.error(message))
            return
        if not creating and self.state is not EXECUTING:
            return  # cancelled meanwhile
        head = U32[big].pack(self.ioid)
        if self.command != c.CMD_GET_FIELD:
            head += bytes((init_answer(self.sub) if creating else self.sub,))
        self.outbox.send(self.command, head + Status.error(message).encode(big=big))
        if creating or self.last:
            self.connection.drop_operation(self)
        else:
            self._advance(OperationInput.REPLY)

    def _replied(self) -> None:
        if self.last:
            self.connection.drop_operation(self)
        else:
            self._advance(OperationInput.REPLY)

    def reply_done(self) -> None:
        """Answer a PUT or a PROCESS: it is done."""
        if self.state is EXECUTING:
            self._send_reply(OK_BYTES, self.sub)
            self._replied()

    def reply_value(self, store: list[Any], valid: int = 1) -> None:
        """Answer a GET (of any command) with the fields of ``valid`` that the pvRequest selects."""
        if self.state is not EXECUTING:
            return
        kind = self.type
        assert kind is not None
        self.reply_tail_once(encode_answer(kind, leaves(kind, valid) & self.mask, store, big=self.outbox.big))

    def reply_tail_once(self, tail: bytes) -> None:
        """Answer the request in progress with octets that ``encode_answer`` made for our mask and byte order."""
        if self.state is not EXECUTING:
            return
        self._send_reply(tail, self.sub)
        self._replied()

    def reply_prepared(self, tail: bytes, sub: int) -> int:
        """Answer a GET from the hot loop of the connection.

        Args:
            tail: What ``encode_answer`` made.
            sub: The request's sub-command.

        Returns:
            Octets that the caller has to add to the outbox's size.
        """
        outbox = self.outbox
        size = len(tail)
        if size > outbox.one_piece:
            self._send_reply(tail, sub)
            return 0
        reply = (
            REPLY[outbox.big].pack(c.MAGIC, c.VERSION, outbox.flags, c.CMD_GET, 5 + size, self.ioid, sub)
            + tail
        )
        self.reply = reply
        self.reply_tail = tail
        self.reply_sub = sub
        outbox.chunks.append(reply)
        return len(reply)

    def _send_reply(self, tail: Buffer, sub: int) -> None:
        outbox = self.outbox
        size = len(tail)
        if size <= COPY_LIMIT or outbox.segment_size:
            outbox.send_parts(self.command, [U32[outbox.big].pack(self.ioid) + bytes((sub,)), tail])
            return
        outbox.chunks.append(
            REPLY[outbox.big].pack(c.MAGIC, c.VERSION, outbox.flags, self.command, 5 + size, self.ioid, sub)
        )
        outbox.chunks.append(tail)
        outbox.size += 13 + size

    def reply_octets(self, status: Status, tail: bytes) -> None:
        """Answer the request in progress with a value that is serialised already, in our byte order.

        Args:
            status: An OK or a warning.
            tail: What follows the Status: see `events.ReplyOctets`.
        """
        if self.state is not EXECUTING:
            return
        outbox = self.outbox
        size = len(tail)
        if size < outbox.one_piece and status is OK and not self.last:
            outbox.chunks.append(self._reply_head(size) + tail)
            outbox.size += 14 + size
            self.state = IDLE
            return
        big = outbox.big
        begin = U32[big].pack(self.ioid) + bytes((self.sub,)) + status.encode(big=big)
        outbox.send_parts(self.command, [begin, tail])
        self._replied()

    def _reply_head(self, size: int) -> bytes:
        """Return the part of a good answer that comes before its ``size`` octets."""
        sub = self.sub
        if size != self.head_size or sub != self.reply_sub:
            self.head_size, self.reply_sub = size, sub
            self.reply_tail = None  # that was for another sub-command
            outbox = self.outbox
            self.head = (
                REPLY[outbox.big].pack(
                    c.MAGIC, c.VERSION, outbox.flags, self.command, 6 + size, self.ioid, sub
                )
                + OK_BYTES
            )
        return self.head

    def reply_again(self, tail: bytes) -> None:
        """Answer a GET as `reply_octets` does, with a short answer that was probably the last one too: the same object.

        Between two changes of a value the client gets the same message, as by `reply_prepared`.
        """
        if self.state is not EXECUTING:
            return
        if tail is not self.reply_tail or self.sub != self.reply_sub:
            if self.last or len(tail) >= self.outbox.one_piece:
                self.reply_octets(OK, tail)
                return
            self.reply = self._reply_head(len(tail)) + tail
            self.reply_tail = tail
        reply = self.reply
        outbox = self.outbox
        outbox.chunks.append(reply)
        outbox.size += len(reply)
        self.state = IDLE

    def reply_rpc(self, value: Value | None) -> None:
        """Answer an RPC; None answers with the null type."""
        if self.state is not EXECUTING:
            return
        big = self.outbox.big
        head: Buffer = U32[big].pack(self.ioid) + bytes((self.sub,)) + OK_BYTES
        self.outbox.send_parts(self.command, [head, *encode_typed(value, big=big)])
        self._replied()

    def reply_field(self, kind: TypeDesc) -> None:
        """Answer GET_FIELD; that ends the operation."""
        if self.state is DEAD:
            return
        big = self.outbox.big
        self.outbox.send(c.CMD_GET_FIELD, U32[big].pack(self.ioid) + OK_BYTES + encode_type(kind, big))
        self.connection.drop_operation(self)

    # -- subscriptions -------------------------------------------------------------------------------

    @property
    def may_send(self) -> bool:
        """Whether an update may be sent now: started, and the window of a pipeline is open."""
        return self.state is EXECUTING and (not self.pipeline or self.window > 0)

    def send_update(self, body: Buffer) -> None:
        """Send one update; do nothing if the client has gone.

        Args:
            body: What ``encode_update`` made for our mask and byte order, or the same octets from elsewhere.

        Raises:
            LocalProtocolError: Unless ``may_send``.
        """
        if self.state is not EXECUTING or (self.pipeline and self.window <= 0):
            if self.state is DEAD:
                return
            raise LocalProtocolError(
                f"MONITOR {self.ioid} is {self.state.value}, window {self.window}: it cannot send an update now"
            )
        outbox = self.outbox
        size = len(body)
        if outbox.segment_size:
            self._send_reply(body, 0)
        else:
            head = REPLY[outbox.big].pack(
                c.MAGIC, c.VERSION, outbox.flags, c.CMD_MONITOR, 5 + size, self.ioid, 0
            )
            if size > COPY_LIMIT:
                outbox.chunks += (head, body)
            else:
                outbox.chunks.append(head + body)
            outbox.size += 13 + size
        if self.pipeline:
            self.window -= 1

    def update_head(self, size: int) -> bytes | None:
        """Return the part of a message before the update.

        Args:
            size: Octets of the update.

        Returns:
            Header, ioid and sub-command; None if the message would not leave in one piece.
        """
        outbox = self.outbox
        if size > outbox.one_piece:
            return None
        return REPLY[outbox.big].pack(c.MAGIC, c.VERSION, outbox.flags, c.CMD_MONITOR, 5 + size, self.ioid, 0)

    def drain(self, queue: deque[EncodableT], limit: int) -> bool:
        """Send updates from ``queue`` while the client accepts them.

        Args:
            queue: Updates, the oldest first. What is sent is taken out.
            limit: Octets of waiting output above which nothing more is sent.

        Returns:
            Whether updates stay behind only because more than ``limit`` octets of output wait.
        """
        if self.state is not EXECUTING:
            return False
        outbox = self.outbox
        mask = self.mask
        big = outbox.big
        pipeline = self.pipeline
        while queue:
            if pipeline and self.window <= 0:
                return False
            if outbox.size > limit:
                return True
            if pipeline:
                self.window -= 1
            body = queue.popleft().encoded(mask, big)
            size = len(body)
            if size > outbox.one_piece:
                self._send_reply(body, 0)
                continue
            outbox.chunks.append(
                REPLY[big].pack(c.MAGIC, c.VERSION, outbox.flags, c.CMD_MONITOR, 5 + size, self.ioid, 0)
                + body
            )
            outbox.size += 13 + size
        return False

    def send_octets(self, bodies: list[bytes], limit: int) -> int:
        """Send updates that are serialised already, in our byte order, as many as the client accepts.

        Args:
            bodies: What follows the sub-command of each, the oldest first.
            limit: Octets of waiting output above which nothing is sent.

        Returns:
            How many of them were sent, from the first on.
        """
        outbox = self.outbox
        if self.state is not EXECUTING or outbox.size > limit:
            return 0
        count = len(bodies)
        if self.pipeline:
            if count > self.window:
                count = self.window
                if not count:
                    return 0
                bodies = bodies[:count]
            self.window -= count
        size = len(bodies[0])
        if size > outbox.one_piece or (count > 1 and len(set(map(len, bodies))) > 1):
            for sent, body in enumerate(bodies):
                if outbox.size > limit:
                    if self.pipeline:
                        self.window += count - sent
                    return sent
                self._send_reply(body, 0)
            return count
        if size != self.head_size:
            # Equal sizes have equal heads.
            self.head_size = size
            self.head = REPLY[outbox.big].pack(
                c.MAGIC, c.VERSION, outbox.flags, c.CMD_MONITOR, 5 + size, self.ioid, 0
            )
        head = self.head
        if count == 1:
            outbox.chunks.append(head + bodies[0])
            outbox.size += 13 + size
        else:
            outbox.chunks.append(head + head.join(bodies))
            outbox.size += count * (13 + size)
        return count

    def drain_octets(self, queue: deque[Octets], limit: int) -> bool:
        """Send updates from ``queue``, which are in our byte order, as `drain` does."""
        outbox = self.outbox
        while queue:
            if self.state is not EXECUTING or (self.pipeline and self.window <= 0):
                return False
            if outbox.size > limit:
                return True
            self.send_octets([queue.popleft().body], limit)
        return False

    def finish(self, status: Status = OK) -> None:
        """End the subscription from this side (sub-command 0x10)."""
        if self.state in (DEAD, CREATING):
            return
        big = self.outbox.big
        self.outbox.send(
            c.CMD_MONITOR, U32[big].pack(self.ioid) + bytes((c.SUB_DESTROY,)) + status.encode(big=big)
        )
        self.connection.drop_operation(self)

    def __repr__(self) -> str:
        return f"<ServerOperation {self.name} {self.channel.name!r} ioid={self.ioid} {self.state.value}>"
