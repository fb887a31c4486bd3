"""One record, or one field of one, as a PV: the single-PV mapping of QSRV2.

Source: behaviour of pvxs ``ioc/singlesource.cpp``; pvxs documentation ``ioc.rst`` and ``ntscalar.rst``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from appliance.errors import ApplianceError, OperationError
from appliance.ioc import dbcore
from appliance.ioc.dbcore import DBChannel, NumberReader, Properties, Reading, can_read_number
from appliance.ioc.feed import DEFAULT_EVENTS, EventStream, Feed, event_mask, property_subscription
from appliance.ioc.mapping import NTMapping, nt_mapping, tag_mask
from appliance.ioc.number_feed import NumberFeed
from appliance.ioc.options import PutOptions, put_options
from appliance.ioc.prepared import LiveAnswer, live_answer
from appliance.ioc.putlog import NOTHING
from appliance.pva import commands as c
from appliance.pva.credentials import Credentials
from appliance.pva.selection import leaves
from appliance.pvdata.leaves import new_store
from appliance.pvdata.pvrequest import request_options
from appliance.pvdata.value import Value
from appliance.server.channel import Channel
from appliance.server.operation import Operation, Subscription
from appliance.server.source import Handler, Source

if TYPE_CHECKING:
    from appliance.ioc.access import IocAccess
    from appliance.ioc.putlog import PutLog, Watched

__all__ = ["RecordPV", "RecordSource"]


class RecordPV(Handler):
    """One field of one record, for all clients that use the same name for it."""

    __slots__ = (
        "_answers",
        "_init_bits",
        "_properties",
        "_template",
        "_users",
        "channel",
        "feeds",
        "mapping",
        "name",
        "source",
        "stream",
        "tag_bits",
        "whole",
    )

    def __init__(self, source: RecordSource, name: str) -> None:
        self.source = source
        self.stream = source.stream
        self.name = name
        self.channel = channel = DBChannel(name)
        try:
            self.mapping: NTMapping = nt_mapping(channel)
            self.tag_bits = tag_mask(channel)
            self._template = new_store(self.mapping.type)
            self._init_bits = self.mapping.initialize(self._template, 0, channel)
            self.whole = NumberReader(channel) if can_read_number(channel) else None
        except BaseException:
            channel.close()
            raise
        self.feeds: dict[int, Feed] = {}
        self._properties: dbcore.EventSubscription | None = None
        self._answers: dict[tuple[int, bool], LiveAnswer] = {}
        self._users = 0

    @property
    def static_bits(self) -> int:
        """What is set once and for all."""
        return self._init_bits

    def empty_store(self) -> list[Any]:
        """A store with nothing but that."""
        return self._template.copy()

    # -- life ----------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Somebody uses it: keep the channel open."""
        self._users += 1

    def release(self) -> None:
        """The other end of :meth:`hold`; the last one closes the channel."""
        self._users -= 1
        if self._users <= 0:
            self.close()

    def close(self) -> None:
        """Give the database's channel back."""
        self.source.forget(self)
        for feed in list(self.feeds.values()):
            feed.close()
        self.feeds.clear()
        if self._properties is not None:
            self._properties.cancel()
            self._properties = None
        self.channel.close()

    def detached(self, channel: Channel) -> None:
        """A client closed its channel."""
        self.release()

    # -- reading -------------------------------------------------------------------------------------

    def read(self) -> tuple[list[Any], int, Reading]:
        """Read everything: a store of its own, the bits of what is set, and the reading."""
        channel = self.channel
        properties: Properties
        if self.whole is not None:
            raw = self.whole.read()
            reading = self.whole.reading(raw)
            properties = self.whole.properties(raw[5], raw[9], self.whole.description.value)
        elif channel.is_array or channel.elements > 1:
            # Apart, so that scan threads need not wait while an array is copied twice.
            reading = channel.get()
            properties = channel.properties()
        else:
            with channel.locked():
                reading = channel.get_locked()
                properties = channel.properties_locked()
        mapping = self.mapping
        store = self._template.copy()
        bits = self._init_bits | mapping.set_properties(store, 0, properties)
        bits |= mapping.set_alarm(store, 0, reading)
        bits |= mapping.set_time(store, 0, reading)
        bits |= mapping.set_value(store, 0, reading.value)
        return store, bits, reading

    def init(self, operation: Operation) -> None:
        """Accept GET, PUT, PUT_GET and PROCESS."""
        command = operation.command
        if command == c.CMD_RPC:
            operation.fail("a record cannot be called; use GET and PUT")
        elif command == c.CMD_PROCESS:
            operation.ready()
        else:
            operation.ready(self.mapping.type)
            if command == c.CMD_GET:
                self._prepare(operation)
            else:
                operation.state = put_options(operation)

    def _prepare(self, operation: Operation) -> None:
        """Let GETs be answered while they are parsed."""
        wire = operation.wire
        if self.whole is None or not operation.alive:
            return
        key = (wire.mask, wire.connection.big)
        answer = self._answers.get(key)
        if answer is None:
            answer = self._answers[key] = live_answer(self, wire.mask, big=wire.connection.big)
        wire.prepared = answer

    def get(self, operation: Operation) -> None:
        """Answer from the record."""
        wire = operation.wire
        if operation.command == c.CMD_GET and self.whole is not None and operation.channel.rights.read:
            if wire.prepared is None:
                self._prepare(operation)
            tail = wire.prepared.tail if wire.prepared is not None else None
            if tail is not None:
                wire.reply_tail_once(tail)
                operation.channel.link.schedule_flush()
                return
        store, bits, reading = self.read()
        if self.tag_bits:
            self.mapping.set_time(store, 0, reading, self.tag_bits)
        operation.reply_store(store, bits)

    def introspect(self, operation: Operation, field: str) -> None:
        """Tell the type of the value or of a field."""
        kind = self.mapping.type
        if field in kind.offsets:
            operation.reply_field(kind.leaf_types[kind.offsets[field]])
        else:
            operation.fail(f"there is no field {field[:64]!r}")

    # -- writing -------------------------------------------------------------------------------------

    def put(self, operation: Operation, value: Value) -> None:
        """Write and process as the request's options say."""
        self._put(operation, value, then_get=False)

    def put_get(self, operation: Operation, value: Value) -> None:
        """Write, then answer with what the record holds afterwards."""
        self._put(operation, value, then_get=True)

    def _put(self, operation: Operation, value: Value, *, then_get: bool) -> None:
        options: PutOptions = operation.state
        mapping = self.mapping
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
            self.channel.put(new, options.process, watch=self._watch(operation, new))
        elif options.process is not False:
            self._process(operation)
        if then_get:
            self.get(operation)
        else:
            operation.done()

    def _watch(self, operation: Operation, new: Any) -> Watched | None:
        log = self.source.put_log
        return log.concerns(operation, self.channel, new) if log is not None else None

    def _process(self, operation: Operation) -> None:
        channel = self.channel
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
        channel = self.channel
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
        """Likewise."""
        self.cancelled(operation)

    # -- monitors ------------------------------------------------------------------------------------

    def subscribe(self, subscription: Subscription) -> None:
        """Accept; events begin when the client starts the flow."""
        mask, complaint = event_mask(request_options(subscription.request).get("DBE"))
        if complaint:
            subscription.warn(complaint)
        subscription.state = mask
        subscription.ready(self.mapping.type)

    def flow(self, subscription: Subscription) -> None:
        """Let events come while the client wants them; each start brings everything once."""
        if not subscription.running:
            self.unsubscribe(subscription)
            return
        mask = subscription.state
        feed = self.feeds.get(mask)
        if feed is None:
            is_number = mask == DEFAULT_EVENTS and dbcore.can_view_number(self.channel)
            feed = self.feeds[mask] = NumberFeed(self) if is_number else Feed(self, mask)
            if self._properties is None and not feed.SEES_PROPERTIES:
                self._properties = property_subscription(self)
        if subscription not in feed.subscriptions:
            feed.join(subscription)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget the client; the last one ends the events."""
        feed = self.feeds.get(subscription.state)
        if feed is None:
            return
        feed.leave(subscription)
        if not feed.subscriptions:
            feed.close()
            del self.feeds[feed.mask]
            if not self.feeds and self._properties is not None:
                self._properties.cancel()
                self._properties = None

    def __repr__(self) -> str:
        return f"<RecordPV {self.name}>"


class RecordSource(Source):
    """All records of the database, their aliases and fields."""

    def __init__(self, stream: EventStream) -> None:
        self.stream = stream
        self.pvs: dict[str, RecordPV] = {}
        """Those that clients have open, by the name that they use."""
        self.put_log: PutLog | None = None
        self.access: IocAccess | None = None

    def claims(self, name: str, host: str) -> bool:
        """Whether there is such a record and field."""
        return name in self.pvs or dbcore.exists(name)

    def open(self, name: str, peer: Credentials) -> Handler | None:
        """Give the PV; raises OperationError for a name with a filter that EPICS does not understand."""
        pv = self.pvs.get(name)
        if pv is None:
            if not dbcore.exists(name):
                return None
            pv = self.pvs[name] = RecordPV(self, name)
            if self.access is not None and self.access.is_restricted:
                self.access.watch(pv)
        pv.hold()
        return pv

    def forget(self, pv: RecordPV) -> None:
        """The PV is being closed."""
        if self.pvs.get(pv.name) is pv:
            del self.pvs[pv.name]
            if self.access is not None:
                self.access.unwatch(pv)

    def names(self) -> Iterable[str]:
        """Records and aliases."""
        return [record.name for record in dbcore.records()]

    def close(self) -> None:
        """Close what clients have left open; the server must have stopped."""
        for pv in list(self.pvs.values()):
            pv.close()
