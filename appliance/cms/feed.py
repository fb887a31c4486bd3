"""What others have changed in the database: the audit, followed record by record.

The audit's numbers are given under the writers' lock. So their order is that of the commits and there are no gaps, and who
has read up to a number has seen every change up to it. A notification of the database server only says that it is time to
look. One that is lost costs half a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from appliance.certs.status import CertState
from appliance.cms.database import Backoff, Database
from appliance.cms.dialect import reason
from appliance.cms.journal import Journal, JournalError
from appliance.cms.reading import Readers
from appliance.cms.schema import audit, certs
from appliance.cms.store import CHANNEL
from appliance.cms.transaction import StoreError
from appliance.daemon.audit import GENESIS
from appliance.errors import ApplianceError, DatabaseLost

__all__ = ["ENDS", "FRESH_S", "Feed", "OthersRevocations"]

_log: Final = logging.getLogger(__name__)

FRESH_S: Final = 3.0
"""Seconds after the beginning of a look for which nobody can have changed anything unseen for longer."""
_PAUSE_S: Final = 0.5
"""Seconds from one look to the next, if no notification comes."""
_PAUSE_FILE_S: Final = 1.0
"""The same for a file, which only commands beside the service change."""
_AGAIN_S: Final = 1.0
_DAY_S: Final = 86_400.0
_AT_ONCE: Final = 5000
_NO_CHANGE: Final = frozenset(("refuse", "prune"))
"""Actions that leave every certificate as it is. What a later release does is taken for a change."""
ENDS: Final = ("revoke", "deny", "lapse")
"""Actions after which a certificate may be REVOKED."""
_A: Final = audit.c
_HEAD: Final = sa.select(_A.seq, _A.hash).order_by(_A.seq.desc()).limit(1)
_NEWS: Final = (
    sa.select(_A.seq, _A.hash, _A.action, _A.serial)
    .where(_A.seq >= sa.bindparam("last"))
    .order_by(_A.seq)
    .limit(_AT_ONCE)
)


class _Found(NamedTuple):
    """What one look has found."""

    seq: int
    hash: str
    changes: Mapping[int, int]
    """Serial numbers of changed certificates, with the number of the last record about each."""
    ends: tuple[int, ...] = ()
    """Those of them that were revoked, denied, or nobody has decided on."""
    is_all: bool = False
    """Whether records are missing because they were removed as old: anything may have changed."""
    is_other: bool = False
    """Whether this is another history than the one that was read before."""
    is_more: bool = False
    """Whether there is more to read."""
    is_authority: bool = False
    """Whether an authority was introduced, took over, or got another end."""


async def _done(_seq: int, _hash: str) -> None:
    """Do nothing."""


def _nothing() -> None:
    """Do nothing."""


class Feed:
    """Follows the audit in a thread of its own, with a connection of its own.

    Args:
        database: Gives the connection, and is told whether it works.
    """

    def __init__(self, database: Database) -> None:
        self.seq = 0
        self.hash = GENESIS
        self.on_change: Callable[[Mapping[int, int]], None] = lambda _changes: None
        """Called with what others have changed, or this service itself."""
        self.on_ends: Callable[[Sequence[int], int], None] = lambda _serials, _seq: None
        """Called after each look that has found records, with the certificates that came to their end by what somebody did, and the
        number of the last record."""
        self.on_all: Callable[[], None] = _nothing
        """Called when anything may have changed."""
        self.on_authority: Callable[[], None] = _nothing
        """Called when the authorities may have changed."""
        self.on_look: Callable[[], None] = _nothing
        """Called after each look that succeeded."""
        self.own_head: Callable[[], int] = lambda: 0
        """Returns the number of the last record that this service has committed itself. Any thread may call it."""
        self.on_restored: Callable[[int, str], Awaitable[None]] = _done
        """Called with the last number and hash that were seen, when the database has another history. Until it is done, nothing is
        fresh."""
        self._database = database
        self._pause_s = _PAUSE_S if database.is_server else _PAUSE_FILE_S
        self._looked = float("-inf")
        self._since = float("-inf")
        """From when on it has been fresh without a break."""
        self._restoring: asyncio.Task[None] | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]
        self._first: asyncio.Future[None] = None  # type: ignore[assignment]
        self._after: int | None = None
        self._thread: threading.Thread | None = None
        self._connection: sa.Connection | None = None
        self._wake, self._woken = socket.socketpair()
        self._stopping = False
        self._is_notified = False

    # -- in the event loop ---------------------------------------------------------------------------

    async def start(self, after: int | None = None) -> None:
        """Follow the audit.

        Args:
            after: Number of the last record that is known; None if all that is there is known.

        Raises:
            ApplianceError: The database cannot be read.
        """
        self._loop = asyncio.get_running_loop()
        self._first = self._loop.create_future()
        self._after = after
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
        self._thread.start()
        await self._first

    def close(self) -> None:
        """End the thread, and close its connection."""
        if self._restoring is not None:
            self._restoring.cancel()
        if self._thread is not None:
            self._stopping = True
            self.look()
            self._database.end(self._thread)
            self._thread = None
        self._wake.close()
        self._woken.close()

    def look(self) -> None:
        """Look now."""
        with contextlib.suppress(BlockingIOError):
            self._wake.send(b"\0")

    def age_s(self) -> float:
        """Return the seconds since the last look that succeeded began: older than this nothing is unseen."""
        return time.monotonic() - self._looked

    def lag_ms(self) -> int:
        """Return `age_s` in milliseconds; a day also stands for what is longer, and for no look since a restore."""
        return int(min(self.age_s(), _DAY_S) * 1000)

    def is_fresh(self) -> bool:
        """Whether nothing can have been changed elsewhere, unseen, for longer than `FRESH_S`. A file has no elsewhere."""
        return not self._database.is_server or (self._restoring is None and self.age_s() < FRESH_S)

    def fresh_for_s(self) -> float:
        """Return for how many seconds it has been fresh; 0 if it is not."""
        if not self._database.is_server:
            return float("inf")
        return time.monotonic() - self._since if self.is_fresh() else 0.0

    async def caught_up(self, seq: int) -> None:
        """Wait until a record has been read."""
        if self.seq < seq:
            future: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append((seq, future))
            self.look()
            await future

    def _take(self, begun: float, found: _Found) -> None:
        known = self.seq, self.hash
        self.seq, self.hash = found.seq, found.hash
        if not found.is_more:
            if not self.is_fresh() and self._first.done():
                self._since = begun
            self._looked = begun
        if not self._first.done():
            self._first.set_result(None)
        if found.is_other:
            _log.error(
                "the database has another history than the one that this service has seen, from record %d on: it was restored, or "
                "its server has lost commits",
                known[0],
                extra={"event": "database-other"},
            )
            if self._restoring is None:
                self._restoring = self._loop.create_task(self._restore(*known))
        elif found.is_all:
            self.on_all()
        elif found.changes:
            self.on_change(found.changes)
        if found.is_authority or found.is_all:
            self.on_authority()
        if found.seq > known[0] and not found.is_other and not found.is_all:
            self.on_ends(found.ends, found.seq)
        self.on_look()
        waiting, self._waiting = self._waiting, []
        for seq, future in waiting:
            if seq > self.seq:
                self._waiting.append((seq, future))
            elif not future.done():
                future.set_result(None)

    async def _restore(self, seq: int, digest: str) -> None:
        while True:
            try:
                await self.on_restored(seq, digest)
            except ApplianceError as error:
                _log.error("%s", error)
                await asyncio.sleep(_AGAIN_S)
            else:
                break
        self._restoring = None
        self._since = self._looked = float("-inf")
        self.on_all()
        self.on_authority()
        self.look()

    def _fail(self, error: ApplianceError) -> None:
        if not self._first.done():
            self._first.set_exception(error)

    # -- in the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        backoff = Backoff()
        last = None if self._after is None else (self._after, "")
        behind_since = float("inf")
        while not self._stopping:
            try:
                if self._connection is None:
                    self._connection = self._open()
                begun = time.monotonic()
                self._is_notified = False
                own = self.own_head()
                found = _look(self._connection, last)
                last = found.seq, found.hash
                behind_since = self._check(found, own, begun, behind_since)
                self._call(self._take, begun, found)
                self._database.works()
                backoff.reset()
                if not found.is_more:
                    self._sleep(self._pause_s)
            except Exception as error:  # noqa: BLE001 - the driver has its own, and whatever it is, the next look is made anew
                if self._database.is_server:
                    self._database.failed(error)
                self._forget()
                failure = (
                    error
                    if isinstance(error, ApplianceError)
                    else StoreError(f"the certificate database cannot be read: {reason(error)}")
                )
                self._call(self._fail, failure)
                self._sleep(backoff.next_s())
        self._forget()

    def _check(self, found: _Found, own: int, begun: float, behind_since: float) -> float:
        """Return since when the own commits have not been in what is read; infinite if they are.

        Raises:
            DatabaseLost: They should have come by now, so this is another server than the one that takes them.
        """
        if found.is_more or found.is_other or not self._database.is_server or found.seq >= own:
            return float("inf")
        if begun - behind_since >= FRESH_S:
            raise DatabaseLost(
                "what this node commits does not come back: it reads from a server that is no longer the primary"
            )
        return min(behind_since, begun)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *arguments)

    def _open(self) -> sa.Connection:
        server = self._database.is_server
        connection = self._database.connect("feed", read_only=not server)
        if server:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            with connection.begin():
                connection.exec_driver_sql(f"LISTEN {CHANNEL}")
            self._raw(connection).add_notify_handler(self._notified)
        return connection

    @staticmethod
    def _raw(connection: sa.Connection) -> Any:
        return connection.connection.driver_connection

    def _notified(self, _notification: object) -> None:
        self._is_notified = True

    def _sleep(self, seconds: float) -> None:
        """Wait for a notification, for `look`, or until the time is over."""
        if self._is_notified or self._stopping:
            return
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            if self._connection is not None and self._database.is_server:
                selector.register(self._raw(self._connection).fileno(), selectors.EVENT_READ)
            ready = selector.select(seconds)
        if any(key.fileobj is self._woken for key, _ in ready):
            self._woken.recv(4096)

    def _forget(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):
                if self._database.is_server:
                    self._connection.invalidate()
                self._connection.close()
            self._connection = None


def _look(connection: sa.Connection, last: tuple[int, str] | None) -> _Found:
    """Read what came after ``last``, whose hash is empty if it is not known."""
    with connection.begin():
        head = connection.execute(_HEAD).first()
        now = (0, GENESIS) if head is None else (int(head.seq), str(head.hash))
        if last is None or now == last:
            return _Found(*now, {})
        rows = connection.execute(_NEWS, {"last": max(1, last[0])}).all()
    if last[0] and rows and rows[0].seq > last[0]:
        return _Found(*now, {}, is_all=True)
    if not rows or (last[0] and last[1] and rows[0].hash != last[1]):
        return _Found(*now, {}, is_other=bool(last[0]))
    news = [row for row in rows if row.serial and row.seq > last[0] and row.action not in _NO_CHANGE]
    return _Found(
        rows[-1].seq,
        rows[-1].hash,
        {int(row.serial): int(row.seq) for row in news},
        tuple(int(row.serial) for row in news if row.action in ENDS),
        is_more=len(rows) == _AT_ONCE,
        is_authority=any(row.action == "authority" and row.seq > last[0] for row in rows),
    )


class OthersRevocations:
    """Adds what other nodes revoke to the journal of this one, so that each of them can complete a restored database.

    Args:
        readers: Read the database.
        journal: The journal of this node.
        issuers: Returns the identifiers of the authorities whose certificates these are.
    """

    def __init__(self, readers: Readers, journal: Journal, issuers: Callable[[], Iterable[str]]) -> None:
        self.seq: int | None = None
        """Number of the last audit record whose revocation is in the journal; None before the first one."""
        self._readers = readers
        self._journal = journal
        self._issuers = issuers
        self._waiting: deque[tuple[Sequence[int] | None, int]] = deque()
        """Certificates that may be revoked, each with the number of the last record read with them; None: it may be any."""
        self._task: asyncio.Task[None] | None = None

    def take(self, serials: Sequence[int], seq: int) -> None:
        """Add what was revoked with the records up to ``seq``, soon."""
        if not serials and not self._waiting:
            self.seq = seq
            return
        self._waiting.append((serials, seq))
        self.go_on()

    def take_all(self, seq: int) -> None:
        """Add all that is revoked, soon: records up to ``seq`` were removed as old before this node has read them."""
        self._waiting.append((None, seq))
        self.go_on()

    def go_on(self) -> None:
        """Try again what failed before."""
        if self._waiting and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())
            self._task.add_done_callback(self._ended)

    def _ended(self, _task: asyncio.Task[None]) -> None:
        self._task = None

    async def _work(self) -> None:
        while self._waiting:
            serials, seq = self._waiting[0]
            try:
                if serials is None:
                    await self._add_all()
                elif news := [serial for serial in serials if serial not in self._journal.known]:
                    await self._add(news)
            except JournalError as error:
                _log.error(
                    "%s; the service tries again soon", error
                )  # the journal keeps it, and health says so
            except ApplianceError as error:
                _log.debug("%s", error)
                return
            self._waiting.popleft()
            self.seq = seq

    def _revoked(self) -> sa.Select[Any]:
        return sa.select(certs.c.serial, certs.c.state_date, certs.c.barred).where(
            certs.c.issuer.in_(list(self._issuers())), certs.c.state == CertState.REVOKED.value
        )

    async def _add(self, serials: Sequence[int]) -> None:
        query = self._revoked().where(certs.c.serial.in_(serials))
        self._write(await self._readers.read(partial(_all_of, query)))

    async def _add_all(self) -> None:
        last = 0
        while True:
            query = self._revoked().where(certs.c.serial > last).order_by(certs.c.serial).limit(_AT_ONCE)
            rows = await self._readers.read_much(partial(_all_of, query))
            self._write([row for row in rows if row.serial not in self._journal.known])
            if len(rows) < _AT_ONCE:
                return
            last = int(rows[-1].serial)

    def _write(self, rows: Sequence[Any]) -> None:
        self._journal.add(
            [(int(row.serial), int(row.state_date)) for row in rows],
            barred=[int(row.serial) for row in rows if row.barred],
        )


def _all_of(query: sa.Select[Any], connection: sa.Connection) -> Sequence[Any]:
    return connection.execute(query).all()
