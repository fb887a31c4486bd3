"""The audit in the database: check it, at once or part by part, export it, and remove its old records."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, BinaryIO, Final, NamedTuple

import sqlalchemy as sa

from appliance.cms.backup import new_file
from appliance.cms.dialect import Login, engine_for, is_sqlite, reason, shown
from appliance.cms.model import SERVICE, posix
from appliance.cms.schema import audit, ends_of, meta
from appliance.cms.store import Store
from appliance.cms.transaction import Transaction
from appliance.daemon.audit import GENESIS, AuditFinding, canonical, sealed_line, verify, verify_file
from appliance.errors import ConfigurationError

__all__ = [
    "Part",
    "Sealed",
    "beginning",
    "export_audit",
    "export_old",
    "last_number",
    "old_records",
    "prune_audit",
    "verify_audit",
    "verify_exported",
    "verify_on",
    "verify_part",
]

_ANCHOR: Final = "audit_anchor"
"""Key of `meta`: number and hash of the last record that was removed."""
VERIFIED: Final = "audit_verified"
"""Key of `meta`: how far the audit is known to be good (`appliance.cms.upkeep`)."""
_PRUNE: Final = "prune"
_AT_ONCE: Final = 5000
_FETCHED: Final = 1000
"""Records that are fetched at once; a server would send all of them."""
_DAY_S: Final = 86_400
_ROWS: Final = sa.select(
    audit.c.seq, audit.c.at, audit.c.action, audit.c.serial, audit.c.record, audit.c.hash
).order_by(audit.c.seq)

Progress = Callable[[int, int], None]
"""Is told the number of the record that was reached, and that of the last one."""


class Sealed(NamedTuple):
    """A place in the audit: behind the record with this number and hash."""

    number: int
    hash: str


class Part(NamedTuple):
    """What `verify_part` found."""

    place: Sealed
    """Behind the last good record."""
    last: int
    """Number of the audit's last record."""
    anchored: bool
    """Whether nothing was removed, or a record that was met says what."""
    fault: str = ""
    """What is wrong with the next record; empty if nothing is."""


@contextlib.contextmanager
def _reading(where: str, login: Login | None) -> Iterator[sa.Connection]:
    if is_sqlite(where) and not os.path.isfile(where):  # noqa: PTH113
        raise ConfigurationError("the database does not exist", file=where)
    engine = engine_for(where, read_only=True, login=login)
    try:
        with engine.connect() as connection:
            yield connection
    except sa.exc.SQLAlchemyError as error:
        raise ConfigurationError(f"the audit of {shown(where)} cannot be read: {reason(error)}") from error
    finally:
        engine.dispose()


def verify_audit(
    where: str,
    *,
    head: str | None = None,
    progress: Progress | None = None,
    login: Login | None = None,
) -> AuditFinding:
    """Check the whole chain of a database, which may be in use.

    If old records were removed, the chain begins after them, and a record in it must say so.

    Raises:
        ConfigurationError: A setting or a file cannot be used.
    """
    with _reading(where, login) as connection:
        return verify_on(connection, head=head, progress=progress)


def verify_on(
    connection: sa.Connection, *, head: str | None = None, progress: Progress | None = None
) -> AuditFinding:
    """Check the whole chain over a connection. As `verify_audit`."""
    place = beginning(connection)
    last = last_number(connection)
    with contextlib.closing(connection.execute(_ROWS, execution_options={"yield_per": _FETCHED})) as rows:
        records = _Records(_told(rows, last, progress), place)
        found = verify(records, head=head, after=place)
    if found.intact and not records.anchored:
        return found._replace(fault=_unsaid(place))
    return found


def verify_part(connection: sa.Connection, place: Sealed, most: int) -> Part:
    """Check the records behind a place that was reached before, at most so many.

    If the records at that place were removed in the meantime, what follows them is checked.

    Raises:
        ConfigurationError: The beginning of the audit cannot be read.
    """
    start = beginning(connection)
    last = last_number(connection)
    if place.number <= start.number:
        place, there = start, start
    else:
        row = connection.execute(
            sa.select(audit.c.seq, audit.c.hash).where(audit.c.seq == place.number)
        ).first()
        there = Sealed(0, "") if row is None else Sealed(*row)
    if there != place:
        fault = f"record {place.number} is not the one that was there when the audit was checked before"
        return Part(place, last, True, fault)
    rows = connection.execute(_ROWS.where(audit.c.seq > place.number).limit(most)).all()
    records = _Records(rows, place, start)
    found = verify(records, after=place)
    return Part(Sealed(place.number + found.records, found.head), last, records.anchored, found.fault)


