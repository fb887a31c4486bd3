"""The database's only writer: one thread, and one commit for all jobs that wait.

A job is a function of a `Transaction`. It first checks, raising an ApplianceError to refuse, and then writes. So jobs
that share a commit cannot harm each other. If a commit fails, all of its jobs fail: nothing is half done.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from appliance.certs.status import CertState
from appliance.cms import schema
from appliance.cms.inuse import InUse
from appliance.cms.key_uses import KeyUse, KeyUses
from appliance.daemon.audit import GENESIS, canonical, chain
from appliance.errors import ApplianceError, ConfigurationError

__all__ = [
    "IN_DOUBT",
    "LIVE",
    "CertRecord",
    "Store",
    "StoreError",
    "Transaction",
    "engine_for",
    "is_sqlite",
]

_log: Final = logging.getLogger(__name__)
_T = TypeVar("_T")
_GROUP: Final = 512
_AT_ONCE: Final = 16
"""Results that are delivered in one turn of the event loop."""
_GATHER_S: Final = 0.00015
_GATHER_MAX_S: Final = 0.002
_LARGEST: Final = (1 << 63) - 1
"""The largest serial number that is issued and that the database can hold."""
_MAX_FACT: Final = 1024
TOLD_EVERY_S: Final = 60.0
"""Seconds between two log lines that say that the database cannot be written."""
IN_DOUBT: Final = 2
LIVE: Final = (
    CertState.VALID,
    CertState.PENDING,
    CertState.PENDING_APPROVAL,
    CertState.PENDING_RENEWAL,
    CertState.SCHEDULED_OFFLINE,
)
"""States that can still change."""


class StoreError(ApplianceError):
    """The database did not do what was asked; nothing has changed."""


class CertRecord(NamedTuple):
    """One certificate as the database has it. Times are POSIX seconds."""

    serial: int
    subject: str
    usage: str
    method: str
    not_before: int
    not_after: int
    renew_by: int
    state: CertState
    state_date: int
    approved: bool
    """Whether an administrator has approved it, or an earlier one that its requester proved to be theirs."""
    delivered: int
    skid: str = ""
    identity: str = ""
    """The identity that a token proved, as ``issuer|subject``; empty if none did."""
    no_status: bool | None = None
    """Whether it names no status PV; None if that is not known."""
    renewed_at: int = 0
    """When ``renew_by`` was set; 0: at ``state_date``."""
    cadence: int = 0
    """Seconds from approval to ``renew_by``; 0: ``renew_by`` is a date as it stands."""
    san: str = ""
    """Alternative names as issued, canonical JSON; empty if there are none."""
    schedule: str = ""
    """See `appliance.certs.schedule.Schedule.to_text`; empty: always in use."""


_COLUMNS: Final = tuple(schema.certs.c[name] for name in CertRecord._fields)
# Made once: SQLAlchemy takes longer to compile a new statement than SQLite takes to run it.
_OF_ISSUER: Final = sa.select(*_COLUMNS).where(schema.certs.c.issuer == sa.bindparam("by"))
_OF_SUBJECT: Final = _OF_ISSUER.where(schema.certs.c.subject == sa.bindparam("of"))
_OF_SUBJECTS: Final = _OF_ISSUER.where(schema.certs.c.subject.in_(sa.bindparam("of", expanding=True)))
_OF_SERIAL: Final = _OF_ISSUER.where(schema.certs.c.serial == sa.bindparam("number"))
_RENEW: Final = (
    sa.update(schema.certs)
    .where(schema.certs.c.serial == sa.bindparam("number"), schema.certs.c.state == sa.bindparam("was"))
    .values(
        renew_by=sa.bindparam("by"),
        renewed_at=sa.bindparam("at"),
        state=sa.bindparam("becomes"),
        state_date=sa.bindparam("since"),
    )
)
_ADD_CERTS: Final = sa.insert(schema.certs)
_ADD_AUDIT: Final = sa.insert(schema.audit)
_AUDIT_HEAD: Final = (
    sa.select(schema.audit.c.seq, schema.audit.c.hash).order_by(schema.audit.c.seq.desc()).limit(1)
)


def _record(row: Sequence[Any]) -> CertRecord:
    record = CertRecord(*row)
    return record._replace(
        state=CertState(record.state),
        approved=bool(record.approved),
        schedule=sys.intern(record.schedule),
        no_status=None if record.no_status is None else bool(record.no_status),
    )


def is_sqlite(where: str) -> bool:
    """Whether ``where`` is a file and not the URL of a database server."""
    return "://" not in where


def engine_for(where: str, *, read_only: bool = False) -> sa.Engine:
    """Return an engine for a file (SQLite) or a URL (such as ``postgresql+psycopg://``)."""
    if not is_sqlite(where):
        return sa.create_engine(where, poolclass=NullPool)
    mode = "?mode=ro" if read_only else ""
    # As a URI, because the path may have any characters.
    from urllib.parse import quote

    engine = sa.create_engine(
        f"sqlite:///file:{quote(os.path.abspath(where))}{mode}{'&' if mode else '?'}uri=true",  # noqa: PTH100
        poolclass=NullPool,
        connect_args={"check_same_thread": False, "isolation_level": None, "timeout": 10.0},
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        if not read_only:
            cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


class Transaction:
    """What a job may do. Rows that it adds are written together at the end of the group."""

    def __init__(
        self, connection: sa.Connection, issuer: str, audit_head: tuple[int, str] | None = None
    ) -> None:
        self.connection = connection
        self._issuer = issuer
        self._new_certs: list[dict[str, Any]] = []
        self._new_by_subject: dict[str, list[CertRecord]] = {}
        self._keys = KeyUses(connection, issuer)
        self._new_audit: list[dict[str, Any]] = []
        self._renewed: list[dict[str, Any]] = []
        self._by_subject: dict[str, list[CertRecord]] = {}
        if audit_head is None:
            last = connection.execute(_AUDIT_HEAD).first()
            audit_head = (0, GENESIS) if last is None else (last.seq, last.hash)
        self._seq, self._hash = audit_head

    def prefetch(self, subjects: Iterable[str], keys: Iterable[tuple[str, str]] = ()) -> None:
        """Read what is known about many subjects, and about keys (``key_id`` and ``skid``), at once."""
        self._keys.prefetch(keys)
        wanted = [subject for subject in set(subjects) if subject not in self._by_subject]
        if not wanted:
            return
        if self._renewed:
            self.flush()  # the rows that are read must have it
        for subject in wanted:
            self._by_subject[subject] = []
        if len(wanted) == 1:
            found_rows = self.connection.execute(_OF_SUBJECT, {"of": wanted[0], "by": self._issuer})
        else:
            found_rows = self.connection.execute(_OF_SUBJECTS, {"of": wanted, "by": self._issuer})
        # All at once: each fetch lets other threads run, and then waits for its turn.
        for row in found_rows.all():
            found = _record(row)
            self._by_subject[found.subject].append(found)

    def of_subject(self, subject: str) -> list[CertRecord]:
        """Return all certificates of a subject."""
        self.prefetch((subject,))
        return [*self._by_subject[subject], *self._new_by_subject.get(subject, ())]

    def of_key(self, key_id: str, skid: str) -> list[KeyUse]:
        """Return what a key was used for, whatever has become of it."""
        return self._keys.of(key_id, skid)

    def key_of(self, serial: int) -> tuple[str, str]:
        """Return a certificate's ``key_id`` and ``skid``."""
        self.flush()
        columns = (schema.certs.c.key_id, schema.certs.c.skid)
        row = self.connection.execute(sa.select(*columns).where(schema.certs.c.serial == serial)).first()
        return ("", "") if row is None else (row.key_id, row.skid)

    def get(self, serial: int) -> CertRecord | None:
        """Return one certificate."""
        if serial > _LARGEST:
            return None
        self.flush()
        row = self.connection.execute(_OF_SERIAL, {"number": serial, "by": self._issuer}).first()
        return None if row is None else _record(row)

    def add(self, record: CertRecord, more: Mapping[str, Any]) -> None:
        """Record a certificate."""
        row = record._asdict() | dict(more)
        row["state"] = record.state.value
        row["issuer"] = self._issuer
        row = {"key_id": "", "barred": False, **row}
        self._new_certs.append(row)
        self._keys.add(row["key_id"], KeyUse(record.subject, record.usage, barred=False))
        self._new_by_subject.setdefault(record.subject, []).append(record)

    def change(
        self,
        record: CertRecord,
        state: CertState,
        *,
        at: int,
        approved: bool,
        bar_key: bool = False,
        begins: tuple[int, int] | None = None,
    ) -> CertRecord:
        """Change a certificate's state.

        Args:
            record: The certificate as it was read.
            state: The new state.
            at: The present time (POSIX seconds).
            approved: Whether an administrator has approved it, now or before.
            bar_key: Never certify its key again.
            begins: ``renew_by`` and ``renewed_at``, if they change too.

        Returns:
            The certificate as it is now.

        Raises:
            StoreError: Its state is not what ``record`` says any more.
        """
        self.flush()
        values: dict[str, Any] = {"state": state.value, "state_date": at, "approved": approved}
        if bar_key:
            values["barred"] = True
        if begins is not None:
            values["renew_by"], values["renewed_at"] = begins
        self._update(record, values)
        changed = record._replace(state=state, state_date=at, approved=approved)
        if begins is not None:
            changed = changed._replace(renew_by=begins[0], renewed_at=begins[1])
        return changed

    def _update(self, record: CertRecord, values: Mapping[str, Any]) -> None:
        changed = self.connection.execute(
            sa.update(schema.certs)
            .where(schema.certs.c.serial == record.serial, schema.certs.c.state == record.state.value)
            .values(**values)
        )
        if changed.rowcount != 1:
            raise StoreError("the certificate's state has changed in the meantime; look again")
        self._by_subject.pop(record.subject, None)
        self._keys.forget()

    def renew(
        self, record: CertRecord, *, renew_by: int, renewed_at: int, state: CertState, at: int
    ) -> CertRecord:
        """Move the date until which a certificate must be renewed. It is written at the end of the group.

        Args:
            record: The certificate as it was read.
            renew_by: The new date (POSIX seconds); 0 for none.
            renewed_at: When it was renewed (POSIX seconds).
            state: The state it has now.
            at: The present time (POSIX seconds).

        Returns:
            The certificate as it is now.
        """
        known = self._by_subject.get(record.subject, [])
        if record not in known:
            self.flush()  # it is of the same group, or was changed in it
            known = self._by_subject.get(record.subject, [])
        since = record.state_date if state is record.state else at
        self._renewed.append(
            {
                "number": record.serial,
                "was": record.state.value,
                "by": renew_by,
                "at": renewed_at,
                "becomes": state.value,
                "since": since,
            }
        )
        renewed = record._replace(renew_by=renew_by, renewed_at=renewed_at, state=state, state_date=since)
        # Others of the group must see it.
        known[:] = [renewed if old.serial == record.serial else old for old in known]
        return renewed

    def reschedule(self, record: CertRecord, text: str, *, state: CertState, at: int) -> CertRecord:
        """Change a certificate's schedule.

        Args:
            record: The certificate as it was read.
            text: The new schedule (`appliance.certs.schedule.Schedule.to_text`).
            state: The state it has now.
            at: The present time (POSIX seconds).

        Returns:
            The certificate as it is now.

        Raises:
            StoreError: Its state is not what ``record`` says any more.
        """
        self.flush()
        since = record.state_date if state is record.state else at
        self._update(record, {"schedule": text, "state": state.value, "state_date": since})
        return record._replace(schedule=text, state=state, state_date=since)

    def audit(self, at: int, action: str, serial: int | None, facts: Mapping[str, Any]) -> None:
        """Add a record to the audit, linked to all before it.

        Args:
            at: The present time (POSIX seconds).
            action: What was done, such as ``create`` or ``revoke``.
            serial: The certificate's serial number; None if it is about none.
            facts: Further members of the record; control characters are replaced.
        """
        facts = {key: clean(value) for key, value in facts.items()}
        self._seq += 1
        number = "" if serial is None else str(serial)
        record = {"seq": self._seq, "at": at, "action": action, "serial": number, **facts}
        self._hash = chain(self._hash, record)
        self._new_audit.append(
            {
                "seq": self._seq,
                "at": at,
                "action": action,
                "serial": number,
                "record": canonical(record).decode(),
                "hash": self._hash,
            }
        )

    @property
    def audit_head(self) -> tuple[int, str]:
        """Sequence number and hash of the last audit record."""
        return self._seq, self._hash

    def flush(self) -> None:
        """Write what has been added."""
        if self._new_certs:
            self.connection.execute(_ADD_CERTS, self._new_certs)
            for subject, records in self._new_by_subject.items():
                if subject in self._by_subject:
                    self._by_subject[subject] += records
            self._new_by_subject = {}
            self._keys.forget()
            self._new_certs = []
        if self._renewed:
            renewed, self._renewed = self._renewed, []
            changed = self.connection.execute(_RENEW, renewed).rowcount
            if changed not in (len(renewed), -1):  # -1: this database's driver does not say
                raise StoreError("a certificate's state has changed in the meantime; look again")
        if self._new_audit:
            self.connection.execute(_ADD_AUDIT, self._new_audit)
            self._new_audit = []


Job = Callable[[Transaction], Any]


class _Waiting(NamedTuple):
    job: Job
    subjects: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    trial: bool


def clean(value: object) -> str:
    """Make a peer's text safe for the audit: limited in length, without control characters or incomplete characters."""
    text = str(value)[:_MAX_FACT]
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Store:
    """The database. Call `open` before anything else; `close` waits for queued jobs."""

    def __init__(self, where: str, issuer: str) -> None:
        self.where = where
        self.issuer = issuer
        self.created = False
        """Whether `open` found an empty database."""
        self._failed_at: float | None = None
        self._failed = 0
        self._told_at = float("-inf")
        self._told = False
        self.beside = False
        """Whether another process has the database, and this one only uses it."""
        self.commits = 0
        self._audit_head: tuple[int, str] | None = None
        """The audit's last record, while it is certain."""
        self._version = -1
        """SQLite's counter of commits by others: another command may have worked on the database."""
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._lock_fd = -1
        self._in_use = InUse()
        self._engine: sa.Engine | None = None
        self._connection: sa.Connection | None = None
        self._thread: threading.Thread | None = None

    @property
    def healthy(self) -> bool:
        """Whether the database can be written, as far as is known.

        A small write may succeed on a full disk where a certificate does not fit. So after a failure only a commit of the
        service's own work counts as recovery, or a minute without another failure.
        """
        failed_at = self._failed_at
        return failed_at is None or time.monotonic() - failed_at >= TOLD_EVERY_S

    # -- life --------------------------------------------------------------------------------------

    def open(self, *, beside: bool = False) -> None:
        """Lock the database for this process and update its schema.

        Args:
            beside: If another process has the database, use it beside that one for a few short transactions. The attribute
                ``beside`` of this object then says so.

        Raises:
            ConfigurationError: Another process has it, or it cannot be used.
        """
        if is_sqlite(self.where):
            self._take_lock(beside=beside)
        try:
            self._engine = engine_for(self.where)
            self._connection = self._engine.connect()
            self._take_advisory_lock(beside=beside)
            with self._connection.begin():
                if self.beside and not schema.is_current(self._connection):
                    raise ConfigurationError(  # noqa: TRY301 - the handler below closes what is open
                        f"the database {self._shown()} is in use by a pvacms of another version; stop that one first"
                    )
                self.created = schema.migrate(self._connection, where=self._shown())
            if is_sqlite(self.where):
                os.chmod(self.where, 0o600)  # noqa: PTH101 - text in
                self._in_use.remember(self.where, self.where + ".lock")
        except sa.exc.SQLAlchemyError as error:
            self.close()
            raise ConfigurationError(
                f"the database {self._shown()} cannot be used: {_reason(error)}"
            ) from error
        except ImportError as error:
            self.close()
            raise ConfigurationError(
                f"the database {self._shown()} needs a driver that is not installed: {error}"
            ) from error
        except BaseException:
            self.close()
            raise

    def _shown(self) -> str:
        return self.where if is_sqlite(self.where) else sa.make_url(self.where).render_as_string()

    def _take_lock(self, *, beside: bool) -> None:
        name = self.where + ".lock"
        try:
            self._lock_fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigurationError(f"cannot open: {error.strerror}", file=name) from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock_fd)
            self._lock_fd = -1
            if beside:
                self.beside = True
                return
            raise ConfigurationError(
                f"another pvacms uses the database {self.where}; stop that one, or give this one its own with -d"
            ) from None
        # The database is created with a mode for its owner only, so it is never readable by others.
        with contextlib.suppress(OSError):
            os.close(os.open(self.where, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _take_advisory_lock(self, *, beside: bool) -> None:
        assert self._connection is not None
        if self._connection.dialect.name != "postgresql":
            return
        taken = self._connection.execute(sa.text("SELECT pg_try_advisory_lock(37427)")).scalar()
        self._connection.rollback()
        if not taken and not beside:
            raise ConfigurationError(f"another pvacms uses the database {self._shown()}")
        self.beside = not taken

    def start(self) -> None:
        """Start the writing thread."""
        self._thread = threading.Thread(target=self._work, name="store", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish queued jobs and close the database."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        if self._connection is not None:
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                self._connection.close()
            self._connection = None
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # -- work --------------------------------------------------------------------------------------

    def submit(
        self,
        job: Callable[[Transaction], _T],
        *subjects: str,
        key: tuple[str, str] | None = None,
        trial: bool = False,
    ) -> asyncio.Future[_T]:
        """Queue a job; the future is done when its transaction is committed.

        Args:
            job: What to do.
            subjects: Those that the job will ask for.
            key: The key that it will ask for, by ``key_id`` and ``skid``.
            trial: Whether it only tests that the database can be written.

        Returns:
            A future, which raises what the job raised, or StoreError.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        self._queue.put(_Waiting(job, subjects, () if key is None else (key,), future, loop, trial))
        return future

    def run(self, job: Callable[[Transaction], _T]) -> _T:
        """Do one job now, before `start`. Raises what the job raises, or StoreError."""
        result, error = self._commit([job], ())[0]
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def _work(self) -> None:
        busy = 0
        while True:
            first = self._queue.get()
            if first is None:
                return
            if busy > 2:
                # Under load one commit for many is better than a commit at once; a single request never waits.
                time.sleep(min(busy * _GATHER_S, _GATHER_MAX_S))
            group = [first]
            stop = False
            while len(group) < _GROUP:
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    stop = True
                    break
                group.append(item)
            busy = len(group)
            subjects = [subject for item in group for subject in item.subjects]
            keys = [key for item in group for key in item.keys]
            trial = all(item.trial for item in group)
            results = self._commit([item.job for item in group], subjects, keys, trial=trial)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                first.loop.call_soon_threadsafe(_deliver, group, results)
            if stop:
                return

    def _lost(self) -> StoreError | None:
        """Return the error for a database that is no longer the file at its path; None if it is."""
        path = self._in_use.lost()
        if not path:
            return None
        # When the file is back this notices it, so no commit is needed to prove it, as after a full disk.
        self._tell(f"{path} was removed or replaced while the service ran", is_seen=True)
        return StoreError(
            f"the certificate database cannot be used: {path} was removed or replaced while the service ran; nothing is "
            "issued, approved or revoked until the same file is put back, or the service is stopped, a backup restored, and "
            "the service started again"
        )

    def _commit(
        self,
        jobs: Sequence[Job],
        subjects: Iterable[str],
        keys: Iterable[tuple[str, str]] = (),
        *,
        trial: bool = False,
    ) -> list[tuple[Any, Exception | None]]:
        connection = self._connection
        if connection is None:
            return [(None, StoreError("the database is closed"))] * len(jobs)
        results: list[tuple[Any, Exception | None]] = []
        lost = self._lost()
        if lost is not None:
            return [(None, lost)] * len(jobs)
        try:
            with connection.begin():
                known = self._audit_head if self._alone(connection) else None
                transaction = Transaction(connection, self.issuer, known)
                self._audit_head = None
                transaction.prefetch(subjects, keys)
                for job in jobs:
                    try:
                        results.append((job(transaction), None))
                    except ApplianceError as error:
                        results.append((None, error))
                transaction.flush()
            self.commits += 1
            self._audit_head = transaction.audit_head
            if is_sqlite(self.where):
                self._in_use.remember(self.where + "-wal")
            # What was committed to a removed file is lost, so it was not done.
            lost = self._lost()
            if lost is not None:
                return [(None, lost)] * len(jobs)
            if (self._told or self._failed_at is not None) and (not trial or self.healthy):
                self._recovered()
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing was committed and everybody must know
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                connection.rollback()
            if len(jobs) > 1:
                # One job is the cause, or the disk. Each is tried alone, so that none fails because of another.
                return [self._commit((job,), ())[0] for job in jobs]
            self._tell(_reason(error), defect=None if isinstance(error, sa.exc.SQLAlchemyError) else error)
            failure = StoreError(
                f"the certificate database cannot be written: {_reason(error)}; nothing was done"
            )
            failure.__cause__ = error
            return [(None, failure)] * len(jobs)
        return results

    def _alone(self, connection: sa.Connection) -> bool:
        """Whether nobody else has committed since the last call; call it inside a transaction."""
        if connection.dialect.name != "sqlite":
            return False
        before = self._version
        self._version = int(connection.exec_driver_sql("PRAGMA data_version").scalar() or 0)
        return self._version == before

    def _tell(self, why: str, *, defect: Exception | None = None, is_seen: bool = False) -> None:
        """Say once a minute that nothing can be written; ``is_seen``: the next commit checks whether it is still so."""
        self._failed += 1
        now = time.monotonic()
        if defect is None and not is_seen:
            self._failed_at = now
        if now - self._told_at < TOLD_EVERY_S:
            return
        self._told_at, self._told = now, True
        _log.error(
            "the certificate database %s cannot be written: %s; until it can be, nothing is issued, approved, denied or revoked "
            "(%d attempts failed so far)",
            self._shown(),
            why,
            self._failed,
            exc_info=defect,
            extra={"event": "database-failed"},
        )

    def _recovered(self) -> None:
        self._failed_at = None
        if self._told:
            self._told = False
            _log.warning(
                "the certificate database can be written again; %d attempts failed in the meantime, and were refused",
                self._failed,
                extra={"event": "database-recovered"},
            )
            self._failed = 0


def _deliver(group: Sequence[_Waiting], results: Sequence[tuple[Any, Exception | None]]) -> None:
    if len(group) > _AT_ONCE:
        # What follows is a signature for each. Meanwhile others' requests are read, and the next commit begins.
        group[0].loop.call_soon(_deliver, group[_AT_ONCE:], results[_AT_ONCE:])
        group, results = group[:_AT_ONCE], results[:_AT_ONCE]
    for item, (result, error) in zip(group, results, strict=True):
        if item.future.done():
            continue
        if error is None:
            item.future.set_result(result)
        else:
            item.future.set_exception(error)


def _reason(error: Exception) -> str:
    original = getattr(error, "orig", None)
    return str(original or error).partition("\n")[0]


# ---------------------------------------------------------------------- jobs that are only one statement


def live_records(transaction: Transaction) -> list[CertRecord]:
    """Every certificate whose state can still change."""
    query = sa.select(*_COLUMNS).where(
        schema.certs.c.issuer == transaction._issuer, schema.certs.c.state.in_([s.value for s in LIVE])
    )
    return [_record(row) for row in transaction.connection.execute(query)]


def mark_delivered(serials: Sequence[int]) -> Job:
    """Record that requesters have their certificates."""

    def job(transaction: Transaction) -> None:
        transaction.flush()
        transaction.connection.execute(
            sa.update(schema.certs)
            .where(schema.certs.c.serial == sa.bindparam("number"))
            .values(delivered=1),
            [{"number": serial} for serial in serials],
        )

    return job


def doubt_undelivered(transaction: Transaction) -> int:
    """Mark certificates, at the start, whose delivery is not known any more."""
    changed = transaction.connection.execute(
        sa.update(schema.certs).where(schema.certs.c.delivered == 0).values(delivered=IN_DOUBT)
    )
    return int(changed.rowcount)


def counts(transaction: Transaction) -> dict[str, int]:
    """Return the number of certificates by state."""
    query = (
        sa.select(schema.certs.c.state, sa.func.count())
        .where(schema.certs.c.issuer == transaction._issuer)
        .group_by(schema.certs.c.state)
    )
    return {state: int(number) for state, number in transaction.connection.execute(query)}
