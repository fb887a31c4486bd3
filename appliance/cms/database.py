"""The connections of this process to the database, and whether they work."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Final, Literal

import sqlalchemy as sa

from appliance.cms import schema
from appliance.cms.dialect import Login, Role, engine_for, is_sqlite, login_of, reason, shown
from appliance.errors import ConfigurationError, DatabaseLost

__all__ = ["Backoff", "Database"]

_log: Final = logging.getLogger(__name__)
_MOST_SAID: Final = 20
_FIRST_S: Final = 0.1
_LONGEST_S: Final = 2.0


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
            return engine.connect()
        except ImportError as error:
            raise ConfigurationError(
                f"the database {self.name} needs a driver that is not installed: {error}; install "
                "'spva-appliance[postgresql]'"
            ) from error
        except sa.exc.DBAPIError as error:
            if not self.is_server:
                raise
            raise DatabaseLost(f"the database {self.name} cannot be used: {reason(error)}") from error

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
