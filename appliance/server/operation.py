"""What a handler sees of one operation: the client, the request, and the ways to answer."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable
from functools import cache
from struct import Struct
from typing import Any, Final, NamedTuple

from appliance.errors import ApplianceError, LocalProtocolError, PVDataError, internal_error
from appliance.pva import commands as c
from appliance.pva.credentials import Credentials
from appliance.pva.octets import answer_in_order
from appliance.pva.outbox import Outbox
from appliance.pva.selection import encode_answer, encode_update, leaves, wire_bits
from appliance.pva.server_operation import PreparedAnswer, ServerOperation
from appliance.pva.states import DEAD, EXECUTING
from appliance.pva.status import Status
from appliance.pvdata.bitset import encode_bitset
from appliance.pvdata.primitives import Buffer
from appliance.pvdata.pvrequest import request_mask, request_options
from appliance.pvdata.types import StructType, TypeDesc
from appliance.pvdata.value import Value
from appliance.server.channel import Channel

__all__ = ["NOT_COUNTED", "Operation", "Subscription", "Update"]

_log: Final = logging.getLogger(__name__)

NOT_COUNTED: Final = object()
"""The `Subscription.counted_as` of one that is not counted."""


class Operation:
    """One GET, PUT, PUT_GET, PROCESS, RPC or GET_FIELD of one client.

    All methods may be called at any time later from the event loop; once the client has gone, or has cancelled the
    request, they do nothing: the next request of the same operation comes with another object.

    Example:
        >>> def log(pv, operation, value):
        ...     print(operation.name, operation.peer.method, value["value"])
        ...     pv.post(value)
        >>> server.add_pv("demo:logged", SharedPV(Value(NTScalar(FLOAT64), 0.0), on_put=log))
        >>> await ctx.put("demo:logged", 1.5)
        demo:logged ca 1.5
    """

    __slots__ = ("channel", "state", "wire")

    def __init__(self, channel: Channel, wire: ServerOperation) -> None:
        self.channel = channel
        self.wire = wire
        self.state: Any = None
        """The handler's to use."""
        wire.context = self

    @property
    def name(self) -> str:
        """The PV's name as the client wrote it."""
        return self.channel.name

    @property
    def peer(self) -> Credentials:
        """Who asks."""
        return self.channel.peer

    @property
    def command(self) -> int:
        """``CMD_*``."""
        return self.wire.command

    @property
    def request(self) -> Value:
        """The pvRequest."""
        request = self.wire.request
        assert request is not None
        return request

    @property
    def options(self) -> dict[str, str]:
        """The ``record[...]`` options of the pvRequest."""
        return request_options(self.request)

    @property
    def alive(self) -> bool:
        """Whether the client still waits."""
        return self.wire.state is not DEAD

    @property
    def mask(self) -> int:
        """Which fields the pvRequest selects, in leaf form; known once the operation is ready."""
        return self.wire.mask

    @property
    def type(self) -> StructType | None:
        """The type that the handler announced."""
        return self.wire.type

    def ready(self, kind: StructType | None = None) -> None:
        """Accept the operation. A pvRequest that selects nothing is answered with an error here.

        Args:
            kind: The PV's type; RPC and PROCESS have none.

        Example:
            >>> from appliance.server import Handler
            >>> class Answer(Handler):
            ...     def init(self, operation):
            ...         operation.ready(NTScalar(INT32))
            ...     def get(self, operation):
            ...         operation.reply(Value(NTScalar(INT32), 42))
            >>> server.add_pv("demo:answer", Answer())
            >>> (await ctx.get("demo:answer"))["value"]
            42
        """
        wire = self.wire
        if wire.state is DEAD:
            return
        mask = 0
        if kind is not None:
            try:
                mask = request_mask(self.request, kind) & kind.leaf_mask
            except PVDataError as error:
                self.fail(str(error))
                return
        wire.ready(kind, mask if kind is not None else None)
        self._flush()

    def ready_as_is(self, kind: StructType, answered: StructType | None = None) -> None:
        """Accept the operation with all fields of ``kind``: the pvRequest was applied elsewhere, by the server behind a gateway.

        Args:
            kind: The PV's type.
            answered: The type of a PUT_GET's answers if it is another one; they must come as octets.
        """
        self.wire.ready(kind, answered=answered)
        self._flush()

    def take_octets(self) -> None:
        """Have arguments come as octets, to `Handler.argument_octets`; those that hold an ``any`` still come decoded."""
        self.wire.takes_octets = True

    def fail(self, message: str) -> None:
        """Answer with an error.

        Args:
            message: What is wrong, and what to do; the client's user reads it.

        Example:
            >>> from appliance.server import Handler
            >>> class Broken(Handler):
            ...     def init(self, operation):
            ...         operation.fail("the detector is off; switch it on first")
            >>> server.add_pv("demo:broken", Broken())
            >>> await ctx.get("demo:broken")
            Traceback (most recent call last):
            appliance.errors.RemoteError: demo:broken: the detector is off; switch it on first
        """
        self.wire.fail(message)
        self._flush()

    def broken(self, error: BaseException) -> None:
        """Answer with an error: serving the operation has failed with it. The client learns the text only of an error of ours."""
        if isinstance(error, ApplianceError):
            self.fail(str(error))
            return
        _log.error("%s of %s: internal error", self.wire.name, self.channel.name, exc_info=error)
        self.fail(internal_error())

    def done(self) -> None:
        """Answer a PUT or a PROCESS: it is done.

        Example:
            >>> from appliance.server import Handler
            >>> class Sink(Handler):
            ...     def init(self, operation):
            ...         operation.ready(NTScalar(FLOAT64))
            ...     def put(self, operation, value):
            ...         print("got", value["value"])
            ...         operation.done()
            >>> server.add_pv("demo:sink", Sink())
            >>> await ctx.put("demo:sink", 2.0)
            got 2.0
        """
        self.wire.reply_done()
        self._flush()

    def reply(self, value: Value | None, valid: int = 1) -> None:
        """Answer a GET, a PUT_GET or an RPC.

        Args:
            value: The value; None is an empty answer to an RPC.
            valid: The bits of the fields that a GET's ``value`` really holds; 1 means all.

        Raises:
            LocalProtocolError: A GET is answered with None.

        Example:
            >>> from appliance.server import Handler
            >>> class Echo(Handler):
            ...     def init(self, operation):
            ...         operation.ready()
            ...     def rpc(self, operation, argument):
            ...         operation.reply(argument)
            >>> server.add_pv("demo:echo", Echo())
            >>> (await ctx.rpc("demo:echo", {"x": 1.5}))["query.x"]
            1.5
        """
        if self.wire.command == c.CMD_RPC:
            self.wire.reply_rpc(value)
        elif value is None:
            raise LocalProtocolError("a GET needs a value as its answer")
        else:
            self.reply_store(value.store, valid)
        self._flush()

    def reply_store(self, store: list[Any], valid: int = 1) -> None:
        """Answer a GET with a store of the announced type; the same as ``reply`` without a Value around it."""
        self.wire.reply_value(store, valid)
        self.channel.stream.schedule_flush()

    def reply_prepared(self, answer: PreparedAnswer, store: list[Any], valid: int) -> None:
        """Answer a GET and keep the octets in ``answer``, which serves the next one without being asked."""
        wire = self.wire
        kind = wire.type
        assert kind is not None
        tail = answer.tail
        if tail is None:
            tail = encode_answer(kind, leaves(kind, valid) & wire.mask, store, big=wire.connection.big)
            answer.tail = tail
        wire.reply_tail_once(tail)
        self._flush()

    def is_behind(self, octets: int) -> bool:
        """Whether so much waits for the client that no large answer may be added.

        A client whose requests are answered at once is not read any more before it comes to this. Answers of other servers
        come later, when many requests were read already.

        Args:
            octets: The size of the answer, as far as it is known.
        """
        channel = self.channel
        return channel.owner.allowance.is_behind(channel.stream.waiting, octets)

    def reply_octets(self, status: Status, tail: bytes, *, big: bool, kind: StructType | None = None) -> None:
        """Answer with what another server has answered: see `ServerOperation.reply_octets`.

        Args:
            status: An OK or a warning.
            tail: What follows the Status.
            big: Whether its numbers are big-endian.
            kind: Its type, if that is another one than the operation's (PUT_GET).
        """
        wire = self.wire
        if big is not wire.outbox.big:
            tail = answer_in_order(kind or wire.type, tail, big=wire.outbox.big)
        wire.reply_octets(status, tail)
        self._flush()

    def reply_field(self, kind: TypeDesc) -> None:
        """Answer GET_FIELD, which asks for a type.

        Args:
            kind: The type of the PV, or of the field that was asked for.

        Example:
            >>> from appliance.server import Handler
            >>> class Typed(Handler):
            ...     def introspect(self, operation, field):
            ...         operation.reply_field(NTScalar(FLOAT64))
            >>> server.add_pv("demo:typed", Typed())
            >>> (await ctx.info("demo:typed")).type.id
            'epics:nt/NTScalar:1.0'
        """
        self.wire.reply_field(kind)
        self._flush()

    def warn(self, message: str) -> None:
        """Send a message for the client's log.

        Args:
            message: One sentence.

        Example:
            >>> def clip(pv, operation, value):
            ...     if value["value"] > 10.0:
            ...         value["value"] = 10.0
            ...         operation.warn("the value was limited to 10")
            ...     pv.post(value)
            >>> server.add_pv("demo:clip", SharedPV(Value(NTScalar(FLOAT64), 0.0), on_put=clip))
            >>> await ctx.put("demo:clip", 12.0)
            >>> (await ctx.get("demo:clip"))["value"]
            10.0
        """
        if self.alive:
            self.wire.connection.send_message(self.wire.ioid, c.MESSAGE_WARNING, message)
            self._flush()

    def _flush(self) -> None:
        self.channel.stream.schedule_flush()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.wire.name} {self.name!r} of {self.peer.account or 'anonymous'}>"


