"""The services that share a database: who they are, and which of them live.

Each has a row, which it renews every two seconds, and a lock, which the server takes back at once when the process is gone.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
import uuid
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from appliance.cms import schema
from appliance.cms.database import Backoff
from appliance.cms.schema import LIVING, nodes
from appliance.cms.store import Store
from appliance.cms.transaction import Transaction, doubt_undelivered
from appliance.errors import ApplianceError, ConfigurationError
from appliance.version import __version__

__all__ = ["Member", "Nodes", "check_clock", "members"]

_log: Final = logging.getLogger(__name__)
BEAT_S: Final = 2.0
SILENT_S: Final = 10.0
"""Seconds without a beat after which a node counts as dead, though its lock is held: it is frozen, or its host is."""
PRIMARY_S: Final = 10.0
"""Seconds after which a node looks whether another server has taken over, though the former one still answers."""
FORGOTTEN_S: Final = 60.0
"""Seconds after which a dead node is forgotten."""
WRONG_S: Final = 60.0
"""So many seconds this host's clock may differ from the database's. What a clock that is further off says of certificates is not
written: EXPIRED is for good, and at all nodes."""
_ENTER_S: Final = 10.0
"""Seconds for which a start waits for the lock of its name: the server notices the end of a killed process's host late."""
_NOW: Final = sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.BigInteger)
_MEMBERS: Final = sa.text(
    "SELECT n.node, n.number, n.node_id, n.release, n.schema, n.address, n.started_at, n.seen_at, n.seq, "
    "cast(extract(epoch from clock_timestamp()) as bigint) - n.seen_at AS silent, EXISTS (SELECT 1 FROM pg_locks l "
    "JOIN pg_database d ON d.oid = l.database WHERE d.datname = current_database() AND l.locktype = 'advisory' "
    "AND l.classid = :living AND l.objid = n.number AND l.objsubid = 2 AND l.granted) AS held "
    "FROM nodes n ORDER BY n.node"
).bindparams(living=LIVING)


class Member(NamedTuple):
    """One node as the database has it. Times are POSIX seconds of the database's clock."""

    node: str
    number: int
    node_id: str
    """What peers call it: the beginning of its certificate's key identifier."""
    release: str
    schema: str
    address: str
    started_at: int
    seen_at: int
    seq: int
    """The last audit record that it has taken."""
    silent_s: int
    """Seconds since its last beat."""
    is_alive: bool

    @property
    def version(self) -> tuple[int, int, int]:
        """The numbers of its release: those of 9.1rc2 are 9, 1 and 0."""
        found = (re.match(r"[0-9]{1,9}(?![0-9])", part) for part in self.release.split("."))
        major, minor, patch, *_ = (*(int(each[0]) if each else 0 for each in found), 0, 0)
        return major, minor, patch


def members(connection: sa.Connection) -> list[Member]:
    """Return all nodes, by name, also in a job."""
    return [
        Member._make((*row[:-1], bool(row.held) and row.silent <= SILENT_S))
        for row in connection.execute(_MEMBERS).all()
    ]


def _ahead_s(connection: sa.Connection) -> float:
    """Return how far the database's clock is ahead of this host's steady clock, which nobody sets."""
    before = time.monotonic()
    theirs = connection.exec_driver_sql("SELECT extract(epoch from clock_timestamp())").scalar_one()
    return float(theirs) - (before + time.monotonic()) / 2


def _clock_fault(offset_s: float) -> str:
    if abs(offset_s) <= WRONG_S:
        return ""
    where = "behind" if offset_s > 0 else "ahead of"
    return f"this host's clock is {abs(offset_s):.0f} s {where} the database's; correct the one that is wrong"


def check_clock(transaction: Transaction) -> None:
    """Refuse to work with a wrong clock, in a job before anything is written.

    Raises:
        ConfigurationError: This host's clock and the database's differ by more than a minute.
    """
    fault = _clock_fault(_ahead_s(transaction.connection) + time.monotonic() - time.time())
    if fault:
        raise ConfigurationError(
            f"{fault}: a node with a wrong clock would end certificates of the whole site"
        )


def _is_gone(member: Member) -> bool:
    return not member.is_alive and member.silent_s >= FORGOTTEN_S


def forget_silent(transaction: Transaction, at: int) -> list[str]:
    """Forget nodes that have been dead for a minute, in a job. Nobody knows whether their last answers arrived.

    A node that was only cut off enters again with its next commit, and what it marks as delivered then counts.

    Args:
        transaction: The transaction.
        at: The present time (POSIX seconds).

    Returns:
        Their names.
    """
    gone = [member.node for member in members(transaction.connection) if _is_gone(member)]
    for name in gone:
        doubted = doubt_undelivered(transaction, [name])
        transaction.connection.execute(sa.delete(nodes).where(nodes.c.node == name))
        transaction.audit(at, "doubt", None, {"node": name, "certificates": str(doubted)})
    return gone


