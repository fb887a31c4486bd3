"""Monitors of single records: one event makes one update for all clients of the same record.

A batch of events is read with one release of the GIL per thousand records; each change becomes one Update that is
encoded once and shared by all clients with the same request and byte order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Self, TypeVar

from appliance.errors import OperationError
from appliance.ioc import dbcore
from appliance.ioc.behind import Subscriber, Watched, Watcher
from appliance.ioc.dbcore import DBE_ALARM, DBE_ARCHIVE, DBE_VALUE, Reading
from appliance.ioc.event_stream import EventSink, EventStream
from appliance.ioc.record import Record
from appliance.server.operation import Update

__all__ = ["DEFAULT_EVENTS", "Feed", "PropertySink", "event_mask", "is_same", "log_unread", "read_each"]

_log: Final = logging.getLogger(__name__)
DEFAULT_EVENTS: Final = DBE_VALUE | DBE_ALARM
_ReaderT = TypeVar("_ReaderT")
_ReadingT = TypeVar("_ReadingT")
_NAMES: Final = (("VALUE", DBE_VALUE), ("ARCHIVE", DBE_ARCHIVE), ("ALARM", DBE_ALARM))


def event_mask(text: str | None) -> tuple[int, str]:
    """Read ``record._options.DBE`` (names or a number); return the mask and a complaint for the client."""
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


def read_each(
    read: Callable[[Sequence[_ReaderT]], list[_ReadingT]], readers: Sequence[_ReaderT]
) -> list[_ReadingT | None]:
    """Read many records together, or one by one if EPICS cannot read all of them; None stands for what it cannot read."""
    found: list[_ReadingT | None] = []
    try:
        found.extend(read(readers))
    except OperationError:
        for reader in readers:
            try:
                found.extend(read([reader]))
            except OperationError as error:
                log_unread(error)
                found.append(None)
    return found


def log_unread(error: OperationError) -> None:
    """Log that EPICS could not read a record after an event: its clients keep their last value."""
    _log.warning("%s", error)


def is_same(one: Reading, other: Reading) -> bool:
    """Whether two readings are of one change: the same value with the same time and alarm."""
    # The time tells nearly always.
    if one.nanoseconds != other.nanoseconds or one[1:] != other[1:]:
        return False
    value, other_value = one.value, other.value
    if hasattr(value, "shape"):
        return bool(value.shape == other_value.shape and (value == other_value).all())
    return bool(value == other_value)


class PropertySink(EventSink):
    """Handles changes of a record's properties; the key of the DBE_PROPERTY subscription.

    Args:
        record: the record.
        feeds: the feeds of the record; the caller adds and removes them.

    """

    __slots__ = ("_feeds", "_record")

    def __init__(self, record: Record, feeds: Mapping[int, Feed]) -> None:
        self._record = record
        self._feeds = feeds

    def event(self) -> None:
        """Post the properties to all clients of the record."""
        if not self._feeds:
            return
        properties = self._record.channel.properties()
        for feed in self._feeds.values():
            if not feed.SEES_PROPERTIES:
                feed.post_properties(properties)

    def broken(self, error: Exception) -> None:
        """End the record's clients."""
        for feed in list(self._feeds.values()):
            feed.broken(error)


