"""Updates that are passed on and come very fast are read together: a wake-up of this process costs more than an update."""

from __future__ import annotations

from typing import Final

__all__ = ["DENSE", "REST_S", "SHORT_S", "Crowd"]

SHORT_S: Final = 0.0005
"""Seconds between two reads that are one after the other."""
DENSE: Final = 16
"""Reads of this kind that come one after the other before the next one waits: a few updates at a time are passed on at once."""
REST_S: Final = 0.001
"""Seconds for which nothing is read then."""


class Crowd:
    """The reads of one connection that brought nothing but updates to be passed on."""

    __slots__ = ("_ready_at", "_short")

    def __init__(self) -> None:
        self._short = 0
        self._ready_at = 0.0

    def is_dense(self, now: float) -> bool:
        """Note a read at ``now``; return whether many have come one after the other."""
        if now - self._ready_at > SHORT_S:
            self._short = 0
        elif self._short < DENSE:
            self._short += 1
        self._ready_at = now
        return self._short >= DENSE

    def resting(self, until: float) -> None:
        """Note that the next read comes not before ``until``."""
        self._ready_at = until
