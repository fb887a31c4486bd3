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
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import sqlalchemy as sa

from appliance.cms import schema
from appliance.cms.dialect import engine_for, is_sqlite
from appliance.cms.inuse import InUse
from appliance.cms.transaction import Authorities, Job, NextAt, StoreError, Transaction, not_computed
from appliance.errors import ApplianceError, ConfigurationError

__all__ = ["Store"]

_log: Final = logging.getLogger(__name__)
_T = TypeVar("_T")
_GROUP: Final = 512
_AT_ONCE: Final = 16
"""Results that are delivered in one turn of the event loop."""
_GATHER_S: Final = 0.00015
_GATHER_MAX_S: Final = 0.002
TOLD_EVERY_S: Final = 60.0
"""Seconds between two log lines that say that the database cannot be written."""


class _Waiting(NamedTuple):
    job: Job
    subjects: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    trial: bool


class Store:
    """The database. Call `open` before anything else; `close` waits for queued jobs."""

    def __init__(self, where: str, issuer: str) -> None:
        self.where = where
        self.issuer = issuer
        self.known: Authorities = {}
        """The authorities in the database's table; empty until that was read."""
        self.node = ""
        """Name of this node, for the rows that it records."""
        self.next_at: NextAt = not_computed
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

    @property
    def authorities(self) -> Authorities:
        """All authorities whose certificates count; `issuer` is the one that issues."""
        return self.known or {self.issuer: None}

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
                transaction = Transaction(
                    connection,
                    self.issuer,
                    known,
                    node=self.node,
                    next_at=self.next_at,
                    authorities=self.authorities,
                )
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
