"""Check the audit in the database, and remove its old records."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from appliance.cms.dialect import engine_for, is_sqlite
from appliance.cms.model import SERVICE, posix
from appliance.cms.schema import audit, meta
from appliance.cms.store import Store
from appliance.cms.transaction import Transaction
from appliance.daemon.audit import GENESIS, AuditFinding, canonical, verify
from appliance.errors import ConfigurationError

__all__ = ["prune_audit", "verify_audit"]

_ANCHOR: Final = "audit_anchor"
"""Key of `meta`: number and hash of the last record that was removed."""
_PRUNE: Final = "prune"
_AT_ONCE: Final = 5000
_DAY_S: Final = 86_400


def verify_audit(where: str, *, head: str | None = None) -> AuditFinding:
    """Check the whole chain of a database, which may be in use.

    If old records were removed, the chain begins after them, and a record in it must say so.

    Raises:
        ConfigurationError: A setting or a file cannot be used.
    """
    if is_sqlite(where) and not os.path.isfile(where):  # noqa: PTH113
        raise ConfigurationError("the database does not exist", file=where)
    engine = engine_for(where, read_only=is_sqlite(where))
    try:
        with engine.connect() as connection:
            number, start = _anchor(connection)
            rows = connection.execute(
                sa.select(
                    audit.c.seq, audit.c.at, audit.c.action, audit.c.serial, audit.c.record, audit.c.hash
                ).order_by(audit.c.seq)
            )
            records = _Records(rows, number, start)
            found = verify(records, head=head, after=(number, start))
    except sa.exc.SQLAlchemyError as error:
        raise ConfigurationError(
            f"the audit cannot be read: {str(getattr(error, 'orig', error)).partition(chr(10))[0]}",
            file=where,
        ) from error
    finally:
        engine.dispose()
    if found.intact and not records.anchored:
        return found._replace(
            fault=f"records up to number {number} are missing, and no record says that they were removed"
        )
    return found


def _anchor(connection: sa.Connection) -> tuple[int, str]:
    text = connection.execute(sa.select(meta.c.value).where(meta.c.key == _ANCHOR)).scalar()
    number, _, start = (text or "").partition(" ")
    if not text:
        return 0, GENESIS
    if not (number.isascii() and number.isdecimal() and len(number) < 20 and len(start) == len(GENESIS)):
        raise ConfigurationError("the audit is broken: where it begins cannot be read")
    return int(number), start


class _Records:
    """The records with their hashes. ``anchored`` is whether one of them says that those before the first were removed."""

    def __init__(self, rows: Iterable[Any], number: int, start: str) -> None:
        self.anchored = not number
        self._rows = rows
        self._number = number
        self._start = start

    def __iter__(self) -> Iterator[tuple[dict[str, Any], str]]:
        for expected, (seq, at, action, serial, text, stored) in enumerate(self._rows, self._number + 1):
            try:
                record = json.loads(text)
                same = isinstance(record, dict) and canonical(record).decode() == text
            except (ValueError, RecursionError, ConfigurationError):
                same, record = False, {}
            columns = {"seq": seq, "at": at, "action": action, "serial": serial}
            # The columns beside the record are for queries. They must say what the sealed record says.
            if not same or seq != expected or any(record.get(key) != value for key, value in columns.items()):
                record = {"broken": seq}
            if record.get("action") == _PRUNE:
                said = (record.get("up_to"), record.get("up_to_hash"))
                self.anchored |= said == (str(self._number), self._start)
            yield record, stored


async def prune_audit(store: Store, now: datetime, days: int) -> int:
    """Remove records that are older than ``days``; the newest record always stays.

    The chain can still be checked from there on. Each removal is a record itself.

    Returns:
        How many were removed.

    Raises:
        ApplianceError: The database cannot be written.
    """
    at = posix(now)

    def job(transaction: Transaction) -> int:
        return _prune(transaction, before=at - days * _DAY_S, at=at)

    total = 0
    while removed := await store.submit(job):
        total += removed
    return total


def _prune(transaction: Transaction, *, before: int, at: int) -> int:
    transaction.flush()
    connection = transaction.connection
    first, last = connection.execute(sa.select(sa.func.min(audit.c.seq), sa.func.max(audit.c.seq))).one()
    if first is None:
        return 0
    # Only from the beginning on: a clock that was wrong for a while must not tear a hole.
    young = sa.select(audit.c.seq).where(audit.c.seq < first + _AT_ONCE, audit.c.at >= before)
    keep = connection.execute(young.order_by(audit.c.seq).limit(1)).scalar()
    end = min(last, first + _AT_ONCE if keep is None else keep) - 1
    if end < first:
        return 0
    sealed = connection.execute(sa.select(audit.c.hash).where(audit.c.seq == end)).scalar_one()
    connection.execute(sa.delete(audit).where(audit.c.seq <= end))
    anchor = f"{end} {sealed}"
    changed = connection.execute(sa.update(meta).where(meta.c.key == _ANCHOR).values(value=anchor))
    if not changed.rowcount:
        connection.execute(sa.insert(meta).values(key=_ANCHOR, value=anchor))
    facts = {"from": first, "up_to": end, "up_to_hash": sealed}
    transaction.audit(at, _PRUNE, None, {**SERVICE.facts(), **facts})
    return int(end - first + 1)
