"""The database's only writer: one thread, and one commit for all jobs that wait.

A job is a function of a `Transaction`. It first checks, raising an ApplianceError to refuse, and then writes. So jobs
that share a commit cannot harm each other. If a commit fails, all of its jobs fail: nothing is half done.

With a database server there is one writer for all nodes, too: each commit takes a lock first, so its jobs see all that was
committed before. A job may be done twice if the first time came to nothing.
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
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from appliance.cms import schema
from appliance.cms.database import Backoff, Database
from appliance.cms.dialect import Login, is_passing, is_sqlite, kind_of, reason, refuse_log_of_another
from appliance.cms.grouped import LastCommit
from appliance.cms.inuse import InUse, create_private, keep_private
from appliance.cms.jobs import Again, Question, Results, Unsure, Waiting, merged
from appliance.cms.statements import rows_of
from appliance.cms.transaction import Authorities, Job, NextAt, StoreError, Transaction, not_computed
from appliance.cms.trouble import Trouble
from appliance.errors import ApplianceError, ConfigurationError, DatabaseLost

__all__ = ["Store"]

_log: Final = logging.getLogger(__name__)
_T = TypeVar("_T")
_GROUP: Final = 512
_AT_ONCE: Final = 16
"""Results that are delivered in one turn of the event loop."""
_GATHER_S: Final = 0.02
"""So long at most the next commit waits until the event loop has done with the results of the last one."""
CHANNEL: Final = "pvacms"
"""What nodes are notified on when the audit has grown."""
_IN_USE: Final = 37427
"""Lock that every process shares that works on a database. Earlier releases, and commands that move it, want it alone."""
_STARTING: Final = 37426
"""Lock of a start, so that two nodes do not make an authority each."""
_WRITING: Final = 37428
"""Lock of the commit that is being made."""
_START_S: Final = 60.0
"""Seconds for which a start waits for a server that cannot be reached, and for another start."""


class Store:
    """The database. Call `open` before anything else; `close` waits for queued jobs."""

    def __init__(
        self,
        where: str,
        issuer: str,
        *,
        login: Login | None = None,
        side: str = "",
        wait_s: float = 5.0,
    ) -> None:
        """Make a store that is not open.

        Args:
            where: The file, or the URL of a database server.
            issuer: Identifier of the authority whose certificates it has.
            login: What a database server needs beside the URL.
            side: With a server: the file of this host beside which its journals are. One process has them.
            wait_s: With a server: seconds that a job waits for a lost one.
        """
        self.where = where
        self.issuer = issuer
        self.database = Database(where, login)
        self.known: Authorities = {}
        """The authorities in the database's table; empty until that was read."""
        self.node = self.database.login.node
        """Name of this node, for the rows that it records."""
        self.wait_s = wait_s
        self.fatal = ""
        """Why this process must end: the database is another one."""
        self.enter: Callable[[sa.Connection, str], None] | None = None
        """Records this node in a database that does not know it, with its last commit."""
        self.restored: Callable[[Transaction, tuple[int, str]], None] | None = None
        """Makes good, before anything else is written, what a database has lost: called with the last audit record that was seen
        in it before."""
        self.on_restored: Callable[[], None] | None = None
        """Called on the event loop after that."""
        self.restored_at = 0.0
        """When that was last, POSIX seconds."""
        self.unclaimed: Callable[[Any], None] | None = None
        """Called on the event loop with the result of a job whose waiter was told that nobody knows what became of it."""
        self.unreplicated_at = float("-inf")
        """When a commit last went unconfirmed by the standby of a database server."""
        self.start_s = _START_S
        self._side = side
        self._loop: asyncio.AbstractEventLoop | None = None
        self._id = ""
        self._seen: tuple[int, str] | None = None
        """With a server: the last audit record that this process has seen."""
        self._question: Question | None = None
        self._looks_back = False
        self._backoff = Backoff()
        self._closing = threading.Event()
        self.next_at: NextAt = not_computed
        self.created = False
        """Whether `open` found an empty database."""
        self._trouble = Trouble(self.database.name)
        self.beside = False
        """Whether another process has the database, and this one only uses it."""
        self.commits = 0
        self._audit_head: tuple[int, str] | None = None
        """The audit's last record, while it is certain."""
        self._version = -1
        """SQLite's counter of commits by others: another command may have worked on the database."""
        self._queue: queue.SimpleQueue[list[Waiting] | None] = queue.SimpleQueue()
        self._submitted: list[Waiting] = []
        """Jobs of this turn of the event loop. They go to the thread together: one commit, and one change of threads."""
        self._taken = threading.Event()
        """Whether the event loop has done with the results of the last commit."""
        self._lock_fd = -1
        self._in_use = InUse()
        self._connection: sa.Connection | None = None
        self._thread: threading.Thread | None = None

    @property
    def healthy(self) -> bool:
        """Whether the database can be written, as far as is known.

        A small write may succeed on a full disk where a certificate does not fit. So after a failure only a commit of the
        service's own work counts as recovery, or a minute without another failure.
        """
        return not (self.database.state == "lost" or self.fatal or self._trouble.is_recent)

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
        if is_sqlite(self.where) or self._side:
            self._take_lock(self.where if is_sqlite(self.where) else self._side, beside=beside)
        try:
            if self.database.is_server:
                self._connection = self._first_connection()
                self._share(self._connection, is_start=True)
            else:
                if not self.beside:
                    refuse_log_of_another(self.where)
                self._connection = self.database.connect("writer")
            self._migrate(self._connection)
            if is_sqlite(self.where):
                keep_private(self.where)
                self._in_use.remember(self.where, self.where + ".lock")
        except sa.exc.SQLAlchemyError as error:
            self.close()
            raise ConfigurationError(
                f"the database {self._shown()} cannot be used: {reason(error)}"
            ) from error
        except DatabaseLost as error:
            self.close()
            raise ConfigurationError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def _shown(self) -> str:
        return self.database.name

    def _take_lock(self, path: str, *, beside: bool) -> None:
        name = path + ".lock"
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
                f"another pvacms uses the database {path}; stop that one, or give this one its own with -d"
                if is_sqlite(self.where)
                else f"another pvacms of this host uses {path}; give each node its own data directory"
            ) from None
        if is_sqlite(self.where):
            create_private(path)

    def _migrate(self, connection: sa.Connection) -> None:
        end = time.monotonic() + self.start_s
        while True:
            try:
                with connection.begin():
                    if self.beside and not schema.is_usable(connection):
                        raise ConfigurationError(
                            f"the database {self._shown()} is in use by a pvacms of another version; stop that one first"
                        )
                    if self.database.is_server and not schema.is_usable(connection):
                        # Two nodes of a new release that start together must not both migrate. A node that works holds its rows
                        # for a moment only, so what it keeps from being changed is tried again.
                        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                        connection.exec_driver_sql("SET LOCAL lock_timeout = 2000")
                        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITING})")
                    self.created = schema.migrate(connection, where=self._shown())
                    self._id = schema.known(connection, "database_id")
            except sa.exc.DBAPIError as error:
                if kind_of(error) != "busy" or time.monotonic() >= end:
                    raise
            else:
                return

    @property
    def id(self) -> str:
        """What tells the database from all others."""
        return self._id

    # -- a database server -------------------------------------------------------------------------

    def _first_connection(self) -> sa.Connection:
        """Connect, and wait for a server that may come up a moment later.

        Raises:
            DatabaseLost: It cannot be used.
        """
        end, is_told = time.monotonic() + self.start_s, False
        while True:
            try:
                found = self.database.connect("writer")
            except DatabaseLost as error:
                if not is_passing(error) or time.monotonic() >= end:
                    raise
                if not is_told:
                    is_told = True
                    _log.warning("%s; trying again for %.0f s", error, self.start_s)
                time.sleep(self._backoff.next_s())
            else:
                self._backoff.reset()
                return found

    def _share(self, connection: sa.Connection, *, is_start: bool = False) -> None:
        """Take the locks of this session.

        Raises:
            DatabaseLost: A command, or an earlier release, has the database for itself.
        """
        with connection.begin():
            if not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock_shared({_IN_USE})").scalar():
                raise DatabaseLost(
                    f"the database {self._shown()} is in use by a command that needs it alone, or by a pvacms of an earlier release"
                )
            # What was answered is on the disk, also where the server is set to confirm first and write later.
            connection.exec_driver_sql(
                "SELECT set_config(name, 'local', false) FROM pg_settings WHERE name = 'synchronous_commit' AND setting = 'off'"
            )
            if is_start:
                limit = int(self.start_s * 1000) or 1
                for name in ("statement_timeout", "lock_timeout"):
                    connection.exec_driver_sql(f"SET LOCAL {name} = {limit}")
                try:
                    connection.exec_driver_sql(f"SELECT pg_advisory_lock({_STARTING})")
                except sa.exc.DBAPIError as error:
                    if kind_of(error) != "busy":
                        raise
                    raise DatabaseLost(
                        f"another node of the database {self._shown()} has been starting for {self.start_s:.0f} s; look at that one"
                    ) from error

            def notice(diagnostic: Any) -> None:
                if "synchronous replication" in (diagnostic.message_primary or ""):
                    self.unreplicated_at = time.monotonic()

            driver: Any = connection.connection.driver_connection
            driver.add_notice_handler(notice)

    def _reach(self) -> sa.Connection:
        """Return a connection to the database that this process knows.

        Raises:
            DatabaseLost: There is none at present.
        """
        if self.fatal:
            raise DatabaseLost(self.fatal)
        if self._connection is None:
            connection = self.database.connect("writer")
            try:
                self._share(connection)
                with connection.begin():
                    found = schema.known(connection, "database_id")
                if found != self._id:
                    self.fatal = (
                        f"the database {self._shown()} is another one than at the start of this service, so this process must end; "
                        "the next start checks it anew"
                    )
                    raise DatabaseLost(self.fatal)  # noqa: TRY301 - the handler below closes it
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            self._looks_back = True
        return self._connection

    def _drop(self, error: BaseException) -> None:
        """Give up a connection that is lost."""
        self.database.failed(error)
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.invalidate()
                connection.close()

    def _was_committed(self, connection: sa.Connection, token: str) -> bool:
        """Whether a commit came about whose answer was lost."""
        from appliance.cms.schema import nodes

        with connection.begin():
            # The session that made it may still be at it. It holds the lock until it has ended, one way or the other.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITING})")
            found = connection.execute(sa.select(nodes.c.last_commit).where(nodes.c.node == self.node))
            return bool(found.scalar() == token)

    def _is_continued(self, connection: sa.Connection) -> bool:
        """Whether the audit still has the last record that was seen; call it under the lock."""
        if self._seen is None or self._seen[0] == 0:
            return True
        audit = schema.audit.c
        seq, sealed = self._seen
        found = connection.execute(sa.select(audit.hash).where(audit.seq == seq)).scalar()
        if found is not None:
            return bool(found == sealed)
        oldest = connection.execute(sa.select(sa.func.min(audit.seq))).scalar()
        return oldest is not None and oldest > seq

    def look_back(self) -> None:
        """Have the next commit check whether the database still has all that was seen in it; any thread may ask."""
        self._looks_back = True

    def _once(
        self,
        connection: sa.Connection,
        group: list[Waiting],
        *,
        trial: bool,
        join: Callable[[], Sequence[Waiting]] = tuple,
    ) -> Results:
        """Do a group in one transaction of a database server, with what has come while another node had the lock.

        Raises:
            Unsure: It is not known whether it was committed.
        """
        results: Results = []
        token = str(uuid.uuid4())
        restored = False
        begun = connection.begin()
        try:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITING})")
            group += join()
            transaction = Transaction(
                connection, self.issuer, node=self.node, next_at=self.next_at, authorities=self.authorities
            )
            looks_back, self._looks_back = self._looks_back, False
            if looks_back and self._seen is not None and not self._is_continued(connection):
                self._looks_back = True  # until it is committed
                restored = True
                if self.restored is not None:
                    self.restored(transaction, self._seen)
            transaction.prefetch(
                [subject for item in group for subject in item.subjects],
                [key for item in group for key in item.keys],
            )
            before = transaction.audit_head[0]
            for item in group:
                try:
                    results.append((item.job(transaction), None))
                except ApplianceError as error:
                    results.append((None, error))
            head = transaction.audit_head
            is_known = transaction.finish(
                LastCommit(self.node, token) if self.node else None,
                (CHANNEL, str(head[0])) if head[0] != before or restored else None,
            )
            if self.node and not is_known and self.enter is not None:
                self.enter(connection, token)
            for item in group:
                item.is_open = True
            if any(item.is_late for item in group):
                raise Again  # noqa: TRY301 - the handler below takes all of it back
        except BaseException:
            with contextlib.suppress(Exception):
                begun.rollback()
            for item in group:
                item.is_open = False
            raise
        try:
            begun.commit()
        except sa.exc.DBAPIError as error:
            if kind_of(error) == "lost":
                raise Unsure(Question(token, group, results, head)) from error
            for item in group:
                item.is_open = False
            raise
        self._committed(head, trial=trial and all(item.trial for item in group))
        if restored:
            self._looks_back = False
            self.restored_at = time.time()
            if self.on_restored is not None and self._loop is not None:
                self._loop.call_soon_threadsafe(self.on_restored)
        return results

    def _committed(self, head: tuple[int, str], *, trial: bool) -> None:
        self.commits += 1
        self._seen = head
        self.database.works()
        self._succeeded(trial=trial)

    def _succeeded(self, *, trial: bool) -> None:
        if self._trouble.is_open and (not trial or self.healthy):
            self._trouble.over()

    def _settle(self, connection: sa.Connection, doing: Sequence[Waiting]) -> Question | None:
        """Answer an open question; return it if what it is about was committed. What is being done is done again otherwise."""
        question = self._question
        if question is None:
            return None
        was = bool(self.node) and self._was_committed(connection, question.token)
        self._question = None
        if not was:
            for item in question.group:
                item.is_open = False
            if question.group is not doing:
                nothing = (None, DatabaseLost("nothing was done"))
                self._hand_over(question.group, [nothing] * len(question.group))
            return None
        self._committed(question.head, trial=True)
        return question

    def _on_server(
        self, group: list[Waiting], *, trial: bool, until: float, may_grow: bool = False
    ) -> Results:
        """Do a group, also if the server has to be found again meanwhile; at ``until`` it fails.

        With ``may_grow`` it gets what waits when the first attempt has the lock. Without that, nodes that wait for each other would
        commit little and often: what comes meanwhile would wait for a turn of its own.
        """
        why: BaseException | None = None
        doing = group

        def join() -> Sequence[Waiting]:
            nonlocal may_grow, until
            more = self._more(_GROUP - len(group)) if may_grow else []
            if more:
                until = time.monotonic() + self.wait_s
                group.extend(more)
            may_grow = False
            return [item for item in more if not item.is_late]

        while True:
            try:
                connection = self._reach()
                question = self._settle(connection, doing)
                if question is not None:
                    if question.group is doing:
                        return merged(group, doing, question.results)
                    self._hand_over(question.group, question.results)
                # Those whose waiters have given up meanwhile are not begun again.
                doing = [item for item in group if not item.is_late]
                if not doing:
                    break
                results = self._once(connection, doing, trial=trial, join=join)
            except Again:
                continue
            except Unsure as unsure:
                self._question = unsure.question
                why = unsure.__cause__
                self._drop(why or unsure)
                if not self.node:
                    break  # a command has no row in which to look
            except DatabaseLost as error:
                why = error
                self._drop(error)
            except sa.exc.DBAPIError as error:
                kind = kind_of(error)
                if kind == "other":
                    return self._each_alone(group, error, trial=trial, until=until)
                why = error
                if kind == "lost":
                    self._drop(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, nothing was committed and everybody must know
                return self._each_alone(group, error, trial=trial, until=until)
            else:
                self._backoff.reset()
                return merged(group, doing, results)
            if self.fatal or time.monotonic() >= until:
                break
            if self._closing.wait(self._backoff.next_s()) and self._connection is None:
                break
        for item in group:
            item.is_late = True
        # What is known of one that gave up before is not what is known of the others. Who asked over the network learns no reason.
        return [(None, DatabaseLost(_why_lost(why, item) + item.fate)) for item in group]

    def _each_alone(
        self, group: Sequence[Waiting], error: Exception, *, trial: bool, until: float
    ) -> Results:
        """Do the jobs of a group that failed one by one, so that none fails because of another."""
        if len(group) > 1:
            return [self._on_server([item], trial=trial, until=until)[0] for item in group]
        self._trouble.tell(reason(error), defect=None if isinstance(error, sa.exc.SQLAlchemyError) else error)
        # It goes to whoever asked over the network, who learns nothing of the server.
        failure = StoreError(
            "the certificate database cannot be written (the service's log says why); nothing was done"
        )
        failure.__cause__ = error
        return [(None, failure)]

    def _hand_over(self, group: Sequence[Waiting], results: Results) -> None:
        if group and self._loop is not None:
            self._taken.clear()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._deliver, group, results)

    def start(self) -> None:
        """Start the writing thread."""
        self.let_others_start()
        self._thread = threading.Thread(target=self._work, name="store", daemon=True)
        self._thread.start()

    def let_others_start(self) -> None:
        """Let other nodes make what they miss at their start."""
        if self.database.is_server and self._connection is not None:
            with contextlib.suppress(sa.exc.SQLAlchemyError), self._connection.begin():
                self._connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_STARTING})")

    def close(self) -> None:
        """Finish queued jobs and close the database."""
        self._closing.set()
        if self._thread is not None:
            self._send()
            self._queue.put(None)
            self.database.end(self._thread)
            self._thread = None
        if self._connection is not None:
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                self._connection.close()
            self._connection = None
        self.database.dispose()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _deliver(self, group: Sequence[Waiting], results: Sequence[tuple[Any, Exception | None]]) -> None:
        is_last = len(group) <= _AT_ONCE
        if not is_last:
            # What follows is a signature for each. Meanwhile others' requests are read, and the next commit begins.
            loop = self._loop
            assert loop is not None
            loop.call_soon(self._deliver, group[_AT_ONCE:], results[_AT_ONCE:])
            group, results = group[:_AT_ONCE], results[:_AT_ONCE]
        for item, (result, error) in zip(group, results, strict=True):
            if item.timer is not None:
                item.timer.cancel()
                item.timer = None
            if item.is_late and error is None and self.unclaimed is not None:
                self.unclaimed(result)
            elif item.is_late and error is not None and not item.is_open and item.undone is not None:
                item.undone()
            if item.future is None or item.future.done():
                continue
            if error is None:
                item.future.set_result(result)
            else:
                item.future.set_exception(error)
        if is_last and self._loop is not None:
            self._loop.call_soon(self._taken.set)  # behind those who have their result now

    # -- work --------------------------------------------------------------------------------------

    def submit(
        self,
        job: Callable[[Transaction], _T],
        *subjects: str,
        key: tuple[str, str] | None = None,
        trial: bool = False,
        patient: bool = False,
        undone: Callable[[], None] | None = None,
    ) -> asyncio.Future[_T]:
        """Queue a job; the future is done when its transaction is committed.

        Args:
            job: What to do.
            subjects: Those that the job will ask for.
            key: The key that it will ask for, by ``key_id`` and ``skid``.
            trial: Whether it only tests that the database can be written.
            patient: Whether it may take longer than others wait.
            undone: Called when it is known that nothing was done, if the future's DatabaseLost came before that.

        Returns:
            A future, which raises what the job raised, StoreError, or DatabaseLost.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        item = Waiting(job, subjects, () if key is None else (key,), future, trial=trial, undone=undone)
        if self.database.is_server and not patient:
            item.timer = loop.call_later(self.wait_s, item.expire)
        if not self._submitted or self._loop is not loop:
            loop.call_soon(self._send)
        self._loop = loop
        self._submitted.append(item)
        return future

    def _send(self) -> None:
        if self._submitted:
            items, self._submitted = self._submitted, []
            self._queue.put(items)

    def run(self, job: Callable[[Transaction], _T]) -> _T:
        """Do one job now, before `start`. Raises what the job raises, StoreError, or DatabaseLost."""
        if self.database.is_server:
            item = Waiting(job)
            result, error = self._on_server([item], trial=False, until=time.monotonic() + self.wait_s)[0]
        else:
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
                # Under load one commit for many is better than a commit at once, and two threads that work at a time are in each
                # other's way. A single request never waits.
                self._taken.wait(_GATHER_S)
            group = first + self._more(_GROUP - len(first))
            trial = all(item.trial for item in group)
            if self.database.is_server:
                until = time.monotonic() + self.wait_s
                results = self._on_server(group, trial=trial, until=until, may_grow=True)
            else:
                subjects = [subject for item in group for subject in item.subjects]
                keys = [key for item in group for key in item.keys]
                results = self._commit([item.job for item in group], subjects, keys, trial=trial)
            busy = len(group)
            self._hand_over(group, results)

    def _more(self, most: int) -> list[Waiting]:
        """Return what waits now, about so much at most."""
        found: list[Waiting] = []
        while len(found) < most:
            try:
                items = self._queue.get_nowait()
            except queue.Empty:
                break
            if items is None:
                self._queue.put(None)  # the end comes when all of this is done
                break
            found += items
        return found

    def _lost(self) -> StoreError | None:
        """Return the error for a database that is no longer the file at its path; None if it is."""
        path = self._in_use.lost()
        if not path:
            return None
        # When the file is back this notices it, so no commit is needed to prove it, as after a full disk.
        self._trouble.tell(f"{path} was removed or replaced while the service ran", is_seen=True)
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
    ) -> Results:
        connection = self._connection
        if connection is None:
            return [(None, StoreError("the database is closed"))] * len(jobs)
        results: Results = []
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
                head = transaction.audit_head
            self.commits += 1
            self._audit_head = head
            self._in_use.remember(self.where + "-wal")
            # What was committed to a removed file is lost, so it was not done.
            lost = self._lost()
            if lost is not None:
                return [(None, lost)] * len(jobs)
            self._succeeded(trial=trial)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing was committed and everybody must know
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                connection.rollback()
            if len(jobs) > 1:
                # One job is the cause, or the disk. Each is tried alone, so that none fails because of another.
                return [self._commit((job,), ())[0] for job in jobs]
            self._trouble.tell(
                reason(error), defect=None if isinstance(error, sa.exc.SQLAlchemyError) else error
            )
            failure = StoreError(
                f"the certificate database cannot be written: {reason(error)}; nothing was done"
            )
            failure.__cause__ = error
            return [(None, failure)] * len(jobs)
        return results

    def _alone(self, connection: sa.Connection) -> bool:
        """Whether nobody else has committed since the last call; call it inside a transaction."""
        before = self._version
        ((self._version,),) = rows_of(connection, "PRAGMA data_version")
        return self._version == before


def _why_lost(error: BaseException | None, item: Waiting) -> str:
    why = "" if error is None or item.future is not None else f": {reason(error)}"
    return "" if error is None else f"the certificate database cannot be used{why}; "
