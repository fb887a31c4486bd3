"""Clients that are behind: an event only marks the record, and its newest value is read when there is room for it.

Without this each event of a slow client would be read, made into an Update and merged into a queue, for nothing: the next
event replaces it. A marked record costs almost nothing, however often it changes. When the connection accepts more, the marked
records are read together, with their latest values, and sent in the order in which they were marked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Sized
from itertools import islice
from typing import Any, ClassVar, Final, Protocol, Self

from appliance.ioc.dbcore import Reading
from appliance.pvdata.primitives import Buffer
from appliance.server.operation import PUMP_LIMIT, Update

__all__ = [
    "Backlog",
    "Backlogs",
    "Connection",
    "OneOf",
    "Pumped",
    "Subscriber",
    "Waiting",
    "Watched",
    "Watcher",
    "end_all",
]

_BIG: Final = sys.byteorder == "big"
_AT_ONCE: Final = 512
"""Marked records that are read and sent together, before the loop serves others."""
_WEIGHT: Final = 256 * 1024
"""Octets of values that are read together, if there are large ones."""


class Pumped(Protocol):
    """What a connection calls when it accepts more."""

    def pump(self) -> bool:
        """Send; return whether there is more."""

    def broken(self, error: Exception) -> None:
        """End: a defect has stopped `pump`."""


class Connection(Protocol):
    """The connection of a subscriber, as a backlog needs it."""

    def dirty(self, waiting: Pumped) -> None:
        """Pump ``waiting`` soon."""


class OneOf(Protocol):
    """The channel of a subscriber."""

    @property
    def owner(self) -> Connection:
        """The connection to which it belongs."""


class Waiting(Protocol):
    """What waits to be sent on a connection."""

    size: int
    """Octets."""


class Subscriber(Protocol):
    """Who gets updates from a feed: :class:`~appliance.server.operation.Subscription` of a client, or what stands for one."""

    running: bool
    """Whether updates are wanted."""
    state: Any
    """The events that it wants, for a record."""
    on_room: Callable[[], None] | None
    """Called when it accepts more."""

    @property
    def channel(self) -> OneOf:
        """Its channel."""

    @property
    def queue(self) -> Sized:
        """Updates that wait to be sent."""

    @property
    def queue_size(self) -> int:
        """The most updates that wait."""

    @property
    def keeps(self) -> bool:
        """Whether updates are kept in a queue before they are merged."""

    @property
    def has_room(self) -> bool:
        """Whether an update finds a place."""

    @property
    def may_send(self) -> bool:
        """Whether the client accepts an update at present."""

    @property
    def outbox(self) -> Waiting:
        """What waits on its connection."""

    def post(self, update: Update) -> None:
        """Take an update."""

    def pump(self) -> bool:
        """Send what waits; return whether the rest waits only for room."""

    def broken(self, error: Exception) -> None:
        """End with an error: a defect has stopped its updates."""

    def send_octets(self, bits: int, body: Buffer, *, big: bool) -> bool:
        """Send an update that is serialised already; return whether that was possible."""

    def sender(self, bits: int, code: str, overrun: int = 0) -> Callable[..., bool] | None:
        """Return a function that sends the same few numbers again and again; None if there is none."""


class Watcher:
    """One client of a feed.

    Args:
        feed: the feed.
        subscription: the client's subscription.
        backlog: the marks of its connection.

    """

    __slots__ = (
        "backlog",
        "bits",
        "feed",
        "is_marked",
        "keeps",
        "known",
        "overrun",
        "send",
        "send_lost",
        "subscription",
    )

    def __init__(self, feed: Watched, subscription: Subscriber, backlog: Backlog) -> None:
        self.feed = feed
        self.subscription = subscription
        self.backlog = backlog
        self.is_marked = False
        """Whether the client will get the newest value when there is room."""
        self.bits = 0
        """The fields of the events that it has not got."""
        self.overrun = 0
        """Those of them that changed more than once."""
        self.keeps = subscription.keeps
        """Whether the client asked for a queue: it is filled before anything is only marked."""
        self.known: Reading | None = None
        """What was read for its first update, until the next event."""
        self.send: Callable[..., bool] | None = None
        """Sends a simple update, if there is such a function."""
        self.send_lost: Callable[..., bool] | None = None
        """The same for an update whose fields have changed more than once."""

    @property
    def takes(self) -> bool:
        """Whether an Update may be posted; otherwise mark."""
        return (self.keeps or not self.backlog.is_behind) and self.subscription.has_room

    def mark(self, bits: int, overrun: int = 0) -> None:
        """Note that the client has to get these fields; it is not marked yet."""
        self.is_marked = True
        self.bits = bits
        self.overrun = overrun
        self.feed.marked += 1
        self.backlog.add(self)

    def add(self, bits: int, overrun: int = 0) -> None:
        """Note further fields of a client that is marked."""
        self.overrun |= overrun | (self.bits & bits)
        self.bits |= bits

    def unmark(self) -> None:
        """Forget what was noted."""
        if self.is_marked:
            self.is_marked = False
            self.feed.marked -= 1
            self.backlog.waiting.pop(self, None)
            self.subscription.on_room = None

    def resume(self) -> None:
        """Wait for the connection again: the client accepts more."""
        self.subscription.on_room = None
        if self.is_marked:
            self.backlog.add(self)

    def __repr__(self) -> str:
        return f"<Watcher of {self.feed!r}, {'marked' if self.is_marked else 'up to date'}>"


def end_all(failed: Iterable[tuple[Watcher, Exception]]) -> None:
    """End the subscriptions of clients that could not be told something, each with its error."""
    for watcher, error in failed:
        watcher.unmark()
        watcher.subscription.broken(error)


class Watched:
    """What several clients watch: the base of feeds.

    Attributes:
        watchers: the clients.
        marked: how many of them are marked.
        missed: events since the last reading.
        weight: octets of one value, more or less.
    """

    __slots__ = ("marked", "missed", "watchers", "weight")
    unread: ClassVar[int] = 0
    """Events that were only counted, of all feeds."""

    def __init__(self) -> None:
        self.watchers: dict[Subscriber, Watcher] = {}
        self.marked = 0
        self.missed = 0
        self.weight = 64

    def skips(self) -> bool:
        """Count an event; return whether all clients are behind, so that nothing must be read for it."""
        self.missed += 1
        watchers = self.watchers
        if self.marked != len(watchers):
            for watcher in watchers.values():
                if not watcher.is_marked and (watcher.keeps or not watcher.backlog.is_behind):
                    return False
            for watcher in watchers.values():
                if not watcher.is_marked:
                    watcher.mark(0)
        Watched.unread += 1
        return True

    def tell(
        self,
        bits: int,
        overrun: int = 0,
        informed: Collection[Watcher] = (),
        octets: Callable[[], Buffer] | None = None,
    ) -> None:
        """Tell each client of new values of these fields: now, or when there is room.

        Args:
            bits: the fields.
            overrun: those of them that changed more than once.
            informed: clients that know it already.
            octets: makes the update in this host's byte order, or returns what it has made, for clients to which it can be sent as it is.
        """
        update: Update | None = None
        failed: list[tuple[Watcher, Exception]] = []
        for watcher in self.watchers.values():
            if watcher in informed:
                continue
            try:
                if watcher.is_marked:
                    watcher.add(bits, overrun)
                elif (
                    octets is not None
                    and (watcher.keeps or not watcher.backlog.is_behind)
                    and watcher.subscription.send_octets(bits, octets(), big=_BIG)
                ):
                    continue
                elif watcher.takes:
                    if update is None:
                        update = self.update(bits, overrun)
                    watcher.subscription.post(update)
                else:
                    watcher.mark(bits, overrun)
            except Exception as error:  # noqa: BLE001 - a defect of one client must not end the others
                failed.append((watcher, error))
        end_all(failed)

    def update(self, bits: int, overrun: int = 0) -> Update:
        """Make an update of the last values that were read."""
        raise NotImplementedError

    def deliver(self, watcher: Watcher, bits: int, overrun: int) -> bool:
        """Send the last values that were read to a client that was marked; return whether there was room."""
        watcher.subscription.post(self.update(bits, overrun))
        return True

    @classmethod
    def catch_up(cls, feeds: list[Self]) -> None:
        """Read what was missed, and tell the clients."""
        raise NotImplementedError

    def broken(self, error: Exception) -> None:
        """End all clients: a defect has stopped the reading, and they must not take an old value for the newest."""
        for subscription in list(self.watchers):
            subscription.broken(error)


class Backlog:
    """The marks of one connection. The connection pumps it when it accepts more.

    Args:
        owner: the connection.

    """

    __slots__ = ("_owner", "_waits", "is_behind", "rests_until", "users", "waiting")

    def __init__(self, owner: Connection) -> None:
        self._owner = owner
        self._waits = False
        self.users = 0
        self.is_behind = False
        """Whether something is marked: what changes now has to wait for its turn."""
        self.rests_until = 0.0
        """Feeds of the connection do not go on boards before this time (of the monotonic clock): it is busy with other things."""
        self.waiting: dict[Watcher, None] = {}

    def add(self, watcher: Watcher) -> None:
        """Put a marked client at the end."""
        self.waiting[watcher] = None
        self.is_behind = True
        if not self._waits:
            self._waits = True
            self._owner.dirty(self)

    def pump(self) -> bool:
        """Send what was marked first; return whether there is more."""
        batch = self._batch()
        missed: dict[type[Any], dict[Watched, None]] = {}
        for watcher in batch:
            feed = watcher.feed
            if feed.missed:
                missed.setdefault(type(feed), {})[feed] = None
        for kind, feeds in missed.items():
            self._catch_up(kind, list(feeds))
        outbox = batch[0].subscription.outbox if batch else None
        for watcher in batch:
            if outbox is not None and outbox.size > PUMP_LIMIT:
                break
            try:
                if not self._send(watcher):
                    break
            except Exception as error:  # noqa: BLE001 - a defect of one must not keep the others from sending
                watcher.unmark()
                watcher.subscription.broken(error)
        if self.waiting:
            return True
        self.is_behind = self._waits = False
        return False

    def broken(self, error: Exception) -> None:
        """End all that wait here: a defect has stopped `pump`."""
        self.is_behind = self._waits = False
        for watcher in list(self.waiting):
            watcher.unmark()
            watcher.subscription.broken(error)

    def _catch_up(self, kind: type[Watched], feeds: list[Watched]) -> None:
        try:
            kind.catch_up(feeds)
        except Exception:  # noqa: BLE001 - a defect of one must not keep the others from reading
            for feed in feeds:
                try:
                    kind.catch_up([feed])
                except Exception as error:  # noqa: BLE001 - see above
                    feed.broken(error)

    def _batch(self) -> list[Watcher]:
        batch = list(islice(self.waiting, _AT_ONCE))
        weight = 0
        for index, watcher in enumerate(batch):
            weight += watcher.feed.weight
            if weight > _WEIGHT:
                return batch[: index + 1]
        return batch

    def _send(self, watcher: Watcher) -> bool:
        """Send what one client waits for; return whether there is room for others."""
        if not watcher.is_marked:
            return True
        subscription = watcher.subscription
        if subscription.queue and subscription.pump():
            return False
        if subscription.queue or not subscription.may_send:
            # The client itself accepts nothing at present. Others must not wait for it.
            del self.waiting[watcher]
            subscription.on_room = watcher.resume
            return True
        bits, overrun = watcher.bits, watcher.overrun
        watcher.unmark()
        if bits and not watcher.feed.deliver(watcher, bits, overrun):
            watcher.mark(bits, overrun)
            return False
        return True

    def __repr__(self) -> str:
        return f"<Backlog of {self._owner!r}, {len(self.waiting)} marked>"


class Backlogs:
    """The backlogs of all connections that watch something."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        self._of: dict[Connection, Backlog] = {}

    def join(self, feed: Watched, subscription: Subscriber) -> Watcher:
        """Make a client of a feed."""
        owner = subscription.channel.owner
        backlog = self._of.get(owner)
        if backlog is None:
            backlog = self._of[owner] = Backlog(owner)
        backlog.users += 1
        return Watcher(feed, subscription, backlog)

    def leave(self, watcher: Watcher) -> None:
        """Forget a client, and its connection with its last one."""
        watcher.unmark()
        backlog = watcher.backlog
        backlog.users -= 1
        if not backlog.users:
            self._of.pop(watcher.subscription.channel.owner, None)

    def __len__(self) -> int:
        return len(self._of)
