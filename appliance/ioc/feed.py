"""Monitors of single records: database events in, updates out, once for all who watch the same.

A batch of events is read with one release of the GIL per thousand records; each change becomes one Update that is
encoded once and shared by all clients with the same request and byte order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final

from appliance.errors import ApplianceError, OperationError
from appliance.ioc import dbcore
from appliance.ioc.dbcore import DBE_ALARM, DBE_ARCHIVE, DBE_PROPERTY, DBE_VALUE, Reading
from appliance.server.operation import Subscription, Update

if TYPE_CHECKING:
    from appliance.ioc.record_pv import RecordPV

__all__ = ["DEFAULT_EVENTS", "EventSink", "EventStream", "Feed", "event_mask", "log_unread", "read_all"]

_log: Final = logging.getLogger(__name__)
_TURN: Final = 1024
"""Events of one turn of the loop: some milliseconds, after which others are served too."""
DEFAULT_EVENTS: Final = DBE_VALUE | DBE_ALARM
_NAMES: Final = (("VALUE", DBE_VALUE), ("ARCHIVE", DBE_ARCHIVE), ("ALARM", DBE_ALARM))


def event_mask(text: str | None) -> tuple[int, str]:
    """Read ``record._options.DBE``, names or a number, and give the mask and a complaint for the client."""
    if not text:
        return DEFAULT_EVENTS, ""
    try:
        mask = int(float(text)) & 0xFF
    except (ValueError, OverflowError):
        mask = 0
        for name, bit in _NAMES:
            if name in text:
                mask |= bit
    mask &= DBE_VALUE | DBE_ARCHIVE | DBE_ALARM
    if mask:
        return mask, ""
    return DEFAULT_EVENTS, f"DBE={text[:64]!r} selects no events; VALUE and ALARM are used"


class EventSink:
    """What a database event leads to. A subclass is the key of its subscription.

    No ABC, nor are the others whose instances are told apart for each event or value: there ``isinstance`` costs more.
    """

    __slots__ = ()

    def event(self) -> None:
        """Read what is needed, and post."""
        raise NotImplementedError

    @classmethod
    def post_all(cls, sinks: list[Any]) -> None:
        """Post what the events of many lead to."""
        for sink in sinks:
            try:
                sink.event()
            except ApplianceError as error:
                _log.warning("%r: %s", sink, error)


class EventStream:
    """The IOC's one event hub and the loop turn that serves it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: dict[Hashable, None] = {}
        self._is_busy = False
        self.hub = dbcore.EventHub(self.deliver, loop=loop)

    def deliver(self, keys: list[Hashable]) -> None:
        """Take a batch of events; what is waiting already waits once."""
        self._pending.update(dict.fromkeys(keys))
        if not self._is_busy:
            self._is_busy = True
            self._turn()

    def _turn(self) -> None:
        """Post some of what waits, then let the loop send it and answer others."""
        pending = self._pending
        batch = list(islice(pending, _TURN))
        if len(batch) == len(pending):
            pending.clear()
        else:
            for key in batch:
                del pending[key]
        try:
            self._post(batch)
        finally:
            self._is_busy = bool(pending)
            if pending:
                self._loop.call_soon(self._turn)

    def _post(self, keys: list[Hashable]) -> None:
        """Let each kind of sink read and post all of its events together."""
        kinds: dict[type[EventSink], list[EventSink]] = {}
        for key in keys:
            if isinstance(key, EventSink):
                kinds.setdefault(type(key), []).append(key)
        for kind, sinks in kinds.items():
            kind.post_all(sinks)

    def close(self) -> None:
        """End it; all channels must still be open."""
        self._pending.clear()
        self.hub.close()


def read_all(channels: list[dbcore.DBChannel]) -> list[Reading | None]:
    """Read many channels; None for those that EPICS cannot read."""
    try:
        return list(dbcore.get_many(channels))
    except OperationError:
        return [_read(channel) for channel in channels]


def _read(channel: dbcore.DBChannel) -> Reading | None:
    try:
        return channel.get()
    except OperationError as error:
        log_unread(error)
        return None


def log_unread(error: OperationError) -> None:
    """Note that EPICS could not read a record whose event came: its clients keep what they have."""
    _log.warning("%s", error)


