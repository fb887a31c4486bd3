"""Tokens that were used: each `jti` is accepted once until it can no longer be presented."""

from __future__ import annotations

import heapq
from typing import Final, Protocol

__all__ = ["MemoryReplayStore", "ReplayStore"]

_MAX_TOKENS: Final = 1_000_000


class ReplayStore(Protocol):
    """Remembers used tokens. The certificate service keeps them in its database, across restarts."""

    async def use(
        self, issuer: str, token_hash: str, until: float, now: float, issued: float | None = None
    ) -> bool:
        """Record the use of a token, atomically; False when it was used before, or when that cannot be told.

        `token_hash` is the SHA-256 of its jti in hex; `until` is the time from which on it is refused for its age
        anyway, `issued` when it was issued, where it says so; times are POSIX seconds. Whoever raises instead of answering causes a refusal.
        """
        ...


class MemoryReplayStore:
    """For a service of one process that may forget at a restart: tests and quick starts."""

    __slots__ = ("_by_end", "_forgotten_until", "_limit", "_used")

    def __init__(self, *, limit: int = _MAX_TOKENS) -> None:
        self._used: set[tuple[str, str]] = set()
        self._by_end: list[tuple[float, tuple[str, str]]] = []
        self._forgotten_until = float("-inf")
        self._limit = limit

    async def use(
        self,
        issuer: str,
        token_hash: str,
        until: float,
        now: float,
        issued: float | None = None,
    ) -> bool:
        """Record one use; see `ReplayStore.use`."""
        while self._by_end and (self._by_end[0][0] <= now or len(self._by_end) >= self._limit):
            end, token = heapq.heappop(self._by_end)
            self._used.discard(token)
            self._forgotten_until = max(self._forgotten_until, end)
        token = (issuer, token_hash)
        # After a step of the clock back, or with a full store, a token from the forgotten span may have been used.
        if token in self._used or until <= self._forgotten_until:
            return False
        self._used.add(token)
        heapq.heappush(self._by_end, (until, token))
        return True
