"""SharedPV whose handlers run in threads, and may block."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from appliance.p4p._errors import RemoteError
from appliance.p4p.server.raw import Handler, _on_queue
from appliance.p4p.server.raw import SharedPV as _SharedPV
from appliance.p4p.util import ThreadedWorkQueue, WorkQueue, _defaultWorkQueue

__all__ = ["Handler", "RemoteError", "SharedPV"]


class SharedPV(_SharedPV):
    """A PV with one value that all clients share. Its handlers run in a thread, one after another, and may block.

    Args:
        queue: Its threads run the handlers; without it one of four queues of the process does.
        kws: ``handler``, ``initial``, ``nt``, ``wrap``, ``unwrap`` and ``options``, as for
            `appliance.p4p.server.raw.SharedPV`.

    Raises:
        ValueError: ``initial`` cannot be converted.

    Example:
        >>> from appliance.p4p.nt import NTScalar
        >>> pv = SharedPV(nt=NTScalar("d"), initial=0.0)
        >>> @pv.put
        ... def handle(pv, op):
        ...     if op.value() < 0:
        ...         op.done(error="must not be negative")
        ...     else:
        ...         pv.post(op.value())
        ...         op.done()
        >>> pv.post(4.5, severity=1)
        >>> pv.current().severity
        1
    """

    def __init__(self, queue: WorkQueue | None = None, **kws: Any) -> None:
        self._queue = queue or _defaultWorkQueue()
        self._change = threading.Condition()
        self._connected = False
        self._ended = 0
        """How often the last client has left."""
        super().__init__(**kws)

    def _exec(self, op: Any, M: Callable[..., Any], *args: Any) -> None:
        self._queue.push(partial(_on_queue, op, M, *args))

    def _onFirstConnect(self, _junk: Any) -> None:
        with self._change:
            self._connected = True

    def _onLastDisconnect(self, _junk: Any) -> None:
        with self._change:
            self._connected = False
            self._ended += 1
            self._change.notify_all()

    def close(self, destroy: bool = False, sync: bool = False, timeout: float | None = None) -> None:
        """Remove the value, and disconnect all clients; they wait for another `open`.

        A client that connects again meanwhile is not waited for. Remove the PV from its provider first if none shall.

        Args:
            destroy: Accepted and not used, as in p4p.
            sync: Wait until ``onLastDisconnect`` was called.
            timeout: Seconds to wait at most with ``sync``; None waits for ever. It is no error if they pass.

        Raises:
            RuntimeError: ``sync`` is set in a handler of a queue, which would wait for itself.

        Example:
            >>> from appliance.p4p.nt import NTScalar
            >>> pv = SharedPV(nt=NTScalar("d"), initial=0.5)
            >>> pv.close(sync=True)
            >>> pv.isOpen()
            False
        """
        if sync and threading.current_thread() in getattr(self._queue, "_T", ()):
            raise RuntimeError(
                "close(sync=True) cannot wait in a handler of the same work queue; leave sync out"
            )
        ends = None if timeout is None else time.monotonic() + timeout
        with self._change:
            ended = self._ended
        super().close(destroy)
        if not sync:
            return
        if isinstance(self._queue, ThreadedWorkQueue):
            self._queue.sync(timeout)
        with self._change:
            self._change.wait_for(
                lambda: not self._connected or self._ended != ended,
                None if ends is None else max(0.0, ends - time.monotonic()),
            )
