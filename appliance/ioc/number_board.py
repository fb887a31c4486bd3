"""Many plain numbers or texts that change at once: a few calls of numpy read all of them and make all of their messages.

A feed that has a simple life - its clients take what comes, and want all of it - is on a board: what its clients were told is a
row of a table. The events of hundreds of rows are read together, compared together, and each connection gets one piece of
octets with a message for each of its rows. Whatever is not simple takes the feed off the board: another alarm, other
properties, a client that comes or leaves, a connection that does not take more at once or has a request that stops updates. Then
the feed is handled alone, as if there were no board, and comes back later. So nothing ever waits here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from time import monotonic
from typing import Any, Final, Protocol

import numpy as np

from appliance.epoch import EPICS_EPOCH_S
from appliance.ioc.behind import Watcher
from appliance.ioc.dbcore.number_rows import Flags, NumberRows, Octets, Rows
from appliance.ioc.dbcore.number_view import NumberView
from appliance.pva.server_operation import stops_updates
from appliance.server.channel import ChannelOwner
from appliance.server.operation import PUMP_LIMIT, Pattern, Subscription

__all__ = ["Board"]

_TIME: Final = [("seconds", "u4"), ("nanoseconds", "u4"), ("tag", "u8")]
REST_S: Final = 0.3
"""Seconds for which a connection that had something else to do gets no new rows: some periods of the fastest records."""
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

    def step_down(self) -> None:
        """Leave the board."""


def _client(watcher: Watcher) -> Subscription:
    """Return the subscription of a row: what only stands for one is never on a board."""
    subscription = watcher.subscription
    assert isinstance(subscription, Subscription)
    return subscription


class Board:
    """The rows of all feeds whose records lie in memory alike and whose updates look alike.

    Args:
        feed: one of them.
        kind: what they have in common.
        pattern: how an update of it looks.
        clients: the most clients that a feed on the board may have.

    """

    def __init__(self, feed: Member, kind: Hashable, pattern: Pattern, clients: int) -> None:
        self.kind = kind
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

    def _rest(self, late: Sequence[int]) -> None:
        """Give connections that have something else to do no new rows for a while: they will probably have so again.

        A client that makes many requests beside its subscriptions would take its feeds off the board with each of them, and each
        such change costs more than handling an update alone.
        """
        until = monotonic() + REST_S
        for number in late:
            lane = self._lanes[number]
            assert lane is not None
            lane.rest(until)

    def _grow(self) -> None:
        self._feeds += [None] * len(self._feeds)
        self._lane_of = np.concatenate([self._lane_of, np.full_like(self._lane_of, -1)])
        self._ioid_of = np.concatenate([self._ioid_of, np.zeros_like(self._ioid_of)])

    def _lane(self, watcher: Watcher) -> int:
        owner = _client(watcher).channel.owner
        number = self._of.get(owner)
        if number is None:
            if None in self._lanes:
                number = self._lanes.index(None)
            else:
                number = len(self._lanes)
                self._lanes.append(None)
            self._lanes[number] = _Lane(self, watcher)
            self._of[owner] = number
        lane = self._lanes[number]
        assert lane is not None
        lane.users += 1
        return number

    def give_back(self, row: int) -> tuple[Any, tuple[bytes, ...]]:
        """Take a feed off; return what its clients were told."""
        assert self._feeds[row] is not None
        self._feeds[row] = None
        self.rows.remove(row)
        for pair in range(row * self.clients, (row + 1) * self.clients):
            number = int(self._lane_of[pair])
            if number < 0:
                continue
            self._lane_of[pair] = -1
            lane = self._lanes[number]
            assert lane is not None
            lane.users -= 1
            if not lane.users:
                self._lanes[number] = None
                del self._of[lane.owner]
        return self.rows.told(row)

    # -- events ----------------------------------------------------------------------------------------

    def post(self, feeds: Sequence[Member]) -> list[Member]:
        """Handle an event of each feed; return those that have to be handled alone, which are off the board now."""
        rows = np.fromiter([feed.row for feed in feeds], np.intp, len(feeds))
        others: list[Member] = []
        lanes = self._lane_of[self._pairs(rows)]
        late = [
            number
            for number in np.unique(lanes).tolist()
            if (lane := self._lanes[number]) is not None and not lane.is_ready()
        ]
        if late:
            self._rest(late)
            of_rows = self._lane_of.reshape(-1, self.clients)[rows]
            waits: Flags = np.asarray(np.isin(of_rows, late).any(1))
            others = self._off(rows, ~waits)
            rows = rows[~waits]
            if not len(rows):
                return others
        pairs = self._pairs(rows)
        seen = self.rows.read(rows)
        same, new = self.rows.compare(rows, seen)
        plain = same & new
        self.rows.note(rows, seen, plain)
        self._send(rows, seen, plain, pairs)
        return others + self._off(rows, plain)

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

    def _send(self, rows: Rows, seen: Octets, plain: Flags, pairs: Rows) -> None:
        """Send the rows that are plain to their clients."""
        where = np.zeros(len(self._feeds), np.intp)
        where[rows] = np.arange(len(rows))
        index = where[pairs // self.clients]
        good = plain[index]
        lanes = self._lane_of[pairs]
        for number in np.unique(lanes).tolist():
            lane = self._lanes[number]
            assert lane is not None
            chosen = good & (lanes == number)
            lane.send(self._ioid_of[pairs[chosen]], seen[index[chosen]])


class _Lane:
    """All clients of one connection that are on a board."""

    __slots__ = ("_board", "_client", "_make", "_watcher", "owner", "users")

    def __init__(self, board: Board, watcher: Watcher) -> None:
        self._board = board
        self._watcher = watcher
        self._client = _client(watcher)
        self.owner = self._client.channel.owner
        self.users = 0
        self._make: _Maker | None = None

    def is_ready(self) -> bool:
        """Whether updates may be sent at once: there is room, and no subscription has ended without the feed's knowledge."""
        owner, stream = self.owner, self.owner.stream
        return (
            not self._watcher.backlog.is_behind
            and owner.held is None
            and stream.writable
            and self._client.wire.outbox.size <= PUMP_LIMIT
            and not any(map(stops_updates, stream.unhandled))
        )

    def rest(self, until: float) -> None:
        """Get no new rows before a time."""
        self._watcher.backlog.rests_until = until

    def send(self, ioids: Any, seen: Octets) -> None:
        """Send an update for each row of ``seen``."""
        if not len(ioids):
            return
        if self._make is None:
            self._make = _maker(self._board)
        octets = self._make(ioids, seen)
        outbox = self._client.wire.outbox
        outbox.chunks.append(octets)
        outbox.size += len(octets)
        stream = self.owner.stream
        if not stream.flush_pending:
            stream.schedule_flush()


def _maker(board: Board) -> _Maker:
    """Return the function that makes the messages for some rows."""
    pattern = board.pattern
    order = ">" if pattern.big else "<"
    tail = pattern.tail
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
