"""Monitors of a group: its triggers turn events of records into updates, once for all clients."""

from __future__ import annotations

from typing import Any, Final

from appliance.ioc import dbcore
from appliance.ioc.behind import Subscriber
from appliance.ioc.dbcore import DBE_ALARM, DBE_ARCHIVE, DBE_PROPERTY, DBE_VALUE, ManyLock, Reading
from appliance.ioc.event_stream import EventSink, EventStream
from appliance.ioc.feed import is_same
from appliance.ioc.groups.group import RecordGroup
from appliance.ioc.groups.member import Member
from appliance.server.operation import Update

__all__ = ["GroupFeed"]

_QUEUE_SIZE: Final = "record._options.queueSize"


class _ValueSink(EventSink):
    """Handles a new value or alarm of a member: reads the members that it triggers together and posts them."""

    __slots__ = ("_alarm", "_last", "_lock", "_triggered", "feed", "member")

    def __init__(self, feed: GroupFeed, member: Member) -> None:
        self.feed = feed
        self.member = member
        self._triggered = tuple((each, each.channel) for each in member.triggers if each.channel is not None)
        self._lock = ManyLock([channel for _, channel in self._triggered])
        self._alarm: tuple[int, int, str] | None = None
        self._last: list[Reading] = []
        """What the last event told."""

    def prime(self) -> None:
        """Note what the first client is about to get."""
        with self._lock:
            self._last = [channel.get_locked() for _, channel in self._triggered]
        if self.member.channel is not None:
            reading = self.member.channel.get()
            self._alarm = (reading.status, reading.severity, reading.message)

    def event(self) -> None:
        feed = self.feed
        if not feed.subscriptions:
            return
        store = feed.group.copy(feed.store)
        bits = 0
        with self._lock:
            readings = [channel.get_locked() for _, channel in self._triggered]
        last, self._last = self._last, readings
        if self.member in self.member.triggers and last and all(map(is_same, last, readings)):
            return  # the event of a change came after the value was read for the one before
        for (member, _), reading in zip(self._triggered, readings, strict=True):
            changed = True
            if member is self.member:
                # Records post ALARM exactly when the alarm has changed; triggered members always include their alarm.
                alarm = (reading.status, reading.severity, reading.message)
                changed = alarm != self._alarm
                self._alarm = alarm
            bits |= member.fill(store, reading, alarm=changed)
        feed.post(store, bits)

    def broken(self, error: Exception) -> None:
        """End the group's clients."""
        self.feed.broken(error)

    def close(self) -> None:
        """Close the lock."""
        self._lock.close()

    def __repr__(self) -> str:
        return f"<event of {self.feed.group.name}.{self.member.name}>"


class _PropertySink(EventSink):
    """Handles new properties of a member: only they are posted."""

    __slots__ = ("feed", "member")

    def __init__(self, feed: GroupFeed, member: Member) -> None:
        self.feed = feed
        self.member = member

    def event(self) -> None:
        feed = self.feed
        channel = self.member.channel
        if feed.subscriptions and channel is not None:
            store = feed.group.copy(feed.store)
            with channel.locked():
                bits = self.member.fill_properties_locked(store)
            feed.post(store, bits)

    def broken(self, error: Exception) -> None:
        """End the group's clients."""
        self.feed.broken(error)

    def __repr__(self) -> str:
        return f"<properties of {self.feed.group.name}.{self.member.name}>"


class GroupFeed:
    """The feed that all clients of one group share.

    Args:
        group: the group.
        stream: the source of the events of its records.

    """

    __slots__ = ("_events", "_sinks", "group", "store", "subscriptions")

    def __init__(self, group: RecordGroup, stream: EventStream) -> None:
        self.group = group
        self.subscriptions: dict[Subscriber, None] = {}
        self.store: list[Any] = []
        self._events: list[dbcore.EventSubscription] = []
        self._sinks: list[_ValueSink] = []
        hub = stream.hub
        for member in group.members:
            channel = member.channel
            if channel is None:
                continue
            if member.triggers:
                sink = _ValueSink(self, member)
                self._sinks.append(sink)
                mask = DBE_ALARM if member.kind == "meta" else DBE_VALUE | DBE_ALARM | DBE_ARCHIVE
                self._events.append(hub.subscribe(channel, mask, sink))
            if member.kind == "scalar":
                self._events.append(hub.subscribe(channel, DBE_PROPERTY, _PropertySink(self, member)))

    def join(self, subscription: Subscriber) -> None:
        """Send a client all fields now, and later the changes."""
        if not self.subscriptions:
            for sink in self._sinks:
                sink.prime()
        store, bits = self._first_read(subscription)
        self.store = store
        self.subscriptions[subscription] = None
        subscription.post(Update(self.group.type, store, bits))

    def _first_read(self, subscription: Subscriber) -> tuple[list[Any], int]:
        """Return the first update of a new subscriber: all fields, and the agreed options."""
        store, bits = self.group.read(atomic=True)
        number = self.group.type.offsets[_QUEUE_SIZE]
        store[number] = subscription.queue_size
        return store, bits | 1 << number

    def post(self, store: list[Any], bits: int) -> None:
        """Post an update to all clients."""
        self.store = store
        if not bits:
            return
        update = Update(self.group.type, store, bits)
        failed: list[tuple[Subscriber, Exception]] = []
        for subscription in self.subscriptions:
            try:
                subscription.post(update)
            except Exception as error:  # noqa: BLE001 - a defect of one client must not cost the others an update
                failed.append((subscription, error))
        for subscription, why in failed:
            subscription.broken(why)

    def broken(self, error: Exception) -> None:
        """End all clients: a defect has stopped the reading, and they must not take an old value for the newest."""
        for subscription in list(self.subscriptions):
            subscription.broken(error)

    def close(self) -> None:
        """End the events."""
        for event in self._events:
            event.cancel()
        self._events = []
        for sink in self._sinks:
            sink.close()
        self._sinks = []
