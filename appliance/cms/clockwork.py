"""When the clock changes certificates: a queue of instants, each with the serial number that it is about.

An instant is a change of state, the time from which on a renewal is due, or a change of clocks in the zone of a schedule.
Each certificate that somebody watches is in the queue with its next one. Instants that a later change has made wrong stay
in the queue, and nothing happens at them. What is told here is recorded by `appliance.cms.sweep`, which also ends requests
that nobody has decided on.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from datetime import datetime
from enum import IntEnum
from typing import Final

from appliance.certs.status import CertState
from appliance.cms.memory import Watched
from appliance.cms.model import boundary_of, hint_at, state_now, timetable_of
from appliance.cms.transaction import CertRecord

__all__ = ["BUDGET_S", "Clockwork"]

BUDGET_S: Final = 0.0006
"""Seconds for which one `Clockwork.tick` works. In between the service answers: many certificates may change in one second."""


class _Why(IntEnum):
    """What an instant is; of two at the same time the lower one counts."""

    STATE = 0
    HINT = 1
    """From now on a renewal is due."""
    CLOCKS = 2
    """In the zone of its schedule the clocks are changed, so its windows in UTC are other ones."""


_Instant = tuple[float, _Why]
_SPARE: Final = 1000
"""Instants in the queue that may be of certificates that nobody watches any more, beside as many as are watched."""


class Clockwork:
    """The instants of one service's certificates.

    Args:
        clock: The present time, aware.
        watched: The certificates that somebody watches.
        crossed: Called with a record and its new state; it calls `follow` with the changed record.
        hinted: Called with a record about which something else is to be published.
    """

    def __init__(
        self,
        clock: Callable[[], datetime],
        watched: Watched,
        *,
        crossed: Callable[[CertRecord, CertState], None],
        hinted: Callable[[CertRecord], None],
    ) -> None:
        self._clock = clock
        self._watched = watched
        self._crossed = crossed
        self._hinted = hinted
        self._queue: list[tuple[float, int, _Why]] = []
        self._queued: set[tuple[float, int, _Why]] = set()

    def follow(self, record: CertRecord) -> None:
        """Look at a record, which is watched from now on or has changed, when the clock changes it."""
        instant = self._next(record, self._clock())
        if instant is not None:
            self._push(instant, record.serial)

    def _push(self, instant: _Instant, serial: int) -> None:
        entry = instant[0], serial, instant[1]
        if entry in self._queued:
            return  # it was watched before
        self._queued.add(entry)
        heapq.heappush(self._queue, entry)
        if len(self._queue) > _SPARE + 2 * len(self._watched):
            # Anyone may begin to watch any number, and end it again.
            self._queue = [found for found in self._queue if self._watched.get(found[1]) is not None]
            self._queued = set(self._queue)
            heapq.heapify(self._queue)

    def step_back(self) -> None:
        """Look again at all whose instants are no longer ahead of them, after the clock was set back."""
        for record in self._watched.values():
            if record.schedule or record.renew_by:
                self.follow(record)

    def next_crossing(self) -> float | None:
        """Return the POSIX time of the next change that the clock will make."""
        return self._queue[0][0] if self._queue else None

    def _next(self, record: CertRecord, now: datetime) -> _Instant | None:
        """Return the next instant of a record; at once, if the clock has changed its state already."""
        if state_now(record, now) is not record.state:
            return now.timestamp(), _Why.STATE
        boundary = boundary_of(record, now)
        if boundary is None:
            return None
        found: _Instant = (boundary, _Why.STATE)
        hint = hint_at(record)
        if hint is not None and hint > now.timestamp():
            found = min(found, (hint, _Why.HINT))
        table = timetable_of(record)
        if table is not None and (clocks := table.next_offset(now)) is not None:
            found = min(found, (clocks.timestamp(), _Why.CLOCKS))
        return found

    def tick(self, budget_s: float = BUDGET_S) -> int:
        """Make changes that are due: at least one, and no more of them after ``budget_s`` seconds.

        Returns:
            Their number; 0 if nothing is left to do now.
        """
        now = self._clock()
        seconds = now.timestamp()
        done = 0
        end = time.perf_counter() + budget_s
        while self._queue and self._queue[0][0] <= seconds and (not done or time.perf_counter() < end):
            entry = when, serial, why = heapq.heappop(self._queue)
            self._queued.discard(entry)
            record = self._watched.get(serial)
            if record is None:
                continue
            state = state_now(record, now)
            if state is not record.state:
                done += 1
                self._crossed(record, state)
                continue
            if (why is _Why.HINT and hint_at(record) == when) or (why is _Why.CLOCKS and record.schedule):
                done += 1
                self._hinted(record)
            instant = self._next(record, now)
            if instant is not None:
                self._push(instant, serial)
        return done
