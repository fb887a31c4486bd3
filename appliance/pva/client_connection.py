"""The client's end of a connection.

Methods queue requests; ``receive_data`` returns the answers as events. An operation is initialised once and
then used as often as one likes: a GET that is repeated costs one message each way.

Source: PVAccess protocol specification, sections 6, 8, 9 and 13; behaviour of pvxs' ``clientconn.cpp``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from struct import Struct
from typing import Any, ClassVar, Final

from appliance.errors import DecodeError, LocalProtocolError, RemoteProtocolError
from appliance.pva import commands as c
from appliance.pva.client_channel import ClientChannel
from appliance.pva.client_operation import ClientOperation
from appliance.pva.connection import EVENTS_PER_CALL, UNPACED, CommandHandler, Connection
from appliance.pva.events import (
    AccessChanged,
    AuthenticationOffered,
    ChannelClosed,
    ChannelCreated,
    ClientEvent,
    RemoteMessage,
    SearchAnswered,
    UpdatesTogether,
    Validated,
)
from appliance.pva.limits import DEFAULT_LIMITS, Limits
from appliance.pva.packing import U32, U32_U32
from appliance.pva.search import SearchRequest, SearchResponse
from appliance.pva.states import AUTHENTICATING, CLIENT_ACCEPTS, EXECUTING, IDLE, READY, ConnectionState
from appliance.pva.status import Status
from appliance.pva.typed import encode_typed
from appliance.pvdata.fielddesc import decode_type
from appliance.pvdata.primitives import Buffer, decode_size, decode_string, encode_string
from appliance.pvdata.value import Value

__all__ = ["ClientConnection"]

_CREATE: Final = (Struct("<HI"), Struct(">HI"))
_VALIDATION: Final = (Struct("<IHH"), Struct(">IHH"))
_ANSWER: Final = Struct("<IIIBB")
"""Magic, version, flags and command as one number; size; ioid; sub-command; the first octet after it."""
_ANSWER_SIZE: Final = _ANSWER.size
_GET_ANSWER: Final = c.MAGIC | c.VERSION << 8 | c.FLAG_SERVER << 16 | c.CMD_GET << 24
_UPDATE: Final = c.MAGIC | c.VERSION << 8 | c.FLAG_SERVER << 16 | c.CMD_MONITOR << 24
_STATUS_OK: Final = 0xFF
_QUICK: Final = 256
"""Octets of a message that is too short for a look at the clock."""
PASSED_PER_CALL: Final = 256
"""Events after which parsing stops if updates are passed on: more, so that more updates of one PV come together."""
COPIED: Final = 1 << 18
"""Octets of a read that is made immutable at once if updates are cut out of it."""


def _on_operation(
    command: int, connection: ClientConnection, buf: Buffer, pos: int, end: int, big: bool
) -> None:
    """Handle an answer of an operation. ``command`` comes first, so that `partial` can bind it by position."""
    if end - pos < 5:
        raise DecodeError("the answer of an operation is too short")
    (ioid,) = U32[big].unpack_from(buf, pos)
    operation = connection.operations.get(ioid)
    if operation is not None:  # else it was destroyed while the answer was on its way
        if operation.command != command:
            raise connection._mixed_up(operation, command)
        operation.receive(buf[pos + 4], buf, pos + 5, end, big)
    elif command == c.CMD_RPC or buf[pos + 4] & c.SUB_INIT:
        connection._learn_types(command, buf, pos + 5, end, big)


class ClientConnection(Connection[ClientEvent]):
    """A client's side of the protocol: octets in, events out. ``context`` is the layer above's to use."""

    IS_SERVER: ClassVar[bool] = False
    ACCEPTS: ClassVar[dict[ConnectionState, frozenset[int]]] = CLIENT_ACCEPTS

    __slots__ = (
        "_chosen",
        "_next_cid",
        "_next_ioid",
        "channels",
        "context",
        "gathering",
        "operations",
        "passes_on",
    )

    def __init__(self, *, limits: Limits = DEFAULT_LIMITS, segment_size: int = 0) -> None:
        super().__init__(limits=limits, segment_size=segment_size)
        self.channels: dict[int, ClientChannel] = {}
        self.operations: dict[int, ClientOperation] = {}
        self.gathering: list[ClientOperation] = []
        """Raw operations whose event of this read takes more updates."""
        self.passes_on = False
        """Whether there ever was a raw operation."""
        self.context: Any = None
        self._chosen = False
        self._next_cid = 1
        self._next_ioid = 1

    def _on_echo(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        """Ignore the answer to our ``echo``: only its arrival counts."""

    def receive_data(self, data: Buffer) -> list[ClientEvent | RemoteMessage]:
        """Parse what arrived, and return its events: see `Connection.receive_data`."""
        events = super().receive_data(data)
        if self.gathering:
            for operation in self.gathering:
                operation.pending = operation.quick_bodies = None
            self.gathering.clear()
        return events

    # -- the hot loop --------------------------------------------------------------------------------

    def _parse(self, data: Buffer, pos: int, end: int) -> int:
        """Parse answers to GETs and updates by the short way, and everything else by the general one."""
        unpack = _ANSWER.unpack_from
        find = self.operations.get
        events = self.events
        due = self.due
        # Without a clock nobody waits: large values take the short way too.
        short = UNPACED if due is not None else 0xFFFFFFFF
        taken = 0
        together: UpdatesTogether | None = None
        if self.passes_on and end <= COPIED and type(data) is not bytes:
            data = bytes(data)  # cheaper than a copy of each update that is passed on
        most = PASSED_PER_CALL if self.passes_on else EVENTS_PER_CALL
        octets = data if type(data) is bytes else None
        unbroken = self._segments is None
        while end - pos >= _ANSWER_SIZE and len(events) < most:
            prefix, size, ioid, sub, first = unpack(data, pos)
            after = pos + 8 + size
            if after <= end and size <= short and unbroken:
                if size > _QUICK and due is not None and due():
                    self.stalled = True
                    return pos
                operation = find(ioid)
                if operation is None or operation.state is not EXECUTING:
                    pass
                elif prefix == _GET_ANSWER:
                    if first == _STATUS_OK and operation.command == c.CMD_GET:
                        body = pos + _ANSWER_SIZE
                        if after - body != operation.quick_size or octets is None:
                            operation.receive_value(data, body, after)
                        elif octets.startswith(operation.quick_tail, body):
                            operation.state = IDLE
                            events.append(operation.quick_event)  # type: ignore[arg-type]
                        elif octets.startswith(operation.quick_head, body):
                            operation.state = IDLE
                            events.append(operation.answer_again(octets[body:after]))
                        else:
                            operation.receive_value(data, body, after)
                        pos = after
                        continue
                elif prefix == _UPDATE and sub == 0 and operation.command == c.CMD_MONITOR:
                    if operation.raw:
                        # Many updates can become one event, so events do not count them.
                        if not taken & 63 and taken and due is not None and due():
                            self.stalled = True
                            return pos
                        taken += 1
                        body = pos + 13
                        if (
                            octets is not None
                            and after - body == operation.quick_size
                            and not data[after - 1]
                            and octets.startswith(operation.quick_head, body)
                        ):
                            # Fields of fixed size, as in the last update: so it is neither too short nor too long.
                            bodies = operation.quick_bodies
                            if operation.gathered:
                                if events and events[-1] is together:
                                    together.items.append((operation, octets[body:after]))
                                else:
                                    together = UpdatesTogether([(operation, octets[body:after])])
                                    events.append(together)
                            elif bodies is not None:
                                bodies.append(octets[body:after])
                            else:
                                operation.add_update(octets[body:after], False, operation.quick_bits, 0)
                        else:
                            operation.take_update(data, body, after, False)
                    else:
                        operation.receive(sub, data, pos + 13, after, False)
                    pos = after
                    continue
            after = self._message(data, pos, end)
            if after < 0:
                return pos
            pos = after
            if self._is_closed:
                return end
            if self.stalled:
                return pos
            unbroken = self._segments is None
        if end - pos < 8:
            self._need = 8
            return pos
        return super()._parse(data, pos, end)

    # -- handshake -----------------------------------------------------------------------------------

    def _on_validation(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if end - pos < 6:
            raise DecodeError("CONNECTION_VALIDATION is too short")
        count, pos = decode_size(buf, pos + 6, end, big)
        if count is None or count > self.limits.max_auth_methods:
            raise DecodeError(
                f"the server offers more than {self.limits.max_auth_methods} authentication methods"
            )
        methods = []
        for _ in range(count):
            method, pos = decode_string(buf, pos, end, big)
            methods.append(method)
        self.state = AUTHENTICATING
        self.events.append(AuthenticationOffered(tuple(methods)))

    def authenticate(self, method: str, payload: Value | None = None) -> None:
        """Answer AuthenticationOffered with the chosen method and its payload."""
        self._require(AUTHENTICATING, "authenticate()")
        if self._chosen:
            raise LocalProtocolError("authenticate() was called already")
        self._chosen = True
        big = self.outbox.big
        self.outbox.send(
            c.CMD_CONNECTION_VALIDATION,
            b"".join(
                (
                    _VALIDATION[big].pack(c.BUFFER_SIZE, c.REGISTRY_SIZE, 0),
                    encode_string(method, big),
                    *encode_typed(payload, big=big),
                )
            ),
        )

    def _on_validated(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        status, _ = Status.decode(buf, pos, end, big=big)
        if status.ok and (self.state is not AUTHENTICATING or not self._chosen):
            # PVXS 1.5 with certificate status gives a verdict when the client's certificate is known to be good, and
            # another one when the client has chosen: only what follows our choice is the answer to it.
            return
        if not status.ok and self.state is AUTHENTICATING and not self._chosen:
            # An exception, not an event: the caller may get the offer from the same read, and would answer a dead connection.
            raise RemoteProtocolError(f"the server refused the client before it had chosen: {status.message}")
        self.events.append(Validated(status))
        if status.ok:
            self.state = READY
        else:
            self._close()

    # -- search over the stream ------------------------------------------------------------------------

    def search(self, request: SearchRequest) -> None:
        """Ask a name server."""
        self.outbox.send(c.CMD_SEARCH, request.encode(big=self.outbox.big))

    def _on_search_response(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        self.events.append(SearchAnswered(SearchResponse.decode(buf, pos, end, big=big)))

    # -- channels ------------------------------------------------------------------------------------

    def create_channel(self, name: str) -> ClientChannel:
        """Ask the server to create a channel; ChannelCreated is the answer."""
        self._require(READY, "create_channel()")
        cid = self._next_cid
        while cid in self.channels:
            cid = cid + 1 & 0xFFFFFFFF
        self._next_cid = cid + 1 & 0xFFFFFFFF
        channel = ClientChannel(self, cid, name)
        self.channels[cid] = channel
        self.outbox.send(
            c.CMD_CREATE_CHANNEL, _CREATE[self.outbox.big].pack(1, cid) + encode_string(name, self.outbox.big)
        )
        return channel

    def _on_create_channel(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if end - pos < 9:
            raise DecodeError("CREATE_CHANNEL is too short")
        cid, sid = U32_U32[big].unpack_from(buf, pos)
        status, _ = Status.decode(buf, pos + 8, end, big=big)
        channel = self.channels.get(cid)
        if channel is None:
            if status.ok:  # given up meanwhile
                self.outbox.send(c.CMD_DESTROY_CHANNEL, U32_U32[self.outbox.big].pack(sid, cid))
            return
        if channel.open:
            raise RemoteProtocolError(f"channel {channel.name!r} was created a second time")
        if status.ok:
            channel.sid = sid
            channel.open = True
        else:
            del self.channels[cid]
        self.events.append(ChannelCreated(channel, status))

    def _on_destroy_channel(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if end - pos < 8:
            raise DecodeError("DESTROY_CHANNEL is too short")
        sid, cid = U32_U32[big].unpack_from(buf, pos)
        channel = self.channels.get(cid)
        if channel is not None and channel.open and channel.sid == sid:
            self.drop_channel(channel)

    def drop_channel(self, channel: ClientChannel) -> None:
        """Forget a channel that has ended, its operations first, and report it."""
        channel.open = False
        self.channels.pop(channel.cid, None)
        for operation in list(channel.operations.values()):
            operation.drop()
        self.events.append(ChannelClosed(channel))

    def _on_acl_change(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if end - pos < 5:
            raise DecodeError("ACL_CHANGE is too short")
        (cid,) = U32[big].unpack_from(buf, pos)
        channel = self.channels.get(cid)
        if channel is not None:
            channel.permissions = buf[pos + 4]
            self.events.append(AccessChanged(channel))

    # -- operations ----------------------------------------------------------------------------------

    def new_ioid(self) -> int:
        """Return a number that no operation has; raises LocalProtocolError unless READY."""
        self._require(READY, "an operation")
        ioid = self._next_ioid
        while ioid in self.operations:
            ioid = ioid + 1 & 0xFFFFFFFF
        self._next_ioid = ioid + 1 & 0xFFFFFFFF
        return ioid

    def _on_get_field(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if end - pos < 5:
            raise DecodeError("GET_FIELD is too short")
        (ioid,) = U32[big].unpack_from(buf, pos)
        operation = self.operations.get(ioid)
        if operation is not None:
            if operation.command != c.CMD_GET_FIELD:
                raise self._mixed_up(operation, c.CMD_GET_FIELD)
            operation.receive_field(buf, pos + 4, end, big)
        else:
            self._learn_types(c.CMD_GET_FIELD, buf, pos + 4, end, big)

    @staticmethod
    def _mixed_up(operation: ClientOperation, command: int) -> RemoteProtocolError:
        return RemoteProtocolError(
            f"{operation.name} {operation.ioid} was answered by a {c.OPERATION_NAMES[command]}"
        )

    def _learn_types(self, command: int, buf: Buffer, pos: int, end: int, big: bool) -> None:
        """Read the types in an answer that nobody waits for: a later message may refer to them by ID."""
        status, pos = Status.decode(buf, pos, end, big=big)
        if not status.ok:
            return
        for _ in range(2 if command == c.CMD_PUT_GET else 1):
            if pos < end:
                _, pos = decode_type(buf, pos, end, big, self.types)

    def _end(self) -> Iterator[None]:
        for channel in list(self.channels.values()):
            self.drop_channel(channel)
            yield

    HANDLERS: ClassVar[dict[int, CommandHandler]] = {
        **Connection.HANDLERS,
        c.CMD_ECHO: _on_echo,
        c.CMD_CONNECTION_VALIDATION: _on_validation,
        c.CMD_CONNECTION_VALIDATED: _on_validated,
        c.CMD_SEARCH_RESPONSE: _on_search_response,
        c.CMD_ACL_CHANGE: _on_acl_change,
        c.CMD_CREATE_CHANNEL: _on_create_channel,
        c.CMD_DESTROY_CHANNEL: _on_destroy_channel,
        c.CMD_GET: partial(_on_operation, c.CMD_GET),
        c.CMD_PUT: partial(_on_operation, c.CMD_PUT),
        c.CMD_PUT_GET: partial(_on_operation, c.CMD_PUT_GET),
        c.CMD_PROCESS: partial(_on_operation, c.CMD_PROCESS),
        c.CMD_RPC: partial(_on_operation, c.CMD_RPC),
        c.CMD_MONITOR: partial(_on_operation, c.CMD_MONITOR),
        c.CMD_GET_FIELD: _on_get_field,
    }
