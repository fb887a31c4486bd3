"""One event loop in one thread for the process: all blocking clients and all servers of the package share it.

A thread that wants something of the loop hands it over and waits. Nothing here is needed by `appliance.p4p.client.asyncio`,
which works on the loop of its caller.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

__all__ = ["Engine", "engine"]

T = TypeVar("T")

_FORKED: Final = (
    "this process was forked, and cannot use the PVAccess client or server that its parent made; "
    "make a new one in the child, or start children with multiprocessing's 'spawn'"
)
_ENDED: Final = "the interpreter is ending: no PVAccess operation can be started any more"


class Engine:
    """The event loop of the process, and the ways to use it from other threads."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
        self._pid = os.getpid()
        self._ended = False
        self._soon: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._thread = threading.Thread(target=self._run, name="appliance-p4p", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(_FORKED)
        if self._ended:
            raise RuntimeError(_ENDED)

    def _check_may_wait(self) -> None:
        if self.is_current:
            raise RuntimeError(
                "a callback that runs on the PVAccess thread cannot wait for PVAccess; use a work queue"
            )

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on the loop's thread; it must not wait for the loop then."""
        return threading.current_thread() is self._thread

    def call(self, function: Callable[..., T], *args: Any, timeout: float | None = None) -> T:
        """Run ``function`` on the loop, and wait for its result.

        Args:
            function: Called on the loop; must not block. On the loop's own thread it is called at once.
            args: For ``function``.
            timeout: Seconds to wait at most; None waits for ever.

        Raises:
            TimeoutError: There was no result in time.
            RuntimeError: The process was forked, or the interpreter ends.
        """
        if self.is_current:
            return function(*args)

        async def run() -> T:
            return function(*args)

        return self.run(run(), timeout)

    def run(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the loop, and wait for its result.

        Args:
            work: The coroutine. If the caller gives up, it is cancelled.
            timeout: Seconds to wait at most; None waits for ever.

        Raises:
            TimeoutError: There was no result in time.
            RuntimeError: The process was forked, the interpreter ends, or the caller is on the loop's own thread.
        """
        try:
            self._check()
            self._check_may_wait()
        except RuntimeError:
            work.close()
            raise
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call ``function`` on the loop in the order of the calls, and return at once.

        Many calls in a burst wake the loop once. It is safe from any thread and never blocks.

        Raises:
            RuntimeError: The process was forked, or the interpreter ends.
        """
        self._check()
        waiting = self._soon
        waiting.append((function, args))
        if len(waiting) == 1:
            self.loop.call_soon_threadsafe(self._do_soon)

    def _do_soon(self) -> None:
        waiting = self._soon
        while waiting:
            function, args = waiting[0]
            try:
                function(*args)
            except Exception as error:  # noqa: BLE001 - one bad call must not lose the others
                self.loop.call_exception_handler(
                    {"message": f"{function!r} failed on the PVAccess thread", "exception": error}
                )
            waiting.popleft()


_lock = threading.Lock()
_engine: Engine | None = None


def engine() -> Engine:
    """Return the engine of this process, and start it if it is the first use.

    Raises:
        RuntimeError: The interpreter ends.
    """
    global _engine  # noqa: PLW0603 - one for the process by design
    with _lock:
        if _engine is None or _engine._pid != os.getpid():
            _engine = Engine()
        return _engine
