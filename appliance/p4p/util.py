"""Queues of calls, and the threads that make them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import Empty, Full, Queue, SimpleQueue
from typing import Any, Final, Self

from appliance.threads import ends_program

__all__ = ["Empty", "Full", "ThreadedWorkQueue", "WorkQueue"]

_log = logging.getLogger(__name__)

Work = Callable[[], Any]


class WorkQueue:
    """Calls that wait for a thread to make them, in their order.

    Args:
        maxsize: Calls that may wait; 0 or less lets any number wait.

    Example:
        >>> queue = WorkQueue()
        >>> queue.push(lambda: print("done"))
        >>> queue.interrupt()
        >>> queue.handle()
        done
    """

    _stopit: Final = object()

    def __init__(self, maxsize: int = 5) -> None:
        # A queue without a bound needs no lock of Python's own: it takes a third of the time.
        self._Q: Queue[Any] | SimpleQueue[Any] = Queue(maxsize) if maxsize > 0 else SimpleQueue()

    def push(self, callable: Work) -> None:
        """Let ``callable`` wait for its turn.

        Args:
            callable: Called without arguments by a thread that runs `handle`.

        Raises:
            Full: ``maxsize`` calls wait already.

        Example:
            >>> queue = WorkQueue(maxsize=1)
            >>> queue.push(print)
            >>> queue.push(print)
            Traceback (most recent call last):
            queue.Full
        """
        self._Q.put_nowait(callable)

    def push_wait(self, callable: Work) -> None:
        """Let ``callable`` wait for its turn; while the queue is full, wait here.

        Args:
            callable: As for `push`.

        Example:
            >>> queue = WorkQueue()
            >>> queue.push_wait(lambda: print("done"))
            >>> queue.interrupt()
            >>> queue.handle()
            done
        """
        self._Q.put(callable)

    def interrupt(self) -> None:
        """End one call of `handle`, after the work that waits already. While the queue is full, wait here.

        Example:
            >>> queue = WorkQueue()
            >>> queue.interrupt()
            >>> queue.handle()
        """
        self._Q.put(self._stopit)

    def handle(self) -> None:
        """Make the calls of this queue, until `interrupt`. An error of a call is logged, and the next one is made.

        Example:
            >>> queue = WorkQueue()
            >>> queue.push(lambda: print("done"))
            >>> queue.interrupt()
            >>> queue.handle()
            done
        """
        take = self._Q.get
        while True:
            callable = take()
            if callable is self._stopit:
                return
            try:
                callable()
            except BaseException as error:
                _log.exception("a call of the work queue failed: %r", callable)
                if ends_program(error):
                    raise
            finally:
                callable = None  # what was called must not live on while this thread waits


class ThreadedWorkQueue(WorkQueue):
    """A work queue with threads of its own. It runs after `start`, or inside ``with``.

    Args:
        name: First part of the threads' names.
        workers: Threads; more than one make calls at the same time, and not in their order.
        daemon: Whether the interpreter may end while calls are being made.
        kws: For `WorkQueue`.

    Example:
        >>> done = []
        >>> with ThreadedWorkQueue("demo", workers=1) as queue:
        ...     queue.push(lambda: done.append("work"))
        >>> done
        ['work']
    """

    def __init__(self, name: str | None = None, workers: int = 1, daemon: bool = False, **kws: Any) -> None:
        if workers < 1:
            raise AssertionError(workers)
        super().__init__(**kws)
        self.name = name
        self._daemon = daemon
        self._T: list[threading.Thread | None] = [None] * workers

    def __enter__(self) -> Self:
        try:
            return self.start()
        except (
            BaseException
        ):  # an interrupt: threads that are no daemons would keep the interpreter from its end
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the threads that do not run yet. Returns this queue, so that calls can be chained.

        Example:
            >>> queue = ThreadedWorkQueue("demo").start()
            >>> queue = queue.stop()
        """
        for number, running in enumerate(self._T):
            if running is None:
                thread = threading.Thread(
                    name=f"{self.name}[{number}]", target=self.handle, daemon=self._daemon
                )
                self._T[number] = thread
                thread.start()
        return self

    def stop(self, timeout: float | None = None) -> Self:
        """End the threads after the work that waits, and wait for them. Returns this queue.

        Args:
            timeout: Seconds to wait for each thread; None waits for ever.

        Example:
            >>> queue = ThreadedWorkQueue("demo").start()
            >>> queue = queue.stop()
        """
        running = [thread for thread in self._T if thread is not None and thread.ident is not None]
        for _ in running:
            self.interrupt()
        for thread in running:
            thread.join(timeout)
        self._T = [None] * len(self._T)
        return self

    def sync(self, timeout: float | None = None) -> Self:
        """Wait until all work that was pushed before is done. Returns this queue.

        Args:
            timeout: Seconds to wait at most; None waits for ever. It is no error if they pass.

        Example:
            >>> done = []
            >>> with ThreadedWorkQueue("demo") as queue:
            ...     queue.push(lambda: done.append("work"))
            ...     queue = queue.sync()
            ...     print(done)
            ['work']
        """
        ends = None if timeout is None else time.monotonic() + timeout
        # Each thread holds one of these calls until all have one, so that none takes two.
        reached = [threading.Event() for _ in self._T]
        leave = threading.Event()

        def hold(here: threading.Event) -> None:
            here.set()
            leave.wait()

        for here in reached:
            self.push_wait(partial(hold, here))
        for here in reached:
            here.wait(None if ends is None else max(0.0, ends - time.monotonic()))
        leave.set()
        return self


class _DefaultWorkQueue:
    """The work queues of those who name none: a few, each with one thread, which are given out in turn.

    One PV or subscription always uses one queue, so its calls keep their order.
    """

    def __init__(self, workers: int = 4) -> None:
        self.W: list[ThreadedWorkQueue | None] = [None] * workers
        self.n = 0
        self._lock = threading.Lock()

    def __call__(self) -> ThreadedWorkQueue:
        with self._lock:
            number = self.n
            self.n = (number + 1) % len(self.W)
            queue = self.W[number]
            if queue is None:
                # The interpreter waits for threads that are no daemons before it calls anything that could end them.
                queue = self.W[number] = ThreadedWorkQueue("appliance-p4p-work", maxsize=0, daemon=True)
                queue.start()
            return queue

    def sync(self, timeout: float | None = None) -> None:
        """Wait until all work that was pushed to any of the queues before is done."""
        for queue in self.W:
            if queue is not None:
                queue.sync(timeout)

    def stop(self, timeout: float | None = None) -> None:
        """End all threads after the work that waits.

        Args:
            timeout: Seconds to wait for each thread; None waits for ever.
        """
        for queue in self.W:
            if queue is not None:
                queue.stop(timeout)
        self.W = [None] * len(self.W)

    def _forget(self) -> None:
        """Begin anew in the child of a fork, which has none of the threads."""
        self._lock = threading.Lock()
        self.W = [None] * len(self.W)


_defaultWorkQueue = _DefaultWorkQueue()
os.register_at_fork(after_in_child=_defaultWorkQueue._forget)
