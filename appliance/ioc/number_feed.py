"""Monitors of plain numbers, the most frequent updates of an IOC.

An update of a number is nearly always a new value and a new time stamp. Its octets are made directly from
the record's memory, with one ``pack`` for each client, and go to the socket's queue. No Update, no store and no
subscription's queue is involved. All other cases (another alarm, other properties, a request for some fields only, a
slow client) are handled as in all other feeds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from appliance.epoch import EPICS_EPOCH_S
from appliance.errors import OperationError
from appliance.ioc import dbcore
from appliance.ioc.behind import Subscriber, Watcher
from appliance.ioc.dbcore import DBE_PROPERTY
from appliance.ioc.event_stream import EventStream
from appliance.ioc.feed import DEFAULT_EVENTS, Feed, log_unread
from appliance.ioc.mapping import user_tag
from appliance.ioc.record import Record
from appliance.pvdata.types import ScalarType
from appliance.server.operation import PUMP_LIMIT, Pattern, Subscription, Update

if TYPE_CHECKING:
    from appliance.ioc.number_board import Board

__all__ = ["NumberFeed"]

_log: Final = logging.getLogger(__name__)
_MANY: Final = 24
"""Feeds that change together from which a board costs less than handling each alone."""
_FEW: Final = 8
"""Feeds of one board below which handling each alone costs less. It is lower, so that they do not come and go all the time."""
_CLIENTS: Final = 4
"""Clients of one record up to which its feed can be on a board."""
_NEW: Final = object()
"""There is no board of a kind yet; None stands for one that had a defect."""
_MOST: Final = 64
"""Octets of value and time in an update, at most."""


class NumberFeed(Feed):
    """The feed of a record's value that is a plain number; all its clients share it."""

    __slots__ = (
        "_board",
        "_boards",
        "_code",
        "_known",
        "_properties",
        "_raw",
        "_raw_alarm",
        "bits",
        "row",
        "value_code",
        "view",
    )
    SEES_PROPERTIES = True
    IS_TEXT: ClassVar = False
    """Whether values are texts, as octets of EPICS."""

    def __init__(self, record: Record, stream: EventStream) -> None:
        mapping = record.mapping
        kind = mapping.type.leaf_types[mapping.value]
        assert isinstance(kind, ScalarType)
        self.view = dbcore.NumberView(record.channel)
        self.bits = mapping.value_bits | mapping.time_bits
        self._code = self._code_of(kind)
        self.value_code = kind.fmt
        self._boards = stream.boards
        self._board: Board | None = None
        self.row = -1
        """The row of its board."""
        self._raw: dbcore.RawNumber | None = None
        self._raw_alarm = b""
        self._known: tuple[bytes, ...] = ()
        self._properties = dbcore.RawProperties(b"", b"", b"")
        # One subscription for both kinds of events: the difference from the last time shows which kind it was.
        super().__init__(record, stream, DEFAULT_EVENTS, DEFAULT_EVENTS | DBE_PROPERTY)

    def _code_of(self, kind: ScalarType) -> str:
        """Return the types of what is sent: the value, and the time."""
        return kind.fmt + "qii"

    def _note_properties(self) -> None:
        """Take the present properties as those that all clients know."""
        reader = self.record.reader
        assert reader is not None
        self._properties = reader.read_properties()

    def _sender(self, subscription: Subscriber, overrun: int = 0) -> Callable[..., bool] | None:
        """Return the function that sends a client a new value with its time."""
        return subscription.sender(self.bits, self._code, overrun)

    # -- many at once ----------------------------------------------------------------------------------

    @classmethod
    def post_all(cls, sinks: list[Any]) -> None:
        """Handle those that are on boards together, if they are many, and the others one by one."""
        alone: list[NumberFeed] = []
        boards: dict[Board, list[NumberFeed]] = {}
        for feed in sinks:
            if feed._board is None:
                alone.append(feed)
            else:
                boards.setdefault(feed._board, []).append(feed)
        for board, feeds in boards.items():
            if len(feeds) >= min(_FEW, _MANY):
                cls._read_and_post(cls._post_together(board, feeds))
            else:
                for feed in feeds:
                    feed.step_down()
                alone += feeds
        rest = [feed for feed in alone if feed.is_open and not feed.skips()]
        cls._read_and_post(rest)
        if len(sinks) >= _MANY:
            cls._step_up(rest, {board: len(feeds) for board, feeds in boards.items()})

    @classmethod
    def _post_together(cls, board: Board, feeds: list[NumberFeed]) -> list[NumberFeed]:
        """Handle events on a board; return the feeds that have to be handled alone, which are all of them if it has a defect."""
        try:
            return cast("list[NumberFeed]", board.post(feeds))
        except Exception:  # noqa: BLE001 - it costs speed, and no update
            _log.exception("%d records: internal error; from now on each is handled alone", len(feeds))
            boards = feeds[0]._boards
            boards.update((key, None) for key, each in boards.items() if each is board)
            return [feed for feed in feeds if feed._leave(board)]

    def _leave(self, board: Board) -> bool:
        """Leave a board that has a defect: nobody knows what clients were told. Return whether that was possible."""
        try:
            self.step_down()
        except Exception as error:  # noqa: BLE001 - the others must leave it too
            self._board = None
            self.broken(error)
            return False
        self._raw = None
        return True

    @classmethod
    def _step_up(cls, feeds: Sequence[NumberFeed], on_boards: dict[Board, int]) -> None:
        """Let feeds go on boards: those that are many alike, with the ones that changed on the board of their kind."""
        alike: dict[Hashable, list[NumberFeed]] = {}
        now = monotonic()
        for feed in feeds:
            if any(now < watcher.backlog.rests_until for watcher in feed.watchers.values()):
                continue
            alike.setdefault((feed.value_code, feed.view.places), []).append(feed)
        for kind, some in alike.items():
            there = sum(count for board, count in on_boards.items() if board.kind == kind)
            if len(some) + there >= _MANY:
                for feed in some:
                    feed._go_on_board(kind)

    def _go_on_board(self, kind: Hashable) -> None:
        """Go on the board of a kind, if there are only clients that take what comes."""
        watchers = self.watchers
        if self._has_new or self.missed or not 1 <= len(watchers) <= _CLIENTS:
            return
        patterns: set[Pattern | None] = set()
        for watcher in watchers.values():
            subscription = watcher.subscription
            if not isinstance(subscription, Subscription) or subscription.queue or subscription.finishing:
                return
            if watcher.is_marked or watcher.keeps or watcher.send is None or watcher.backlog.is_behind:
                return
            patterns.add(subscription.pattern(self.bits, _MOST))
        pattern = patterns.pop()
        if pattern is None or patterns:
            return
        key = (self.IS_TEXT, kind, pattern)
        board = self._boards.get(key, _NEW)
        if board is None:
            return
        if board is _NEW:
            # numpy comes with the first of many changes: an IOC of a few records is smaller without it.
            from appliance.ioc.number_board import Board

            board = self._boards[key] = Board(self, kind, pattern, _CLIENTS)
        self.row = board.take(self, list(watchers.values()), self._raw, self._known)
        self._board = board

    def step_down(self) -> None:
        """Leave the board, with what clients were told meanwhile."""
        board, self._board = self._board, None
        if board is not None:
            self._raw, _ = board.give_back(self.row)
            self.row = -1

    # -- one by one ------------------------------------------------------------------------------------

    @classmethod
    def _read_and_post(cls, feeds: Sequence[NumberFeed]) -> None:
        for feed, (raw, known) in zip(feeds, dbcore.view_numbers([feed.view for feed in feeds]), strict=True):
            missed, feed.missed = feed.missed, 0
            alarm, seconds, nanoseconds, tag, value = raw
            try:
                if alarm != feed._raw_alarm or known != feed._known or raw == feed._raw or feed._has_new:
                    feed._post_rest(raw, known, several=missed > 1)
                    continue
                feed._raw = raw
                if missed > 1:
                    feed.tell(feed.bits, feed.bits)
                    continue
                seconds += EPICS_EPOCH_S
                if tag > 0x7FFFFFFF:
                    tag = user_tag(tag)
                update: Update | None = None
                for watcher in feed.watchers.values():
                    if watcher.is_marked:
                        watcher.add(feed.bits)
                        continue
                    send = watcher.send
                    if (
                        send is not None
                        and not watcher.backlog.is_behind
                        and send(value, seconds, nanoseconds, tag)
                    ):
                        continue
                    if not watcher.takes:
                        watcher.mark(feed.bits)
                        continue
                    if update is None:
                        update = feed.update(feed.bits)
                    watcher.subscription.post(update)
            except Exception as error:  # noqa: BLE001 - a defect of one must not take the updates of the others
                feed.broken(error)

    def deliver(self, watcher: Watcher, bits: int, overrun: int) -> bool:
        """Send the last values that were read to a client that was marked; return whether there was room."""
        send = watcher.send
        if bits == self.bits and send is not None:
            if overrun:
                if overrun == bits:
                    send = watcher.send_lost
                    if send is None:
                        send = watcher.send_lost = self._sender(watcher.subscription, bits)
                else:
                    send = None
            if send is not None:
                assert self._raw is not None
                _, seconds, nanoseconds, tag, value = self._raw
                if send(value, seconds + EPICS_EPOCH_S, nanoseconds, user_tag(tag)):
                    return True
                if watcher.subscription.outbox.size > PUMP_LIMIT:
                    return False
        return super().deliver(watcher, bits, overrun)

    def update(self, bits: int, overrun: int = 0) -> Update:
        """Make an update with all fields, for clients that cannot get the octets directly."""
        mapping = self.mapping
        assert self._raw is not None
        reading = dbcore.reading_of(self._raw)
        store = self._store.copy()
        mapping.set_value(store, 0, reading.value)
        mapping.set_time(store, 0, reading)
        return Update(mapping.type, store, bits, overrun)

    def _post_rest(self, raw: dbcore.RawNumber, known: tuple[bytes, ...], *, several: bool) -> None:
        """Post another alarm, other properties, or a value that may be known already."""
        alarm, *_ = raw
        last = self._raw
        bits = 0
        reading = dbcore.reading_of(raw)
        if known != self._known or raw == last:
            # An event without a visible change may concern properties that the record's support computes.
            self._known = known
            try:
                bits = self._take_properties()
            except OperationError as error:
                log_unread(error)
            if not bits and raw == last:
                # The event of a change came after the value was read for the one before.
                return
        tells_properties = bool(bits)
        if not bits or raw != last:
            bits |= self.bits
            if alarm != self._raw_alarm:
                self._store = self._store.copy()
                bits |= self.mapping.set_alarm(self._store, 0, reading)
        self._raw, self._raw_alarm = raw, alarm
        overrun = bits & self.bits if several else 0
        if tells_properties:
            self._has_new = False
            self.tell(bits, overrun)
        else:
            self._tell_changed(bits, overrun, reading)

    def _take_properties(self) -> int:
        """Ask EPICS for the properties; return the bits of all of them if one has changed."""
        reader = self.record.reader
        assert reader is not None
        raw = reader.read_properties()
        before, self._properties = self._properties, raw
        if (raw.front, raw.back) == (before.front, before.back):
            return 0
        store = self._store = self._store.copy()
        return self.mapping.set_properties(store, 0, reader.properties(raw))

    # -- clients -------------------------------------------------------------------------------------

    def join(self, subscription: Subscriber) -> None:
        """Send a client all fields now, and later the changes."""
        self.step_down()
        if not self.watchers:
            # Take this before the snapshot: a change in between then differs from it and is posted with the next event.
            # If others watch already, they do not know the new value yet, so nothing is taken before that event.
            self._raw, self._known = self.view.look()
            self._raw_alarm, *_ = self._raw
            self._note_properties()
        super().join(subscription)
        self.watchers[subscription].send = self._sender(subscription)

    def leave(self, subscription: Subscriber) -> None:
        """Forget a client."""
        self.step_down()
        super().leave(subscription)

    def close(self) -> None:
        """End the events."""
        self.step_down()
        super().close()
