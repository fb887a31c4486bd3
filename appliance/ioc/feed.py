"""Monitors of single records: database events in, updates out, once for all who watch the same.

A batch of events is read with one release of the GIL per thousand records; each change becomes one Update that is
encoded once and shared by all clients with the same request and byte order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from appliance.errors import ApplianceError, OperationError
from appliance.ioc import dbcore
from appliance.ioc.dbcore import DBE_ALARM, DBE_ARCHIVE, DBE_PROPERTY, DBE_VALUE, Reading
from appliance.ioc.mapping import ALARM_STATUS, EPOCH_S, alarm_message, alarm_status, user_tag
from appliance.server.operation import Subscription, Update

if TYPE_CHECKING:
    from appliance.ioc.single import RecordPV

__all__ = ["DEFAULT_EVENTS", "EventSink", "EventStream", "Feed", "event_mask", "read_all"]

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
    """What a database event leads to. A subclass is the key of its subscription."""

    __slots__ = ()

    def event(self) -> None:
        """Read what is needed, and post."""
        raise NotImplementedError


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
        """Read everything that the events concern, then post it."""
        # A client may have left since: then the channel is closed.
        feeds = [key for key in keys if type(key) is Feed and key.is_open]
        whole = [feed for feed in feeds if feed.whole is not None]
        if whole:
            raws = dbcore.read_whole([feed.whole for feed in whole if feed.whole is not None])
            for feed, raw in zip(whole, raws, strict=True):
                if raw is not None:
                    feed.post_whole(raw)
            feeds = [feed for feed in feeds if feed.whole is None]
        if feeds:
            readings = read_all([feed.channel for feed in feeds])
            for feed, reading in zip(feeds, readings, strict=True):
                if reading is not None:
                    feed.post(reading)
        for key in keys:
            if type(key) is not Feed and isinstance(key, EventSink):
                try:
                    key.event()
                except ApplianceError as error:
                    _log.warning("%r: %s", key, error)

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
        _log.warning("%s", error)
        return None


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
            if feed.whole is None:
                feed.post_properties(properties)


class Feed(EventSink):
    """What the clients of one record with one event mask share."""

    __slots__ = (
        "_alarm",
        "_event",
        "_last",
        "_meta",
        "_store",
        "_tells_alarm",
        "channel",
        "mask",
        "pv",
        "subscriptions",
        "whole",
    )

    def __init__(self, pv: RecordPV, mask: int) -> None:
        self.pv = pv
        self.channel = pv.channel
        self.mask = mask
        self.subscriptions: dict[Subscription, None] = {}
        self._tells_alarm = bool(mask & DBE_ALARM)
        self._store: list[Any] = []
        self._alarm: tuple[int, int, str] | None = None
        self._meta = pv.mapping.meta
        # A plain number is read with its properties, so that one subscription does for both kinds of events. Not so
        # for a field that is a property itself: it posts them where nothing that belongs to it differs.
        is_value = mask == DEFAULT_EVENTS and self.channel.is_value_field
        self.whole = pv.whole if is_value else None
        self._last: tuple[Any, ...] = ()
        events = mask if self.whole is None else mask | DBE_PROPERTY
        self._event: dbcore.Subscription | None = pv.stream.hub.subscribe(self.channel, events, self)

    def join(self, subscription: Subscription) -> None:
        """Give a client everything as it is now, and what changes from now on."""
        update = self._snapshot()
        self.subscriptions[subscription] = None
        subscription.post(update)

    def _snapshot(self) -> Update:
        pv = self.pv
        mapping = pv.mapping
        store, bits, reading = pv.read(self)
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

    def seen(self, raw: tuple[Any, ...]) -> None:
        """The first client is about to be told this."""
        if not self.subscriptions:
            self._last = raw

    def post_whole(self, raw: tuple[Any, ...]) -> None:
        """Tell all clients of a new value, of new properties, or of both: whatever differs says which."""
        pv = self.pv
        mapping = pv.mapping
        last = self._last
        self._last = raw
        status, severity, acks, ackt, message, front, seconds, nanoseconds, tag, back, value = raw
        store = self._store.copy()
        bits = 0
        if last[5] != front or last[9] != back:
            assert self.whole is not None
            properties = self.whole.properties(front, back, self.whole.description.value)
            bits = mapping.set_properties(store, 0, properties)
        if not bits or last != (
            status, severity, acks, ackt, message, last[5], seconds, nanoseconds, tag, last[9], value,
        ):  # fmt: skip
            at = self._meta
            store[mapping.value] = value
            bits |= mapping.value_bits | mapping.time_bits
            if (last[0], last[1], last[4]) != (status, severity, message):
                bits |= mapping.set_alarm(store, 0, self.whole.reading(raw))  # type: ignore[union-attr]
            store[at + 4] = seconds + EPOCH_S
            store[at + 5] = nanoseconds
            store[at + 6] = tag if tag < 0x80000000 else user_tag(tag)
        self._store = store
        update = Update(mapping.type, store, bits)
        for subscription in self.subscriptions:
            subscription.post(update)

    def post(self, reading: Reading) -> None:
        """Tell all clients of a new value."""
        mapping = self.pv.mapping
        value, status, severity, message, seconds, nanoseconds, tag = reading
        store = self._store.copy()
        store[mapping.value] = value
        bits = mapping.value_bits | mapping.time_bits
        at = self._meta
        if self._tells_alarm:
            alarm = (status, severity, message)
            if alarm != self._alarm:
                self._alarm = alarm
                store[at] = severity
                store[at + 1] = ALARM_STATUS[status] if status < len(ALARM_STATUS) else alarm_status(status)
                store[at + 2] = alarm_message(status, message)
                bits |= mapping.alarm_bits
        store[at + 4] = seconds
        store[at + 5] = nanoseconds
        store[at + 6] = tag if tag < 0x80000000 else ((tag + 0x80000000) & 0xFFFFFFFF) - 0x80000000
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


def property_subscription(pv: RecordPV) -> dbcore.Subscription:
    """Follow the properties of a record."""
    return pv.stream.hub.subscribe(pv.channel, DBE_PROPERTY, PropertySink(pv))
