"""One PV and the links that use it: the present value, the puts that wait, and the records that updates process.

The event loop calls :meth:`LinkChannel.deliver`, :meth:`LinkChannel.lost` and :meth:`LinkChannel.put_done`. Links call the methods that
are named for them, from any thread, while they hold a record's lock. The worker calls :meth:`LinkChannel.work`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, Protocol

from appliance.ioc.dbcore import ManyLock
from appliance.ioc.dbcore.link_support import LinkPlace, complete_put, raise_alarm
from appliance.ioc.dbcore.scanning import Target, process_each, process_together
from appliance.ioc.links.batch import Batch
from appliance.ioc.links.latest import Latest
from appliance.ioc.links.options import LinkOptions
from appliance.ioc.links.worker import Work
from appliance.pvdata.types import StructType

__all__ = ["ChannelKey", "LinkChannel", "Member", "Source"]

_log: Final = logging.getLogger(__name__)
_FLAPS: Final = 8
"""Room beyond the size of the queue for news of lost connections."""
_SECOND: Final = 1_000_000_000


class ChannelKey(NamedTuple):
    """Links with the same key share a channel."""

    name: str
    queue_size: int
    pipeline: bool
    local: bool


class Member(Protocol):
    """One link, as its channel sees it."""

    options: LinkOptions
    place: LinkPlace

    @property
    def name(self) -> str:
        """Record and field of the link."""

    @property
    def scans(self) -> bool:
        """Whether updates process its record."""

    @property
    def only_passive(self) -> bool:
        """Whether that is so only while the record's SCAN is Passive."""


class Source(Protocol):
    """Where the PV of a channel comes from. All methods are called on the event loop."""

    def put(self, batch: Batch) -> None:
        """Begin a put; :meth:`LinkChannel.put_done` must follow, at once or later."""

    def abandon(self) -> None:
        """Stop the puts that run: nobody waits for them any more."""

    def room(self) -> None:
        """Learn that an update was taken out of the queue."""

    def close(self) -> None:
        """End the subscription."""


class Owner(Protocol):
    """What a channel needs of all links together; from any thread."""

    def push(self, work: Work) -> None:
        """Give work to the worker."""

    def on_loop(self, function: Callable[[], None]) -> None:
        """Call a function on the event loop, soon."""


class _Lost(NamedTuple):
    """In the queue: the connection was lost."""

    why: str
    at: tuple[int, int]


class _Run(NamedTuple):
    """A put that runs."""

    batch: Batch
    forwards: dict[Member, None]
    """The forward links among what it does."""


class _Completion:
    """Work: end the puts that records wait for."""

    def __init__(self, links: Iterable[tuple[LinkPlace, str]]) -> None:
        self._links = list(links)

    def work(self) -> bool:
        place, why = self._links.pop(0)
        try:
            complete_put(place, why)
        except Exception:  # noqa: BLE001 - the records of the others wait, too
            _log.exception("PVA link %s: its put could not be completed", place.name)
        return bool(self._links)


class _Alarms:
    """Work: tell records that what they have written did not arrive."""

    def __init__(self, records: list[tuple[LinkPlace, str]]) -> None:
        self._records = records

    def work(self) -> bool:
        raise_alarm(*self._records.pop())
        return bool(self._records)