class Nodes:
    """This node among the others. Call `enter` before the service starts."""

    def __init__(self, store: Store, *, address: str = "") -> None:
        self.store = store
        self.name = store.node
        self.instance = str(uuid.uuid4())
        self.node_id = ""
        self.address = address
        self.seq = 0
        """The last audit record that this node has taken."""
        self.members: tuple[Member, ...] = ()
        """All nodes at the last beat."""
        self._ahead_s = time.time() - time.monotonic()
        """How far the database's clock is ahead of this host's steady one, at the last beat."""
        self._number = 0
        self._connection: sa.Connection | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    @property
    def alive(self) -> list[str]:
        """The names of the nodes that live, this one among them."""
        return [member.node for member in self.members if member.is_alive or member.node == self.name]

    def is_alive(self, name: str) -> bool:
        """Whether a node lived at the last beat."""
        return any(member.node == name and member.is_alive for member in self.members)

    @property
    def silent(self) -> bool:
        """Whether a node has been dead for so long that it is forgotten."""
        return any(_is_gone(member) for member in self.members)

    @property
    def clock_offset_s(self) -> float:
        """How far the database's clock is ahead of this host's. A clock that was set since the last beat is noticed at once."""
        return self._ahead_s + time.monotonic() - time.time()

    def clock_fault(self) -> str:
        """Return that this host's clock is too far from the database's to be believed; empty if it is not."""
        return _clock_fault(self.clock_offset_s)

    @property
    def rank(self) -> int:
        """The place of this node among those that live; 0: the first by name."""
        return self.alive.index(self.name) if self.name in self.alive else 0

    # -- life ----------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Take this node's name.

        Raises:
            ConfigurationError: Another process has it.
            ApplianceError: The database could not be used.
        """
        connection = self.store.database.connect("nodes")
        try:
            with connection.begin():
                number = connection.execute(
                    sa.select(nodes.c.number).where(nodes.c.node == self.name)
                ).scalar()
            if number is None:
                self.store.run(lambda transaction: self._record(transaction.connection, ""))
                number = self._number
            self._number = number
            end = time.monotonic() + _ENTER_S
            while not self._lock(connection):
                if time.monotonic() >= end:
                    raise ConfigurationError(  # noqa: TRY301 - the handler below closes the connection
                        f"another pvacms is node {self.name!r} of the database {self.store.database.name}; stop that one, or "
                        "give this one another name with the setting node"
                    )
                self._stop.wait(0.2)
            self.store.run(lambda transaction: self._record(transaction.connection, ""))
            self.store.enter = self._record
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._beat(connection)

    def start(self) -> None:
        """Say from now on that this node lives."""
        self._thread = threading.Thread(target=self._work, name="nodes", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Say that this node has ended."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is None:
            thread = threading.Thread(target=self._leave, name="nodes", daemon=True)
            thread.start()
        self.store.database.end(thread)

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sa.exc.SQLAlchemyError), connection.begin():
                mine = (nodes.c.node == self.name, nodes.c.instance == self.instance)
                connection.execute(sa.delete(nodes).where(*mine))
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                connection.close()

    def _lock(self, connection: sa.Connection) -> bool:
        with connection.begin():
            query = sa.text("SELECT pg_try_advisory_lock(:kind, :number)")
            return bool(connection.execute(query, {"kind": LIVING, "number": self._number}).scalar())

    def _record(self, connection: sa.Connection, token: str) -> None:
        """Write this node's row, under the writers' lock."""
        row: dict[str, Any] = {
            "instance": self.instance, "node_id": self.node_id, "release": __version__[:32], "schema": schema.HEAD,
            "address": self.address, "seen_at": _NOW, "seq": self.seq, "last_commit": token,
        }  # fmt: skip
        mine = nodes.c.node == self.name
        if not self._number:
            self._number = 1 + (connection.execute(sa.select(sa.func.max(nodes.c.number))).scalar() or 0)
        if connection.execute(sa.update(nodes).where(mine).values(row)).rowcount == 0:
            row |= {"node": self.name, "number": self._number, "started_at": _NOW}
            connection.execute(sa.insert(nodes).values(row))

    # -- the beat ------------------------------------------------------------------------------------

    def _beat(self, connection: sa.Connection) -> None:
        with connection.begin():
            values = {"seen_at": _NOW, "seq": self.seq, "node_id": self.node_id, "address": self.address}
            mine = (nodes.c.node == self.name, nodes.c.instance == self.instance)
            connection.execute(sa.update(nodes).where(*mine).values(values))
        with connection.begin():
            self._ahead_s = _ahead_s(connection)
            self.members = tuple(members(connection))

    def _work(self) -> None:
        database, backoff = self.store.database, Backoff()
        pause, asked_at = BEAT_S, time.monotonic()
        while not self._stop.wait(pause):
            try:
                if self._connection is None:
                    connection = database.connect("nodes")
                    try:
                        is_mine = self._lock(connection)
                    except BaseException:
                        connection.close()
                        raise
                    if not is_mine:  # the server has not noticed yet that the former session has ended
                        connection.close()
                        pause = backoff.next_s()
                        continue
                    self._connection = connection
                self._beat(self._connection)
                if time.monotonic() - asked_at >= PRIMARY_S:
                    # The name may lead to another server meanwhile, which `connect` notices.
                    database.connect("nodes").close()
                    asked_at = time.monotonic()
            except (sa.exc.SQLAlchemyError, ApplianceError) as error:
                database.failed(error)
                self._drop()
                pause = backoff.next_s()
            except Exception:  # noqa: BLE001 - a node that does not say that it lives is taken for dead
                _log.exception("the node's beat has failed")
                self._drop()
                pause = BEAT_S
            else:
                database.works()
                backoff.reset()
                pause = BEAT_S
        self._leave()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.invalidate()
                connection.close()