def export_audit(
    where: str,
    target: str,
    *,
    first: int = 1,
    last: int | None = None,
    progress: Progress | None = None,
    login: Login | None = None,
) -> tuple[int, int, AuditFinding]:
    """Write the records as lines of JSON, each with its ``hash``, and check them on the way.

    Args:
        where: The database, which may be in use.
        target: The file, which appears whole or not at all, readable by its owner only; ``-`` is the standard output.
        first: Number of the first record. Those that were removed because of their age are not there any more.
        last: Number of the last record; None: all.
        progress: Is told how far it is.
        login: What the server needs beside the URL.

    Returns:
        Numbers of the first and last record that were written, and what the check found.

    Raises:
        ConfigurationError: The file exists, cannot be written, or the database cannot be read; or the audit is broken.
    """
    with _reading(where, login) as connection:
        start = beginning(connection)
        if first > start.number + 1:
            row = connection.execute(sa.select(audit.c.hash).where(audit.c.seq == first - 1)).first()
            if row is None:
                raise ConfigurationError(
                    f"the audit has no record {first - 1} before the first one that is wanted; its last one is "
                    f"{last_number(connection)}"
                )
            start = Sealed(first - 1, row.hash)
        end = last_number(connection) if last is None else last
        query = _ROWS.where(audit.c.seq > start.number, audit.c.seq <= end)
        with (
            contextlib.closing(connection.execute(query, execution_options={"yield_per": _FETCHED})) as rows,
            _opened(target) as file,
        ):
            records = _Records(_told(rows, end, progress), start)
            found = verify(_written(records, file), after=start)
            if not found.intact:
                raise ConfigurationError(
                    f"the audit is broken, so it is not exported: {found.fault}; {found.records} records before it are good"
                )
    return start.number + 1, start.number + found.records, found


def verify_exported(path: str, *, head: str | None = None) -> AuditFinding:
    """Check a file that `export_audit` has written.

    Args:
        path: The file.
        head: An earlier last hash, which must be in the chain, or right before the first record. If the file does not begin
            with the first record of the audit, it is necessary.

    Raises:
        ConfigurationError: The file cannot be read, or ``head`` is missing.
    """
    first = _first_number(path)
    if first <= 1:
        return verify_file(path, head=head)
    if head is None:
        raise ConfigurationError(
            f"the file begins with record {first}: give the hash of the record before it with --audit-head; the export up to that "
            "record has shown it as head",
            file=path,
        )
    return verify_file(path, after=(first - 1, head))


def _first_number(path: str) -> int:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            first = json.loads(file.readline(1 << 20) or b"{}")
    except OSError as error:
        raise ConfigurationError(f"cannot read the audit: {error.strerror}", file=path) from error
    except (ValueError, RecursionError):
        return 0
    number = first.get("seq") if isinstance(first, dict) else 0
    return number if isinstance(number, int) and 0 < number < 1 << 63 else 0


def _written(
    records: Iterable[tuple[dict[str, Any], str]], file: BinaryIO
) -> Iterator[tuple[dict[str, Any], str]]:
    for record, stored in records:
        file.write(sealed_line(record, stored))
        yield record, stored


@contextlib.contextmanager
def _opened(target: str) -> Iterator[BinaryIO]:
    if target == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with new_file(target, "the audit cannot be exported") as partial, open(partial, "wb") as file:  # noqa: PTH123
        yield file


def _told(rows: Iterable[Any], last: int, progress: Progress | None) -> Iterator[Any]:
    for row in rows:
        if progress is not None and not row.seq % _FETCHED:
            progress(row.seq, last)
        yield row


def _unsaid(start: Sealed) -> str:
    return f"records up to number {start.number} are missing, and no record says that they were removed"


def last_number(connection: sa.Connection) -> int:
    """Return the number of the last record, 0 if there is none."""
    return int(connection.execute(sa.select(sa.func.max(audit.c.seq))).scalar() or 0)