class LinkChannel:
    """One PV with its links.

    Args:
        key: Name and options of the subscription.
        owner: All links together.
    """

    def __init__(self, key: ChannelKey, owner: Owner) -> None:
        self.key = key
        self.source: Source | None = None
        """Used on the event loop only; None before the first connection is tried."""
        self.latest: Latest | None = None
        """The present value, or the last one before the connection was lost."""
        self.connected = False
        self.why = "not tried yet"
        """Why it is not connected."""
        self.lost_at = (0, 0)
        """Seconds since 1970 and nanoseconds when the connection was lost."""
        self.disconnects = self.type_changes = self.updates = self.squashed = 0
        self.puts = self.put_errors = 0
        self.put_error = ""
        """Why the latest put failed; empty if it did not."""
        self.unanswered = ""
        """That the server has not answered the latest put that no record waits for; else empty."""
        self._owner = owner
        self._push = owner.push
        self._queue_size = key.queue_size
        self._lock = threading.Lock()
        self._links: dict[Member, None] = {}
        self._is_reachable = False
        # Updates for the worker, while there are records to process.
        self._pending: deque[Latest | _Lost] = deque()
        self._spare = 0
        """How often the worker was asked more than there are updates: some were dropped."""
        self._scans = False
        self._plan_is_old = True
        self._atomic: list[Target] = []
        self._single: list[Target] = []
        self._many: ManyLock | None = None
        # Puts: written and held back; to be sent; being sent.
        self._held: dict[Member, Any] = {}
        self._held_waiting: dict[Member, None] = {}
        self._queued: dict[Member, Any] = {}
        self._queued_waiting: dict[Member, None] = {}
        self._queued_forwards: dict[Member, None] = {}
        self._running: list[_Run] = []
        """Any number that records wait for, since that may take for ever, and one of the others."""
        self._is_scheduled = False
        self._is_closed = False

    # -- links: with a record's lock, from any thread ----------------------------------------------------------------

    def links(self) -> list[Member]:
        """Return the links in the order in which their records are processed."""
        with self._lock:
            return sorted(self._links, key=lambda link: link.options.monorder)

    def add(self, link: Member) -> bool:
        """Add a link; return whether its record must be processed because there is a value already."""
        with self._lock:
            self._links[link] = None
            self._plan_is_old = True
            self._scans = self._scans or link.scans
            return link.scans and self.connected

    def remove(self, link: Member) -> bool:
        """Forget a link; return whether it was the last one. What it has not sent is lost."""
        waits: list[tuple[LinkPlace, str]] = []
        with self._lock:
            self._links.pop(link, None)
            self._plan_is_old = True
            self._scans = any(each.scans for each in self._links)
            for table in (self._held, self._queued, self._queued_forwards):
                table.pop(link, None)
            for table in (self._held_waiting, self._queued_waiting):
                if link in table:
                    del table[link]
                    waits.append((link.place, "the link was changed before its put was done"))
            is_last = not self._links
        self._complete(waits)
        return is_last

    def write(self, link: Member, value: Any, *, wait: bool) -> bool:
        """Take a value of a link, and send it unless the link defers.

        Returns:
            False if that is impossible, or in doubt: the server has not answered the put before. The value is sent all the same then.
        """
        options = link.options
        with self._lock:
            if self._is_closed or not (self.connected or options.retry):
                return False
            self._held[link] = value
            if wait:
                self._held_waiting[link] = None
            if not options.defer:
                self._flush()
            return wait or not self.unanswered

    def forward(self, link: Member) -> bool:
        """Process the PV, with what waits to be written; return False if that is impossible."""
        with self._lock:
            if self._is_closed or not (self.connected or link.options.retry):
                return False
            self._queued_forwards[link] = None
            self._flush()
        return True

    def _flush(self) -> None:
        self._queued.update(self._held)
        self._queued_waiting.update(self._held_waiting)
        self._held.clear()
        self._held_waiting.clear()
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled and self._may_start():
            self._is_scheduled = True
            self._owner.on_loop(self._start_put)

    def _may_start(self) -> bool:
        """Whether there is something to write, and no put runs whose end comes soon."""
        return bool(self._queued or self._queued_forwards) and all(run.batch.waiting for run in self._running)

    # -- puts: on the event loop -------------------------------------------------------------------------------------

    def _start_put(self) -> None:
        with self._lock:
            self._is_scheduled = False
            source = self.source
            if source is None or not self._is_reachable or not self._may_start():
                return
            batch = Batch(self._queued, bool(self._queued_forwards), frozenset(self._queued_waiting))
            self._running.append(_Run(batch, self._queued_forwards))
            self._queued, self._queued_waiting, self._queued_forwards = {}, {}, {}
            self.puts += 1
        try:
            source.put(batch)
        except Exception as error:  # noqa: BLE001 - records wait, and later puts come after this one
            _log.exception("PVA link: the put to %s failed", self.key.name)
            self.put_done(batch, f"{type(error).__name__}: {error}")

    def put_done(
        self,
        batch: Batch,
        error: str,
        *,
        lost: bool = False,
        unanswered: bool = False,
        faults: dict[Any, str] | None = None,
    ) -> None:
        """End a put that runs.

        Args:
            batch: What was to be done.
            error: Why it failed; empty if it did not.
            lost: Whether it failed because the connection was lost; then links with ``retry`` try again.
            unanswered: Whether it was given up because the server did not answer it; the same holds, and its records get an alarm.
            faults: Links whose value could not be written, and why.
        """
        with self._lock:
            run = next((each for each in self._running if each.batch is batch), None)
            if run is None:
                return
            self._running = [each for each in self._running if each is not run]
            forwards = run.forwards
            failed = dict(faults or {})
            if not batch.waiting:
                self.unanswered = error if unanswered else ""
            # Of records that do not wait: those have an alarm of their own, or try again.
            alarms = [
                (link.place, error or failed[link])
                for link in dict.fromkeys((*batch.values, *forwards))
                if (error or link in failed)
                and link in self._links
                and link not in batch.waiting
                and not (lost and link.options.retry)
            ]
            for link, value in batch.values.items():
                again = (lost or unanswered) and link.options.retry and link in self._links
                if again:
                    self._queued.setdefault(link, value)
                    if link in batch.waiting:
                        self._queued_waiting[link] = None
            waits = [
                (link.place, error or failed.get(link, ""))
                for link in batch.waiting
                if link not in self._queued_waiting
            ]
            if lost or unanswered:
                self._queued_forwards.update(
                    dict.fromkeys(link for link in forwards if link.options.retry and link in self._links)
                )
            why = error or "; ".join(dict.fromkeys(failed.values()))
            is_news = bool(why) and not self.put_error
            self.put_error = why
            self.put_errors += bool(why)
            self._schedule()
        if is_news and not lost:
            names = ", ".join(link.name for link in (failed if not error else batch.values or forwards))
            _log.warning("PVA link %s: cannot write %s: %s", names[:400], self.key.name, why)
        self._complete(waits)
        if alarms:
            self._push(_Alarms(alarms))

    def _complete(self, waits: list[tuple[LinkPlace, str]]) -> None:
        if waits:
            self._push(_Completion(waits))

    # -- updates: on the event loop ----------------------------------------------------------------------------------

    def deliver(self, kind: StructType, store: list[Any]) -> None:
        """Take a value, which is complete and does not change any more."""
        self.take(Latest(kind, store))

    def take(self, item: Latest) -> None:
        """Take a value."""
        self.updates += 1
        if self._scans and self._is_reachable:
            # No lock: the worker only takes from the other end, and each item that is added asks for it once.
            pending = self._pending
            if len(pending) >= self._queue_size and self._replace(item):
                return
            pending.append(item)
            self._push(self)
            return
        with self._lock:
            self._is_reachable = True
            push = self._add(item)
            self._schedule()
        if push:
            self._push(self)

    def _replace(self, item: Latest) -> bool:
        """Put an item in the place of the last one that waits; return whether that was a value."""
        pending = self._pending
        try:
            if type(pending[-1]) is not Latest:
                return False
            pending[-1] = item
        except IndexError:
            # The worker has taken all of them meanwhile.
            return False
        self.squashed += 1
        return True

    def lost(self, why: str) -> None:
        """Learn that the connection was lost, or that there is none for this reason."""
        now = time.time_ns()
        waits: list[tuple[LinkPlace, str]] = []
        with self._lock:
            if not self._is_reachable:
                self.why = why
                return
            self._is_reachable = False
            self.unanswered = ""
            pending = self._pending
            has_room = len(pending) >= self.key.queue_size + _FLAPS
            if has_room:
                self._spare += len(pending)
                pending.clear()
            push = self._add(_Lost(why, (now // _SECOND, now % _SECOND)))
            # The latest first: its values are those that are tried again.
            running = self._running[::-1]
            # What nobody asked to repeat is dropped: when the server is back, the value may be wrong.
            alarms = [
                (link.place, f"{self.key.name} Disconn")
                for link in dict.fromkeys((*self._queued, *self._queued_forwards))
                if not link.options.retry and link not in self._queued_waiting
            ]
            for table in (self._held, self._queued, self._queued_forwards):
                for link in [link for link in table if not link.options.retry]:
                    del table[link]
            for table in (self._held_waiting, self._queued_waiting):
                for link in [link for link in table if not link.options.retry]:
                    del table[link]
                    waits.append((link.place, f"{self.key.name} Disconn"))
        if push:
            self._push(self)
        self._complete(waits)
        if alarms:
            self._push(_Alarms(alarms))
        if has_room:
            self._tell_room()
        if running:
            if self.source is not None:
                self.source.abandon()
            for run in running:
                self.put_done(run.batch, f"{self.key.name} Disconn", lost=True)

    def _add(self, item: Latest | _Lost) -> bool:
        """Use an item now, or leave it to the worker; return whether the worker must be told. With the lock."""
        if not self._scans and not self._pending:
            self._use(item)
            return False
        self._pending.append(item)
        if self._spare:
            self._spare -= 1
            return False
        return True

    def _use(self, item: Latest | _Lost) -> None:
        if isinstance(item, _Lost):
            self.connected = False
            self.disconnects += 1
            self.why, self.lost_at = item
        else:
            # This order: whoever sees "connected" finds the value.
            self.latest = item
            if not self.connected:
                self.connected = True
                self.type_changes += 1
                self.why = ""

    @property
    def is_full(self) -> bool:
        """Whether so many updates wait for records that the server should pause."""
        return len(self._pending) >= self.key.queue_size

    # -- processing: in the worker -----------------------------------------------------------------------------------

    def work(self) -> bool:
        """Use one waiting update, and process the records that want to be. Each update asks for that once."""
        with self._lock:
            pending = self._pending
            if not pending or self._is_closed:
                if self._is_closed:
                    self._free()
                elif self._spare:
                    self._spare -= 1
                return False
            is_room = self.key.pipeline and len(pending) >= self._queue_size
            item = pending.popleft()
            if self.connected and type(item) is Latest:
                self.latest = item
            else:
                self._use(item)
            if self._plan_is_old:
                self._plan_is_old = False
                self._free()
                self._atomic, self._single = (
                    [Target(record, only_passive=only_passive) for record, only_passive in plan]
                    for plan in self._plan()
                )
            single, atomic = self._single, self._atomic
        if atomic:
            if self._many is None:
                self._many = ManyLock.of_records(target.record for target in atomic)
            process_together(self._many, atomic)
        if single:
            process_each(single)
        if is_room:
            self._owner.on_loop(self._tell_room)
        return False

    def _free(self) -> None:
        if self._many is not None:
            self._many.close()
            self._many = None

    def _plan(self) -> tuple[list[tuple[int, bool]], list[tuple[int, bool]]]:
        """Return the records to process together, and one by one."""
        plans: tuple[list[tuple[int, bool]], list[tuple[int, bool]]] = ([], [])
        for link in sorted(self._links, key=lambda link: link.options.monorder):
            if link.scans:
                plans[not link.options.atomic].append((link.place.record, link.only_passive))
        return plans

    def _tell_room(self) -> None:
        if self.source is not None:
            self.source.room()

    # -- end ---------------------------------------------------------------------------------------------------------

    @property
    def is_putting(self) -> bool:
        """Whether a put runs."""
        return bool(self._running)

    def close(self) -> None:
        """End the subscription: on the event loop, when the last link is gone."""
        source, self.source = self.source, None
        if source is not None:
            source.close()
        self.lost("the link was closed")
        with self._lock:
            self._is_closed = True
            self._pending.clear()
        self._push(self)

    def __repr__(self) -> str:
        return f"<LinkChannel {self.key.name}>"
