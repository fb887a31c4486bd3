"""Revocations in the database and in the journal beside it: what either of them knows as revoked is revoked.

A checkpoint in the database says up to where the two were the same. So a start compares what came after it, and not all that was
ever revoked. It is in the database, so a database that was restored has an old one, and exactly what it lacks is applied again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from appliance.certs.status import CertState
from appliance.cms import schema
from appliance.cms.feed import ENDS
from appliance.cms.journal import Journal, JournalError
from appliance.cms.model import SERVICE
from appliance.cms.schema import ends_of
from appliance.cms.store import Store
from appliance.cms.transaction import CertRecord, Transaction

__all__ = ["Revocations"]

_log: Final = logging.getLogger(__name__)
_KEY: Final = "journal"
_BATCH: Final = 500
_AT_ONCE: Final = 5000
_C: Final = schema.certs.c
_A: Final = schema.audit.c
_REVOKED: Final = sa.select(_C.serial, _C.state_date, _C.barred).where(
    _C.issuer.in_(sa.bindparam("by", expanding=True)), _C.state == CertState.REVOKED.value
)
_REVOKED_OF: Final = _REVOKED.where(_C.serial.in_(sa.bindparam("numbers", expanding=True)))
_REVOKED_NEXT: Final = (
    sa.select(_C.serial, _C.state_date, _C.barred, _C.created)
    .where(
        _C.issuer == sa.bindparam("by"),
        _C.state == CertState.REVOKED.value,
        _C.created >= sa.bindparam("since"),
        sa.tuple_(_C.created, _C.serial) > sa.tuple_(sa.bindparam("since"), sa.bindparam("last")),
    )
    .order_by(_C.created, _C.serial)
    .limit(sa.bindparam("most", type_=sa.Integer))
)
"""A part of them, in the order of an index: a database server ends a question that takes some seconds."""
_LIVE_OF: Final = sa.select(_C.serial).where(
    _C.serial.in_(sa.bindparam("numbers", expanding=True)),
    _C.issuer.in_(sa.bindparam("by", expanding=True)),
    _C.state.not_in((CertState.REVOKED.value, CertState.EXPIRED.value)),
)


class _Checkpoint(NamedTuple):
    octets: int
    digest: str
    seq: int


class Revocations:
    """Compares the journal with the database at a start, and keeps the checkpoint."""

    def __init__(
        self, store: Store, journal: Journal, *, heard: Callable[[], int | None] = lambda: None
    ) -> None:
        self._store = store
        self._journal = journal
        self._heard = heard
        """Gives the last audit record whose revocation is in the journal, if other nodes add records; else None."""
        self._written: _Checkpoint | None = None
        self._settled = 0
        """A record of the audit: the revocations up to it are in the journal, if writing it has not failed."""

    @property
    def _key(self) -> str:
        return schema.of_node(_KEY, self._store.node)

    def combine(self, transaction: Transaction, now: int) -> list[CertRecord]:
        """Apply what only the journal knows, in a job, and add to the journal what only the database knows.

        Args:
            transaction: The transaction.
            now: The present time (POSIX seconds).

        Returns:
            The certificates that were revoked again.
        """
        checkpoint = self._checkpoint(transaction)
        is_read = checkpoint is None and self._journal.is_own
        revoked = list(_revoked(transaction)) if is_read else None
        restored = self._revoke_all_again(transaction, checkpoint, now, revoked)
        if self._journal.is_own:
            self._add_missing(transaction, checkpoint, revoked)
        self._settled = transaction.audit_head[0]
        return restored

    def make_good(self, transaction: Transaction, now: int) -> list[CertRecord]:
        """Apply what only the journal knows to a database that has lost something while this service ran, in a job.

        Args:
            transaction: The transaction.
            now: The present time (POSIX seconds).

        Returns:
            The certificates that were revoked again.
        """
        return self._revoke_all_again(transaction, self._checkpoint(transaction), now)

    def _revoke_all_again(
        self,
        transaction: Transaction,
        checkpoint: _Checkpoint | None,
        now: int,
        revoked: Sequence[tuple[int, int, bool]] | None = None,
    ) -> list[CertRecord]:
        """Revoke what only the journal knows as revoked; ``revoked`` is what the database knows, if all of that was read."""
        journal = self._journal
        # A copy, because the event loop adds to it.
        numbers = list(journal.known)
        if revoked is not None:
            there = {serial for serial, _, _ in revoked}
            numbers = [serial for serial in numbers if serial not in there]
        if checkpoint is not None:
            numbers = [serial for serial in journal.after(checkpoint.octets) if serial in journal.known]
        restored = [
            self._revoke_again(transaction, serial, now)
            for batch in _batches(numbers)
            for serial in self._live(transaction, batch)
        ]
        if restored:
            _log.warning(
                "%d certificates were revoked again: the database was restored from a backup", len(restored)
            )
        return restored

    def _checkpoint(self, transaction: Transaction) -> _Checkpoint | None:
        """Return the checkpoint if it is about this file and this audit."""
        if not self._journal.is_own:
            return None
        words = schema.known(transaction.connection, self._key).split()
        if len(words) != 3 or not (words[0].isdecimal() and words[2].isdecimal()):
            return None
        found = _Checkpoint(int(words[0]), words[1], int(words[2]))
        if found.octets > self._journal.octets or self._journal.digest(found.octets) != found.digest:
            return None
        ends = ends_of(transaction.connection)
        return found if ends is not None and ends[0] <= found.seq + 1 and ends[1] >= found.seq else None

    def _live(self, transaction: Transaction, numbers: list[int]) -> list[int]:
        what = {"numbers": numbers, "by": [*transaction.authorities]}
        return [int(serial) for (serial,) in transaction.connection.execute(_LIVE_OF, what).all()]

    def _revoke_again(self, transaction: Transaction, serial: int, now: int) -> CertRecord:
        record = transaction.get(serial)
        assert record is not None
        at, bar_key = self._journal.known[serial], serial in self._journal.barred
        changed = transaction.change(record, CertState.REVOKED, at=at, approved=False, bar_key=bar_key)
        why = "revoked before the database was restored"
        transaction.audit(now, "revoke", serial, {**SERVICE.facts(), "why": why})
        return changed

    def _add_missing(
        self,
        transaction: Transaction,
        checkpoint: _Checkpoint | None,
        revoked: Sequence[tuple[int, int, bool]] | None,
    ) -> None:
        transaction.flush()
        connection, by = transaction.connection, [*transaction.authorities]
        found: Sequence[Any]
        if checkpoint is None:
            found = revoked or ()
        else:
            later = sa.select(_A.serial).where(_A.seq > checkpoint.seq, _A.action.in_(ENDS), _A.serial != "")
            numbers = [int(serial) for (serial,) in connection.execute(later)]
            found = [
                row
                for batch in _batches(numbers)
                for row in connection.execute(_REVOKED_OF, {"numbers": batch, "by": by})
            ]
        try:
            self._journal.add(
                [(int(serial), int(at)) for serial, at, _ in found],
                barred=[int(serial) for serial, _, barred in found if barred],
            )
        except JournalError as error:
            _log.error("%s", error)

    async def checkpoint(self) -> None:
        """Write a checkpoint if there is anything new. Called once a minute.

        Revocations are added to the journal when they are committed, a moment later than they are in the audit. So the checkpoint is
        about the record that was the last one a minute ago.

        Raises:
            StoreError: The database could not be used; the next checkpoint makes up for it.
        """
        journal, heard = self._journal, self._heard()
        if journal.missing or journal.lost:
            return
        settled = self._settled if heard is None else min(self._settled, heard)
        now = _Checkpoint(journal.octets, journal.digest(), settled)
        is_new = now != self._written

        def job(transaction: Transaction) -> int:
            if is_new:
                connection, key, meta = transaction.connection, self._key, schema.meta
                text = " ".join(str(part) for part in now)
                if not connection.execute(
                    sa.update(meta).where(meta.c.key == key).values(value=text)
                ).rowcount:
                    connection.execute(sa.insert(meta).values(key=key, value=text))
            return transaction.audit_head[0]

        self._settled = await self._store.submit(job)
        self._written = now


def _revoked(transaction: Transaction) -> Iterator[tuple[int, int, bool]]:
    """Yield what the database knows as revoked: serial number, date, and whether the key is barred."""
    transaction.flush()
    for issuer in transaction.authorities:
        since, last = 0, -1
        while True:
            what = {"by": issuer, "since": since, "last": last, "most": _AT_ONCE}
            rows = transaction.connection.execute(_REVOKED_NEXT, what).all()
            yield from ((int(row.serial), int(row.state_date), bool(row.barred)) for row in rows)
            if len(rows) < _AT_ONCE:
                break
            since, last = rows[-1].created, rows[-1].serial


def _batches(numbers: Iterable[int]) -> Iterator[list[int]]:
    waiting = iter(numbers)
    while batch := list(islice(waiting, _BATCH)):
        yield batch