class Feed(Watched, EventSink):
    """The feed that all clients of one record with the same event mask share.

    Args:
        record: the record.
        stream: the source of its events.
        mask: the events that are reported to clients.
        events: the events to subscribe to, if they differ from ``mask``.

    """

    __slots__ = (
        "_alarm",
        "_backlogs",
        "_event",
        "_has_new",
        "_last",
        "_store",
        "_tells_alarm",
        "channel",
        "mapping",
        "mask",
        "record",
    )
    SEES_PROPERTIES: ClassVar = False
    """Whether its own events also report changes of properties."""
    AT_ONCE: ClassVar = False
    """Whether its events wake the loop themselves."""

    def __init__(self, record: Record, stream: EventStream, mask: int, events: int = 0) -> None:
        super().__init__()
        self.record = record
        self.channel = record.channel
        self.mapping = record.mapping
        self.mask = mask
        self.weight += 8 * self.channel.elements
        self._backlogs = stream.backlogs
        self._tells_alarm = bool(mask & DBE_ALARM)
        self._store: list[Any] = []
        self._has_new = False
        """Whether a client has begun since the last event: that event may be the change that it knows already."""
        self._last: Reading | None = None
        """What the last event told."""
        self._alarm: tuple[int, int, str] | None = None
        self._event: dbcore.EventSubscription | None = stream.hub.subscribe(
            self.channel, events or mask, self, at_once=self.AT_ONCE
        )

    @classmethod
    def post_all(cls, sinks: list[Any]) -> None:
        """Read those that a client waits for, then post."""
        # A client may have left since then, and the channel is closed.
        cls._read_and_post([feed for feed in sinks if feed.is_open and not feed.skips()])

    @classmethod
    def catch_up(cls, feeds: list[Self]) -> None:
        """Read and post what happened while all clients were behind."""
        cls._read_and_post([feed for feed in feeds if feed.is_open])

    @classmethod
    def _read_and_post(cls, feeds: list[Self]) -> None:
        cls._post_each(feeds, read_each(dbcore.get_many, [feed.channel for feed in feeds]))

    @classmethod
    def _post_each(cls, feeds: Iterable[Self], readings: Iterable[Any]) -> None:
        """Let each feed post what was read for it, unless that is None."""
        for feed, reading in zip(feeds, readings, strict=True):
            missed, feed.missed = feed.missed, 0
            try:
                if reading is not None:
                    feed._post_read(reading, several=missed > 1)
            except Exception as error:  # noqa: BLE001 - a defect of one must not take the updates of the others
                feed.broken(error)

    def _post_read(self, reading: Any, *, several: bool) -> None:
        """Post what was read."""
        self.post(reading, several=several)

    def join(self, subscription: Subscriber) -> None:
        """Send a client all fields now, and later the changes."""
        update, reading = self._snapshot()
        watcher = self.watchers[subscription] = self._backlogs.join(self, subscription)
        watcher.known = reading
        self._has_new = True
        subscription.post(update)

    def _snapshot(self) -> tuple[Update, Reading]:
        """Return the present state, and what was read for it."""
        mapping = self.mapping
        store, bits, reading = self.record.read()
        if not self.watchers:
            # The other clients do not know this alarm yet: the next event reports it.
            self._alarm = (reading.status, reading.severity, reading.message)
            self._last = reading
        self._store = store
        if not self._tells_alarm:
            bits &= ~mapping.alarm_bits
        return Update(mapping.type, store, bits), reading

    def leave(self, subscription: Subscriber) -> None:
        """Forget a client."""
        watcher = self.watchers.pop(subscription, None)
        if watcher is not None:
            self._backlogs.leave(watcher)

    @property
    def is_open(self) -> bool:
        """Whether events are wanted."""
        return self._event is not None

    def close(self) -> None:
        """End the events."""
        if self._event is not None:
            self._event.cancel()
            self._event = None

    def update(self, bits: int, overrun: int = 0) -> Update:
        """Make an update of the last reading."""
        return Update(self.mapping.type, self._store, bits, overrun)

    def post(self, reading: Reading, *, several: bool = False) -> None:
        """Tell all clients of a new value.

        The event of a change may come after the value was read for the one before: then it is known already.

        Args:
            reading: the value.
            several: it is not the first one since the last reading.
        """
        if self._last is not None and is_same(self._last, reading):
            return
        self._last = reading
        mapping = self.mapping
        store = self._store.copy()
        bits = mapping.set_value(store, 0, reading.value) | mapping.set_time(store, 0, reading)
        overrun = bits if several else 0
        if self._tells_alarm:
            alarm = (reading.status, reading.severity, reading.message)
            if alarm != self._alarm:
                self._alarm = alarm
                bits |= mapping.set_alarm(store, 0, reading)
        self._store = store
        self._tell_changed(bits, overrun, reading)

    def _tell_changed(self, bits: int, overrun: int, reading: Reading) -> None:
        """Tell of an event, but not those that began after the change and got it with all fields."""
        informed: set[Watcher] = set()
        if self._has_new:
            self._has_new = False
            for watcher in self.watchers.values():
                known, watcher.known = watcher.known, None
                if known is not None and is_same(known, reading):
                    informed.add(watcher)
        self.tell(bits, overrun, informed)

    def post_properties(self, properties: dbcore.Properties) -> None:
        """Tell all clients of new properties."""
        mapping = self.mapping
        store = self._store.copy()
        bits = mapping.set_properties(store, 0, properties)
        self._store = store
        self.tell(bits)

    def event(self) -> None:
        """Post the record's present value."""
        self.post_all([self])

    def __repr__(self) -> str:
        return f"<Feed {self.channel.name} mask={self.mask} {len(self.watchers)} clients>"
