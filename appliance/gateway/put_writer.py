"""The file of a put log is written in a thread of its own: a disk that is slow, or answers no more, holds up nobody else.

A put waits until its record is written. What waits has bounds; what cannot be written is said, and never left out in silence.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

from appliance.daemon.audit import PutRecords
from appliance.errors import OperationError

__all__ = ["PutWriter"]

_log: Final = logging.getLogger(__name__)
_BATCH: Final = 1000
"""The most records in one write."""
_OCTETS: Final = 16 << 20
"""The most memory of new puts' records that wait, some 7000; those that say how a put ended may take as much again."""
_EACH: Final = 2048
"""Octets of a record besides its texts."""
PATIENCE_S: Final = 5.0
"""How long a put waits for its record."""
_LAST_S: Final = 10.0
"""How long the end of the gateway waits for the records that are not written yet."""
_BEHIND: Final = (
    "the put log is not written at present; puts that it must record are refused until its disk answers again"
)

Finish = Callable[[str], None]
"""Goes on with a put. The argument is why it must not be sent; empty if it may be sent."""


class _Entry(NamedTuple):
    record: dict[str, Any]
    size: int
    at: float
    """When it began to wait, by the event loop's clock."""


class PutWriter:
    """Writes the records of one put log, in the order in which they come. Call all methods on the event loop's thread.

    Args:
        file: Path of the sealed log.
        required: Refuse puts whose records are not written. Otherwise they are done, and the daemon's log says so.

    Raises:
        ConfigurationError: The file cannot be opened.
    """

    def __init__(self, file: str, *, required: bool) -> None:
        self.file = file
        self._records = PutRecords(file, required=required)
        self._required = required
        self._queue: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._entries: deque[_Entry] = deque()
        """What the thread has not reported as done yet, in its order."""
        self._puts: dict[int, Finish] = {}
        """The puts that wait, by the numbers of their records."""
        self._octets = 0
        self._first = 0
        """The number of the first entry."""
        self._lost = 0
        self._stalled = False
        self._thread: threading.Thread | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def trouble(self) -> str:
        """Why records are not written at present; empty if they are."""
        if self._stalled:
            return f"{self.file}: the disk has not taken a record for {PATIENCE_S:g} s; {len(self._entries)} wait"
        return self._records.trouble

    def begin(self, record: dict[str, Any], octets: int, finish: Finish) -> None:
        """Write the record of a new put; ``finish`` is called when that is done, or cannot be waited for, and never at once.

        Args:
            record: The record.
            octets: The size of its texts.
            finish: Goes on with the put.

        Raises:
            OperationError: It cannot be written; the put must not be sent.
        """
        full = self._octets >= _OCTETS
        if self._stalled or full:
            if self._required:
                raise OperationError(_BEHIND)
            if full:
                self._leave_out()
                self._run().call_soon(finish, "")
                return
        number = self._add(record, octets)
        if self._stalled:
            self._run().call_soon(finish, "")
        else:
            self._puts[number] = finish

    def add(self, record: dict[str, Any], octets: int) -> None:
        """Write a record for which nothing waits: how a put ended."""
        if self._octets >= 2 * _OCTETS:
            self._leave_out()
            return
        self._add(record, octets)

    def _leave_out(self) -> None:
        self._lost += 1
        _log.error(
            "the put log misses a record: %s does not take records, and too many wait (%d left out so far)",
            self.file,
            self._lost,
            extra={"event": "put-log-failed"},
        )

    def _run(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def _add(self, record: dict[str, Any], octets: int) -> int:
        loop = self._run()
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, args=(loop,), name="put log", daemon=True)
            self._thread.start()
        entry = _Entry(record, octets + _EACH, loop.time())
        self._entries.append(entry)
        self._octets += entry.size
        if self._timer is None:
            self._timer = loop.call_later(PATIENCE_S, self._look)
        self._queue.put({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record})
        return self._first + len(self._entries) - 1

    # -- the thread ----------------------------------------------------------------------------------

    def _write(self, loop: asyncio.AbstractEventLoop) -> None:
        queue = self._queue
        ends = False
        while not ends:
            # All that waits is written at once: a busy event loop lets this thread run some hundred times a second only.
            batch = []
            record = queue.get()
            while record is not None:
                batch.append(record)
                if queue.empty() or len(batch) >= _BATCH:
                    break
                record = queue.get()
            ends = record is None
            if batch and not self._take(loop, batch):
                return

    def _take(self, loop: asyncio.AbstractEventLoop, batch: list[dict[str, Any]]) -> bool:
        """Write records and report; return whether the event loop still runs."""
        try:
            results = self._records.write_all(batch)
        except Exception:  # noqa: BLE001 - a defect must not end the log in silence
            _log.exception("the put log misses %d records", len(batch), extra={"event": "put-log-failed"})
            results = [_BEHIND if self._required else ""] * len(batch)
        try:
            loop.call_soon_threadsafe(self._written, results)
        except RuntimeError:
            return False
        return True

    # -- on the event loop ---------------------------------------------------------------------------

    def _written(self, results: list[str]) -> None:
        for why in results:
            entry = self._entries.popleft()
            self._octets -= entry.size
            finish = self._puts.pop(self._first, None)
            self._first += 1
            if finish is not None:
                finish(why)
        if self._stalled:
            self._stalled = False
            _log.warning("the put log %s is written again", self.file)

    def _look(self) -> None:
        """Let no put wait longer than it may."""
        self._timer = None
        if not self._entries:
            return
        loop = self._run()
        now = loop.time()
        if now - self._entries[0].at >= PATIENCE_S:
            if not self._stalled:
                self._stalled = True
                _log.error(
                    "the put log %s has not been written for %g s: does its disk answer? %s",
                    self.file,
                    PATIENCE_S,
                    "Puts that it must record are refused"
                    if self._required
                    else "Puts go on, and their records wait",
                    extra={"event": "put-log-failed"},
                )
            puts, self._puts = self._puts, {}
            for finish in puts.values():
                finish(_BEHIND if self._required else "")
        # Soon after the oldest may wait no longer; while the disk does not answer, once in that time.
        self._timer = loop.call_later(
            max(self._entries[0].at + PATIENCE_S - now, 0.1) if not self._stalled else PATIENCE_S, self._look
        )

    def close(self) -> None:
        """Write what waits, and close the file. It waits for the disk some seconds at most."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(_LAST_S)
            if thread.is_alive():
                # The file stays open: the thread may still be in the middle of a record.
                _log.critical(
                    "the put log %s misses records: its disk does not answer, and the gateway ends",
                    self.file,
                    extra={"event": "put-log-failed"},
                )
                return
        self._records.close()
