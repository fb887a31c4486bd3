"""Many plain numbers or texts that change at once: a few calls of numpy read all of them and make all of their messages.

A feed that has a simple life - its clients take what comes, and want all of it - is on a board: what its clients were told is a
row of a table. The events of hundreds of rows are read together, compared together, and each connection gets one piece of
octets with a message for each of its rows. Whatever is not simple takes the feed off the board: another alarm, other
properties, a client that comes or leaves. Then it is handled alone, as if there were no board, and comes back later.

A connection that is behind has the rows that it waits for in its lane: they are read when there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np

from appliance.epoch import EPICS_EPOCH_S
from appliance.ioc.behind import Watched, Watcher
from appliance.ioc.dbcore.number_rows import Flags, NumberRows, Octets, Rows
from appliance.ioc.dbcore.number_view import NumberView
from appliance.server.channel import ChannelOwner
from appliance.server.operation import PUMP_LIMIT, Pattern, Subscription

__all__ = ["Board"]

_AT_ONCE: Final = 1024
"""Rows that a lane reads and sends together."""
_TIME: Final = [("seconds", "u4"), ("nanoseconds", "u4"), ("tag", "u8")]
_STRING: Final = 39
"""Octets of a text at most."""

_Maker = Callable[[Any, Octets], bytes]


class Member(Protocol):
    """A feed that can be on a board."""

    @property
    def IS_TEXT(self) -> bool:  # noqa: N802 - a class variable
        """Whether its values are texts."""

    @property
    def value_code(self) -> str:
        """The type of a number in its updates, as the module ``struct`` names it."""

    @property
    def view(self) -> NumberView:
        """Where its record lies."""

    @property
    def bits(self) -> int:
        """The fields of a simple update, in leaf form."""

    row: int
    missed: int

    def step_down(self) -> None:
        """Leave the board."""

    @classmethod
    def catch_up(cls, feeds: list[Any]) -> None:
        """Read what was missed, one by one, and tell the clients."""


def _client(watcher: Watcher) -> Subscription:
    """Return the subscription of a row: what only stands for one is never on a board."""
    subscription = watcher.subscription
    assert isinstance(subscription, Subscription)
    return subscription


class Board:
    """The rows of all feeds whose records lie in memory alike and whose updates look alike.

    Args:
        feed: one of them.
        pattern: how an update of it looks.
        clients: the most clients that a feed on the board may have.

    """

    def __init__(self, feed: Member, pattern: Pattern, clients: int) -> None:
        self.rows = NumberRows(feed.view)
        self.clients = clients
        """The most clients of a row."""
        self.pattern = pattern
        self.is_text = feed.IS_TEXT
        self.code = feed.value_code
        count = self.rows.capacity
        self._feeds: list[Member | None] = [None] * count
        # What follows has an entry for each pair of a row and a client: as many to a row as it may have.
        self._lane_of = np.full(count * self.clients, -1, np.int32)
        self._ioid_of = np.zeros(count * self.clients, np.uint32)
        self._waits = np.zeros(count * self.clients, np.bool_)
        """Whether the client has to get the newest value when there is room."""
        self._lost = np.zeros(count * self.clients, np.bool_)
        """Whether more than one change waits."""
        self._lanes: list[_Lane | None] = []
        self._of: dict[ChannelOwner, int] = {}

    # -- feeds -----------------------------------------------------------------------------------------

    def take(self, feed: Member, watchers: Sequence[Watcher], raw: Any, known: Sequence[bytes]) -> int:
        """Give a feed a row; ``raw`` and ``known`` are what its clients know."""
        row = self.rows.add(feed.view)
        if self.rows.capacity > len(self._feeds):
            self._grow()
        self._feeds[row] = feed
        self.rows.note_parts(row, raw, known)
        first = row * self.clients
        for pair, watcher in enumerate(watchers, first):
            self._lane_of[pair] = self._lane(watcher)
            self._ioid_of[pair] = _client(watcher).wire.ioid
        return row

    def _grow(self) -> None:
        self._feeds += [None] * len(self._feeds)
        self._lane_of = np.concatenate([self._lane_of, np.full_like(self._lane_of, -1)])
        for name in ("_ioid_of", "_waits", "_lost"):
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, np.zeros_like(array)]))

    def _lane(self, watcher: Watcher) -> int:
        owner = _client(watcher).channel.owner
        number = self._of.get(owner)
        if number is None:
            if None in self._lanes:
                number = self._lanes.index(None)
            else:
                number = len(self._lanes)
                self._lanes.append(None)
            self._lanes[number] = _Lane(self, number, watcher)
            self._of[owner] = number
        lane = self._lanes[number]
        assert lane is not None
        lane.users += 1
        return number

    def give_back(self, row: int, watchers: Sequence[Watcher]) -> tuple[Any, tuple[bytes, ...]]:
        """Take a feed off; return what its clients were told, and mark those that wait for something."""
        feed = self._feeds[row]
        assert feed is not None
        self._feeds[row] = None
        self.rows.remove(row)
        first = row * self.clients
        for pair, watcher in enumerate(watchers, first):
            number = int(self._lane_of[pair])
            lane = self._lanes[number]
            assert lane is not None
            self._lane_of[pair] = -1
            if self._waits[pair]:
                self._waits[pair] = False
                lane.waiting -= 1
                watcher.mark(feed.bits, feed.bits if self._lost[pair] else 0)
                # Its value has not been read.
                feed.missed = max(feed.missed, 1)
                self._lost[pair] = False
            lane.users -= 1
            if not lane.users:
                # The connection may still pump it, when its number belongs to another one.
                lane.clear()
                self._lanes[number] = None
                del self._of[lane.owner]
        return self.rows.told(row)

    # -- events ----------------------------------------------------------------------------------------

    def post(self, feeds: Sequence[Member]) -> list[Member]:
        """Handle an event of each feed; return those that have to be handled alone, which are off the board now."""
        rows = np.fromiter([feed.row for feed in feeds], np.intp, len(feeds))
        pairs = self._pairs(rows)
        lanes = self._lane_of[pairs]
        behind = [
            number
            for number in np.unique(lanes).tolist()
            if (lane := self._lanes[number]) is not None and not lane.is_ready()
        ]
        if behind:
            late = np.isin(lanes, behind)
            for number in behind:
                self._mark(number, pairs[lanes == number])
            pairs = pairs[~late]
            lanes = lanes[~late]
            rows = np.unique(pairs // self.clients)
            if not len(rows):
                return []
        seen = self.rows.read(rows)
        same, new = self.rows.compare(rows, seen)
        plain = same & new
        self.rows.note(rows, seen, plain)
        self._send(rows, seen, plain, pairs, lanes)
        return self._off(rows, plain)

    def _pairs(self, rows: Rows) -> Rows:
        """Return the pairs of some rows."""
        pairs = (rows[:, None] * self.clients + np.arange(self.clients)).reshape(-1)
        found: Rows = pairs[self._lane_of[pairs] >= 0]
        return found

    def _off(self, rows: Rows, plain: Flags) -> list[Member]:
        """Take the rows off that are not plain."""
        others: list[Member] = []
        for row in rows[~plain].tolist():
            feed = self._feeds[row]
            assert feed is not None
            feed.step_down()
            others.append(feed)
        return others

    def _send(self, rows: Rows, seen: Octets, plain: Flags, pairs: Rows, lanes: Any) -> None:
        """Send the rows that are plain to their clients."""
        where = np.zeros(len(self._feeds), np.intp)
        where[rows] = np.arange(len(rows))
        index = where[pairs // self.clients]
        good = plain[index]
        for number in np.unique(lanes).tolist():
            lane = self._lanes[number]
            assert lane is not None
            chosen = good & (lanes == number)
            lane.send(self._ioid_of[pairs[chosen]], seen[index[chosen]])

    # -- clients that are behind -----------------------------------------------------------------------

    def _mark(self, number: int, pairs: Rows) -> None:
        """Note that a client has to get these when there is room."""
        lane = self._lanes[number]
        assert lane is not None
        Watched.unread += len(pairs)
        waits = self._waits[pairs]
        self._lost[pairs[waits]] = True
        fresh = pairs[~waits]
        if len(fresh):
            self._waits[fresh] = True
            lane.add(fresh)

    def catch_up(self, lane: _Lane, pairs: Rows) -> list[Member]:
        """Send a client the newest values; return the feeds that have to be handled alone."""
        # A feed may have left its row since, and another have taken it: then it does not wait, or waits twice in the lane.
        pairs = np.unique(pairs[self._waits[pairs] & (self._lane_of[pairs] == lane.number)])
        if not len(pairs):
            return []
        rows = pairs // self.clients
        seen = self.rows.read(rows)
        # The value may have been told to another client already; this one waits for it all the same.
        plain, new = self.rows.compare(rows, seen)
        self.rows.note(rows, seen, plain)
        sent = pairs[plain]
        lost = self._lost[sent]
        self._waits[sent] = self._lost[sent] = False
        lane.waiting -= len(sent)
        lane.send(self._ioid_of[sent], seen[plain], lost)
        if (plain & new).any():
            self._tell_others(lane, rows[plain & new], seen[plain & new])
        return self._off(rows, plain)

    def _tell_others(self, lane: _Lane, rows: Rows, seen: Octets) -> None:
        """Tell the other clients of what was read for one: when its event comes, it will be no news any more."""
        pairs = self._pairs(rows)
        pairs = pairs[(self._lane_of[pairs] != lane.number) & ~self._waits[pairs]]
        lanes = self._lane_of[pairs]
        for number in np.unique(lanes).tolist():
            other = self._lanes[number]
            assert other is not None
            if not other.is_ready():
                self._mark(number, pairs[lanes == number])
                pairs, lanes = pairs[lanes != number], lanes[lanes != number]
        if len(pairs):
            self._send(rows, seen, np.ones(len(rows), np.bool_), pairs, lanes)


class _Lane:
    """All clients of one connection that are on a board."""

    __slots__ = (
        "_board",
        "_client",
        "_makers",
        "_queue",
        "_watcher",
        "is_dirty",
        "number",
        "owner",
        "users",
        "waiting",
    )

    def __init__(self, board: Board, number: int, watcher: Watcher) -> None:
        self._board = board
        self._watcher = watcher
        self.number = number
        self._client = _client(watcher)
        self.owner = self._client.channel.owner
        self.users = 0
        self._queue: list[Rows] = []
        self.waiting = 0
        """How many rows wait for room."""
        self.is_dirty = False
        self._makers: dict[bool, _Maker] = {}

    def is_ready(self) -> bool:
        """Whether an update may be sent at once."""
        stream = self.owner.stream
        return (
            not self.waiting
            and not self._watcher.backlog.is_behind
            and self.owner.held is None
            and stream.writable
            and self._client.wire.outbox.size <= PUMP_LIMIT
        )

    def add(self, pairs: Rows) -> None:
        """Put rows at the end of those that wait."""
        self._queue.append(pairs)
        self.waiting += len(pairs)
        if not self.is_dirty:
            self.is_dirty = True
            self.owner.dirty(self)

    def clear(self) -> None:
        """Forget what waits."""
        self._queue.clear()

    def pump(self) -> bool:
        """Send what waits longest; return whether there is more."""
        queue, size = self._queue, 0
        batch: list[Rows] = []
        while queue and size < _AT_ONCE:
            part = queue.pop(0)
            room = _AT_ONCE - size
            if len(part) > room:
                queue.insert(0, part[room:])
                part = part[:room]
            batch.append(part)
            size += len(part)
        if batch:
            others = self._board.catch_up(self, np.concatenate(batch))
            if others:
                type(others[0]).catch_up(others)
        if queue:
            return True
        self.is_dirty = False
        return False

    def send(self, ioids: Any, seen: Octets, lost: Any = None) -> None:
        """Send an update for each row of ``seen``."""
        if lost is not None and lost.any():
            self._put(ioids[~lost], seen[~lost], lost=False)
            self._put(ioids[lost], seen[lost], lost=True)
        else:
            self._put(ioids, seen, lost=False)

    def _put(self, ioids: Any, seen: Octets, *, lost: bool) -> None:
        if not len(ioids):
            return
        make = self._makers.get(lost)
        if make is None:
            make = self._makers[lost] = _maker(self._board, lost=lost)
        octets = make(ioids, seen)
        outbox = self._client.wire.outbox
        outbox.chunks.append(octets)
        outbox.size += len(octets)
        stream = self.owner.stream
        if not stream.flush_pending:
            stream.schedule_flush()


def _maker(board: Board, *, lost: bool) -> _Maker:
    """Return the function that makes the messages for some rows; ``lost`` if earlier changes of them were left out."""
    pattern = board.pattern
    order = ">" if pattern.big else "<"
    tail = pattern.lost if lost else pattern.tail
    text = [("length", "u1"), ("text", f"V{_STRING}")]
    value = text if board.is_text else [("value", order + board.code)]
    kind = np.dtype(
        [
            ("start", "V4"),
            ("size", order + "u4"),
            ("ioid", order + "u4"),
            ("command", "u1"),
            ("marked", f"V{len(pattern.marked)}"),
            *value,
            ("seconds", order + "i8"),
            ("nanoseconds", order + "i4"),
            ("tag", order + "i4"),
            ("tail", f"V{len(tail)}"),
        ]
    )
    # Octets of the payload: all but the header.
    size = kind.itemsize - 8
    first, last = board.rows.value_at, board.rows.common_size
    alarm = board.rows.alarm_size
    time = np.dtype(_TIME)
    stored = np.dtype(f"V{_STRING}" if board.is_text else board.rows.value_code)
    columns = np.arange(kind.itemsize)
    text_at = kind.fields["text"][1] if board.is_text and kind.fields is not None else 0

    def make(ioids: Any, seen: Octets) -> bytes:
        out = np.empty(len(ioids), kind)
        out["start"] = np.void(pattern.start)
        out["ioid"] = ioids
        out["command"] = 0
        out["marked"] = np.void(pattern.marked)
        out["tail"] = np.void(tail)
        stamp = np.ascontiguousarray(seen[:, alarm:first]).view(time)[:, 0]
        out["seconds"] = stamp["seconds"].astype(np.int64) + EPICS_EPOCH_S
        out["nanoseconds"] = stamp["nanoseconds"].view(np.int32)
        out["tag"] = stamp["tag"].astype(np.uint32).view(np.int32)
        values = np.ascontiguousarray(seen[:, first:last])
        if not board.is_text:
            out["size"] = size
            out["value"] = values.view(stored)[:, 0]
            return out.tobytes()
        ends = values == 0
        lengths = np.where(ends.any(1), ends.argmax(1), _STRING)
        out["size"] = size - _STRING + lengths
        out["length"] = lengths
        out["text"] = values.view(stored)[:, 0]
        # Without the octets behind each text.
        octets = out.view(np.uint8).reshape(len(out), kind.itemsize)
        return octets[(columns < text_at + lengths[:, None]) | (columns >= text_at + _STRING)].tobytes()

    return make
