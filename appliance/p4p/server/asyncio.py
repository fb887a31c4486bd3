"""SharedPV whose handlers run on an event loop, and may be coroutines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from appliance.p4p._errors import RemoteError
from appliance.p4p.server.raw import Handler
from appliance.p4p.server.raw import SharedPV as _SharedPV

__all__ = ["Handler", "RemoteError", "SharedPV"]

_log = logging.getLogger(__name__)


class SharedPV(_SharedPV):
    """A PV with one value that all clients share. Its handlers run on the event loop that it was made on.

    ``put`` and ``rpc`` may be coroutine functions: then clients of one PV can be served at the same time.

    Args:
        handler: As for `appliance.p4p.server.raw.SharedPV`.
        kws: The other arguments of `appliance.p4p.server.raw.SharedPV`.

    Raises:
        RuntimeError: No event loop runs here.
        ValueError: ``initial`` cannot be converted.

    Example:
        >>> from appliance.p4p.nt import NTScalar
        >>> async def main():
        ...     pv = SharedPV(nt=NTScalar("d"), initial=0.0)
        ...
        ...     @pv.put
        ...     async def handle(pv, op):
        ...         pv.post(op.value())
        ...         op.done()
        ...
        ...     return float(pv.current())
        >>> asyncio.run(main())
        0.0
    """

    def __init__(self, handler: Any = None, **kws: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._disconnected = asyncio.Event()
        self._disconnected.set()
        self._ended = asyncio.Event()
        super().__init__(handler=handler, **kws)
        self._core.run_cancel = self.loop.call_soon_threadsafe

    def _exec(self, op: Any, M: Callable[..., Any], *args: Any) -> None:
        self.loop.call_soon_threadsafe(self._handle, op, M, args)

    def _handle(self, op: Any, M: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Call a handler on the loop."""
        try:
            result = M(*args)
        except Exception as error:  # noqa: BLE001 - the next request must be handled
            _fail(op, error)
            return
        if asyncio.iscoroutine(result):
            task = self.loop.create_task(result)
            self._tasks.add(task)
            task.add_done_callback(lambda task: self._handled(op, task))

    def _handled(self, op: Any, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            if op is not None:
                op.done(error="the server cancelled the request; try again")
            return
        error = task.exception()
        if error is not None:
            _fail(op, error)

    def _onFirstConnect(self, _junk: Any) -> None:
        self._disconnected.clear()

    def _onLastDisconnect(self, _junk: Any) -> None:
        self._disconnected.set()
        self._ended.set()

    async def _wait_closed(self) -> None:
        """Wait for handlers that run, and for ``onLastDisconnect``."""
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        if not self._disconnected.is_set():
            await self._ended.wait()

    def close(self, destroy: bool = False, sync: bool = False) -> Awaitable[None] | None:  # type: ignore[override]
        """Remove the value, and disconnect all clients; they wait for another `open`.

        Args:
            destroy: Accepted and not used, as in p4p.
            sync: Return something to await: it waits until handlers have ended and ``onLastDisconnect`` was called.

        Returns:
            With ``sync`` an awaitable, else None.

        Example:
            >>> from appliance.p4p.nt import NTScalar
            >>> pv = SharedPV(nt=NTScalar("d"), initial=0.5)
            >>> await pv.close(sync=True)
        """
        self._ended.clear()
        super().close(destroy)
        return self._wait_closed() if sync else None


def _fail(op: Any, error: BaseException) -> None:
    if not isinstance(error, RemoteError):
        _log.error("the handler of a PV failed", exc_info=error)
    if op is not None:
        op.done(error=str(error) or type(error).__name__)
