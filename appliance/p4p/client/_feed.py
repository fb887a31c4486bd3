"""The updates of a subscription on their way from the event loop to whoever reads them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Any, Protocol
from weakref import ReferenceType, ref

from appliance.client.context import DEFAULT_QUEUE_SIZE, Context
from appliance.client.crowd import REST_S
from appliance.client.link import ServerLink
from appliance.client.monitor import _END, FLAPS, Monitor
from appliance.client.monitor import Disconnected as Lost
from appliance.client.paced import Pace, Paced
from appliance.errors import ChannelClosedError
from appliance.p4p._errors import Disconnected, Finished, RemoteError
from appliance.p4p.client._requests import Request
from appliance.pvdata.pvrequest import truth
from appliance.pvdata.value import Value as NativeValue

__all__ = ["Feed", "Reader"]

Soon = Callable[..., object]
"""Calls a function on the event loop, soon."""


class Reader(Protocol):
    """Reads a feed."""

    def _event(self) -> None:
        """Note that there is something to read; called on the event loop, and again only after all was read."""


class Feed:
    """A queue with a bound. A reader that is too slow loses values, but never the latest one.

    It does not keep its reader alive: a program that drops its subscription ends it.

    Args:
        reader: Is told when something waits.
        name: The PV's name.
        request: The pvRequest; ``queueSize`` and ``pipeline`` have effect here.
        soon: Calls a function on the event loop.
        rate: Updates per second at most; None for all.
    """

    __slots__ = (
        "__weakref__",
        "_credit",
        "_items",
        "_limit",
        "_lock",
        "_monitor",
        "_rate",
        "_reader",
        "_size",
        "_soon",
        "_stale",
        "_told",
        "is_open",
        "name",
        "request",
    )

    def __init__(
        self, reader: Reader, name: str, request: Request, soon: Soon, rate: float | None = None
    ) -> None:
        self._reader: ReferenceType[Reader] = ref(reader)
        self.name = name
        self.request = request
        self._soon = soon
        size = request.options.get("queueSize", "")
        self._size = max(2, int(size) if size.isdecimal() else DEFAULT_QUEUE_SIZE)
        self._rate = rate
        self._limit = self._size if rate is None else 1
        """Values that wait for the reader. With a rate it is one: a reader that was late must not get several at once."""
        self._credit = truth(request.options.get("pipeline")) is True
        self._items: deque[NativeValue | Exception] = deque()
        self._lock = Lock()
        self._told = False
        self._stale = 0
        """Values in the queue from an earlier connection; the present one gets no credit for them."""
        self._monitor: _Monitor | None = None
        self.is_open = True

    # -- on the event loop ---------------------------------------------------------------------------

    def begin(self, native: Context) -> None:
        """Subscribe."""
        if not self.is_open:
            return
        try:
            channel = native.channel(self.name)
        except ChannelClosedError:
            return  # the Context was closed meanwhile
        request, size, credit, rate = self.request.value, self._size, self._credit, self._rate
        self._monitor = (
            _Monitor(self, channel, request, size, pipeline=credit)
            if rate is None
            else _PacedMonitor(self, channel, request, size, pipeline=credit, rate=rate)
        )
        channel.add(self._monitor)

    def add(self, item: NativeValue | Exception) -> None:
        """Queue an update or an event, and tell the reader."""
        with self._lock:
            items = self._items
            if not self.is_open:
                return
            if (
                len(items) >= self._limit
                and type(item) is NativeValue
                and type(last := items[-1]) is NativeValue
                and last.type == item.type
            ):
                item.changed |= last.changed
                items[-1] = item
                monitor = self._monitor
                if monitor is not None:
                    monitor.merged()
                return
            if len(items) >= self._limit + FLAPS:
                items.popleft()
            items.append(item)
            if self._told:
                return
            self._told = True
        reader = self._reader()
        if reader is not None:
            reader._event()

    def connection_began(self) -> None:
        """Note that what is in the queue is of an earlier connection."""
        with self._lock:
            self._stale = sum(type(item) is NativeValue for item in self._items)

    def _end(self) -> None:
        if self._monitor is not None:
            self._monitor.close()

    def _took(self) -> None:
        if self._monitor is not None and self._monitor.operation is not None:
            self._monitor._count()

    # -- the reader ----------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._items

    def pop(self) -> NativeValue | Exception | None:
        """Return what waits longest; None if nothing waits, and then the reader is told of what comes."""
        with self._lock:
            if not self._items:
                self._told = False
                return None
            item = self._items.popleft()
            if not self._credit or type(item) is not NativeValue:
                return item
            if self._stale:
                self._stale -= 1
                return item
        self._soon(self._took)
        return item

    def close(self) -> None:
        """End the subscription; nothing is delivered any more."""
        with self._lock:
            was_open, self.is_open = self.is_open, False
            self._items.clear()
        if was_open:
            self._soon(self._end)


class _Monitor(Monitor[Any]):
    """A native subscription that fills a feed."""

    __slots__ = ("_feed", "_why_lost")

    def __init__(self, feed: Feed, channel: Any, request: NativeValue, size: int, *, pipeline: bool) -> None:
        super().__init__(
            channel, request, queue_size=size, pipeline=pipeline, notify=True, on_update=self._event_came
        )
        self._feed = feed
        self._why_lost: str | None = None
        """Why the channel was lost, if that was told and nothing came since. The same is not told for each attempt."""

    def start(self) -> None:
        """Begin the subscription on the server."""
        if self.pipeline:
            self._feed.connection_began()
        super().start()

    def update(self, bits: int, store: list[Any], overrun: int, size: int = 0) -> None:
        """Queue an update; with ``pipeline`` the server gets its credit when the reader has taken it."""
        operation = self.operation
        assert operation is not None
        kind = operation.type
        assert kind is not None
        self._why_lost = None
        self._feed.add(NativeValue.from_store(kind, store, bits))

    def merged(self) -> None:
        """Read nothing of this server for a moment: the readers need the time, and what came would only be merged."""
        link = self.channel.link
        if isinstance(link, ServerLink) and link.stream is not None:
            link.stream.rest(REST_S)

    def _event_came(self, item: Any) -> None:
        if type(item) is Lost:
            if item.why != self._why_lost:
                self._why_lost = item.why
                self._feed.add(Disconnected(item.why))
        elif item is _END:
            self._feed.add(Finished())
        elif isinstance(item, Exception) and not isinstance(item, ChannelClosedError):
            self._feed.add(RemoteError(str(item).removeprefix(f"{self.channel.name}: ")))


class _PacedMonitor(Paced[Any], _Monitor):
    """A native subscription that fills a feed no faster than it should."""

    __slots__ = ("_pace",)

    def __init__(
        self, feed: Feed, channel: Any, request: NativeValue, size: int, *, pipeline: bool, rate: float
    ) -> None:
        super().__init__(feed, channel, request, size, pipeline=pipeline)
        self._pace = Pace(channel.end.clock, rate, feed.add)

    def merged(self) -> None:
        """Grant the server another update, for the one that the reader will not take."""
        self._merged()
