"""Updates that are passed on and come very fast are read together: a wake-up of this process costs more than an update."""

from __future__ import annotations

from typing import Final

__all__ = ["BURST", "PERIOD_S", "REST_S", "Crowd"]

PERIOD_S: Final = 0.001
"""Seconds for one read, on average. An update that comes alone is never late, nor are some at a time."""
BURST: Final = 16
"""Reads that may come at once before the next one waits."""
REST_S: Final = 0.002
"""Seconds for which nothing is read then. With one millisecond the gateway used 2.4 µs for an update, with two 1.7 to 2.2."""


class Crowd:
    """The reads of one connection that brought nothing but updates to be passed on.

    They have a budget, which grows with time. So it does not matter how regularly updates come: a busy server and a busy
    machine make gaps.
    """

    __slots__ = ("_last", "_left")

    def __init__(self) -> None:
        self._left = float(BURST)
        self._last = 0.0

    def is_dense(self, now: float) -> bool:
        """Note a read; return whether the budget is spent, so that the next one waits.

        Args:
            now: When it came, in seconds. A clock that counts milliseconds, as the event loop's does, is too coarse.
        """
        left = min(self._left + (now - self._last) / PERIOD_S, BURST) - 1.0
        self._last = now
        self._left = max(left, 0.0)
        return left < 1.0
