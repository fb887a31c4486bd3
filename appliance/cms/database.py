"""The connections of this process to the database, and whether they work."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Any, Final, Literal

import sqlalchemy as sa

from appliance.cms import schema
from appliance.cms.dialect import Login, Role, engine_for, is_sqlite, kind_of, login_of, reason, shown
from appliance.errors import ConfigurationError, DatabaseLost

__all__ = ["Backoff", "Database"]

_log: Final = logging.getLogger(__name__)
_MOST_SAID: Final = 20
_FIRST_S: Final = 0.1
_LONGEST_S: Final = 2.0
END_S: Final = 8.0
"""Seconds for which an end of the service waits for an answer of the server. One that works refuses by itself after five."""
_TIMELINE: Final = (
    "SELECT CASE WHEN pg_is_in_recovery() THEN 0 "
    "ELSE CAST(CAST('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) AS bit(32)) AS int) END"
)
"""PostgreSQL gives history a new number each time a standby becomes the primary."""
_SESSION: Final = "SELECT CONCAT(pid, ' ', backend_start) FROM pg_stat_activity WHERE pid = pg_backend_pid()"
"""What no two sessions of a server have in common."""


class Backoff:
    """The pauses between attempts to connect: ever longer, and never those of another node."""

    def __init__(self) -> None:
        self._next = _FIRST_S

    def next_s(self) -> float:
        """Return the seconds to wait before the next attempt."""
        pause, self._next = self._next, min(_LONGEST_S, self._next * 2)
        return pause * random.uniform(0.7, 1.3)  # noqa: S311 - it spreads attempts, and protects nothing

    def reset(self) -> None:
        """Begin anew, after an attempt that succeeded."""
        self._next = _FIRST_S


class Database:
    """One database. Threads ask it for connections, and tell it which worked and which failed."""

    def __init__(self, where: str, login: Login | None = None) -> None:
        self.where = where
        self.login = login_of(where) if login is None else login
        self.is_server = not is_sqlite(where)
        if self.is_server:
            schema.use_server()
        self.state: Literal["up", "lost"] = "up"
        self.lost_since = 0.0
        """When it was lost, POSIX seconds; 0: it was not."""
        self.why = ""
        """Why it is lost."""
        self.reconnects = 0
        self._said: set[str] = set()
        """The reasons that the log has, of this time."""
        self._lock = threading.Lock()
        self._engines: dict[tuple[Role, bool], sa.Engine] = {}
        self._open: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        """The driver's connections to a server, each with its timeline."""
        self._sessions: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        """The same connections, each with its session at the server."""
        self._timeline = 0
        """The latest timeline that was met: that of the primary."""
        self._is_cut = False

    @property
    def name(self) -> str:
        """The database for messages."""
        return shown(self.where)

    def connect(self, role: Role, *, read_only: bool = False) -> sa.Connection:
        """Open a connection.

        Raises:
            DatabaseLost: The server cannot be reached, or takes no writes.
            ConfigurationError: The driver is not installed.
        """
        try:
            with self._lock:
                engine = self._engines.get((role, read_only))
                if engine is None:
                    engine = engine_for(self.where, read_only=read_only, role=role, login=self.login)
                    self._engines[role, read_only] = engine
            self._refuse_if_cut()
            connection = engine.connect()
            if self.is_server:
                self._check(connection)
            return connection  # noqa: TRY300 - the handlers below are for all of it
        except ImportError as error:
            raise ConfigurationError(
                f"the database {self.name} needs a driver that is not installed: {error}; install "
                "'spva-appliance[postgresql]'"
            ) from error
        except sa.exc.DBAPIError as error:
            if not self.is_server:
                raise
            raise DatabaseLost(f"the database {self.name} cannot be used: {reason(error)}") from error

    def _check(self, connection: sa.Connection) -> None:
        """Note a new connection, and which server it is to.

        A former primary that was cut off from its standby may still take connections, while its standby has taken over. What it says
        counts no more, and what is connected to it has to find the new one.

        Raises:
            DatabaseLost: It is to a former primary, or a pooler has no session for it alone.
        """
        driver: Any = connection.connection.driver_connection
        with self._lock:
            self._open[driver] = 0
        try:
            self._refuse_if_cut()
            timeline = int(_asked(connection, _TIMELINE) or 0)
            self._refuse_if_shared(driver, str(_asked(connection, _SESSION) or ""))
            with self._lock:
                before, self._timeline = self._timeline, max(timeline, self._timeline)
                self._open[driver] = timeline
                former = [other for other, its in self._open.items() if 0 < its < self._timeline]
                for other in former:
                    self._sessions.pop(other, None)
            if 0 < timeline < self._timeline:
                raise DatabaseLost(  # noqa: TRY301 - the handler below closes it
                    f"the database {self.name} cannot be used: this server was the primary before another one took over (timeline "
                    f"{timeline}, the other one has {self._timeline}); stop it, or have the name lead to the other one"
                )
        except BaseException:
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                connection.invalidate()
                connection.close()
            raise
        if 0 < before < timeline:
            _log.warning(
                "another server is the primary of the database %s now (timeline %d after %d)",
                self.name,
                timeline,
                before,
                extra={"event": "database-primary"},
            )
            _cut(former)

    def _refuse_if_shared(self, driver: Any, session: str) -> None:
        """Refuse a session that is another connection's too: its locks and notifications would be those of whoever has it."""
        with self._lock:
            others = {its for other, its in self._sessions.items() if not other.closed}
            if session:
                self._sessions[driver] = session
        if session in others:
            raise DatabaseLost(
                f"the database {self.name} cannot be used: two connections have the same session, so a pooler gives it to one "
                "after the other; have it keep a session for each connection (PgBouncer: pool_mode = session)"
            )

    def _refuse_if_cut(self) -> None:
        if self._is_cut:
            raise DatabaseLost(f"the database {self.name} is not asked any more: the service stops")

    def end(self, thread: threading.Thread) -> None:
        """Wait until a thread has ended. If it waits for a server that does not answer, all connections are taken away."""
        thread.join(END_S if self.is_server and not self._is_cut else None)
        if thread.is_alive():
            self.cut()
            thread.join()

    def cut(self) -> None:
        """End all connections, because the server does not answer: whoever waits gets an error. There are no further ones."""
        with self._lock:
            self._is_cut = True
            found = list(self._open)
        _log.warning("the database %s does not answer, so the service stops without it", self.name)
        _cut(found)

    def failed(self, error: BaseException) -> None:
        """Note that a connection was lost or could not be opened."""
        with self._lock:
            # What `connect` raises has the database's name in it, which is said anyway.
            self.why = reason(
                error.__cause__ if isinstance(error, DatabaseLost) and error.__cause__ else error
            )
            was_lost, is_new = (
                self.state == "lost",
                self.why not in self._said and len(self._said) < _MOST_SAID,
            )
            self._said.add(self.why)
            if not was_lost:
                self.state, self.lost_since = "lost", time.time()
        if was_lost:
            if is_new:
                # Whoever asks over the network is told no reason, so each stands here.
                _log.warning("the database %s is still lost: %s", self.name, self.why)
            return
        _log.error(
            "the database %s is lost: %s; until it is back, nothing is answered that only it knows, and nothing is issued, "
            "approved, denied or revoked",
            self.name,
            self.why,
            extra={"event": "database-lost"},
        )

    def works(self) -> None:
        """Note that a connection works."""
        if self.state == "up":
            return
        with self._lock:
            away, self.state, self.lost_since, self.why = time.time() - self.lost_since, "up", 0.0, ""
            self.reconnects += 1
            self._said.clear()
        _log.warning(
            "the database %s is back after %.1f s", self.name, away, extra={"event": "database-back"}
        )

    def dispose(self) -> None:
        """Forget the engines. Connections are closed by those who opened them."""
        with self._lock:
            for engine in self._engines.values():
                engine.dispose()
            self._engines.clear()


def _asked(connection: sa.Connection, question: str) -> Any:
    """Return the answer of a server; None if it does not know, as some that only speak PostgreSQL's protocol."""
    try:
        with connection.begin():
            return connection.exec_driver_sql(question).scalar_one_or_none()
    except sa.exc.DBAPIError as error:
        if kind_of(error) == "other":
            return None
        raise


def _cut(drivers: Iterable[Any]) -> None:
    """End connections of the driver that other threads use: their next word from the server is that it is gone."""
    for driver in drivers:
        with contextlib.suppress(Exception), socket.socket(fileno=os.dup(driver.fileno())) as its:
            its.shutdown(socket.SHUT_RDWR)
