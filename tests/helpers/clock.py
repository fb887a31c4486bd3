"""A clock that goes only where a test moves it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any


class _Call:
    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback = callback
        self.args = args
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeClock:
    """Has the methods of an event loop that a client's parts use."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._calls: list[tuple[float, int, _Call]] = []
        self._order = itertools.count()

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> _Call:
        return self.call_at(self.now, callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> _Call:
        return self.call_at(self.now + delay, callback, *args)

    def call_at(self, when: float, callback: Callable[..., object], /, *args: Any) -> _Call:
        call = _Call(callback, args)
        heapq.heappush(self._calls, (when, next(self._order), call))
        return call

    def advance(self, seconds: float) -> None:
        """Let time pass, and do at its time what falls into it."""
        until = self.now + seconds
        while self._calls and self._calls[0][0] <= until:
            when, _, call = heapq.heappop(self._calls)
            self.now = max(self.now, when)
            if not call.is_cancelled:
                call.callback(*call.args)
        self.now = until
