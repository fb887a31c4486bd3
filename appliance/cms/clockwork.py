"""When the clock changes certificates: a queue of instants, each with the serial number that it is about.

An instant is a change of state, the time from which on a renewal is due, a change of clocks in the zone of a schedule, or
the end of a request that nobody has decided on. Each certificate is in the queue with its next one. Instants that a later
change has made wrong stay in the queue, and nothing happens at them.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from enum import IntEnum
from typing import Final

from appliance.certs.status import CertState
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


class Clockwork:
    """The instants of one service's certificates.

    Args:
        clock: The present time, aware.
        live: The certificates that can still change, by serial number.
        pending_s: Seconds for which a request waits for approval.
        crossed: Called with a record and its new state; it calls `follow` with the changed record.
        hinted: Called with a record about which something else is to be published.
        lapsed: Called with the record of a request that nobody has decided on in time.
    """

    def __init__(
        self,
        clock: Callable[[], datetime],
        live: Mapping[int, CertRecord],
        *,
        pending_s: int,
        crossed: Callable[[CertRecord, CertState], None],
        hinted: Callable[[CertRecord], None],
        lapsed: Callable[[CertRecord], None],
    ) -> None:
        self.pending_s = pending_s
        self._clock = clock
        self._live = live
        self._crossed = crossed
        self._hinted = hinted
        self._lapsed = lapsed
        self._queue: list[tuple[float, int, _Why]] = []

    def start(self, records: Iterable[CertRecord]) -> None:
        """Begin with these records, and forget all others."""
        now = self._clock()
        self._queue = [
            (instant[0], record.serial, instant[1])
            for record in records
            if (instant := self._next(record, now)) is not None
        ]
        heapq.heapify(self._queue)

    def follow(self, record: CertRecord) -> None:
        """Look at a new or changed record when the clock changes it."""
        instant = self._next(record, self._clock())
        if instant is not None:
            heapq.heappush(self._queue, (instant[0], record.serial, instant[1]))

    def step_back(self) -> None:
        """Look again at all whose instants are no longer ahead of them, after the clock was set back."""
        for record in self._live.values():
            if record.schedule or record.renew_by:
                self.follow(record)

    def look_again(self, serial: int, at: float) -> None:
        """Look at a record at the POSIX time ``at`` too."""
        heapq.heappush(self._queue, (at, serial, _Why.STATE))

    def wait_for_approval(self, pending_s: int) -> None:
        """Change how many seconds requests wait for approval."""
        if pending_s != self.pending_s:
            self.pending_s = pending_s
            for record in self._live.values():
                if record.state is CertState.PENDING_APPROVAL:
                    self.look_again(record.serial, record.state_date + pending_s)

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
        if record.state is CertState.PENDING_APPROVAL:
            return min(found, (record.state_date + self.pending_s, _Why.STATE))
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
        queue = self._queue
        end = time.perf_counter() + budget_s
        while queue and queue[0][0] <= seconds and (not done or time.perf_counter() < end):
            entry = when, serial, why = heapq.heappop(queue)
            while queue and queue[0] == entry:  # a wrong instant before it has found it too
                heapq.heappop(queue)
            record = self._live.get(serial)
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
            if instant is None:
                continue
            if instant[0] > seconds or record.state is not CertState.PENDING_APPROVAL:
                heapq.heappush(queue, (instant[0], serial, instant[1]))
            else:
                done += 1
                self._lapsed(record)
        return done
