"""When the clock changes certificates: a queue of instants, each with the serial number that it is about."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Final

from appliance.certs.status import CertState
from appliance.cms.model import boundary_of, state_now
from appliance.cms.store import CertRecord

__all__ = ["AT_ONCE", "Clockwork"]

AT_ONCE: Final = 500
"""Number of changes by the clock that are made in one step, and recorded in one transaction."""


class Clockwork:
    """The instants of one service's certificates.

    Args:
        clock: The present time, aware.
        live: The certificates that can still change, by serial number.
        pending_s: Seconds for which a request waits for approval.
        crossed: Called with a record and its new state.
        lapsed: Called with the record of a request that nobody has decided on in time.
    """

    def __init__(
        self,
        clock: Callable[[], datetime],
        live: Mapping[int, CertRecord],
        *,
        pending_s: int,
        crossed: Callable[[CertRecord, CertState], None],
        lapsed: Callable[[CertRecord], None],
    ) -> None:
        self.pending_s = pending_s
        self._clock = clock
        self._live = live
        self._crossed = crossed
        self._lapsed = lapsed
        self._instants: list[tuple[float, int]] = []

    def start(self, records: Iterable[CertRecord]) -> None:
        """Begin with these records, and forget all others."""
        now = self._clock()
        self._instants = [
            (instant, record.serial)
            for record in records
            if (instant := self._instant(record, now)) is not None
        ]
        heapq.heapify(self._instants)

    def follow(self, record: CertRecord) -> None:
        """Look at a new or changed record when the clock changes it."""
        instant = self._instant(record, self._clock())
        if instant is not None:
            heapq.heappush(self._instants, (instant, record.serial))

    def look_again(self, serial: int, at: float) -> None:
        """Look at a record at the POSIX time ``at`` too."""
        heapq.heappush(self._instants, (at, serial))

    def wait_for_approval(self, pending_s: int) -> None:
        """Change how many seconds requests wait for approval."""
        if pending_s != self.pending_s:
            self.pending_s = pending_s
            for record in self._live.values():
                if record.state is CertState.PENDING_APPROVAL:
                    self.look_again(record.serial, record.state_date + pending_s)

    def _instant(self, record: CertRecord, now: datetime) -> float | None:
        boundary = boundary_of(record, now)
        if boundary is not None and record.state is CertState.PENDING_APPROVAL:
            return min(boundary, record.state_date + self.pending_s)
        return boundary

    def next_crossing(self) -> float | None:
        """Return the POSIX time of the next change that the clock will make."""
        return self._instants[0][0] if self._instants else None

    def tick(self, limit: int = AT_ONCE) -> int:
        """Make at most ``limit`` changes that are due.

        Returns:
            Their number.
        """
        now = self._clock()
        seconds = now.timestamp()
        done = 0
        while self._instants and self._instants[0][0] <= seconds and done < limit:
            _, serial = heapq.heappop(self._instants)
            record = self._live.get(serial)
            if record is None:
                continue
            state = state_now(record, now)
            if state is not record.state:
                done += 1
                self._crossed(record, state)
                continue
            instant = self._instant(record, now)
            if instant is not None and instant > seconds:
                self.look_again(serial, instant)
            elif instant is not None and record.state is CertState.PENDING_APPROVAL:
                done += 1
                self._lapsed(record)
        return done