class Update:
    """One posted change, shared by all subscriptions that it goes to.

    The octets are made once per mask and byte order and then handed to every subscriber.

    Args:
        kind: The PV's type.
        store: The complete value, which never changes afterwards.
        bits: The fields that changed, in leaf form.
        overrun: The fields that lost an earlier change to squashing.

    Example:
        >>> from appliance.server import Update
        >>> value = Value(NTScalar(FLOAT64), 1.5)
        >>> update = Update(value.type, value.store, value.type.leaf_mask)
    """

    __slots__ = ("_encoded", "bits", "kind", "overrun", "store")

    def __init__(self, kind: StructType, store: list[Any], bits: int, overrun: int = 0) -> None:
        self.kind = kind
        self.store = store
        self.bits = bits
        self.overrun = overrun
        """Fields that lost an earlier change to squashing."""
        self._encoded: tuple[int, bool, Buffer] | dict[tuple[int, bool], Buffer] | None = None

    def keep(self, body: Buffer, *, big: bool) -> None:
        """Keep the octets for those who have asked for all of the fields, from a handler that has made them itself.

        Args:
            body: What ``encode_update`` would make. It never changes afterwards.
            big: Whether its numbers are big-endian.
        """
        self._encoded = (self.bits, big, body)

    def encoded(self, mask: int, big: bool) -> Buffer:
        """Return the octets for a subscription with ``mask``."""
        # Other fields than those that changed make no difference, and what was lost is among those.
        selected = self.bits & mask
        known = self._encoded
        if known is None:
            body: Buffer = encode_update(self.kind, selected, self.overrun & mask, self.store, big=big)
            self._encoded = (selected, big, body)
            return body
        if type(known) is tuple:
            known_bits, known_big, body = known
            if known_bits == selected and known_big is big:
                return body
            known = {(known_bits, known_big): body}
            self._encoded = known
        assert isinstance(known, dict)
        body_ = known.get((selected, big))
        if body_ is None:
            body_ = encode_update(self.kind, selected, self.overrun & mask, self.store, big=big)
            known[selected, big] = body_
        return body_

    def squash(self, later: Update) -> Update:
        """Return one update that contains this one and ``later``."""
        lost = self.bits & later.bits
        return Update(self.kind, later.store, self.bits | later.bits, self.overrun | later.overrun | lost)


