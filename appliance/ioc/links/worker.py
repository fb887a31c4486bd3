"""The thread that processes records: it may wait for their locks, which the event loop must not do for each update."""

from __future__ import annotations

import asyncio
import logging
import threading
from queue import SimpleQueue
from typing import Final, Protocol

__all__ = ["Work", "Worker"]

_log: Final = logging.getLogger(__name__)


class Work(Protocol):
    """Something to do in the worker's thread."""

    def work(self) -> bool:
        """Do one piece; return whether there is more, which comes after the work of others."""


class Worker:
    """One thread that does one piece of work after the other.

    What the event loop gives it in one turn comes to it together, at the end of that turn: each wake-up of a thread costs as
    much as the processing of some records, and two threads that are busy at once take the GIL from each other.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[list[Work] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = -1
        self._turn: list[Work] = []
        """What this turn of the event loop has brought."""

    def start(self) -> None:
        """Begin with the work: on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="pvalink", daemon=True)
        self._thread.start()

    def push(self, work: Work) -> None:
        """Add work; from any thread. What one thread adds is done in its order."""
        loop = self._loop
        if loop is None or threading.get_ident() != self._loop_thread:
            self._queue.put([work])
            return
        if not self._turn:
            loop.call_soon(self._hand_over)
        self._turn.append(work)

    def _hand_over(self) -> None:
        turn, self._turn = self._turn, []
        if turn:
            self._queue.put(turn)

    def _run(self) -> None:
        while True:
            batch = self._queue.get()
            if batch is None:
                if self._queue.empty():
                    return
                # The rest of something that takes several pieces comes after the end was asked for.
                self._queue.put(None)
                continue
            left: list[Work] = []
            for work in batch:
                try:
                    if work.work():
                        left.append(work)
                except Exception:  # noqa: BLE001 - the other links need this thread
                    _log.exception("the work of a PVA link failed")
            if left:
                self._queue.put(left)

    async def close(self) -> None:
        """End the thread after what it has to do: on the event loop."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._hand_over()
            self._queue.put(None)
            await asyncio.to_thread(thread.join)
