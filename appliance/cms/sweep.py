"""What the clock changes is recorded, whoever watches it, and requests that nobody decides on come to their end.

A change by the clock is valid without a record. The record is for the database's other readers, and for the audit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from appliance.certs.status import CertState
from appliance.cms.model import SERVICE, check_row, posix
from appliance.cms.reading import Readers
from appliance.cms.schema import certs
from appliance.cms.store import Store
from appliance.cms.transaction import CertRecord, StoreError, Transaction
from appliance.errors import ApplianceError

__all__ = ["Sweep"]

_log: Final = logging.getLogger(__name__)
_AT_ONCE: Final = 500
"""Certificates whose changes are recorded in one transaction."""
_EVERY_S: Final = 1.0
_RANK_S: Final = 2.0
"""Seconds that each further node leaves to those before it."""
_DUE: Final = (
    sa.select(certs.c.serial)
    .where(
        certs.c.next_at.is_not(None),
        certs.c.next_at <= sa.bindparam("now"),
        # The empty text keeps SQLite from an index by issuer, with which it would go through all certificates each second.
        certs.c.issuer.concat("").in_(sa.bindparam("by", expanding=True)),
    )
    .order_by(certs.c.next_at)
    .limit(_AT_ONCE)
)


class Sweep:
    """Records the clock's changes of all certificates in the database.

    Args:
        store: Writes.
        readers: Read.
        told: Returns the state of a record at a time, with what was told and is not recorded yet.
        done: Called with what each commit has changed, and the number of its last audit record.
        pending_s: Seconds for which a request waits for approval.
    """

    def __init__(
        self,
        store: Store,
        readers: Readers,
        *,
        told: Callable[[CertRecord, datetime], CertState],
        done: Callable[[Sequence[CertRecord], int], None],
        pending_s: int,
    ) -> None:
        self.pending_s = pending_s
        self.rank: Callable[[], int] = lambda: 0
        """Returns how many other nodes come first. What they have recorded is not found any more."""
        self._store = store
        self._readers = readers
        self._told = told
        self._done = done
        self._last: datetime | None = None
        self._damaged: set[int] = set()
        """Rows that nothing can be computed from; each is logged once."""

    def is_due(self, now: datetime) -> bool:
        """Whether it is time to look again. The clock may have been set."""
        return self._last is None or abs((now - self._last).total_seconds()) >= _EVERY_S

    async def run(self, now: datetime, more: Iterable[int] = ()) -> bool:
        """Record everything that is due.

        Args:
            now: The present time, aware.
            more: Serial numbers of further certificates that the clock has changed.

        Returns:
            Whether all of it is recorded. Otherwise the next run finds it again.
        """
        self._last = now
        limit = int(now.timestamp() - _RANK_S * self.rank())
        waiting = list(more)
        done: set[int] = set()
        try:
            while True:
                # What another authority has issued, which this service does not hold, is left to others.
                what = {"now": limit, "by": [*self._store.authorities]}
                due = waiting[:_AT_ONCE] or await self._readers.read(partial(_due, what=what))
                waiting = waiting[_AT_ONCE:]
                serials = [serial for serial in due if serial not in done]
                if serials:
                    await self._record(serials, now)
                    done.update(serials)
                elif not waiting:
                    return True
        except ApplianceError as error:
            # The store logs what is wrong.
            _log.debug("%s", error)
            return False

    async def _record(self, serials: Sequence[int], now: datetime) -> None:
        changed: list[CertRecord] = []
        seq = 0

        def job(transaction: Transaction) -> None:
            nonlocal seq
            changed.clear()
            for serial in serials:
                record = self._change(transaction, serial, now)
                if record is not None:
                    changed.append(record)
            seq = transaction.audit_head[0]

        await self._store.submit(job)
        self._done(changed, seq)

    def _change(self, transaction: Transaction, serial: int, now: datetime) -> CertRecord | None:
        """Record what the clock says of one certificate; return it if that is news."""
        at = posix(now)
        recorded = transaction.get(serial)
        if recorded is None:
            return None
        try:
            check_row(recorded)
        except StoreError as error:
            if serial not in self._damaged:
                self._damaged.add(serial)
                _log.error("%s", error, extra={"event": "database-damaged"})
            return None
        state = self._told(recorded, now)
        if state is CertState.PENDING_APPROVAL and at >= recorded.state_date + self.pending_s:
            facts = {**SERVICE.facts(), "why": _nobody(self.pending_s)}
            record = transaction.change(recorded, CertState.REVOKED, at=at, approved=False)
            transaction.audit(
                at, "lapse", serial, {**facts, "from": state.value, "state": record.state.value}
            )
            return record
        if state is recorded.state:
            if self._store.next_at(recorded) != recorded.next_at:
                transaction.change(recorded, state, at=recorded.state_date, approved=recorded.approved)
            return None
        record = transaction.change(recorded, state, at=at, approved=recorded.approved)
        transaction.audit(at, "clock", serial, {"state": state.value})
        return record


def _due(connection: sa.Connection, what: Mapping[str, Any]) -> list[int]:
    return list(connection.scalars(_DUE, what))


def _nobody(waited_s: int) -> str:
    waited = f"{waited_s // 86400} days" if waited_s >= 86400 else f"{waited_s} s"
    return f"nobody has approved it in {waited}"
