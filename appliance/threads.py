"""One event loop in one thread for the process: `appliance.blocking` and `appliance.p4p` share it.

A thread that wants something of the loop hands it over and waits; it never runs the loop itself
(docs/decisions/0090-one-loop-in-a-thread.md). `appliance.p4p.client.asyncio` needs none of this: it works on the loop of its
caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

__all__ = ["Engine", "ends_program", "engine", "hold_at_end", "shutdown"]

T = TypeVar("T")

_FORKED: Final = (
    "this process was forked, and cannot use the PVAccess client or server that its parent made; "
    "make a new one in the child, or start children with multiprocessing's 'spawn'"
)
_ENDED: Final = (
    "PVAccess was shut down in this process, as at the interpreter's end; nothing can be started any more"
)
_END_S: Final = 2.0
"""Seconds that the end of the engine waits for each of its steps."""


class Engine:
    """The event loop of the process, and the ways to use it from other threads."""

    def __init__(self) -> None:
        import uvloop

        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._refusal = ""
        """Why the engine cannot be used any more; empty while it can."""
        self._waiting: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False
        self._waker = 0
        """The thread that is about to wake the loop; 0 if none is."""
        self._thread = threading.Thread(target=self._run, name="appliance-p4p", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on the loop's thread; it must not wait for the loop then."""
        return threading.get_ident() == self._thread.ident

    @property
    def is_usable(self) -> bool:
        """Whether something can still be started: the process was not forked, and the engine has not ended."""
        return not self._refusal

    def check(self) -> None:
        """Refuse what cannot be done any more.

        Raises:
            RuntimeError: The process was forked, or the interpreter ends.
        """
        if self._refusal:
            if not self.is_current:
                hold_at_end()
            raise RuntimeError(self._refusal)

    def check_may_wait(self) -> None:
        """Refuse a caller who would wait for himself.

        Raises:
            RuntimeError: As `check`, or the caller is on the loop's own thread.
        """
        self.check()
        if self.is_current:
            raise RuntimeError(
                "a callback that runs on the PVAccess thread cannot wait for PVAccess; use a work queue"
            )

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
            self.check_may_wait()
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
        if self._refusal:
            self.check()
        self._waiting.append((function, args))
        # The loop clears the flag before it looks. So whoever finds it set has a look still to come, unless it is set by this very
        # thread, which is about to wake the loop, and was stopped by the garbage collector or a signal that calls us.
        if not self._woken or self._waker == threading.get_ident():
            try:
                self._waker = threading.get_ident()
                self._woken = True
                self.loop.call_soon_threadsafe(self._do_waiting)
            except (
                BaseException
            ):  # Ctrl-C: nobody else would wake the loop, and one look too many does no harm
                self._woken = False
                raise
            finally:
                self._waker = 0

    def _do_waiting(self) -> None:
        self._woken = False
        waiting = self._waiting
        for _ in range(len(waiting)):  # not for ever: what is added meanwhile has woken the loop again
            function, args = waiting.popleft()
            try:
                function(*args)
            except Exception as error:  # noqa: BLE001 - one bad call must not lose the others
                self.loop.call_exception_handler(
                    {"message": f"{function!r} failed on the PVAccess thread", "exception": error}
                )

    def end(self) -> None:
        """Cancel what runs, and end the loop and its thread."""
        if self._refusal:
            return
        self._refusal = _ENDED
        if self.is_current:
            return  # a callback asked for it; the thread is a daemon, and ends with the process
        if self._thread.is_alive():
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._cancel_all(), self.loop).result(_END_S)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(_END_S)
        if not self._thread.is_alive():
            self.loop.close()

    @staticmethod
    async def _cancel_all() -> None:
        own = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not own]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def leave_to_parent(self) -> None:
        """Refuse all use in the child of a fork, and keep the child's hands off what it shares with its parent."""
        self._refusal = _FORKED
        # Both processes have the same epoll object. If the child's garbage collector closed a connection, the parent
        # would hear no more from its own. So the child's number leads to nothing from now on.
        descriptor: int = self.loop._get_backend_id()  # type: ignore[attr-defined]
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)


def ends_program(error: BaseException) -> bool:
    """Whether what a program's function raised ends the program: Ctrl-C or ``sys.exit()`` on the main thread.

    On a thread of ours both would only end that thread, or a connection that others use.

    Args:
        error: What was raised here.
    """
    return (
        isinstance(error, (KeyboardInterrupt, SystemExit))
        and threading.current_thread() is threading.main_thread()
    )


def hold_at_end() -> None:
    """Keep a daemon thread here for ever if the interpreter is ending: its errors would only be printed into the end."""
    if not threading.main_thread().is_alive() and threading.current_thread().daemon:
        threading.Event().wait()


_lock = threading.Lock()
_engine: Engine | None = None
_inherited: list[Engine] = []
"""Engines of the parent; never freed, because freeing them closes what is not ours."""


def engine() -> Engine:
    """Return the engine of this process, and start it at the first use.

    Raises:
        RuntimeError: The interpreter ends.
    """
    global _engine  # noqa: PLW0603 - one for the process by design
    with _lock:
        if _engine is None or not _engine.is_usable:
            if sys.is_finalizing():
                raise RuntimeError(_ENDED)
            _engine = Engine()
        return _engine


def shutdown() -> None:
    """End the engine, if there is one. The next use starts another, unless the interpreter ends."""
    with _lock:
        if _engine is not None:
            _engine.end()


def _after_fork() -> None:
    global _lock, _engine  # noqa: PLW0603 - see above
    _lock = threading.Lock()  # another thread of the parent may have held it
    if _engine is not None:
        if _engine.is_usable:
            _engine.leave_to_parent()
        _inherited.append(_engine)
        _engine = None


os.register_at_fork(after_in_child=_after_fork)
