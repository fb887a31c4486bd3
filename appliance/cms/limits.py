"""How often an address may ask, counted by all nodes together: in a table of the database server.

The generic cell rate algorithm needs one number for each key, its theoretical arrival time: the time at which the bucket would
be full again. A request is allowed if that number stays within the burst. The table is not logged, so a take costs no disk; a
server that crashed begins with full buckets.

The local limit of a node comes first, so a flood asks no database. All that wait are asked about in one transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import sqlalchemy as sa

from appliance.cms.database import END_S
from appliance.cms.transaction import StoreError
from appliance.errors import ApplianceError

__all__ = ["Rate", "Rates", "SharedLimits", "grant"]

_log: Final = logging.getLogger(__name__)
_SECOND: Final = 1_000_000
_LONGEST_KEY: Final = 80
_PAUSE_S: Final = 0.1
"""Between two attempts to reach the database."""
_SILENT_S: Final = 5.0
"""For so long, beyond that, an answer is waited for."""
_OLD: Final = 3600 * _SECOND
_SWEEP_EVERY: Final = 600 * _SECOND
_NOW: Final = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS bigint)"
# Nobody waits for another's rows in another order, so there is no deadlock.
_MAKE: Final = sa.text(
    "INSERT INTO limits (key, tat) SELECT k, 0 FROM unnest(CAST(:keys AS text[])) AS k ORDER BY k ON CONFLICT DO NOTHING"
)
_READ: Final = sa.text("SELECT key, tat FROM limits WHERE key = ANY(:keys) ORDER BY key FOR UPDATE")
_TIME: Final = sa.text(f"SELECT {_NOW}")
_WRITE: Final = sa.text(
    "UPDATE limits SET tat = a.tat FROM unnest(CAST(:keys AS text[]), CAST(:tats AS bigint[])) AS a(key, tat) "
    "WHERE limits.key = a.key"
)
_FORGET: Final = sa.text("DELETE FROM limits WHERE tat < :before")


class Rate(NamedTuple):
    """So many in a minute in the long run, and so many at once."""

    per_minute: float
    burst: int

    @property
    def every(self) -> int:
        """Microseconds for one."""
        return max(1, round(60 * _SECOND / self.per_minute))


class Rates(NamedTuple):
    """The rate of each address, and that of all together."""

    address: Rate
    overall: Rate

    def of(self, address: str) -> Asked:
        """Return the keys of a request from an address."""
        return {address: self.address, "": self.overall}


Asked = Mapping[str, Rate]
"""The keys of one request: it takes one of each, or nothing."""


def grant(arrivals: dict[str, int], now: int, asked: Iterable[Asked]) -> list[float]:
    """Decide on requests, the first one first.

    Args:
        arrivals: The theoretical arrival time of each key, in microseconds. Those of what is allowed are moved.
        now: The present time in microseconds, by the same clock.
        asked: The keys of each request.

    Returns:
        For each request 0.0 if it is allowed, else the seconds until it would be.
    """
    waits = []
    for keys in asked:
        moved = {key: max(arrivals.get(key, 0), now) + rate.every for key, rate in keys.items()}
        late = max((moved[key] - now - rate.burst * rate.every for key, rate in keys.items()), default=0)
        if late <= 0:
            arrivals.update(moved)
        waits.append(max(0, late) / _SECOND)
    return waits


class _Waiting(NamedTuple):
    keys: Asked
    future: asyncio.Future[float]


class SharedLimits:
    """The limits of all nodes together, by a connection of its own.

    Args:
        connect: Opens a connection to the database server.
        cut: Ends all connections to a server that does not answer, when the service stops.
        wait_s: For so long a server that cannot be reached is tried again, in seconds.
    """

    def __init__(
        self,
        connect: Callable[[], sa.Connection],
        *,
        cut: Callable[[], None] = lambda: None,
        wait_s: float = 5.0,
    ) -> None:
        self._connect = connect
        self._cut = cut
        self._wait_s = wait_s
        self._stopping = threading.Event()
        self._connection: sa.Connection | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="limits")
        self._waiting: list[_Waiting] = []
        self._asking: asyncio.Task[None] | None = None
        self._swept = 0
        self._told = ""
        """Why it could not be asked, as the log has it."""

    async def take(self, keys: Asked) -> float:
        """Take one of each key.

        Returns:
            0.0 if it is allowed, else the seconds until it would be; then nothing was taken.

        Raises:
            ApplianceError: The database cannot be asked, so nothing is allowed.
        """
        wanted = {key[:_LONGEST_KEY]: rate for key, rate in keys.items() if rate.per_minute}
        if not wanted:
            return 0.0
        waiting = _Waiting(wanted, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask_all())
        try:
            async with asyncio.timeout(self._wait_s + _SILENT_S):
                return await waiting.future
        except TimeoutError:
            with contextlib.suppress(ValueError):  # it was asked already
                self._waiting.remove(waiting)
            raise StoreError(
                "the limit of requests cannot be asked about: the database does not answer; nothing was done"
            ) from None

    async def _ask_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                try:
                    waits = await loop.run_in_executor(self._thread, self._ask, [item.keys for item in batch])
                except Exception as error:  # noqa: BLE001 - whatever it is, nothing is allowed and each must know
                    _fail(batch, error)
                    continue
                for item, wait in zip(batch, waits, strict=True):
                    if not item.future.done():
                        item.future.set_result(wait)
        finally:
            self._asking = None

    def _ask(self, asked: Sequence[Asked]) -> list[float]:
        keys = sorted({key for wanted in asked for key in wanted})
        end = time.monotonic() + self._wait_s
        while True:
            try:
                if self._connection is None:
                    self._connection = self._connect()
                with self._connection.begin():
                    return self._decide(self._connection, keys, asked)
            except (sa.exc.SQLAlchemyError, ApplianceError) as error:
                self._forget_connection()
                if time.monotonic() >= end or self._stopping.wait(_PAUSE_S):
                    self._tell(str(getattr(error, "orig", None) or error))
                    raise StoreError(
                        "the limit of requests cannot be asked about: the database cannot be reached; nothing was done"
                    ) from error

    def _decide(self, connection: sa.Connection, keys: Sequence[str], asked: Sequence[Asked]) -> list[float]:
        before = self._lock(connection, keys)
        if len(before) < len(keys):
            connection.execute(_MAKE, {"keys": keys})
            before = self._lock(connection, keys)
        # The server's clock, which all nodes share, and only once the rows are ours.
        now = int(connection.execute(_TIME).scalar_one())
        arrivals = dict(before)
        waits = grant(arrivals, now, asked)
        moved = [key for key in keys if arrivals[key] != before.get(key)]
        if moved:
            connection.execute(_WRITE, {"keys": moved, "tats": [arrivals[key] for key in moved]})
        if now - self._swept > _SWEEP_EVERY:
            self._swept = now
            connection.execute(_FORGET, {"before": now - _OLD})
        return waits

    def _lock(self, connection: sa.Connection, keys: Sequence[str]) -> dict[str, int]:
        return {key: int(tat) for key, tat in connection.execute(_READ, {"keys": keys})}

    def _tell(self, why: str) -> None:
        if why != self._told:
            _log.warning("the limits of requests cannot be counted: %s", why)
        self._told = why

    def _forget_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                connection.close()

    async def close(self) -> None:
        """End the connection. Who waits is refused."""
        self._stopping.set()
        waiting, self._waiting = self._waiting, []
        _fail(waiting, StoreError("the service stops"))
        if self._asking is not None:
            await asyncio.wait([self._asking], timeout=END_S)
            if self._asking is not None:
                self._cut()
                await self._asking
        await asyncio.get_running_loop().run_in_executor(self._thread, self._forget_connection)
        self._thread.shutdown()


def _fail(batch: Iterable[_Waiting], error: Exception) -> None:
    for item in batch:
        if not item.future.done():
            item.future.set_exception(error)
