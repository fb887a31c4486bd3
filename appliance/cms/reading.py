"""Reads beside the writer: two threads whose connections can only read, so no question waits for a commit.

One thread answers questions about single rows: all that wait, in one transaction. The other one is for what may take
long, such as a list or a count. What was committed before a question was asked is in its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import sqlalchemy as sa

from appliance.cms import schema
from appliance.cms.database import Database
from appliance.cms.dialect import Role, kind_of, reason
from appliance.cms.model import check_row, damaged
from appliance.cms.transaction import (
    _COLUMNS,
    _LARGEST,
    Authorities,
    CertRecord,
    StoreError,
    _record,
    as_it_ends,
)
from appliance.errors import ApplianceError, DatabaseLost

__all__ = ["Readers", "counts", "records_of"]

_T = TypeVar("_T")
_AT_ONCE: Final = 64
"""Questions that share a transaction."""
_SILENT_S: Final[dict[str, float]] = {"reader": 10.0, "list": 60.0}
"""Seconds for which a server's answer is waited for. It has limits of its own, unless it is frozen, or its host is."""
_SERIAL: Final = schema.certs.c.serial
_ROWS: Final = sa.select(*_COLUMNS)
_ROW: Final = _ROWS.where(sa.bindparam("number") == _SERIAL)
_SEVERAL: Final = _ROWS.where(_SERIAL.in_(sa.bindparam("numbers", expanding=True)))


class _Question(NamedTuple):
    job: Callable[[sa.Connection], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class Readers:
    """Two reading threads, which begin with the first question.

    Args:
        database: Gives the connections.
        fault: Says why the database must not be opened at present; None if it may be. A connection that is open already reads
            what it has read before: a file that was removed holds all that was ever committed to it.
    """

    def __init__(
        self, database: Database, *, fault: Callable[[], ApplianceError | None] = lambda: None
    ) -> None:
        self._database = database
        self._fault = fault
        self._quick = _Thread(database, "reader", self._connect)
        self._slow = _Thread(database, "list", self._connect)

    def _connect(self, role: Role) -> sa.Connection:
        fault = self._fault()
        if fault is not None:
            raise fault
        return self._database.connect(role, read_only=True)

    def start(self) -> None:
        """Connect now, and not with the first question."""
        self._quick.start()
        self._slow.start()

    def read(self, job: Callable[[sa.Connection], _T]) -> asyncio.Future[_T]:
        """Ask something that an index answers.

        Args:
            job: Asks, in a transaction that can only read. It runs in another thread.

        Returns:
            What it returns.

        Raises:
            StoreError: The database could not be read.
            DatabaseLost: Its server cannot be reached.
        """
        return self._quick.ask(job)

    def read_much(self, job: Callable[[sa.Connection], _T]) -> asyncio.Future[_T]:
        """Ask something that may take a second. As `read`, which it does not hold up."""
        return self._slow.ask(job)

    def close(self) -> None:
        """Answer what was asked, and close the connections."""
        self._quick.close()
        self._slow.close()


class _Thread:
    """One thread and its connection, which is made anew after a failure."""

    def __init__(self, database: Database, role: Role, connect: Callable[[Role], sa.Connection]) -> None:
        self._database = database
        self._role = role
        self._connect = connect
        self._queue: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._connection: sa.Connection | None = None

    def ask(self, job: Callable[[sa.Connection], Any]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self.start()
        self._queue.put(_Question(job, future, loop))
        if self._database.is_server:
            timer = loop.call_later(_SILENT_S[self._role], _expire, future)
            future.add_done_callback(lambda _: timer.cancel())
        return future

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._role, daemon=True)
            self._thread.start()

    def close(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._database.end(self._thread)
            self._thread = None

    def _work(self) -> None:
        with contextlib.suppress(
            sa.exc.SQLAlchemyError, ApplianceError
        ):  # the first question says what is wrong
            self._connection = self._connect(self._role)
        last = False
        while not last:
            asked = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(asked) < _AT_ONCE:
                    asked.append(self._queue.get_nowait())
            last = None in asked
            group = [question for question in asked if question is not None and not question.future.done()]
            if group:
                answers = self._answers([question.job for question in group])
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    group[0].loop.call_soon_threadsafe(_deliver, group, answers)
        self._forget()

    def _answers(
        self, jobs: Sequence[Callable[[sa.Connection], Any]]
    ) -> list[tuple[Any, ApplianceError | None]]:
        try:
            if self._connection is None:
                self._connection = self._connect(self._role)
            with self._connection.begin():
                answers = [_answer(job, self._connection) for job in jobs]
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must know
            was_open = self._connection is not None
            self._forget()
            if was_open and kind_of(error) == "lost":
                # It may have ended long ago, with the server as it was then.
                return self._answers(jobs)
            if self._database.is_server and (isinstance(error, DatabaseLost) or kind_of(error) == "lost"):
                self._database.failed(error)
                # The log has the reason, with the server's name and its words. This goes to whoever asked.
                return [(None, DatabaseLost("the certificate database cannot be reached"))] * len(jobs)
            if len(jobs) > 1:
                # One of them is the cause, or the database. Each is asked alone, so that none fails because of another.
                return [self._answers((job,))[0] for job in jobs]
            if isinstance(error, ApplianceError):
                return [(None, error)]
            failure = StoreError(f"the certificate database cannot be read: {reason(error)}")
            failure.__cause__ = error
            return [(None, failure)]
        return answers

    def _forget(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.close()
            self._connection = None


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(DatabaseLost("the certificate database does not answer"))


def _answer(
    job: Callable[[sa.Connection], Any], connection: sa.Connection
) -> tuple[Any, ApplianceError | None]:
    try:
        return job(connection), None
    except ApplianceError as error:
        return None, error


def _deliver(group: Sequence[_Question], answers: Sequence[tuple[Any, ApplianceError | None]]) -> None:
    for question, (answer, error) in zip(group, answers, strict=True):
        if question.future.done():
            continue
        if error is None:
            question.future.set_result(answer)
        else:
            question.future.set_exception(error)


def records_of(
    connection: sa.Connection, serials: Sequence[int], authorities: Authorities
) -> dict[int, CertRecord | StoreError]:
    """Return the certificates that there are, by serial number; for a damaged row, what is wrong with it."""
    possible = [serial for serial in serials if serial <= _LARGEST]
    rows: Iterable[Any]
    if len(possible) == 1:
        rows = connection.execute(_ROW, {"number": possible[0]})
    else:
        rows = connection.execute(_SEVERAL, {"numbers": possible}) if possible else ()
    found = {row.serial: _checked(row, authorities) for row in rows}
    return {serial: record for serial, record in found.items() if record is not None}


def _checked(row: Any, authorities: Authorities) -> CertRecord | StoreError | None:
    try:
        record = as_it_ends(_record(row), authorities)
        if record is not None:
            check_row(record)
    except StoreError as error:
        return error
    except ValueError as error:
        return damaged(row.serial, str(error))
    return record


def counts(connection: sa.Connection, issuer: str) -> dict[str, int]:
    """Return the number of an authority's certificates by state."""
    certs = schema.certs.c
    query = sa.select(certs.state, sa.func.count()).where(certs.issuer == issuer).group_by(certs.state)
    return {state: int(number) for state, number in connection.execute(query)}
