"""One record, or one field of one, as a PV: the single-PV mapping of QSRV2.

Source: behaviour of pvxs ``ioc/singlesource.cpp``; pvxs documentation ``ioc.rst`` and ``ntscalar.rst``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from appliance.errors import ApplianceError, OperationError
from appliance.ioc import dbcore
from appliance.ioc.access import FieldAccess
from appliance.ioc.array_feed import ArrayFeed
from appliance.ioc.behind import Subscriber
from appliance.ioc.dbcore import DBE_PROPERTY, DBChannel
from appliance.ioc.event_stream import EventStream
from appliance.ioc.feed import DEFAULT_EVENTS, Feed, PropertySink, event_mask
from appliance.ioc.number_feed import NumberFeed
from appliance.ioc.options import PutOptions, put_options
from appliance.ioc.prepared import LiveAnswer
from appliance.ioc.putlog import NOTHING, PutLog, Watched
from appliance.ioc.record import Record
from appliance.ioc.text_feed import TextFeed
from appliance.pva import commands as c
from appliance.pva.credentials import Credentials
from appliance.pva.selection import leaves
from appliance.pvdata.pvrequest import request_options
from appliance.pvdata.value import Value
from appliance.server.access import Rights
from appliance.server.channel import Channel
from appliance.server.operation import Operation, Subscription
from appliance.server.source import Handler

__all__ = ["RecordPV"]


class RecordPV(Handler):
    """One field of one record; all clients that use the same name share it.

    Args:
        record: the field; this PV closes it.
        stream: the source of its events.
        access: decides about the rights of clients.
        put_log: logs puts.
        closed: called when the last user is gone.

    """

    __slots__ = (
        "_access",
        "_answers",
        "_closed",
        "_feeds",
        "_properties",
        "_put_log",
        "_stream",
        "_users",
        "record",
    )

    def __init__(
        self,
        record: Record,
        stream: EventStream,
        access: FieldAccess,
        put_log: PutLog,
        closed: Callable[[RecordPV], None],
    ) -> None:
        self.record = record
        self._stream = stream
        self._access = access
        self._put_log = put_log
        self._closed = closed
        self._feeds: dict[int, Feed] = {}
        self._properties: dbcore.EventSubscription | None = None
        self._answers: dict[tuple[int, bool], LiveAnswer] = {}
        self._users = 0

    # -- access security -----------------------------------------------------------------------------

    def channels(self) -> Sequence[DBChannel]:
        """Return the one field that the PV shows."""
        return (self.record.channel,)

    def rights(self, peer: Credentials) -> Rights:
        """Return a client's rights."""
        return self._access.rights(self.record.channel, peer)

    def counted_as(self) -> str:
        """Return the record's name: all its fields and filters count as one PV."""
        return self.record.channel.record

    # -- life ----------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Keep the record open for one more user."""
        self._users += 1

    def release(self) -> None:
        """Undo one :meth:`hold`; the last one closes the record."""
        self._users -= 1
        if self._users <= 0:
            self.close()

    def close(self) -> None:
        """Close the record."""
        self._closed(self)
        for feed in list(self._feeds.values()):
            feed.close()
        self._feeds.clear()
        if self._properties is not None:
            self._properties.cancel()
            self._properties = None
        self.record.close()

    def detached(self, channel: Channel) -> None:
        """Release the record: a client closed its channel."""
        self.release()

    # -- reading -------------------------------------------------------------------------------------

    def init(self, operation: Operation) -> None:
        """Accept GET, PUT, PUT_GET and PROCESS."""
        command = operation.command
        if command == c.CMD_RPC:
            operation.fail("a record cannot be called; use GET and PUT")
        elif command == c.CMD_PROCESS:
            operation.ready()
        else:
            operation.ready(self.record.mapping.type)
            if command == c.CMD_GET:
                self._prepare(operation)
            else:
                operation.state = put_options(operation)

    def _prepare(self, operation: Operation) -> None:
        """Prepare the operation, so that GETs are answered while they are parsed."""
        wire = operation.wire
        if self.record.reader is None or not operation.alive:
            return
        key = (wire.mask, wire.connection.big)
        answer = self._answers.get(key)
        if answer is None:
            answer = self._answers[key] = LiveAnswer(self.record, wire.mask, big=wire.connection.big)
        wire.prepared = answer

    def get(self, operation: Operation) -> None:
        """Answer from the record."""
        record = self.record
        wire = operation.wire
        if operation.command == c.CMD_GET and record.reader is not None and operation.channel.rights.read:
            if wire.prepared is None:
                self._prepare(operation)
            tail = wire.prepared.make_tail() if wire.prepared is not None else None
            if tail is not None:
                wire.reply_tail_once(tail)
                operation.channel.stream.schedule_flush()
                return
        store, bits, reading = record.read()
        if record.tag_bits:
            record.mapping.set_time(store, 0, reading, record.tag_bits)
        operation.reply_store(store, bits)

    def introspect(self, operation: Operation, field: str) -> None:
        """Answer with the type of the value or of a field."""
        kind = self.record.mapping.type
        if field in kind.offsets:
            operation.reply_field(kind.leaf_types[kind.offsets[field]])
        else:
            operation.fail(f"there is no field {field[:64]!r}")

    # -- writing -------------------------------------------------------------------------------------

    def put(self, operation: Operation, value: Value) -> None:
        """Write and process according to the request's options."""
        self._put(operation, value, then_get=False)

    def put_get(self, operation: Operation, value: Value) -> None:
        """Write, then answer with the record's new value."""
        self._put(operation, value, then_get=True)

    def _put(self, operation: Operation, value: Value, *, then_get: bool) -> None:
        options: PutOptions = operation.state
        mapping = self.record.mapping
        written = leaves(mapping.type, value.changed)
        has_value = bool(written & mapping.value_bits)
        if not has_value and mapping.is_enum and written >> mapping.choices & 1:
            operation.fail("the choices of an enum cannot be written, only value.index")
            return
        new = value.store[mapping.value] if has_value else NOTHING
        if options.block:
            self._put_and_wait(operation, new, then_get=then_get)
            return
        if has_value:
            self.record.channel.put(new, options.process, watch=self._watch(operation, new))
        elif options.process is not False:
            self._process(operation)
        if then_get:
            self.get(operation)
        else:
            operation.done()

    def _watch(self, operation: Operation, new: Any) -> Watched | None:
        return self._put_log.concerns(operation, self.record.channel, new)

    def _process(self, operation: Operation) -> None:
        channel = self.record.channel
        watch = self._watch(operation, NOTHING)
        try:
            if channel.put_disabled:
                raise OperationError(f"{channel.record} refuses puts: its field DISP is set")
            if watch is not None:
                watch.begin(None)
            with channel.locked():
                channel.process_locked(process=True)
        except ApplianceError as error:
            if watch is not None:
                watch.failed(error)
            raise

    def process(self, operation: Operation) -> None:
        """Process the record."""
        self._process(operation)
        operation.done()

    def _put_and_wait(self, operation: Operation, new: Any, *, then_get: bool) -> None:
        loop = asyncio.get_running_loop()
        options: PutOptions = operation.state
        channel = self.record.channel
        watch = self._watch(operation, new)
        self.hold()

        def finish(error: str | None) -> None:
            if options.waiting is None or not operation.alive:
                return  # cancelled; what waits now belongs to the next request
            options.waiting = None
            self.release()
            if error is not None:
                operation.fail(error)
            elif then_get:
                self.get(operation)
            else:
                operation.done()

        def done(error: str | None) -> None:
            loop.call_soon_threadsafe(finish, error)

        try:
            if new is NOTHING:
                options.waiting = dbcore.put_notify(channel, done, watch=watch)
            else:
                options.waiting = dbcore.put_notify(channel, done, new, process=options.process, watch=watch)
        except ApplianceError:
            self.release()
            raise

    def cancelled(self, operation: Operation) -> None:
        """Stop waiting for processing."""
        options = operation.state
        if isinstance(options, PutOptions) and options.waiting is not None:
            waiting, options.waiting = options.waiting, None
            waiting.cancel()
            self.release()

    def closed(self, operation: Operation) -> None:
        """Stop waiting for processing."""
        self.cancelled(operation)

    # -- monitors ------------------------------------------------------------------------------------

    def subscribe(self, subscription: Subscription) -> None:
        """Accept; events begin when the client starts the flow."""
        mask, complaint = event_mask(request_options(subscription.request).get("DBE"))
        if complaint:
            subscription.warn(complaint)
        subscription.state = mask
        subscription.ready(self.record.mapping.type)

    def flow(self, subscription: Subscriber) -> None:
        """Switch events on or off for the client; each start sends all fields once."""
        if not subscription.running:
            self.unsubscribe(subscription)
            return
        mask = subscription.state
        feed = self._feeds.get(mask)
        if feed is None:
            feed = self._feeds[mask] = self._feed(mask)
            if self._properties is None and not feed.SEES_PROPERTIES:
                self._properties = self._stream.hub.subscribe(
                    self.record.channel, DBE_PROPERTY, PropertySink(self.record, self._feeds)
                )
        if subscription not in feed.watchers:
            feed.join(subscription)

    def _feed(self, mask: int) -> Feed:
        if mask == DEFAULT_EVENTS and dbcore.can_view_number(self.record.channel):
            return NumberFeed(self.record, self._stream)
        if mask == DEFAULT_EVENTS and dbcore.can_view_text(self.record.channel):
            return TextFeed(self.record, self._stream)
        if dbcore.can_read_array(self.record.channel):
            return ArrayFeed(self.record, self._stream, mask)
        return Feed(self.record, self._stream, mask)

    def unsubscribe(self, subscription: Subscriber) -> None:
        """Forget the client; the last one ends the events."""
        feed = self._feeds.get(subscription.state)
        if feed is None:
            return
        feed.leave(subscription)
        if not feed.watchers:
            feed.close()
            del self._feeds[feed.mask]
            if not self._feeds and self._properties is not None:
                self._properties.cancel()
                self._properties = None

    def __repr__(self) -> str:
        return f"<RecordPV {self.record.channel.name}>"