class PropertySink(EventSink):
    """Changes of a record's properties; key of the DBE_PROPERTY subscription."""

    __slots__ = ("pv",)

    def __init__(self, pv: RecordPV) -> None:
        self.pv = pv

    def event(self) -> None:
        """Post the properties to all clients of the record."""
        if not self.pv.feeds:
            return
        properties = self.pv.channel.properties()
        for feed in self.pv.feeds.values():
            if not feed.SEES_PROPERTIES:
                feed.post_properties(properties)


class Feed(EventSink):
    """What the clients of one record with one event mask share."""

    __slots__ = (
        "_alarm",
        "_event",
        "_store",
        "_tells_alarm",
        "channel",
        "mask",
        "pv",
        "subscriptions",
    )
    SEES_PROPERTIES: ClassVar = False
    """Whether its own events tell it of other properties, too."""

    def __init__(self, pv: RecordPV, mask: int, events: int = 0) -> None:
        self.pv = pv
        self.channel = pv.channel
        self.mask = mask
        self.subscriptions: dict[Subscription, Callable[..., bytes] | None] = {}
        """Who watches, and how to make a message for it where that is simple."""
        self._tells_alarm = bool(mask & DBE_ALARM)
        self._store: list[Any] = []
        self._alarm: tuple[int, int, str] | None = None
        self._event: dbcore.EventSubscription | None = pv.stream.hub.subscribe(
            self.channel, events or mask, self
        )

    @classmethod
    def post_all(cls, sinks: list[Any]) -> None:
        """Read all of them, then post."""
        # A client may have left since: then the channel is closed.
        feeds: list[Feed] = [feed for feed in sinks if feed.is_open]
        for feed, reading in zip(feeds, read_all([feed.channel for feed in feeds]), strict=True):
            if reading is not None:
                feed.post(reading)

    def join(self, subscription: Subscription) -> None:
        """Give a client everything as it is now, and what changes from now on."""
        update = self._snapshot()
        self.subscriptions[subscription] = None
        subscription.post(update)

    def _snapshot(self) -> Update:
        pv = self.pv
        mapping = pv.mapping
        store, bits, reading = pv.read()
        if not self.subscriptions:
            # Those who watch already have not been told of this alarm yet: the next event does that.
            self._alarm = (reading.status, reading.severity, reading.message)
        self._store = store
        if not self._tells_alarm:
            bits &= ~mapping.alarm_bits
        return Update(mapping.type, store, bits)

    def leave(self, subscription: Subscription) -> None:
        """Forget a client."""
        self.subscriptions.pop(subscription, None)

    @property
    def is_open(self) -> bool:
        """Events are wanted."""
        return self._event is not None

    def close(self) -> None:
        """End the events."""
        if self._event is not None:
            self._event.cancel()
            self._event = None

    def post(self, reading: Reading) -> None:
        """Tell all clients of a new value."""
        mapping = self.pv.mapping
        store = self._store.copy()
        bits = mapping.set_value(store, 0, reading.value) | mapping.set_time(store, 0, reading)
        if self._tells_alarm:
            alarm = (reading.status, reading.severity, reading.message)
            if alarm != self._alarm:
                self._alarm = alarm
                bits |= mapping.set_alarm(store, 0, reading)
        self._store = store
        update = Update(mapping.type, store, bits)
        for subscription in self.subscriptions:
            subscription.post(update)

    def post_properties(self, properties: dbcore.Properties) -> None:
        """Tell all clients of new properties."""
        mapping = self.pv.mapping
        store = self._store.copy()
        bits = mapping.set_properties(store, 0, properties)
        self._store = store
        update = Update(mapping.type, store, bits)
        for subscription in self.subscriptions:
            subscription.post(update)

    def event(self) -> None:
        """Post what the record has now."""
        self.post(self.channel.get())

    def __repr__(self) -> str:
        return f"<Feed {self.channel.name} mask={self.mask} {len(self.subscriptions)} clients>"


def property_subscription(pv: RecordPV) -> dbcore.EventSubscription:
    """Follow the properties of a record."""
    return pv.stream.hub.subscribe(pv.channel, DBE_PROPERTY, PropertySink(pv))