def beginning(connection: sa.Connection) -> Sealed:
    """Return the place before the first record that has not been removed because of its age.

    Raises:
        ConfigurationError: It cannot be read.
    """
    text = connection.execute(sa.select(meta.c.value).where(meta.c.key == _ANCHOR)).scalar()
    number, _, start = (text or "").partition(" ")
    if not text:
        return Sealed(0, GENESIS)
    if not (number.isascii() and number.isdecimal() and len(number) < 20 and len(start) == len(GENESIS)):
        raise ConfigurationError("the audit is broken: where it begins cannot be read")
    return Sealed(int(number), start)


class _Records:
    """The records with their hashes. ``anchored`` is whether one of them says that those before the first were removed."""

    def __init__(self, rows: Iterable[Any], place: Sealed, start: Sealed | None = None) -> None:
        self._rows = rows
        self._number = place.number
        self._start = place if start is None else start
        self.anchored = not self._start.number

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
                self.anchored |= said == (str(self._start.number), self._start.hash)
            yield record, stored


async def prune_audit(
    store: Store, now: datetime, days: int, *, up_to: int | None = None, exported: str = ""
) -> int:
    """Remove records that are older than ``days``; the newest record always stays.

    The chain can still be checked from there on. Each removal is a record itself.

    Args:
        store: The database.
        now: The present time, aware.
        days: How long records are kept.
        up_to: Number of the last record that may be removed; None: any.
        exported: File that has these records, for the audit.

    Returns:
        How many were removed.

    Raises:
        ApplianceError: The database cannot be written.
    """
    at = posix(now)

    def job(transaction: Transaction) -> int:
        return _prune(transaction, before=at - days * _DAY_S, at=at, up_to=up_to, exported=exported)

    total = 0
    while removed := await store.submit(job):
        total += removed
    return total


def old_records(connection: sa.Connection, now: datetime, days: int) -> tuple[Sealed, int] | None:
    """Return the place before the records that are older than ``days``, and the number of the last of them; None for none."""
    start, last = beginning(connection), last_number(connection)
    young = sa.select(audit.c.seq).where(audit.c.at >= posix(now) - days * _DAY_S)
    keep = connection.execute(young.order_by(audit.c.seq).limit(1)).scalar()
    end = min(last, last if keep is None else keep) - 1
    return (start, end) if end > start.number else None


def export_old(where: str, login: Login, directory: str, issuer_id: str, start: Sealed, end: int) -> str:
    """Export records that are about to be removed, and return the name of their file.

    A file of this name is good if it has these records: an earlier attempt was interrupted before they were removed.

    Raises:
        ConfigurationError: The records could not be exported, or another file has that name.
    """
    name = f"audit_{issuer_id}_{start.number + 1:012d}_{end:012d}.jsonl"
    target = os.path.join(directory, name)  # noqa: PTH118
    if not os.path.lexists(target):
        export_audit(where, target, first=start.number + 1, last=end, login=login)
    found = verify_file(target, after=start)
    if not found.intact or start.number + found.records != end:
        raise ConfigurationError(
            "this is not the export of these records of the audit: move it away", file=target
        )
    return name


def _prune(transaction: Transaction, *, before: int, at: int, up_to: int | None, exported: str) -> int:
    transaction.flush()
    connection = transaction.connection
    ends = ends_of(connection)
    if ends is None:
        return 0
    first, last = ends
    # Only from the beginning on: a clock that was wrong for a while must not tear a hole.
    young = sa.select(audit.c.seq).where(audit.c.seq < first + _AT_ONCE, audit.c.at >= before)
    keep = connection.execute(young.order_by(audit.c.seq).limit(1)).scalar()
    end = min(last, first + _AT_ONCE if keep is None else keep) - 1
    if up_to is not None:
        end = min(end, up_to)
    if end < first:
        return 0
    sealed = connection.execute(sa.select(audit.c.hash).where(audit.c.seq == end)).scalar_one()
    connection.execute(sa.delete(audit).where(audit.c.seq <= end))
    anchor = f"{end} {sealed}"
    changed = connection.execute(sa.update(meta).where(meta.c.key == _ANCHOR).values(value=anchor))
    if not changed.rowcount:
        connection.execute(sa.insert(meta).values(key=_ANCHOR, value=anchor))
    facts = {"from": first, "up_to": end, "up_to_hash": sealed}
    if exported:
        facts["exported"] = exported
    transaction.audit(at, _PRUNE, None, {**SERVICE.facts(), **facts})
    return int(end - first + 1)
