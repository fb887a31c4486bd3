"""The server's end of a connection.

``receive_data`` answers a GET that has a *prepared answer* on the spot, without an event: the layer above
keeps the serialised value in ``operation.prepared`` until the next post. Everything else becomes an event
and is answered by a method of the channel or the operation that the event names.

Source: PVAccess protocol specification, sections 6, 8, 9 and 13; behaviour of pvxs' ``serverconn.cpp``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from struct import Struct
from typing import Any, ClassVar, Final

from appliance.errors import DecodeError, RemoteProtocolError
from appliance.pva import commands as c
from appliance.pva.connection import EVENTS_PER_CALL, OUT_LIMIT, CommandHandler, Connection
from appliance.pva.events import (
    AuthenticationReceived,
    ChannelClosed,
    ChannelRequested,
    FieldRequested,
    OperationClosed,
    SearchReceived,
    ServerEvent,
)
from appliance.pva.limits import DEFAULT_LIMITS, Limits
from appliance.pva.packing import REQUEST_HEAD, U16, U32, U32_U32
from appliance.pva.search import SearchRequest, SearchResponse
from appliance.pva.server_channel import ServerChannel
from appliance.pva.server_operation import ServerOperation, init_answer
from appliance.pva.states import (
    AUTHENTICATING,
    CLOSED,
    DEAD,
    EXECUTING,
    IDLE,
    READY,
    SERVER_ACCEPTS,
    SERVER_HOLDS,
    VALIDATING,
    ConnectionState,
)
from appliance.pva.status import Status
from appliance.pva.typed import decode_typed
from appliance.pvdata.pace import breathe
from appliance.pvdata.primitives import Buffer, decode_string, encode_size, encode_string
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value

__all__ = ["ServerConnection"]

_REQUEST: Final = Struct("<IIIIB")
"""A GET request as one unit: magic, version, flags and command as one number; size; sid; ioid; sub-command."""
_GET_PREFIX: Final = c.MAGIC | c.VERSION << 8 | c.CMD_GET << 24
_NO_REQUEST: Final = Value(StructType(()))
_CACHED_REQUEST: Final = 256
"""Octets of the longest pvRequest that is worth keeping."""
_USES_TYPE_IDS: Final = frozenset(b"\xfd\xfe")
_GETS_PER_CALL: Final = 1024
"""GETs of the hot loop after which ``receive_data`` stops, so that time is asked for; about half a millisecond."""
_NAMES_PER_EVENT: Final = 256
"""Names of one SearchReceived. Between two of them other work can be done."""


@cache
def _offer(auth_methods: tuple[str, ...], big: bool) -> bytes:
    """Encode the payload of the message that starts the handshake."""
    return b"".join(
        (
            U32[big].pack(c.BUFFER_SIZE),
            U16[big].pack(c.REGISTRY_SIZE),
            encode_size(len(auth_methods), big),
            *(encode_string(method, big) for method in auth_methods),
        )
    )


class ServerConnection(Connection[ServerEvent]):
    """A server's side of the protocol: octets in, events out. ``context`` is the layer above's to use."""

    IS_SERVER: ClassVar[bool] = True
    ACCEPTS: ClassVar[dict[ConnectionState, frozenset[int]]] = SERVER_ACCEPTS

    __slots__ = (
        "_next_sid",
        "_request_cache",
        "auth_methods",
        "channels",
        "context",
        "operations",
        "passed_on",
        "pending",
        "request_octets",
    )

    def __init__(
        self,
        *,
        auth_methods: tuple[str, ...] = ("anonymous", "ca"),
        limits: Limits = DEFAULT_LIMITS,
        segment_size: int = 0,
        big: bool = False,
    ) -> None:
        """Start the handshake; ``auth_methods`` are offered in rising order of preference."""
        super().__init__(limits=limits, segment_size=segment_size, big=big)
        self.auth_methods = auth_methods
        self.channels: dict[int, ServerChannel] = {}
        self.pending: dict[int, ServerChannel] = {}
        """Channels that the layer above has neither accepted nor rejected, by sid."""
        self.operations: dict[int, ServerOperation] = {}
        self.context: Any = None
        self.passed_on = 0
        """GETs that a prepared answer has passed on."""
        self._next_sid = 1
        self._request_cache: dict[tuple[bool, bytes], Value] = {}
        self.request_octets = 0
        """Octets of memory that the pvRequests of all operations take."""
        self.outbox.control(c.CTRL_SET_ENDIAN, 0)
        self.outbox.send(c.CMD_CONNECTION_VALIDATION, _offer(auth_methods, big))

    # -- the hot loop --------------------------------------------------------------------------------

    def _parse(self, data: Buffer, pos: int, end: int) -> int:
        state = self.state
        if state is not READY:
            return self._parse_handshake(data, pos, end)
        unpack = _REQUEST.unpack_from
        find = self.operations.get
        outbox = self.outbox
        append = outbox.chunks.append
        events = self.events
        size_out = passed = 0
        room = OUT_LIMIT - outbox.size
        due = self.due
        # What came before must be answered before, and a message inside another one's segments is rare.
        in_order = not events and self._segments is None
        turn = min(end, pos + _GETS_PER_CALL * 17)
        while turn - pos >= 17:
            prefix, size, sid, ioid, sub = unpack(data, pos)
            if prefix == _GET_PREFIX and size == 9 and in_order and (not sub or sub == c.SUB_GET):
                operation = find(ioid)
                if operation is not None:
                    prepared = operation.prepared
                    if (
                        prepared is not None
                        and operation.sid == sid
                        and operation.state is IDLE
                        and (tail := prepared.make_tail() if prepared.tail is None else prepared.tail)
                        is not None
                    ):
                        if not tail:
                            operation.sub = sub
                            operation.state = EXECUTING
                            prepared.pass_on(operation)
                            passed += 1
                            pos += 17
                            continue
                        # The whole reply is kept too: between two posts a client gets the same octets.
                        if tail is operation.reply_tail and sub == operation.reply_sub:
                            reply = operation.reply
                            append(reply)
                            size_out += len(reply)
                        else:
                            size_out += operation.reply_prepared(tail, sub)
                            room = OUT_LIMIT - outbox.size
                        pos += 17
                        if size_out > room:
                            break
                        continue
            outbox.size += size_out
            size_out = 0
            room = OUT_LIMIT - outbox.size
            if len(events) >= EVENTS_PER_CALL or room < 0 or self.stalled:
                break
            self.passed_on += passed
            passed = 0
            after = self._message(data, pos, end)
            if after < 0:
                return pos
            pos = after
            if self.state is CLOSED:
                return end
            if due is not None and due():
                self.stalled = True
            in_order = not events and self._segments is None
            room = OUT_LIMIT - outbox.size
        self.passed_on += passed
        outbox.size += size_out
        if turn < end and turn - pos < 17:
            self.stalled = True
        if end - pos < 8:
            self._need = 8
            return pos
        return super()._parse(data, pos, end)

    # -- handshake -----------------------------------------------------------------------------------

    def _parse_handshake(self, data: Buffer, pos: int, end: int) -> int:
        """Parse up to the first request that must wait for our verdict."""
        events = self.events
        due = self.due
        while end - pos >= 8 and not self.stalled:
            if (
                self.state is AUTHENTICATING
                and data[pos] == c.MAGIC
                and not data[pos + 2] & c.FLAG_CONTROL
                and data[pos + 3] in SERVER_HOLDS
            ):
                self.held = True
                break
            if len(events) >= EVENTS_PER_CALL or self.outbox.size > OUT_LIMIT:
                self.stalled = True
                break
            after = self._message(data, pos, end)
            if after < 0:
                return pos
            pos = after
            if self._is_closed:
                return end
            if due is not None and due():
                self.stalled = True
        self._need = 8
        return pos

    def _on_validation(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if self.state is not VALIDATING:
            raise RemoteProtocolError("the client validates the connection a second time")
        if end - pos < 8:
            raise DecodeError("CONNECTION_VALIDATION is too short")
        method, pos = decode_string(buf, pos + 8, end, big)
        payload = decode_typed(buf, pos, end, big, self.types)[0] if pos < end else None
        self.state = AUTHENTICATING
        self.events.append(AuthenticationReceived(method, payload))

    def validated(self, status: Status) -> None:
        """Answer AuthenticationReceived. After an error the connection is CLOSED once the answer is sent.

        A verdict that comes when the client has gone does nothing.
        """
        if self.state is CLOSED:
            return
        self._require(AUTHENTICATING, "validated()")
        self.outbox.send(c.CMD_CONNECTION_VALIDATED, status.encode(big=self.outbox.big))
        if status.ok:
            self.state = READY
            self.stalled = self.stalled or self.held
            self.held = False
        else:
            self._close()

    def _on_search(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        request = SearchRequest.decode(buf, pos, end, big=big, limits=self.limits)
        names = request.names
        for start in range(0, max(len(names), 1), _NAMES_PER_EVENT):
            part = names[start : start + _NAMES_PER_EVENT]
            self.events.append(SearchReceived(request._replace(names=part)))

    def search_response(self, response: SearchResponse) -> None:
        """Answer SearchReceived."""
        if self.state is not CLOSED:
            self.outbox.send(c.CMD_SEARCH_RESPONSE, response.encode(big=self.outbox.big))

    # -- channels ------------------------------------------------------------------------------------

    def _on_create_channel(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if end - pos < 2:
            raise DecodeError("CREATE_CHANNEL is too short")
        (count,) = U16[big].unpack_from(buf, pos)
        pos += 2
        if count * 5 > end - pos:
            raise DecodeError(
                f"CREATE_CHANNEL says that it has {count} names, but the message is too short for them"
            )
        for number in range(count):
            if not number & 31:
                breathe()
                if self.state is CLOSED:
                    return
            if end - pos < 5:
                raise DecodeError("CREATE_CHANNEL ends inside its list of names")
            (cid,) = U32[big].unpack_from(buf, pos)
            name, pos = decode_string(buf, pos + 4, end, big)
            channel = ServerChannel(self, self._new_sid(), cid, name)
            if not name:
                channel.refuse("the PV name is empty")
            elif len(name) > self.limits.max_name:
                channel.refuse(f"the PV name is longer than {self.limits.max_name} characters")
            elif len(self.channels) + len(self.pending) >= self.limits.max_channels:
                channel.refuse(f"this connection has {self.limits.max_channels} channels already; close some")
            else:
                self.pending[channel.sid] = channel
                self.events.append(ChannelRequested(channel))

    def _new_sid(self) -> int:
        sid = self._next_sid
        while sid in self.channels or sid in self.pending:
            sid = sid + 1 & 0xFFFFFFFF
        self._next_sid = sid + 1 & 0xFFFFFFFF
        return sid

    def _on_destroy_channel(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if end - pos < 8:
            raise DecodeError("DESTROY_CHANNEL is too short")
        sid, cid = U32_U32[big].unpack_from(buf, pos)
        channel = self.channels.get(sid)
        if channel is None:
            return  # our own close crossed it on the wire
        self.drop_channel(channel)
        self.outbox.send(c.CMD_DESTROY_CHANNEL, U32_U32[self.outbox.big].pack(sid, cid))

    def drop_channel(self, channel: ServerChannel) -> None:
        """Forget a channel that has ended, its operations first, and report it."""
        channel.open = False
        self.channels.pop(channel.sid, None)
        for operation in list(channel.operations.values()):
            self.drop_operation(operation)
        self.events.append(ChannelClosed(channel))

    # -- operations ----------------------------------------------------------------------------------

    def _on_get(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        self._operation(c.CMD_GET, buf, pos, end, big)

    def _on_put(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        self._operation(c.CMD_PUT, buf, pos, end, big)

    def _on_put_get(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        self._operation(c.CMD_PUT_GET, buf, pos, end, big)

    def _on_process(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        self._operation(c.CMD_PROCESS, buf, pos, end, big)

    def _on_rpc(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        self._operation(c.CMD_RPC, buf, pos, end, big)

    def _on_monitor(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        self._operation(c.CMD_MONITOR, buf, pos, end, big)

    def _on_array(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        sid, ioid, sub = self._head(c.CMD_ARRAY, buf, pos, end, big)
        if not sub & c.SUB_DESTROY:
            self.refuse(
                c.CMD_ARRAY, sid, ioid, sub, "array operations are not served; use GET or PUT of the field"
            )

    def _head(self, command: int, buf: Buffer, pos: int, end: int, big: bool) -> tuple[int, int, int]:
        if end - pos < 9:
            raise DecodeError(f"{c.OPERATION_NAMES[command]} is too short")
        return REQUEST_HEAD[big].unpack_from(buf, pos)

    def refuse(self, command: int, sid: int, ioid: int, sub: int, message: str) -> None:
        """Answer a request with an error, without the operation that it names."""
        big = self.outbox.big
        reply = U32[big].pack(ioid)
        if command != c.CMD_GET_FIELD:
            reply += bytes((init_answer(sub) if sub & c.SUB_INIT else sub,))
        self.outbox.send(command, reply + Status.error(message).encode(big=big))

    def _operation(self, command: int, buf: Buffer, pos: int, end: int, big: bool) -> None:
        sid, ioid, sub = self._head(command, buf, pos, end, big)
        pos += 9
        if sub & c.SUB_INIT:
            self._init(command, sid, ioid, sub, buf, pos, end, big)
            return
        operation = self.operations.get(ioid)
        if operation is None:
            if command == c.CMD_RPC and pos < end:
                decode_typed(
                    buf, pos, end, big, self.types
                )  # it may define types that later messages refer to
            # Our own end of the operation may have crossed the request; a monitor's ack deserves no answer.
            if command != c.CMD_MONITOR and not sub & c.SUB_DESTROY:
                self.refuse(command, sid, ioid, sub, "there is no such operation any more")
            return
        if operation.command != command or operation.sid != sid:
            raise RemoteProtocolError(
                f"request {ioid} is a {operation.name} on channel {operation.sid}, "
                f"not a {c.OPERATION_NAMES[command]} on channel {sid}"
            )
        operation.receive(sub, buf, pos, end, big)

    def _init(
        self,
        command: int,
        sid: int,
        ioid: int,
        sub: int,
        buf: Buffer,
        pos: int,
        end: int,
        big: bool,
    ) -> None:
        if ioid in self.operations:
            raise RemoteProtocolError(f"operation {ioid} is created a second time")
        has_window = command == c.CMD_MONITOR and bool(sub & c.SUB_ACK)
        request, pos, cost = self._decode_request(buf, pos, end, end - 4 if has_window else end, big)
        window = 0
        if has_window:
            if end - pos < 4:
                raise DecodeError("MONITOR ends before its initial window")
            (window,) = U32[big].unpack_from(buf, pos)
        channel = self.channels.get(sid)
        if channel is None:
            self.refuse(command, sid, ioid, sub, "there is no such channel any more")
            return
        if len(self.operations) >= self.limits.max_operations:
            self.refuse(command, sid, ioid, sub, "this connection has too many operations; close some")
            return
        if cost and self.request_octets + cost > self.limits.max_request_octets:
            self.refuse(
                command,
                sid,
                ioid,
                sub,
                f"the pvRequests on this connection exceed {self.limits.max_request_octets} octets",
            )
            return
        operation = ServerOperation(channel, ioid, command, sub, request)
        operation.cost = cost
        self.request_octets += cost
        self.operations[ioid] = channel.operations[ioid] = operation
        operation.requested(window)

    def _decode_request(
        self, buf: Buffer, pos: int, end: int, expected: int, big: bool
    ) -> tuple[Value, int, int]:
        """Decode a pvRequest, which should end at ``expected``; return it, its end and what it costs to keep.

        Clients send the same few over and over: a small cache by octets pays, and what comes out of it is shared
        and free.
        """
        raw = bytes(memoryview(buf)[pos:expected]) if 0 < expected - pos <= _CACHED_REQUEST else b""
        cached = self._request_cache.get((big, raw))
        if cached is not None:
            return cached, expected, 0
        request, after = decode_typed(buf, pos, end, big, self.types)
        if request is None:
            return _NO_REQUEST, after, 0
        if after == expected and raw and not _USES_TYPE_IDS.intersection(raw):
            # The octets of a type ID may mean something else the next time.
            cache = self._request_cache
            if len(cache) >= 64:
                cache.clear()
            cache[big, raw] = request
        return request, after, after - pos + request.type.weight

    def _on_get_field(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if end - pos < 9:
            raise DecodeError("GET_FIELD is too short")
        sid, ioid = U32_U32[big].unpack_from(buf, pos)
        field, _ = decode_string(buf, pos + 8, end, big)
        if ioid in self.operations:
            raise RemoteProtocolError(f"operation {ioid} is created a second time")
        channel = self.channels.get(sid)
        if channel is None:
            self.refuse(c.CMD_GET_FIELD, sid, ioid, 0, "there is no such channel any more")
            return
        if len(field) > self.limits.max_name:
            self.refuse(c.CMD_GET_FIELD, sid, ioid, 0, "the field's name is too long")
            return
        if len(self.operations) >= self.limits.max_operations:
            self.refuse(c.CMD_GET_FIELD, sid, ioid, 0, "this connection has too many operations; close some")
            return
        operation = ServerOperation(channel, ioid, c.CMD_GET_FIELD, 0, None)
        self.operations[ioid] = channel.operations[ioid] = operation
        # Section 9.8 writes a nested field with a leading dot, peers write none.
        self.events.append(FieldRequested(operation, field.removeprefix(".")))

    def _on_cancel(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        operation = self._addressed("CANCEL_REQUEST", buf, pos, end, big)
        if operation is not None:
            operation.cancel()

    def _on_destroy_request(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        operation = self._addressed("DESTROY_REQUEST", buf, pos, end, big)
        if operation is not None:
            self.drop_operation(operation)

    def _addressed(self, what: str, buf: Buffer, pos: int, end: int, big: bool) -> ServerOperation | None:
        if end - pos < 8:
            raise DecodeError(f"{what} is too short")
        sid, ioid = U32_U32[big].unpack_from(buf, pos)
        operation = self.operations.get(ioid)
        # Unknown: its end crossed the request. Another channel's: not this client's to touch by that name.
        return operation if operation is not None and operation.sid == sid else None

    def drop_operation(self, operation: ServerOperation) -> None:
        """Forget an operation that has ended, and report it."""
        if operation.state is DEAD:
            return
        operation.state = DEAD
        operation.prepared = None
        self.request_octets -= operation.cost
        self.operations.pop(operation.ioid, None)
        operation.channel.operations.pop(operation.ioid, None)
        self.events.append(OperationClosed(operation))

    def _end(self) -> Iterator[None]:
        for channel in [*self.channels.values(), *self.pending.values()]:
            if not channel.open and channel.sid not in self.pending:
                continue  # closed meanwhile
            for operation in list(channel.operations.values()):
                self.drop_operation(operation)
                yield
            self.drop_channel(channel)
            yield
        self.pending.clear()

    HANDLERS: ClassVar[dict[int, CommandHandler]] = {
        **Connection.HANDLERS,
        c.CMD_CONNECTION_VALIDATION: _on_validation,
        c.CMD_SEARCH: _on_search,
        c.CMD_CREATE_CHANNEL: _on_create_channel,
        c.CMD_DESTROY_CHANNEL: _on_destroy_channel,
        c.CMD_GET: _on_get,
        c.CMD_PUT: _on_put,
        c.CMD_PUT_GET: _on_put_get,
        c.CMD_PROCESS: _on_process,
        c.CMD_RPC: _on_rpc,
        c.CMD_MONITOR: _on_monitor,
        c.CMD_ARRAY: _on_array,
        c.CMD_GET_FIELD: _on_get_field,
        c.CMD_CANCEL_REQUEST: _on_cancel,
        c.CMD_DESTROY_REQUEST: _on_destroy_request,
    }
