"""Monitors of arrays of numbers: the octets of an update are where EPICS wrote the numbers.

An update of an array is nearly always new numbers and a new time stamp. What a message has before and behind the numbers is
written into the room that their memory has there (:mod:`.dbcore.array_read`), and all clients whose numbers have this
host's byte order get these octets. All other cases (another alarm, a request for some fields only, the other byte order, a slow
client) are handled as in all other feeds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Final, Self, TypeVar

from appliance.epoch import EPICS_EPOCH_S
from appliance.ioc import dbcore
from appliance.ioc.behind import Subscriber
from appliance.ioc.dbcore import ROOM_BEFORE, ArrayReading
from appliance.ioc.event_stream import EventStream
from appliance.ioc.feed import Feed, read_each
from appliance.ioc.mapping import user_tag
from appliance.ioc.record import Record
from appliance.pva.selection import wire_bits
from appliance.pvdata.bitset import encode_bitset
from appliance.pvdata.primitives import encode_size
from appliance.server.operation import Update

__all__ = ["ArrayFeed"]

_BIG: Final = sys.byteorder == "big"
_TIME: Final = Struct("=qii")
_AT_ONCE: Final = 4 << 20
"""Octets of arrays that are in memory before they are posted, if there are several."""


class ArrayFeed(Feed):
    """The feed of a record's array of numbers; all its clients with the same event mask share it."""

    __slots__ = ("_before", "_bits", "_body", "_count", "_marked", "_told", "_unnoted", "reader")
    AT_ONCE = True

    def __init__(self, record: Record, stream: EventStream, mask: int) -> None:
        mapping = record.mapping
        self.reader = dbcore.ArrayReader(record.channel)
        self._bits = mapping.value_bits | mapping.time_bits
        self._marked = encode_bitset(wire_bits(mapping.type, self._bits), _BIG)
        self._count = -1
        self._before = b""
        """What a message has before ``_count`` numbers."""
        self._told: ArrayReading | None = None
        """What the last event told, if it was read here."""
        self._unnoted = False
        """Whether ``_last`` and ``_store`` do not have it yet."""
        self._body: tuple[memoryview, int] | None = None
        """The octets of an update in its memory, and the fields of which they say that earlier values were lost."""
        super().__init__(record, stream, mask)

    @classmethod
    def _read_and_post(cls, feeds: list[Self]) -> None:
        for some in _parts(feeds):
            cls._post_each(some, read_each(dbcore.read_arrays, [feed.reader for feed in some]))

    def _post_read(self, came: ArrayReading, *, several: bool) -> None:
        """Tell all clients of a new array."""
        told = self._told
        raw = came.raw
        if told is None or self._has_new or raw == told.raw or raw[0] != told.raw[0]:
            self._note()
            self._told, self._body = came, None
            self.post(came.reading(), several=several)
            return
        # Another time, and the same alarm.
        self._told, self._body = came, None
        if not self._unnoted:
            self._unnoted = True
            # They must not hold the memory of an old array.
            self._last = None
            self._store = self._store.copy()
            self._store[self.mapping.value] = None
        bits = self._bits
        overrun = bits if several else 0
        self.tell(bits, overrun, octets=lambda: self._octets(came, overrun)[0])

    def _octets(self, came: ArrayReading, overrun: int) -> tuple[memoryview, int]:
        """Write into the memory of an array what a message has before and behind it: once, as it may be sent from then on.

        Returns:
            The octets of an update, and the fields of which they say that earlier values were lost.
        """
        if self._body is None:
            memory, end = came.memory, came.end
            if came.count != self._count:
                self._count = came.count
                self._before = self._marked + encode_size(came.count, _BIG)
            before = self._before
            start = ROOM_BEFORE - len(before)
            memory[start:ROOM_BEFORE] = before
            _, seconds, nanoseconds, tag = came.raw
            _TIME.pack_into(memory, end, seconds + EPICS_EPOCH_S, nanoseconds, user_tag(tag))
            lost = encode_bitset(overrun, _BIG)
            end += _TIME.size
            memory[end : end + len(lost)] = lost
            self._body = memory[start : end + len(lost)].toreadonly(), overrun
        return self._body

    def _note(self) -> None:
        """Note what was told, before something else than the next array needs it."""
        told = self._told
        if not self._unnoted or told is None:
            return
        self._unnoted = False
        reading = self._last = told.reading()
        store = self._store = self._store.copy()
        self.mapping.set_value(store, 0, reading.value)
        self.mapping.set_time(store, 0, reading)

    def update(self, bits: int, overrun: int = 0) -> Update:
        """Make an update of the last reading."""
        self._note()
        update = super().update(bits, overrun)
        told = self._told
        # A client that has begun since then has read another array.
        if bits == self._bits and told is not None and self._store[self.mapping.value] is told.value:
            body, lost = self._octets(told, overrun)
            if lost == overrun:
                update.keep(body, big=_BIG)
        return update

    def join(self, subscription: Subscriber) -> None:
        """Send a client all fields now, and later the changes."""
        self._note()
        if not self.watchers:
            self._told = None
        super().join(subscription)

    def post_properties(self, properties: dbcore.Properties) -> None:
        """Tell all clients of new properties."""
        self._note()
        super().post_properties(properties)

    def close(self) -> None:
        """End the events."""
        super().close()
        dbcore.forget_locks()


_FeedT = TypeVar("_FeedT", bound=ArrayFeed)


def _parts(feeds: Sequence[_FeedT]) -> Iterator[list[_FeedT]]:
    """Divide feeds, so that not too many arrays are in memory before they are posted."""
    some: list[_FeedT] = []
    size = 0
    for feed in feeds:
        size += feed.weight
        if some and size > _AT_ONCE:
            yield some
            some, size = [], feed.weight
        some.append(feed)
    if some:
        yield some
