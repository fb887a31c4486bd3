"""The thread that processes records: it may wait for their locks, which the event loop must not do for each update."""

from __future__ import annotations

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
    """One thread that does one piece of work after the other."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin with the work."""
        self._thread = threading.Thread(target=self._run, name="pvalink", daemon=True)
        self._thread.start()

    def push(self, work: Work) -> None:
        """Add work; from any thread."""
        self._queue.put(work)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                if work.work():
                    self._queue.put(work)
            except Exception:  # noqa: BLE001 - the other links need this thread
                _log.exception("the work of a PVA link failed")

    def close(self) -> None:
        """End the thread after the present piece; blocks until then."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()