@cache
def _packed(head: int, code: str, tail: int, big: bool) -> Struct:
    """Return the layout of ``head`` octets, the types of ``code``, and ``tail`` octets."""
    return Struct(f"{'>' if big else '<'}{head}s{code}{tail}s")


class Pattern(NamedTuple):
    """What the updates of one connection have in common; see `Subscription.pattern`."""

    start: bytes
    """The header before the size."""
    marked: bytes
    """The bit set of the fields."""
    tail: bytes
    """The bit set of lost changes: none."""
    big: bool
    """Whether numbers are big-endian."""


class Subscription(Operation):
    """One MONITOR of one client: a bounded queue between the handler, which posts, and the client, which reads.

    When the queue is full the newest entry absorbs what is posted: a slow client skips intermediate values,
    never the latest one.

    Example:
        >>> from appliance.server import Handler, Update
        >>> class Countdown(Handler):
        ...     def subscribe(self, subscription):
        ...         kind = NTScalar(INT32)
        ...         subscription.ready(kind)
        ...         for number in (2, 1, 0):
        ...             value = Value(kind, number)
        ...             subscription.post(Update(kind, value.store, kind.leaf_mask))
        ...         subscription.finish()
        >>> server.add_pv("demo:countdown", Countdown())
        >>> async with ctx.monitor("demo:countdown") as updates:
        ...     print([value["value"] async for value in updates])
        [2, 1, 0]
    """

    __slots__ = ("counted_as", "finishing", "on_room", "posted", "queue", "running", "squashed", "waits")

    def __init__(self, channel: Channel, wire: ServerOperation) -> None:
        super().__init__(channel, wire)
        self.queue: deque[Update] = deque()
        self.running = False
        """Whether the client has started the flow."""
        self.finishing = False
        self.counted_as: Hashable = NOT_COUNTED
        """The handler's `Handler.counted_as` at the beginning: the end forgets the same key."""
        self.posted = 0
        self.squashed = 0
        """Updates that were merged with others because the client was too slow."""
        self.waits = False
        """Whether the client's list of subscriptions to send for has this one."""
        self.on_room: Callable[[], None] | None = None
        """Called once the queue is empty and the client accepts more, for a handler that waits for this."""

    @property
    def keeps(self) -> bool:
        """Whether the client asked for a queue of a certain size; else updates may be merged as soon as it is behind."""
        return self.wire.keeps

    @property
    def has_room(self) -> bool:
        """Whether an update finds a place in the queue, for a handler that could also wait and post a later one.

        A client that did not ask for a queue has room as long as what is posted can leave.
        """
        wire = self.wire
        if len(self.queue) >= wire.queue_size:
            return False
        channel = self.channel
        return wire.keeps or (
            channel.owner.held is None and channel.stream.writable and wire.outbox.size <= PUMP_LIMIT
        )

    @property
    def may_send(self) -> bool:
        """Whether the client accepts an update at present."""
        return self.wire.may_send

    @property
    def outbox(self) -> Outbox:
        """What waits on the connection."""
        return self.wire.outbox

    @property
    def queue_size(self) -> int:
        """The most updates that wait."""
        return self.wire.queue_size

    def post(self, update: Update) -> None:
        """Queue an update if it has anything that this client asked for.

        Args:
            update: The change; one object may go to any number of subscriptions.

        Example:
            >>> from appliance.server import Handler, Update
            >>> class Once(Handler):
            ...     def subscribe(self, subscription):
            ...         value = Value(NTScalar(INT32), 5)
            ...         subscription.ready(value.type)
            ...         subscription.post(Update(value.type, value.store, value.type.leaf_mask))
            >>> server.add_pv("demo:once", Once())
            >>> async with ctx.monitor("demo:once") as updates:
            ...     print((await anext(updates))["value"])
            5
        """
        queue = self.queue
        if self.finishing or not (update.bits & self.wire.mask or not self.posted):
            return
        self.posted += 1
        waiting = len(queue)
        if waiting >= self.wire.queue_size or (
            waiting >= QUEUE_UNMEASURED and waiting * self._size_of(update) > QUEUE_LIMIT
        ):
            queue[-1] = queue[-1].squash(update)
            self.squashed += 1
            return
        queue.append(update)
        if not self.waits:
            self.waits = True
            self.channel.dirty(self)

    def send_octets(self, bits: int, body: Buffer, *, big: bool) -> bool:
        """Send an update that is serialised already, if nothing else waits to be sent.

        Args:
            bits: The fields that it has, in leaf form.
            body: What ``encode_update`` makes. It never changes afterwards.
            big: Whether its numbers are big-endian.

        Returns:
            Whether it was sent: post it if not. It is not if the client has not asked for all of the fields, or uses the other byte order.
        """
        wire = self.wire
        outbox = wire.outbox
        channel = self.channel
        if (
            wire.mask & bits != bits
            or outbox.big is not big
            or self.queue
            or self.finishing
            or channel.owner.held is not None
            or not channel.stream.writable
            or outbox.size > PUMP_LIMIT
            or wire.state is not EXECUTING
            or (wire.pipeline and wire.window <= 0)
        ):
            return False
        wire.send_update(body)
        self.posted += 1
        if not channel.stream.flush_pending:
            channel.stream.schedule_flush()
        return True

    def post_ahead(self, update: Update) -> None:
        """Queue ``update``; if the queue is full, send first what the client accepts.

        For a handler that has several updates at a time: with `post` only the last few of them would be sent.
        """
        channel = self.channel
        if len(self.queue) >= self.wire.queue_size and channel.owner.held is None and channel.stream.writable:
            self.wire.drain(self.queue, PUMP_LIMIT)
            channel.stream.schedule_flush()
        self.post(update)

    def sender(self, bits: int, code: str, overrun: int = 0) -> Callable[..., bool] | None:
        """Return a function that sends the same few numbers, for a handler that posts them repeatedly.

        Args:
            bits: The fields, in leaf form.
            code: Their types, as the module ``struct`` names them.
            overrun: Those of the fields that have lost an earlier change.

        Returns:
            A function that takes the fields' values. It sends them at once if nothing else waits to be sent, and returns whether
            it did: post what it has not sent. None if the client has not asked for all of the fields, or its messages leave in
            segments: then post everything.
        """
        wire = self.wire
        assert wire.type is not None
        if wire.mask & bits != bits:
            return None
        big = wire.connection.big
        marked = encode_bitset(wire_bits(wire.type, bits), big)
        tail = encode_bitset(overrun, big)
        head = wire.update_head(len(marked) + _packed(0, code, len(tail), big).size)
        if head is None:
            return None
        head += marked
        layout = _packed(len(head), code, len(tail), big)
        pack = layout.pack
        size = layout.size
        # What never changes for a subscription is looked up here, and not for each of its updates.
        queue = self.queue
        channel = self.channel
        stream = channel.stream
        owner = channel.owner
        outbox = wire.outbox

        def send(*values: Any) -> bool:
            if (
                queue
                or self.finishing
                or owner.held is not None
                or not stream.writable
                or outbox.size > PUMP_LIMIT
                or wire.state is not EXECUTING
            ):
                return False
            if wire.pipeline:
                if wire.window <= 0:
                    return False
                wire.window -= 1
            outbox.chunks.append(pack(head, *values, tail))
            outbox.size += size
            self.posted += 1
            if not stream.flush_pending:
                stream.schedule_flush()
            return True

        return send

    def pattern(self, bits: int, size: int) -> Pattern | None:
        """Return how updates of the same fields look, for a handler that makes the updates of many subscriptions at once.

        Such a handler appends them to the client's output itself, under the conditions of `sender`.

        Args:
            bits: The fields, in leaf form.
            size: The most octets that their values take.

        Returns:
            What all updates have in common. None if the client has not asked for all of the fields, acknowledges updates, or its
            messages leave in segments.
        """
        wire = self.wire
        assert wire.type is not None
        if wire.mask & bits != bits or wire.pipeline:
            return None
        big = wire.connection.big
        marked = encode_bitset(wire_bits(wire.type, bits), big)
        tail = encode_bitset(0, big)
        head = wire.update_head(len(marked) + size + len(tail))
        return None if head is None else Pattern(head[:4], marked, tail, big)

    def _size_of(self, update: Update) -> int:
        wire = self.wire
        return len(update.encoded(wire.mask, big=wire.connection.big))

    def finish(self) -> None:
        """End the subscription once the client has what is queued.

        Example:
            >>> from appliance.server import Handler
            >>> class Empty(Handler):
            ...     def subscribe(self, subscription):
            ...         subscription.ready(NTScalar(INT32))
            ...         subscription.finish()
            >>> server.add_pv("demo:empty", Empty())
            >>> [value async for value in ctx.monitor("demo:empty")]
            []
        """
        self.finishing = True
        if not self.waits:
            self.waits = True
            self.channel.dirty(self)

    def pump(self) -> bool:
        """Send what may be sent; return whether the rest waits only for room in the socket."""
        if self.wire.drain(self.queue, PUMP_LIMIT):
            return True
        self.waits = False
        if self.finishing and not self.queue:
            self.wire.finish()
        elif self.on_room is not None and not self.queue and self.wire.may_send:
            self.on_room()
        return False

    def broken(self, error: BaseException) -> None:
        """End with an error: serving the subscription has failed with it."""
        self.waits = False
        self.clear()
        super().broken(error)

    def wait(self) -> None:
        """Send what is queued when the peer's pause is over."""
        if (self.queue or self.on_room is not None) and not self.waits:
            self.waits = True
            self.channel.dirty(self)

    def clear(self) -> None:
        """Drop what waits: the client must not receive it."""
        self.queue.clear()


QUEUE_UNMEASURED: Final = 16
"""Updates of one queue that are not weighed: all but a few subscriptions ask for fewer."""
QUEUE_LIMIT: Final = 64 * 1024 * 1024
"""Octets of one longer queue above which updates are squashed although the client asked for room for more: its
number of updates alone would let a client that does not read hold thousands of images."""
PUMP_LIMIT: Final = 1024 * 1024
"""Octets of waiting output above which updates stay in their queues: there they can still be squashed."""
